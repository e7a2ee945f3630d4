"""What a pass leaves alone: the state in eval, its input, its earlier results, the memory of the caller."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from vqverify.bounds import Clause, holds
from vqverify.case import Case, prepare
from vqverify.invariant import invariant
from vqverify.invariants.agreement import agree, same
from vqverify.invariants.interface import CORNERS, SOURCE, backward, modes
from vqverify.invariants.measure import trait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from vqverify.quantizer import Quantized, Quantizer

DRAWS = {"gumbel", "noise", "sampled"}  # estimators that put randomness into the value


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that changed or went away."""
    return [name for name, tensor in before.items() if name not in after or not same(tensor, after[name])]


def first_call_parts(subject: Quantizer) -> tuple[str, ...]:
    """With and without gradients, and the very first call of a layer that initialises itself."""
    return (
        "grad",
        "no_grad",
        *(("first call",) if getattr(getattr(subject, "plan", None), "warm", 0) else ()),
    )


@invariant(
    "interface.eval_pure",
    kind="contract",
    source=SOURCE,
    state="both",
    parts=first_call_parts,
    corners=CORNERS,
    mutants=("eval_that_learns", "eval_counts", "starts_in_eval"),
    hint="guard every update by self.training: EMA, usage counts, k-means start, replacement of dead codes.",
)
def eval_pure(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """An eval pass leaves every parameter and buffer bitwise as it was, also the first call."""
    if case.part == "first call":
        subject = subject.build(warm=False)
    before = subject.state()
    for step in range(2):
        subject.forward(case.z, train=False, seed=case.seed + step, grad=case.part != "no_grad")
    names = changed(before, subject.state())
    yield holds(not names, "changed", f"an eval pass changed {', '.join(names[:4])}")
    added = sorted(set(subject.module.state_dict()) - set(before))
    yield holds(not added, "added", f"an eval pass added {', '.join(added[:4])} to the state")


def eval_parts(subject: Quantizer) -> tuple[str | None, ...]:
    """None where the layer is said to draw in eval."""
    claim = subject.claims.get("stochastic")
    return () if claim is not None and claim.value in {"eval", "both"} else (None,)


@invariant(
    "interface.eval_deterministic",
    kind="contract",
    source=SOURCE,
    state="both",
    parts=eval_parts,
    corners=CORNERS,
    follows=("interface.eval_pure",),
    mutants=("noisy_lookup", "dropout_in_eval"),
    hint="sampling, noise and dropout belong under `if self.training`.",
)
def eval_deterministic(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Two eval calls on the same latents agree bitwise in z_q, codes and loss, whatever the global seed."""
    a, b = (subject.forward(case.z, train=False, seed=case.seed + shift, grad=False) for shift in (0, 1))
    yield holds(same(a.z_q.tensor, b.z_q.tensor), "value", "two eval calls gave different z_q")
    if a.codes is not None and b.codes is not None:
        yield holds(torch.equal(a.codes, b.codes), "codes", "two eval calls gave different codes")
    for first, second in zip(a.losses, b.losses, strict=False):
        yield holds(same(first.detach(), second.detach()), "loss", f"two eval calls gave losses {first} and {second}")


@invariant(
    "interface.input_unchanged",
    kind="contract",
    mode="table",
    source=SOURCE,
    parts=modes,
    corners=(*CORNERS, "generic"),
    mutants=("clamps_in_place", "residual_in_place"),
    hint="z.div_(norm), z += ... and out=z write into the encoder's output; work on a copy.",
)
def input_unchanged(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Forward and backward leave the latents that were handed in as they were."""
    train = case.part == "train"
    for grad in (True, False):
        handed: list[tuple[Tensor, Tensor]] = []

        def keep(call: Callable[[Tensor], Any], x: Tensor, handed: list[tuple[Tensor, Tensor]] = handed) -> Any:
            z = x * 1  # what an encoder returns: no leaf, so that autograd forbids no writing
            handed.append((z, z.detach().clone()))
            return call(z)

        out = subject.forward(case.z, train=train, seed=case.seed, grad=grad, via=keep)
        backward(out, case.g)
        for z, before in handed:
            yield holds(same(z.detach(), before), "written", "a pass wrote into the latents that it was given")


@invariant(
    "interface.no_alias",
    kind="contract",
    mode="table",
    source=SOURCE,
    parts=lambda _: ("z_q", "codes", "loss"),
    hardening=("loss",),
    corners=(*CORNERS, "generic"),
    mutants=("returns_buffer", "reuses_output"),
    hint="return a copy, not a view or an expanded row of the codebook, nor a buffer that is kept for the next call.",
    follows=(
        "interface.eval_pure",
        "interface.eval_deterministic",
    ),
)
def no_alias(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Writing into what a pass returned changes neither the state nor another result, earlier or later."""
    first = subject.forward(case.z, train=False, seed=case.seed, grad=False)
    value, codes, losses = _copies(first)
    for train in (True, False):
        out = subject.forward(case.z, train=train, seed=case.seed, grad=False)
        before = subject.state()
        for tensor in _returned(out, case.part):
            _overwrite(tensor)
        names = changed(before, subject.state())
        yield holds(not names, "state", f"writing into the returned {case.part} changed {', '.join(names[:4])}")
        prepare(subject, case) if train else None
    yield holds(same(first.z_q.tensor, value), "earlier", "a later pass wrote into z_q that was returned before")
    again = subject.forward(case.z, train=False, seed=case.seed, grad=False)
    yield holds(same(again.z_q.tensor, value), "value", f"writing into the returned {case.part} changed the next z_q")
    if codes is not None and again.codes is not None:
        yield holds(same(again.codes, codes), "codes", f"writing into the returned {case.part} changed the next codes")
    for a, b in zip(again.losses, losses, strict=False):
        yield holds(same(a, b), "loss", f"writing into the returned {case.part} changed the next loss")


def _copies(out: Quantized) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    codes = None if out.codes is None else out.codes.clone()
    return out.z_q.tensor.detach().clone(), codes, [loss.detach().clone() for loss in out.losses]


def _returned(out: Quantized, part: str | None) -> list[Tensor]:
    """The very tensors that the layer handed out."""
    if part == "z_q":
        return [out.z_q.tensor]
    if part == "loss":
        return list(out.losses)
    leaves = pytree.tree_leaves(out.raw)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_floating_point()]


def _overwrite(tensor: Tensor) -> None:
    with contextlib.suppress(RuntimeError):  # memory that refuses to be written (an expanded tensor) protects itself
        tensor.data.fill_(7)


@invariant(
    "interface.graph_free",
    kind="contract",
    mode="table",
    source=SOURCE,
    state="both",
    corners=("single", "generic"),
    mutants=("moments_with_graph", "keeps_loss"),
    hint="detach before you accumulate: a buffer with its graph keeps every batch alive and breaks the "
    "second backward.",
)
def graph_free(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """After a step no buffer or attribute carries an autograd graph."""
    out = subject.forward(case.z, train=True, seed=case.seed, via=lambda f, x: f(x * 1))
    backward(out, case.g)
    carrying = [name for name, tensor in _held(subject.module) if tensor.grad_fn is not None]
    yield holds(not carrying, "graph", f"after a step {', '.join(carrying[:4])} still carries a graph")


def _held(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that a module keeps: state, attributes, and what lies in containers."""
    for prefix, child in module.named_modules():
        for name, value in child.__dict__.items():
            if name != "_modules":
                for leaf in pytree.tree_leaves(value):
                    if isinstance(leaf, Tensor):
                        yield (f"{prefix}.{name}" if prefix else name), leaf


def no_grad_parts(subject: Quantizer) -> tuple[str, ...]:
    """Eval under no_grad and inference_mode; train where it is deterministic, estimator and all."""
    same_in_train = trait(subject, "deterministic", default=True) and trait(subject, "estimator") not in DRAWS
    same_in_eval = trait(subject, "eval_deterministic", default=True)
    return (*(("eval", "inference_mode") if same_in_eval else ()), *(("train",) if same_in_train else ()))


@invariant(
    "interface.no_grad_same",
    kind="contract",
    source="theory T14 (forward invariance)",
    state="both",
    parts=no_grad_parts,
    corners=CORNERS,
    mutants=("rotates_value_with_grad",),
    hint="the estimator may only change gradients: a value that depends on requires_grad or "
    "is_grad_enabled is another layer.",
)
def no_grad_same(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Results under no_grad, and in eval under inference_mode, are those with gradients, up to rounding.

    Margin: the same operations on the same numbers: the margin is 0 unless a kernel orders its sums by mode.
    """
    train = case.part == "train"
    want = subject.forward(case.z, train=train, seed=case.seed)
    prepare(subject, case)
    if case.part == "inference_mode":
        got = subject.forward(case.z, train=False, seed=case.seed, grad=False, via=_inferring)
    else:
        got = subject.forward(case.z, train=train, seed=case.seed, grad=False)
    yield from agree(subject, case, want, got, train=train)


def _inferring(call: Callable[[Tensor], Any], x: Tensor) -> Any:
    with torch.inference_mode():
        raw = call(x)
    return pytree.tree_map_only(Tensor, torch.clone, raw)
