"""When two passes count as the same: bitwise where nothing was reordered, else up to rounding and ties.

The same row of a matrix product may differ with the size of the batch, so codes are never compared as raw
indices: where two passes chose differently, what they gave away must be within rounding (theory T28). The
reference pass plays the oracle; bounds are made of it, never of the pass under test. Most pairs agree
bitwise: margins far below 1e-3 are what a right layer shows here, and no sign of slack.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqverify.bounds import Clause, holds, within
from vqverify.case import Case, prepare
from vqverify.invariants.measure import (
    SAFE,
    Array,
    View,
    array,
    norms,
    rotation_law_bound,
    roundoff,
    tiny,
    trait,
    views,
)
from vqverify.quantizer import Node, Quantized, Quantizer

if TYPE_CHECKING:
    from collections.abc import Iterator

STEPS = 16  # roundings of a pass that are not sums over D: estimator, projections, one-hot products
CLAMP = 2e-8  # two distances that a layer clamped before it compared them
EXACT_VALUE = {"straight-through", "none", "gumbel", "softmax", "sampled"}
NUDGE = 2.0**-8
Flags = NDArray[np.bool_]


def same(a: Tensor, b: Tensor) -> bool:
    """Bitwise equality of shape, dtype and values; NaN equals NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all() if a.is_floating_point() else False)


def agree(
    subject: Quantizer,
    case: Case,
    want: Quantized,
    got: Quantized,
    *,
    train: bool,
    rows: Tensor | None = None,
) -> Iterator[Clause]:
    """Whether a pass gives the codes, values and loss of a reference pass, up to rounding and ties.

    Args:
        subject: the layer that made the reference pass; its state is the case's afterwards, if codes differ.
        case: brings the layer to where the reference pass started.
        want: the reference pass.
        got: the pass under test.
        train: mode of the reference pass.
        rows: row i of `got` belongs to row `rows[i]` of `want`; the same rows by default. Losses are compared
            where every row has its partner.
    """
    index = np.arange(len(got.z.tensor)) if rows is None else rows.numpy()
    a, b = array(want.z_q.rows)[index], array(got.z_q.rows)
    if not np.isfinite(array(want.z_q.rows)).all():
        yield holds(condition=False, label="nonfinite", message="z_q of the reference pass is not finite")
        return
    differ = _differ(want, got, index)
    error, bound = norms(a - b), value_bound(subject, magnitude(want))[index]
    if not np.isfinite(error).all():
        yield holds(condition=False, label="nonfinite", message="z_q is finite in one of two passes only")
        return
    drift = np.zeros(len(index))
    if differ.any() or (error > bound).any():
        prepare(subject, case)
        again = subject.forward(want.z.tensor.detach(), train=train, seed=case.seed, trace=True)
        seen = list(views(again))
        bound = bound + value_bound(subject, books(subject))
        if _comparable(subject, want, seen):
            drifts = np.cumsum([np.zeros(len(want.z.tensor)), *(_estimator(subject, view) for view in seen)], axis=0)
            yield from _regrets(subject, want=want, got=got, seen=seen, drifts=drifts[:, index], index=index)
            drift = drifts[-1][index]
        else:
            loose = ~_stable(subject, case, want)[index]
            if trait(
                subject, "codebook"
            ):  # two codes that are one within rounding, as two latents that replaced others
                loose |= differ & (error <= bound)
            wrong = int((differ & ~loose).sum())
            yield holds(not wrong, "codes", f"codes differ in {wrong} rows far from a tie")
            differ = differ | loose
            if trait(subject, "estimator") not in EXACT_VALUE:
                drift = _unlocated(array(want.z.rows)[index], a)
    else:
        yield holds(condition=True, label="codes", message="")
    keep = ~differ & np.isfinite(drift)
    yield within(error[keep], (bound + drift)[keep], "value", "distance between z_q of the two passes")
    if keep.all() and len(index) == len(want.z.tensor):
        yield from _losses(subject, want, got, float(drift.max(initial=0.0)))


def select(out: Quantized, rows: Tensor) -> Quantized:
    """Some latents of a pass, as if it had been made of them alone; the loss is that of the whole pass."""
    z, z_q = out.z.rows.detach()[rows], out.z_q.rows[rows]
    codes = None if out.codes is None else out.codes[rows]
    return replace(out, z=Node(z, lambda t: t), z_q=Node(z_q, lambda t: t), codes=codes, levels=())


def _differ(want: Quantized, got: Quantized, index: NDArray[np.int64]) -> Flags:
    if want.codes is None or got.codes is None:
        return np.zeros(len(index), bool)
    a, b = want.codes.cpu().numpy()[index], got.codes.cpu().numpy()
    return (a != b).any(1) if a.shape == b.shape else np.ones(len(index), bool)


def magnitude(want: Quantized) -> Array:
    """Size of the numbers that a pass adds up, a row: its latent and the largest value."""
    return norms(array(want.z.rows)) + norms(array(want.z_q.rows)).max(initial=0.0)


def value_bound(subject: Quantizer, size: Array | float) -> Array:
    """What rounding may change in z_q when operations are reordered: sums over D of numbers of that size."""
    widths = 2 * subject.domain.dim + 8
    return STEPS * widths * roundoff(subject) * np.asarray(size) + tiny(subject)


def books(subject: Quantizer) -> float:
    """Size of the largest sum of codes, one a level."""
    return sum(float(norms(array(book)).max(initial=0.0)) for book in subject.codebooks())


def _estimator(subject: Quantizer, view: View) -> Array:
    """What the estimator's forward may add to the value of a level; inf where no law is claimed."""
    u = roundoff(subject)
    rounding = 4 * u * (norms(view.z) + norms(view.q))
    if trait(subject, "estimator") in EXACT_VALUE:
        return rounding
    relative = rotation_law_bound(view.z, view.q, u)
    return np.where(relative < SAFE, relative * norms(view.q) + rounding, np.inf)


def _unlocated(z: Array, value: Array) -> Array:
    """What an unknown estimator may add where code space was not located; inf near its degenerate points."""
    size, least = norms(z) + norms(value), np.minimum(norms(z), norms(value))
    opposite = (z * value).sum(1) < -0.5 * norms(z) * norms(value)
    return np.where((least > SAFE) & ~opposite, SAFE * size, np.inf)


def _comparable(subject: Quantizer, want: Quantized, seen: list[View]) -> bool:
    known = trait(subject, "metric") in {"euclidean", "cosine", "dot"}
    return known and want.codes is not None and len(seen) == want.codes.shape[1]


def _regrets(
    subject: Quantizer,
    *,
    want: Quantized,
    got: Quantized,
    seen: list[View],
    drifts: Array,
    index: NDArray[np.int64],
) -> Iterator[Clause]:
    """At the first level where codes differ, both were equally near up to rounding.

    `drifts` is what the estimators of the levels before may have moved the latent by, (L + 1, N).
    """
    assert want.codes is not None
    assert got.codes is not None
    first, second = want.codes.cpu().numpy()[index], got.codes.cpu().numpy()
    open_ = np.ones(len(index), bool)
    for view, drift in zip(seen, drifts, strict=False):
        a, b = first[:, view.index], second[:, view.index]
        here = open_ & (a != b) & np.isfinite(drift)
        open_ &= (a == b) & np.isfinite(drift)
        a, b = a[here], b[here]
        if not len(a):
            continue
        if min(a.min(), b.min()) < 0 or max(a.max(), b.max()) >= len(view.codebook):
            text = f"codes of level {view.index} are dropped or out of range in one of the passes"
            yield holds(condition=False, label="codes", message=text)
            return
        e, f = view.codebook[a], view.codebook[b]
        gap, bound = distance_gap(trait(subject, "metric"), view.z[index][here], e, f, roundoff(subject))
        bound = bound + 2 * drift[here] * norms(e - f) + tiny(subject)
        yield within(gap, bound, "codes", f"what the other code of level {view.index} is nearer by")


def distance_gap(metric: str, z: Array, a: Array, b: Array, u: float) -> tuple[Array, Array]:
    """Difference of two codes' distances, and what rounding may make of it (T28)."""
    d = z.shape[1]
    if metric == "euclidean":
        gap = np.abs(((z - a) ** 2).sum(1) - ((z - b) ** 2).sum(1))
        return gap, 2 * (d + 6) * u * (norms(z) + np.maximum(norms(a), norms(b))) ** 2 + CLAMP
    size = norms(z) * np.maximum(norms(a), norms(b))
    if metric == "dot":
        return np.abs((z * (a - b)).sum(1)), 4 * (d + 6) * u * size
    with np.errstate(invalid="ignore", divide="ignore"):
        first, second = ((z * e).sum(1) / norms(z) / norms(e) for e in (a, b))
    gap = np.where(norms(z) > 1e-3, np.abs(np.nan_to_num(first - second)), 0.0)
    return gap, np.full(len(z), (4 * d + 24) * u)


def _stable(subject: Quantizer, case: Case, want: Quantized) -> Flags:
    """Latents whose result stands a step of 2⁻⁸ in six directions: no rounding moves them to another code."""
    prepare(subject, case)
    z = want.z.tensor.detach()
    base = subject.forward(z, train=False, seed=case.seed, grad=False)
    generator = torch.Generator().manual_seed(1)
    stands = np.ones(len(z), bool)
    for _ in range(6):
        signs = torch.randint(0, 2, z.shape, generator=generator).to(z) * 2 - 1
        # a projection's bias rounds at the size of z_q, also where z is 0
        size = (
            z.abs()
            + z.abs().amax(1, keepdim=True) / 4
            + 64 * roundoff(subject) / NUDGE * base.z_q.rows.abs().amax(1, True)
        )
        other = subject.forward(z + NUDGE * signs * size, train=False, seed=case.seed, grad=False)
        stands &= ~_differ(base, other, np.arange(len(z)))
        if base.codes is None:
            moved = norms(array(base.z_q.rows) - array(other.z_q.rows))
            stands &= moved <= 4 * NUDGE * (norms(array(z)) + norms(array(base.z_q.rows)))
    return stands


def _losses(subject: Quantizer, want: Quantized, got: Quantized, drift: float) -> Iterator[Clause]:
    """Whether two passes over the same latents have the same loss, up to the order of summation."""
    if want.loss is None or got.loss is None or [x.shape for x in want.losses] != [x.shape for x in got.losses]:
        return
    a, b = float(want.loss.detach().double()), float(got.loss.detach().double())
    if np.isfinite(a):  # rows of loss judge the value itself
        size = float(magnitude(want).max(initial=0.0))
        n, d = want.z.tensor.shape
        bound = STEPS * (n + d) * roundoff(subject) * (abs(a) + size**2) + 4 * size * drift
        yield within(abs(a - b), bound, "loss", "difference of the losses of the two passes")


def learnt(subject: Quantizer) -> tuple[Tensor, ...]:
    """What learning has moved: codebooks, counts and sums, copies."""
    moved = [*subject.codebooks()]
    for held in subject.accumulators():
        moved += [held.counts, held.sums]
    return tuple(moved)


def learnt_agree(
    subject: Quantizer, want: tuple[Tensor, ...], got: tuple[Tensor, ...], n: int, size: float
) -> Iterator[Clause]:
    """Whether two steps over the same n latents of that size led to the same state, up to rounding."""
    for a, b in zip(want, got, strict=True):
        if bool(a.isfinite().all()):
            scale = float(a.double().abs().max()) + n * size if a.numel() else 0.0
            bound = STEPS * (n + subject.domain.dim) * roundoff(subject) * scale
            yield within((a.double() - b.double()).abs(), bound, "state", "codebook or accumulators after the step")
