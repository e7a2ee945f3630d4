"""At the edge of the domain and beyond: one latent, none, NaN and infinity, input that makes no sense."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqverify.bounds import Clause, Violation, holds
from vqverify.case import Case, prepare
from vqverify.invariant import invariant
from vqverify.invariants.agreement import agree, learnt, select
from vqverify.invariants.interface import SOURCE, backward, finite_outputs, finite_state
from vqverify.invariants.interface_batching import repeating_modes, train_repeats
from vqverify.invariants.measure import trait
from vqverify.subject.randomness import forked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vqverify.quantizer import Quantizer


def few_parts(subject: Quantizer) -> tuple[str, ...]:
    """One latent and none, in eval and train; batch statistics need more than one."""
    coupled = not train_repeats(subject) and trait(subject, "deterministic", default=True)
    single = ("single/eval",) if coupled else ("single/eval", "single/train")
    return (*single, "empty/eval", "empty/train")


@invariant(
    "interface.empty_and_single",
    kind="contract",
    mode="table",
    source=SOURCE,
    parts=few_parts,
    hardening=("empty*",),
    corners=("single", "zero", "generic"),
    state="both",
    mutants=("squeezes_single", "mean_over_nothing"),
    hint="squeeze() drops more than one axis, a variance of one number is NaN, a mean over nothing too.",
)
def empty_and_single(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """One latent, and none at all, work in train and eval and leave no NaN behind."""
    size, _, mode = (case.part or "").partition("/")
    n = 1 if size == "single" else 0
    out = subject.forward(case.z[:n], train=mode == "train", seed=case.seed)
    backward(out, case.g[:n])
    yield from finite_outputs(out)
    yield from finite_state(subject, "after the pass")


BROKEN = {"nan": float("nan"), "inf": float("inf")}


def broken_parts(subject: Quantizer) -> tuple[str, ...]:
    """NaN and infinity, in each mode in which a latent's result is its own."""
    return tuple(f"{name}/{mode}" for name in BROKEN for mode in repeating_modes(subject))


@invariant(
    "interface.nonfinite_contained",
    kind="hardening",
    mode="table",
    source="theory T19: a sum never forgets a NaN",
    parts=broken_parts,
    corners=("generic", "on-code"),
    mutants=("absorbs_nan",),
    hint="drop latents that are not finite from the sums and counts of the update, or refuse them with an error.",
)
def nonfinite_contained(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A NaN or infinite latent changes no other result and poisons no code; or the layer refuses it.

    Margin: rows that are computed one by one are the same: 0, unless a product is cut into other blocks.
    """
    name, _, mode = (case.part or "").partition("/")
    train = mode == "train"
    if len(case.z) < 2:
        return
    want = subject.forward(case.z, train=train, seed=case.seed)
    prepare(subject, case)
    bad = case.z.clone()
    bad[0, 0] = BROKEN[name]
    try:
        got = subject.forward(bad, train=train, seed=case.seed)
    except Violation:
        yield holds(condition=True, label="refused", message="")
        return
    clean = all(bool(tensor.isfinite().all()) for tensor in learnt(subject))
    yield holds(clean, "poisoned", f"after a latent with {name} the codebook or its accumulators are not finite")
    rows = torch.arange(1, len(bad))
    yield from agree(subject, case, want, select(got, rows), train=train, rows=rows)


def bad_parts(subject: Quantizer) -> tuple[str, ...]:
    """Kinds of input that make no sense."""
    return ("dim", "integer", *(f"codes of {method}" for method in subject.decoders))


@invariant(
    "interface.rejects_bad_input",
    kind="hardening",
    mode="table",
    source=SOURCE,
    parts=bad_parts,
    corners=("generic",),
    mutants=("broadcasts_silently",),
    hint="view(-1, D) takes any width that divides, broadcasting takes width 1, and a negative index wraps around.",
)
def rejects_bad_input(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Latents of a wrong width, integers that would be truncated, and codes out of range raise an error.

    Margin: an error is raised or not: 0.
    """
    z, d = case.z, subject.domain.dim
    if case.part == "dim":
        for width in sorted({1, d + 1, 2 * d} - {d}):
            wide = z.repeat(1, 2 + width // d)[:, :width]
            yield holds(not _accepts(subject, wide), "dim", f"latents of width {width} pass in silence, D is {d}")
    elif case.part == "integer":
        yield from _integers(subject, case)
    elif len(case.z) and (size := _size(subject)):
        method = (case.part or "").removeprefix("codes of ")
        like = subject.forward(z[:1].repeat(subject.domain.min_n, 1), seed=case.seed, grad=False).codes
        for wrong in (size, -2):
            taken = like is not None and _returns(lambda w=wrong: subject.decode(torch.full_like(like, w), method))
            yield holds(not taken, "codes", f"{method} takes the code {wrong} in silence, codes are 0..{size - 1}")


def _size(subject: Quantizer) -> int | None:
    """K, if every level has the same."""
    sizes = {len(book) for book in subject.codebooks()} or {trait(subject, "codebook_size")}
    return sizes.pop() if len(sizes) == 1 else None


def _returns(call: Callable[[], object]) -> bool:
    try:
        call()
    except Violation:
        return False
    return True


def _accepts(subject: Quantizer, z: Tensor) -> bool:
    with forked(0):
        return _returns(lambda: subject.raw(z, train=False))


def _integers(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A layer that takes integers must give what it gives for the same numbers as floats."""
    whole = case.z.clamp(-100, 100).round()
    want = subject.forward(whole, train=False, seed=case.seed, grad=False)
    try:
        got = subject.forward(whole, train=False, seed=case.seed, grad=False, via=lambda f, x: f(x.long()))
    except Violation:
        yield holds(condition=True, label="refused", message="")
        return
    floats = got.z_q.tensor.is_floating_point()
    yield holds(floats, "integer", f"z_q of integer latents is {got.z_q.tensor.dtype}: its codes are truncated")
    if floats:
        yield from agree(subject, case, want, got, train=False)
