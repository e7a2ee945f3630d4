"""The gradient gap |g(z) − Jᵀg(q)| against its bounds, and the families that reach them (001 eq. 14; theory T9-T13)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from vqverify.bounds import Clause, within
from vqverify.case import Case
from vqverify.invariant import invariant
from vqverify.invariants.estimator import SURROGATES, on_codes
from vqverify.invariants.lookup_cells import in_own_space
from vqverify.invariants.lookup_cosine import sees_directions
from vqverify.invariants.measure import SAFE, Array, array, norms, paths, rotation_law_bound, roundoff, traced, trait
from vqverify.invariants.rotation import received
from vqverify.quantizer import Quantizer
from vqverify.symbolic import oracles

KAPPA = 3.0
NEEDS = ("levels", "estimator=straight-through|rotation")
CORNERS = ("parallel", "single", "unit", "on-code")


def _aligned(a: Array, b: Array) -> Array:
    """H a for the symmetric H of norm 1 that turns a into the direction of b: a reflection, row by row."""
    with np.errstate(invalid="ignore", divide="ignore"):
        w = b / norms(b)[:, None]
    return np.where((norms(b) > 0)[:, None], norms(a)[:, None] * np.nan_to_num(w), a)


def _measured(subject: Quantizer, case: Case, *, tight: bool) -> Iterator[Clause]:
    """|g(z) − Jᵀg(q)| for a κ-smooth decoder with gradient g(q) at the code and g(q) + H(z − q) at the latent."""
    out = traced(subject, case)
    u = roundoff(subject)
    family = trait(subject, "estimator")
    for view in paths(subject, out):
        relative = rotation_law_bound(view.z, view.q, u) if family == "rotation" else np.full(len(view.z), 8 * u)
        keep = np.flatnonzero((relative < SAFE) & (view.k >= 0))
        if not len(keep):
            continue
        cotangent = _plane(view.z, view.q, array(case.g))
        g_q = array(out.z_q.tensor.new_tensor(cotangent))
        got = received(subject, out, view, g_q)[keep]
        z, q, g_q, relative = view.z[keep], view.q[keep], g_q[keep], relative[keep]
        h = norms(q - z)
        step = KAPPA * _aligned(z - q, g_q - SURROGATES[family].vjp(z, q, g_q)) if tight else KAPPA * (z - q)
        gap = norms(g_q + step - got)
        if family == "rotation":
            allowed = oracles.gap_bound_rotation(KAPPA, norms(g_q), norms(z), h)
            scale = norms(q) / norms(z)
        else:
            allowed = oracles.gap_bound_ste(KAPPA, h)
            scale = np.ones(len(z))
        rounding = relative * scale * norms(g_q) + 8 * np.finfo(float).eps * (
            norms(g_q) + KAPPA * (norms(z) + norms(q))
        )
        if tight:
            yield within(gap - allowed, rounding, "tight", f"gap − bound on the tight family, level {view.index}")
        else:
            yield within(gap, allowed + rounding, "bound", f"gradient gap at level {view.index}")


def _plane(z: Array, q: Array, g: Array) -> Array:
    """Gradients at the code inside span(z, q), where the rotation's bound is reached."""
    weights = np.resize(g, (len(z), 2)) + 1
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = (np.nan_to_num(x / norms(x)[:, None]) for x in (z, q))
    return weights[:, :1] * a - 0.5 * weights[:, 1:] * b


@invariant(
    "gap.bound",
    follows=("estimator.jacobian", "honesty.traits[estimator]"),
    source="001 §3.2, eq. 14; theory T9, T10",
    needs=NEEDS,
    corners=CORNERS,
    mutants=("rotation_transposed", "rotation_unscaled", "straight_through_scaled"),
    hint="a gap above the bound means that the Jacobian is not the declared one: scaled, transposed or missing.",
)
def bound(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """For a κ-smooth decoder the gradient gap is at most κ|q − z| (straight-through) or (κ + |g(q)|/|z|)|q − z| (rotation)."""
    yield from _measured(subject, case, tight=False)


@invariant(
    "gap.tight",
    follows=("estimator.jacobian", "honesty.traits[estimator]"),
    source="theory T9, T10 (equality)",
    needs=NEEDS,
    corners=CORNERS,
    mutants=("rotation_transposed", "rotation_unscaled", "silent_straight_through", "straight_through_scaled"),
    hint="on the decoder that makes the bound an equality, a smaller gap is as wrong as a larger one: another estimator is at work.",
)
def tight(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """On the quadratic decoders that make the bound an equality, the gap equals it."""
    yield from _measured(subject, case, tight=True)


@invariant(
    "gap.zero_quantisation",
    follows=("estimator.jacobian", "honesty.traits[estimator]"),
    source="theory T13",
    needs=(*NEEDS, "codebook"),
    corners=("on-code", "single"),
    mutants=("straight_through_scaled", "rotation_differentiated"),
    hint="no quantization error, no gap: J must be the identity at z = q.",
)
def zero_quantisation(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Where the latent is its code, the gradient gap is 0."""
    for out, view, keep, bound in on_codes(subject, case):
        g = np.resize(array(case.g), view.z.shape)
        gap = norms(received(subject, out, view, g)[keep] - g[keep])
        yield within(gap, norms(g[keep]) * bound, "zero", f"gap where z = q, level {view.index}")


def _placeable(subject: Quantizer) -> tuple[str | None, ...]:
    """Applies where codes may be put a step away from the latents: no projection comes between."""
    return (None,) if in_own_space(subject) or sees_directions(subject) else ()


STEPS = tuple(2.0**-k for k in (4, 7, 10))  # h/|q|


@invariant(
    "gap.order",
    follows=("estimator.jacobian", "honesty.traits[estimator]", "estimator.consistent"),
    source="theory T10, T11",
    mode="table",
    needs=(*NEEDS, "settable", "codebook", "structure=plain"),
    parts=_placeable,
    corners=("single", "unit", "generic"),
    mutants=("rotation_differentiated", "rotation_reflection"),
    hint="a gap that does not vanish with |q − z| is a Jacobian that is not I at z = q: factors in the graph, a reflection.",
)
def order(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """As h = |q − z| → 0 the gap stays below C·h, with C of the theorem: κ (straight-through), κ + |g(q)|/|z| (rotation).

    In the precision of the layer, down to h = 2⁻¹⁰|z|: there its rounding is still far below C·h.
    """
    u, family = roundoff(subject), trait(subject, "estimator")
    out = traced(subject, case)
    view = next(iter(paths(subject, out)), None)
    count = min(len(case.z), len(out.codebook[0]) if out.codebook else 0)
    if view is None or view.z.shape != case.z.shape or count < subject.domain.min_n:
        return
    z = view.z[:count] + (norms(view.z[:count]) < 2.0**-6)[:, None]  # a latent near 0 has no direction
    away = np.resize(array(case.g), z.shape) + np.arange(1, z.shape[1] + 1)
    away = norms(z)[:, None] * away / norms(away)[:, None]
    # a code a step away from each latent, and the others out of reach
    ranks = np.arange(len(view.codebook) - count)[:, None]
    others = np.broadcast_to(-(4.0 + ranks) * norms(z).max(), (len(ranks), z.shape[1]))
    for h in STEPS:
        subject.restore()
        subject.set_codebook([torch.from_numpy(np.concatenate([z + h * away, others])).to(out.codebook[0])])
        placed = Case(torch.from_numpy(z).to(case.z), case.g[:count], case.seed)
        yield from _order_at(subject, placed, h, str(family), u)


def _order_at(subject: Quantizer, case: Case, h: float, family: str, u: float) -> Iterator[Clause]:
    out = traced(subject, case)
    for view in paths(subject, out):
        distance = norms(view.q - view.z)
        relative = rotation_law_bound(view.z, view.q, u) if family == "rotation" else np.full(len(view.z), 8 * u)
        keep = np.flatnonzero((relative < SAFE) & (view.k >= 0) & (distance < 2 * h * norms(view.z)) & (distance > 0))
        if not len(keep):
            continue
        g_q = _plane(view.z, view.q, array(case.g) + 1)
        g_q = array(out.z_q.tensor.new_tensor(g_q))
        got = received(subject, out, view, g_q)[keep]
        z, q, g_q, relative, distance = view.z[keep], view.q[keep], g_q[keep], relative[keep], distance[keep]
        gap = norms(g_q + KAPPA * (z - q) - got)
        if family == "rotation":
            most = oracles.gap_bound_rotation(KAPPA, norms(g_q), norms(z), distance)
        else:
            most = oracles.gap_bound_ste(KAPPA, distance)
        rounding = 2 * relative * norms(g_q) + 8 * np.finfo(float).eps * (norms(g_q) + KAPPA * (norms(z) + norms(q)))
        yield within(gap, most + rounding, "order", f"gradient gap at |q − z| = {h:g}|z|")
