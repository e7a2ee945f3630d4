"""The gradient of quantizers that bound and round: that of the bound, which the boundaries between levels give away (T36)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from vqverify.bounds import Clause, holds, within
from vqverify.case import Case
from vqverify.invariant import invariant
from vqverify.invariants.fsq import NEEDS, Axis, axes, declared_levels, width
from vqverify.invariants.measure import Array, array, roundoff
from vqverify.quantizer import Quantizer

HALVINGS = 60
RULES = (32, 16)  # panels of a cell, two Gauss points each: a bound such as tanh is integrated to 1e-7 of a step
SMOOTH = 1e-5  # of a step: two rules that differ by more show a kink inside the cell


def _with_cells(subject: Quantizer) -> tuple[str | None, ...]:
    """Applies where a coordinate has a level with another on both sides, and no projection stands before it."""
    levels = declared_levels(subject)
    return (None,) if levels and len(levels) == subject.domain.dim == width(subject) and max(levels) > 2 else ()


@invariant(
    "fsq.gradient",
    source="Mentzer 2023 §3, eq. 1: the gradient of round is counted as 1; theory T36",
    needs=(*NEEDS, "deterministic", "eval_deterministic"),
    parts=_with_cells,
    mode="table",
    corners=("single",),
    mutants=("fsq_gradient_scaled", "fsq_gradient_without_h"),
    follows=("fsq.bijection",),
    hint="b + (round(b) − b).detach() with b the bound itself, scale and all: z_q = round(b)/⌊L/2⌋ takes the gradient b′/⌊L/2⌋.",
)
def gradient(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Between two boundaries of levels the gradient ∂z_q/∂z integrates to one step: there the bound rises by just that.

    A gradient that is 1 everywhere, straight-through around bound and rounding, is accepted.
    """
    found = axes(subject, declared_levels(subject) or (), case)
    if any(len(axis.values) != axis.declared for axis in found):
        return
    u = roundoff(subject)
    for index, axis in enumerate(found):
        if axis.declared < 3:
            continue
        cuts = _boundaries(subject, case, axis, index)
        gaps = np.diff(cuts)
        slopes, coarse = (_slopes(subject, case, cuts[:-1, None] + gaps[:, None] * _nodes(n), index) for n in RULES)
        if (slopes == 1).all():
            yield holds(condition=True, label="straight-through", message="")
            continue
        if not slopes.any():
            continue
        rises = slopes.mean(1) * gaps
        steps = (axis.values[2:] - axis.values[:-2]) / 2  # boundaries lie half-way between levels
        # the bound and its slope are rounded at the size of the values; a boundary is known to a unit of z, times the slope
        size = np.abs(axis.values).max() + steps
        rounding = 32 * u * size * (1 + gaps) + 8 * u * np.abs(cuts).max() * steps / gaps
        smooth = np.abs(rises - coarse.mean(1) * gaps) <= SMOOTH * steps + rounding
        yield within(
            (rises - steps)[smooth],
            (SMOOTH * steps + rounding)[smooth],
            "slope",
            f"∫ ∂z_q/∂z over a cell of coordinate {index} − a step, {np.median(rises / steps):.4g} of what it should be",
        )


def _nodes(panels: int) -> Array:
    """Two Gauss points a panel on [0, 1]; their mean is the integral."""
    middle = (np.arange(panels) + 0.5) / panels
    off = 0.5 / panels / np.sqrt(3)
    return np.stack([middle - off, middle + off], 1).ravel()


def _boundaries(subject: Quantizer, case: Case, axis: Axis, index: int) -> Array:
    """Where one coordinate passes from each level to the next, by halving in the layer's own numbers."""
    low, high = axis.middles[:-1].copy(), axis.middles[1:].copy()
    halfway = (axis.values[:-1] + axis.values[1:]) / 2
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = _at(subject, case, middle, index) > halfway
        low, high = np.where(above, low, middle), np.where(above, middle, high)
        if (high - low <= np.spacing(np.abs(high))).all():
            break
    return (low + high) / 2


def _latents(subject: Quantizer, values: Array, index: int) -> torch.Tensor:
    rows = np.full((values.size, subject.domain.dim), 0.3)
    rows[:, index] = values.ravel()
    return torch.from_numpy(rows).to(subject.domain.dtype)


def _at(subject: Quantizer, case: Case, values: Array, index: int) -> Array:
    subject.restore()
    out = subject.forward(_latents(subject, values, index), train=False, seed=case.seed, grad=False)
    return array(out.z_q.rows)[:, index]


def _slopes(subject: Quantizer, case: Case, values: Array, index: int) -> Array:
    """∂z_q/∂z of one coordinate, in train mode, in the shape of the values."""
    subject.restore()
    z = _latents(subject, values, index)
    out = subject.forward(z, train=True, seed=case.seed)
    g = torch.zeros_like(z)
    g[:, index] = 1
    return array(subject.vjp(out, g))[:, index].reshape(values.shape)
