"""The gradient gap |g(z) − Jᵀg(q)| against its bounds, and the families that reach them (001 eq. 14; theory T9-T13)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from vqverify.bounds import Clause, within
from vqverify.case import Case
from vqverify.invariant import invariant
from vqverify.invariants.estimator import SURROGATES, at_codes, on_codes
from vqverify.invariants.lookup_cells import in_own_space
from vqverify.invariants.lookup_cosine import sees_directions
from vqverify.invariants.measure import (
    SAFE,
    Array,
    array,
    norms,
    paths,
    rotation_law_bound,
    roundoff,
    tiny,
    traced,
    trait,
)
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
    mutants=("rotation_unscaled", "straight_through_scaled"),
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


def _observable(subject: Quantizer) -> tuple[str | None, ...]:
    """Applies where levels were located, or the estimator takes a task."""
    of_task = trait(subject, "estimator") in {"hessian", "exact"}
    return (None,) if of_task or trait(subject, "levels", default=False) else ()


@invariant(
    "gap.zero_quantisation",
    follows=(
        "estimator.jacobian",
        "honesty.traits[estimator]",
        "gap.exact",
    ),
    source="theory T13",
    needs=("estimator=straight-through|rotation|hessian|exact", "codebook"),
    parts=_observable,
    corners=("on-code", "single"),
    mutants=("straight_through_scaled", "rotation_differentiated"),
    hint="no quantization error, no gap: J must be the identity at z = q.",
)
def zero_quantisation(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Where the latent is its code, the gradient gap is 0."""
    if trait(subject, "estimator") in {"hessian", "exact"}:
        yield from at_codes(subject)
        return
    for out, view, keep, bound in on_codes(subject, case):
        g = np.resize(array(case.g), view.z.shape)
        gap = norms(received(subject, out, view, g)[keep] - g[keep])
        yield within(gap, norms(g[keep]) * bound, "zero", f"gap where z = q, level {view.index}")


def _placeable(subject: Quantizer) -> tuple[str | None, ...]:
    """Applies where codes may be put a step away from the latents: no projection comes between."""
    if trait(subject, "estimator") == "hessian":
        return (None,)
    located = trait(subject, "levels", default=False)
    return (None,) if located and (in_own_space(subject) or sees_directions(subject)) else ()


STEPS = tuple(2.0**-k for k in (4, 7, 10))  # h/|q|


@invariant(
    "gap.order",
    follows=("estimator.jacobian", "honesty.traits[estimator]", "estimator.consistent"),
    source="theory T10, T11",
    mode="table",
    needs=("estimator=straight-through|rotation|hessian", "settable", "codebook", "structure=plain"),
    parts=_placeable,
    corners=("single", "unit", "generic"),
    mutants=("rotation_differentiated", "rotation_reflection", "hessian_step_reversed"),
    hint="a gap that does not vanish with |q − z| is a Jacobian that is not I at z = q: factors in the graph, a reflection.",
)
def order(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """As h = |q − z| → 0 the gap stays below C·hᵖ: p = 1 with κ (straight-through), κ + |g(q)|/|z| (rotation); ½M, p = 2 (Hessian).

    In the precision of the layer, down to h = 2⁻¹⁰|z|: there its rounding is still far below C·h.
    """
    u, family = roundoff(subject), trait(subject, "estimator")
    if family == "hessian":
        yield from _hessian_order(subject, case, u)
        return
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


def _hessian_order(subject: Quantizer, case: Case, u: float) -> Iterator[Clause]:
    """On a cubic task, whose Hessian is κ-Lipschitz, the gap is at most ½κh² (T11), and is that along an axis."""
    (own,) = subject.codebooks()
    count = min(len(case.z), len(own))
    z = case.z[:count] / case.z[:count].abs().amax(1, keepdim=True).clamp_min(1.0)
    axis = torch.nn.functional.one_hot(torch.arange(count) % z.shape[1], z.shape[1]).to(z)
    for h in STEPS:
        book = torch.cat([z + h * axis, 8.0 + torch.arange(len(own) - count)[:, None].expand(-1, z.shape[1]).to(z)])
        subject.restore()
        subject.set_codebook([book.to(own)])
        got = array(subject.grad(z, lambda x: KAPPA * x.pow(3).sum() / 6))
        step = norms(array(book[:count]) - array(z))
        gap = norms(KAPPA * array(z) ** 2 / 2 - got)
        rounding = (2 * z.shape[1] + 32) * u * KAPPA * (1 + h) ** 2
        yield within(
            gap, oracles.gap_bound_hessian(KAPPA, step) + rounding, "order", f"gradient gap at |q − z| = {h:g}"
        )


@invariant(
    "gap.exact",
    follows=("honesty.traits[estimator]",),
    source="000 §3; theory T11, T15",
    needs=("estimator=exact|hessian", "codebook"),
    corners=("single", "unit", "generic"),
    mutants=("hessian_step_reversed", "double_forward_unscaled"),
    hint="g(q) + H(q)(z − q), and not q − z; a second forward pass that is divided by N has its gradient at z multiplied by it.",
)
def exact(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """The exact gradient has gap 0; so has the Hessian estimate on a quadratic task, whatever the distance of the code."""
    z, u = array(case.z), roundoff(subject)
    book = array(subject.codebooks()[0])
    weights = KAPPA * np.cos(np.arange(z.shape[1]))  # eigenvalues of the task's Hessian, of both signs
    scales = torch.from_numpy(weights).to(case.z)
    shift = case.g[:1].to(case.z)
    got = array(subject.grad(case.z, lambda x: (scales * (x - shift).square()).sum() / 2))
    want = weights * (z - array(shift))
    reach = norms(z) + norms(book).max(initial=0.0) + norms(array(shift))
    yield within(
        norms(got - want),
        (2 * z.shape[1] + 16) * u * KAPPA * reach + tiny(subject),
        "gap",
        "gradient gap of a quadratic task",
    )
    if trait(subject, "estimator") == "exact":
        got = array(subject.grad(case.z, lambda x: KAPPA * torch.sin(x).sum()))
        allowed = 8 * u * KAPPA * np.sqrt(z.shape[1])
        yield within(norms(got - KAPPA * np.cos(z)), allowed, "gap", "gradient gap of Σ sin")
