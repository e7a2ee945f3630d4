"""What a pass leaves alone: the state in eval, its input, its earlier results, the memory of the caller."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from vqverify.bounds import Clause, holds
from vqverify.case import Case
from vqverify.invariant import invariant
from vqverify.invariants.agreement import same
from vqverify.invariants.interface import CORNERS, SOURCE
from vqverify.quantizer import Quantizer


def _moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that changed or went away."""
    return [name for name, tensor in before.items() if name not in after or not same(tensor, after[name])]


def first_call_parts(subject: Quantizer) -> tuple[str, ...]:
    """With and without gradients, and the very first call of a layer that initialises itself."""
    return ("grad", "no_grad", *(("first call",) if getattr(getattr(subject, "plan", None), "warm", 0) else ()))


@invariant(
    "interface.eval_pure", kind="contract", source=SOURCE, state="both", parts=first_call_parts, corners=CORNERS,
    mutants=("eval_learns", "eval_counts", "eval_replaces"),
    hint="guard every update by self.training: EMA, usage counts, k-means start, replacement of dead codes.",
)
def eval_pure(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """An eval pass leaves every parameter and buffer bitwise as it was, with gradients on or off, also the first call."""
    if case.part == "first call":
        subject = subject.build(warm=False)
    before = subject.state()
    for step in range(2):
        subject.forward(case.z, train=False, seed=case.seed + step, grad=case.part != "no_grad")
    moved = _moved(before, subject.state())
    yield holds(not moved, "changed", f"an eval pass changed {', '.join(moved[:4])}")
    added = sorted(set(subject.module.state_dict()) - set(before))
    yield holds(not added, "added", f"an eval pass added {', '.join(added[:4])} to the state")


def eval_parts(subject: Quantizer) -> tuple[str | None, ...]:
    """None where the layer is said to draw in eval."""
    claim = subject.claims.get("stochastic")
    return () if claim is not None and claim.value in {"eval", "both"} else (None,)


@invariant(
    "interface.eval_deterministic", kind="contract", source=SOURCE, state="both", parts=eval_parts, corners=CORNERS,
    follows=("interface.eval_pure",), mutants=("samples_in_eval", "dropout_in_eval"),
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
