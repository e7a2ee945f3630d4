"""Stacks: each level quantizes what the ones before left over, z_q = Σ qᵢ (theory T34).

Residuals are computed here, from latents, codes and the codebook before the pass, and not read from the layer: on
degenerate inputs (a zero code, equal levels) nobody can tell one residual from another by its value.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqverify.bounds import Clause, holds, within
from vqverify.case import Case, prepare
from vqverify.invariant import invariant
from vqverify.invariants.measure import (
    SAFE,
    Array,
    array,
    norms,
    rotation_law_bound,
    roundoff,
    sigma,
    stream,
    tiny,
    trait,
)
from vqverify.quantizer import Quantized, Quantizer
from vqverify.subject.families import CORRECT

STACK = ("structure=residual", "codes", "codebook")
SURROGATES = {family.name: family for family in CORRECT}
CORNERS = ("single", "on-code", "tie", "parallel")
PLAIN = 0.05  # z_q this near to Σ qᵢ, relative: the codes live in z's own space


@dataclass(frozen=True)
class Level:
    """One level as it should be: residual r, code q, (N, D) each, and how far rounding may take the layer's own r."""

    z: Array
    q: Array
    k: NDArray[np.int64]
    book: Array
    off: Array


@dataclass(frozen=True)
class Stack:
    """A pass of a stack: what the layer returned, its levels, and the rounding of the sum of the codes, a row."""

    out: Quantized
    levels: tuple[Level, ...]
    off: Array

    @property
    def total(self) -> Array:
        """Σ qᵢ."""
        return np.sum([level.q for level in self.levels], axis=0)


@contextmanager
def silenced(tensors: Sequence[Tensor]) -> Generator[None]:
    """No gradient passes through these tensors of a graph."""
    handles = [tensor.register_hook(torch.zeros_like) for tensor in tensors if tensor.requires_grad]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def stacked(subject: Quantizer, case: Case, *, train: bool) -> Stack | None:
    """One pass with its residuals; None where codes and latents do not share a space."""
    books = [array(table) for table in subject.codebooks()]
    out = subject.forward(case.z, train=train, seed=case.seed)
    if out.codes is None or not books:
        return None
    count = out.codes.shape[1]
    books = books * count if len(books) == 1 else books
    if len(books) < count or any(book.shape[1] != case.z.shape[1] for book in books):
        return None
    u = roundoff(subject)
    rest, off, levels = array(out.z.rows), np.zeros(len(case.z)), list[Level]()
    for book, column in zip(books, out.codes.T.cpu().numpy(), strict=False):
        q = np.where((column >= 0)[:, None], book[np.clip(column, 0, len(book) - 1)], 0.0)
        levels.append(Level(rest, q, column, book, off))
        off = off + _rounding(subject, rest, q, u) + u * (norms(rest) + norms(q))
        rest = rest - q
    sums = np.cumsum([norms(level.q) for level in levels], axis=0).sum(0)
    return Stack(out, tuple(levels), off + u * sums)


def _rounding(subject: Quantizer, z: Array, q: Array, u: float) -> Array:
    """What the estimator's forward may add to a code, a row (T14, T5); inf where no law is claimed."""
    bound = 1.01 * u * (2 * norms(q) + norms(q - z)) + tiny(subject) * np.sqrt(z.shape[1])
    if trait(subject, "estimator") in {"rotation", None, "other"}:
        relative = np.where(norms(q) == 0, 0.0, rotation_law_bound(z, q, u))
        bound = np.where(relative < SAFE, bound + norms(q) * relative, np.inf)
    return bound


def _modes(_: Quantizer) -> tuple[str, ...]:
    return ("train", "eval")


@invariant(
    "residual.sum",
    source="Zeghidour 2021; theory T34, T28",
    needs=STACK,
    state="both",
    corners=CORNERS,
    parts=_modes,
    mutants=("residual_stale", "residual_averaged"),
    hint="r₁ = z, rᵢ₊₁ = rᵢ − qᵢ: subtract from the running residual, not from z, and add every level to the output.",
)
def sum_(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """z_q is the sum of its levels' codes; each searches what the ones before left over, and sees no later one."""
    stack = stacked(subject, case, train=case.part == "train")
    if stack is None:
        return
    keep = np.isfinite(stack.off)
    error = norms(array(stack.out.z_q.rows) - stack.total)[keep]
    yield within(error, stack.off[keep], "sum", "|z_q − Σ qᵢ|")
    if trait(subject, "metric", "euclidean") == "euclidean" and trait(subject, "deterministic", default=False):
        u = roundoff(subject)
        regrets = [_searched(level, index, u) for index, level in enumerate(stack.levels)]
        # where the metric was not told, the first level tells it: its latent is z itself
        if trait(subject, "metric") or regrets[0].holds:
            yield from regrets
        yield from _causal(subject, case, stack)


def _searched(level: Level, index: int, u: float) -> Clause:
    """The code is nearest to the residual: regret within the expanded evaluation (T28), for a latent off by `off`."""
    keep = np.flatnonzero((level.k >= 0) & np.isfinite(level.off))
    z, q, off = level.z[keep], level.q[keep], level.off[keep]
    squares = ((z[:, None] - level.book[None]) ** 2).sum(-1)
    reach = norms(z) + norms(level.book).max(initial=0.0)
    allowed = 2 * (z.shape[1] + 3) * u * reach**2 + 4 * off * reach + 2 * off**2
    regret = ((z - q) ** 2).sum(-1) - squares.min(1)
    return within(
        regret, allowed, "residual", f"level {index}: squared distance from z − Σ of the codes before, above the least"
    )


def _causal(subject: Quantizer, case: Case, stack: Stack) -> Iterator[Clause]:
    books = subject.codebooks()
    distinct = any(book.shape != books[0].shape or not torch.equal(book, books[0]) for book in books[1:])
    if not (distinct and trait(subject, "settable", default=False)):
        return
    prepare(subject, case)
    first, *later = subject.codebooks()
    subject.set_codebook([first, *(book.flip(0) * 2 for book in later)])
    again = subject.forward(case.z, train=case.part == "train", seed=case.seed)
    assert again.codes is not None
    same = np.array_equal(again.codes[:, 0].cpu().numpy(), stack.levels[0].k)
    yield holds(same, "causal", "the first level's codes change with the codebooks of later levels")


def _told(subject: Quantizer) -> tuple[None, ...]:
    """Applies where the codes are stored, or else where z to z_q is straight-through, whatever factor it has."""
    straight = trait(subject, "estimator") == "straight-through"
    return (None,) if subject.codebooks() or (straight and not _bounded(subject)) else ()


@invariant(
    "residual.gradient",
    source="theory T34, T13; 000 §4.2",
    needs=("structure=residual", "codes", "estimator=straight-through|rotation"),
    state="both",
    parts=_told,
    corners=CORNERS,
    follows=("estimator.no_bypass",),
    mutants=("residual_gain", "residual_attached_twice", "residual_rotation_detached", "residual_first_loss_only"),
    hint="subtract the attached output, r = r − q, or put one estimator around the sum; r − q.detach() counts the "
    "identity once a level.",
)
def gradient(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """The stack's Jacobian is the composed law J₁ + J₂(I − J₁) + …, and every level's loss reaches its own codes.

    For straight-through levels that is the identity, whatever their number.
    """
    if not subject.codebooks():
        yield from _straight(subject, case)
        return
    stack = stacked(subject, case, train=True)
    if stack is None:
        return
    out, g = stack.out, array(case.g) + 1
    size = norms(stack.total)
    if (norms(array(out.z_q.rows) - stack.total) <= PLAIN * size).mean() > 0.5:
        got = array(subject.vjp(out, case.g + 1))
        name = str(trait(subject, "estimator"))
        laws = [_composed(name, stack, g, roundoff(subject)), _around(name, stack, g, roundoff(subject))]
        keep = np.flatnonzero(np.all([np.isfinite(bound) & np.isfinite(want).all(1) for want, bound in laws], axis=0))
        if len(keep):  # rows where either law could be told
            clauses = [_compare(name, got[keep], want[keep], bound[keep]) for want, bound in laws]
            yield min(clauses, key=lambda clause: clause.margin or 0.0)
    yield from _losses_reach(subject, stack)


def _straight(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Levels without a stored codebook (signs, grids): the identity is all that can be told, where no bound comes first."""
    out, g = subject.forward(case.z, train=True, seed=case.seed), array(case.g) + 1
    want, bound = _composed("straight-through", Stack(out, (), np.zeros(len(g))), g, roundoff(subject))
    levels = 1 if out.codes is None else out.codes.shape[1]
    yield _compare(
        "straight-through", array(subject.vjp(out, case.g + 1)), want, bound + 8 * levels * roundoff(subject) * norms(g)
    )


def _bounded(subject: Quantizer) -> bool:
    """Whether the slope of a bound, such as tanh, is in the gradient: it is then no multiple of the one sent."""
    subject.restore()
    n, dim = max(32, subject.domain.min_n), subject.domain.dim
    out = subject.forward(torch.randn(n, dim, generator=stream(0)).to(subject.domain.dtype), train=True)
    got = array(subject.vjp(out, torch.ones_like(out.z_q.rows)))
    return bool(got.any()) and bool(np.abs(got - np.median(got)).max() > 1e-2 * np.abs(got).max())


def _compare(name: str, got: Array, want: Array, bound: Array) -> Clause:
    label = "gain" if name == "straight-through" else "composition"
    return within(norms(got - want), bound, label, f"|Jᵀg − composed law|{_gain(got, want)}")


def _gain(got: Array, want: Array) -> str:
    """What to say where the gradient is a multiple of the law."""
    size = float((want * want).sum())
    fitted = float((got * want).sum()) / size if size else 0.0
    rest = norms(got - fitted * want).sum()
    return f", a gradient that is {fitted:.3g} times the law" if rest < 1e-3 * norms(got).sum() else ""


def _composed(name: str, stack: Stack, g: Array, u: float) -> tuple[Array, Array]:
    """Jᵀg of the stack from its levels' surrogates, last level first, with its rounding bound a row."""
    if name == "straight-through":
        return g, 8 * len(stack.levels) * u * norms(g)
    below, bound = np.zeros_like(g), np.zeros(len(g))
    for level in reversed(stack.levels):
        sent = g - below
        back, gain, relative = _rotated(level.z, level.q, sent, u, level.off)
        with np.errstate(invalid="ignore"):  # 0 · ∞ where no law is claimed
            bound = (
                bound * (1 + gain) + gain * norms(sent) * relative + 4 * u * (norms(sent) + norms(back) + norms(below))
            )
        below = below + back
    return below, bound


def _around(name: str, stack: Stack, g: Array, u: float) -> tuple[Array, Array]:
    """One estimator around the sum."""
    if name == "straight-through":
        return g, 8 * u * norms(g)
    z, q = stack.levels[0].z, stack.total
    want, gain, relative = _rotated(z, q, g, u, stack.off)
    return want, gain * norms(g) * relative


def _rotated(z: Array, q: Array, g: Array, u: float, off: Array) -> tuple[Array, Array, Array]:
    """Jᵀg of the rotation, λ, and the relative bound for vectors that may be off by `off`; inf where no law is."""
    law, s = rotation_law_bound(z, q, u), sigma(z, q)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        gain = norms(q) / norms(z)
        # λ changes by off/|z| relative to itself, the direction by as much, and R by 2/σ times that (T6)
        relative = law + (2 + 4 / s) * off / np.minimum(norms(z), norms(q))
        relative = np.where(np.isfinite(relative) & (relative < SAFE), relative, np.inf)
    return SURROGATES["rotation"].vjp(z, q, g), gain, relative


def _losses_reach(subject: Quantizer, stack: Stack) -> Iterator[Clause]:
    loss = stack.out.loss
    if loss is None or not loss.requires_grad or "gradient" not in trait(subject, "learning", ()):
        return
    found = subject.codebook_gradients(loss)
    if len(found) < len(stack.levels) or not any(bool(gradient.any()) for gradient in found):
        return
    for index, level in enumerate(stack.levels):
        if not np.isfinite(level.off).all():
            continue
        keep = np.flatnonzero(level.k >= 0)
        pulled = np.zeros_like(level.book)
        np.add.at(pulled, level.k[keep], (level.q - level.z)[keep])
        if np.abs(pulled).max(initial=0.0) > 1e-3 * norms(level.z).max(initial=0.0):
            yield holds(bool(found[index].any()), "unreached", f"the loss gives the codes of level {index} no gradient")
