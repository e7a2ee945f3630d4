"""The rotation trick: J = λR with Jz = q, the rotation in the plane of z and q (paper 000 §4; theory T1-T6)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from vqverify.bounds import Clause, within
from vqverify.case import Case
from vqverify.invariant import invariant
from vqverify.invariants.measure import (
    SAFE,
    Array,
    Rows,
    View,
    array,
    norms,
    paths,
    rotation_law_bound,
    roundoff,
    sigma,
    traced,
)
from vqverify.quantizer import Quantized, Quantizer
from vqverify.symbolic import oracles

NEEDS = ("estimator=rotation", "levels")
CORNERS = ("antiparallel", "parallel", "on-code", "single", "unit", "tie")
MUTANTS = ("rotation_transposed", "rotation_unscaled", "silent_straight_through", "rotation_reflection")
WHOLE = 16  # up to this dimension the Jacobian is looked at as a whole
MOST_ENTRIES = 10**6  # of the Jacobians of one batch: D vector-Jacobian products, N·D² numbers


def judged(view: View, u: float) -> tuple[Rows, Array]:
    """Rows that a law judges, as indices, with their relative bound."""
    bound = rotation_law_bound(view.z, view.q, u)
    keep = np.flatnonzero((bound < SAFE) & (view.k >= 0))
    return keep, bound[keep]


def received(subject: Quantizer, out: Quantized, view: View, g: Array) -> Array:
    """Jᵀg at a level for cotangents (N, Dc) given at its code."""
    source = torch.from_numpy(g).to(subject.domain.dtype)
    return array(subject.vjp(out, source, view.src, view.dst))


def cotangents(subject: Quantizer, case: Case, view: View) -> Array:
    """Cotangents of the case, in code space: resized to Dc, as the layer will see them."""
    g = array(case.g)
    n, d = view.z.shape
    if g.shape != (n, d):
        g = np.resize(g, (n, d))
    return array(torch.from_numpy(g).to(subject.domain.dtype))


@dataclass(frozen=True)
class _Pull:
    """The judged rows of a level: latents, codes, cotangents sent and gradients received, (n, Dc), with their bounds."""

    view: View
    bound: Array
    z: Array
    q: Array
    g: Array
    got: Array


def _pulled(subject: Quantizer, case: Case) -> Iterator[_Pull]:
    """What each level's judged latents receive for the cotangents of the case."""
    out = traced(subject, case)
    u = roundoff(subject)
    for view in paths(subject, out):
        keep, bound = judged(view, u)
        if len(keep):
            g = cotangents(subject, case, view)
            got = received(subject, out, view, g)[keep]
            yield _Pull(view, bound, view.z[keep], view.q[keep], g[keep], got)


@dataclass(frozen=True)
class _Turn:
    """R = J/λ of some rows, in an orthonormal basis of each: the whole space, or a subspace that R maps to itself.

    Attributes:
        view: the level.
        bound: relative bound of each row, (n,).
        r: (n, m, m) matrices.
        z, q: latents and codes in the basis, (n, m).
    """

    view: View
    bound: Array
    r: Array
    z: Array
    q: Array


def _turns(subject: Quantizer, case: Case) -> Iterator[_Turn]:
    """The rotation of each judged row. In high dimension it is looked at in span(z, q) and eight directions across."""
    most = max(1, MOST_ENTRIES // subject.domain.dim**2)
    short = Case(case.z[:most], case.g[:most], case.seed, case.codebook, case.history, case.part)
    out = traced(subject, short)
    u = roundoff(subject)
    for view in paths(subject, out):
        keep, bound = judged(view, u)
        if not len(keep):
            continue
        basis = _basis(view, keep)
        rows = [received(subject, out, view, basis[:, i]) for i in range(basis.shape[1])]
        scale = norms(view.q[keep]) / norms(view.z[keep])
        basis = basis[keep]
        r = np.einsum("nid,njd->nij", np.stack(rows, axis=1)[keep], basis) / scale[:, None, None]
        z, q = (np.einsum("nid,nd->ni", basis, x[keep]) for x in (view.z, view.q))
        yield _Turn(view, bound + 4 * u, r, z, q)  # the basis is rounded to the layer's dtype


def _basis(view: View, keep: Rows) -> Array:
    """An orthonormal basis for each row, (N, m, D): all of it up to D = 16, else span(z, q) and eight more."""
    n, d = view.z.shape
    if d <= WHOLE:
        return np.broadcast_to(np.eye(d), (n, d, d)).copy()
    across = np.random.Generator(np.random.Philox(d)).standard_normal((8, d))
    found = np.zeros((n, 10, d))
    for row in keep:
        frame, _ = np.linalg.qr(np.stack([view.z[row], view.q[row], *across]).T)
        found[row] = frame.T
    return found


@invariant(
    "rotation.angle",
    follows=(
        "honesty.traits[estimator]",
        "rotation.norm",
    ),
    source="000 A.3; theory T2",
    needs=NEEDS,
    mutants=MUTANTS[:1] + MUTANTS[2:3],
    corners=CORNERS,
    state="both",
    hint="R maps ẑ to q̂ and autograd applies its transpose: 2 q̂ẑᵀ, not 2 ẑq̂ᵀ; a detach of the whole product is straight-through.",
)
def angle(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """The angle between the received gradient and z equals the angle between the sent gradient and q: ⟨z, Jᵀg⟩ = ⟨q, g⟩."""
    u = roundoff(subject)
    for pull in _pulled(subject, case):
        error = (pull.z * pull.got).sum(-1) - (pull.q * pull.g).sum(-1)
        allowed = norms(pull.q) * norms(pull.g) * (pull.bound + 2 * pull.z.shape[1] * u)
        yield within(error, allowed, "angle", f"⟨z, Jᵀg⟩ − ⟨q, g⟩ at level {pull.view.index}")


@invariant(
    "rotation.norm",
    follows=(
        "honesty.traits[estimator]",
        "estimator.detached",
    ),
    source="000 A.3; theory T2",
    needs=NEEDS,
    mutants=("rotation_unscaled", "rotation_scale_inverted"),
    corners=CORNERS,
    state="both",
    hint="the gradient is scaled by λ = |q|/|z|; leaving λ out, inverting or squaring it changes its norm.",
)
def norm(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """The received gradient has λ times the norm of the sent one: |Jᵀg| = λ|g|, λ = |q|/|z|."""
    u = roundoff(subject)
    for pull in _pulled(subject, case):
        want = norms(pull.q) / norms(pull.z) * norms(pull.g)
        allowed = want * (pull.bound + 2 * pull.z.shape[1] * u)
        yield within(norms(pull.got) - want, allowed, "norm", f"|Jᵀg| − λ|g| at level {pull.view.index}")


@invariant(
    "rotation.maps",
    follows=(
        "honesty.traits[estimator]",
        "rotation.norm",
        "rotation.angle",
    ),
    source="000 §4.2, A.4; theory T1",
    needs=NEEDS,
    mutants=("rotation_unscaled", "silent_straight_through"),
    corners=CORNERS,
    hint="λR must take z to q: check λ = |q|/|z| and that both vectors are normalised before they are combined.",
)
def maps(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """The estimator's Jacobian takes the latent to its code: (λR) z = q."""
    for turn in _turns(subject, case):
        scale = norms(turn.q) / norms(turn.z)
        error = norms(scale[:, None] * np.einsum("nij,nj->ni", turn.r, turn.z) - turn.q)
        allowed = norms(turn.q) * turn.bound * np.sqrt(turn.z.shape[1])
        yield within(error, allowed, "maps", f"|λRz − q| at level {turn.view.index}")


@invariant(
    "rotation.orthogonal",
    follows=(
        "honesty.traits[estimator]",
        "rotation.norm",
    ),
    source="000 A.4; theory T1",
    needs=NEEDS,
    mutants=("rotation_unscaled",),
    corners=CORNERS,
    hint="r = ẑ + q̂ has to be divided by its norm before I − 2rrᵀ is a reflection.",
)
def orthogonal(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """The Jacobian is a multiple of an orthogonal map: J Jᵀ = λ² I."""
    for turn in _turns(subject, case):
        error = np.abs(np.einsum("nij,nkj->nik", turn.r, turn.r) - np.eye(turn.r.shape[-1])).max((1, 2))
        yield within(error, 2 * turn.bound + turn.bound**2, "orthogonal", f"max |RRᵀ − I| at level {turn.view.index}")


@invariant(
    "rotation.determinant",
    follows=(
        "honesty.traits[estimator]",
        "rotation.norm",
    ),
    source="000 §4.2; theory T1",
    needs=NEEDS,
    mutants=("rotation_reflection",),
    corners=CORNERS,
    hint="one Householder reflection maps ẑ to q̂ as well, but turns space inside out; a rotation is two of them.",
)
def determinant(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """R is a rotation and no reflection: det(J)/λᴰ = +1."""
    for turn in _turns(subject, case):
        d = turn.r.shape[-1]
        fine = d * turn.bound < 0.1
        if fine.any():
            # |det(R + E) − 1| ≤ (1 + ‖E‖₂)ᴰ − 1 for orthogonal R with det R = 1
            allowed = np.expm1(d * np.log1p(np.sqrt(d) * turn.bound[fine])) + 4 * d * np.finfo(float).eps
            error = np.linalg.det(turn.r[fine]) - 1
            yield within(error, allowed, "determinant", f"det R − 1 at level {turn.view.index}")


@invariant(
    "rotation.fixes_complement",
    follows=(
        "honesty.traits[estimator]",
        "rotation.norm",
        "rotation.determinant",
    ),
    source="000 §4.2; theory T1",
    needs=NEEDS,
    mutants=("rotation_reflection",),
    corners=CORNERS,
    hint="directions orthogonal to z and q are only scaled: a rotation in another plane, or −I on the complement, is wrong.",
)
def fixes_complement(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Gradients orthogonal to span(z, q) are only scaled: Jᵀg = λg."""
    out = traced(subject, case)
    u = roundoff(subject)
    for view in paths(subject, out):
        keep, bound = judged(view, u)
        g = cotangents(subject, case, view) + np.linspace(1, 2, view.z.shape[1])
        across = array(torch.from_numpy(_across(g, view.z, view.q)).to(subject.domain.dtype))
        keep_, bound = keep[norms(across)[keep] > 0.1], bound[norms(across)[keep] > 0.1]
        if len(keep_):
            got = received(subject, out, view, across)[keep_]
            scale = norms(view.q[keep_]) / norms(view.z[keep_])
            want = scale[:, None] * across[keep_]
            # rounding `across` to the layer's dtype leaves a part u|g| in the plane, which R moves by at most twice itself
            own = (4 * view.z.shape[1] + 16) * np.finfo(float).eps / 2  # of `_across`
            allowed = norms(want) * (bound + 4 * u + own)
            yield within(
                norms(got - want), allowed, "complement", f"|Jᵀg − λg| for g ⟂ span(z, q) at level {view.index}"
            )


def _across(g: Array, z: Array, q: Array) -> Array:
    """Part of g orthogonal to z and q, row by row, by two rounds of Gram-Schmidt.

    However small the angle θ between z and q: what is left in their plane is (2D + 8)u|g|/θ, of which R moves θ.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        first = np.nan_to_num(z / norms(z)[:, None])
        second = q - (q * first).sum(-1, keepdims=True) * first
        second = np.nan_to_num(second / norms(second)[:, None], posinf=0.0, neginf=0.0)
    for _ in range(2):
        for axis in (first, second):
            g = g - (g * axis).sum(-1, keepdims=True) * axis
    return g


@invariant(
    "rotation.minimal",
    follows=(
        "honesty.traits[estimator]",
        "rotation.norm",
        "rotation.determinant",
    ),
    source="theory T3",
    needs=NEEDS,
    mutants=("rotation_reflection",),
    corners=CORNERS,
    hint="angle and norm hold for a reflection too; only the trace and the distance to the identity single out the rotation.",
)
def minimal(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """R turns by the angle between z and q and by no more: tr R = D − 2 + 2 cos θ, and ‖J − I‖₂ = |q − z|/|z|."""
    u = roundoff(subject)
    for turn in _turns(subject, case):
        z, q, d = turn.z, turn.q, turn.r.shape[-1]
        if d < 2:
            continue
        cosine = (z * q).sum(-1) / norms(z) / norms(q)
        trace = np.einsum("nii->n", turn.r) - (d - 2 + 2 * cosine)
        yield within(trace, d * turn.bound, "trace", f"tr R − (D − 2 + 2 cos θ) at level {turn.view.index}")
        scale = norms(q) / norms(z)
        far = np.linalg.norm(scale[:, None, None] * turn.r - np.eye(d), ord=2, axis=(1, 2)) - norms(q - z) / norms(z)
        allowed = scale * turn.bound * np.sqrt(d) + 4 * u
        yield within(far, allowed, "distance", f"‖J − I‖₂ − |q − z|/|z| at level {turn.view.index}")


@invariant(
    "rotation.accuracy",
    kind="limit",
    follows=("honesty.traits[estimator]", "rotation.angle", "rotation.norm", "rotation.determinant"),
    source="theory T5, T6",
    needs=NEEDS,
    mutants=("rotation_one_plus_cosine",),
    corners=("antiparallel", "parallel", "on-code", "unit", "zero"),
    hint="divide by |ẑ + q̂|²/2, which keeps its relative accuracy, and not by 1 + cos θ; put no ε into norms.",
)
def accuracy(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """The backward rotation is within B₁ = (9d + 41 + (4d + 16)/σ)u of the exact one at every angle, relative to λ|g|."""
    out = traced(subject, case)
    u = roundoff(subject)
    for view in paths(subject, out):
        s = sigma(view.z, view.q)
        d = view.z.shape[1]
        least = np.minimum(norms(view.z), norms(view.q))
        keep = np.flatnonzero((s > 2 * (4 * d + 16) * u) & (least > 1e-15) & (view.k >= 0))
        if len(keep):
            g = cotangents(subject, case, view)
            got = received(subject, out, view, g)[keep]
            z, q, g = view.z[keep], view.q[keep], g[keep]
            want = oracles.rotation_vjp(z, q, g)
            allowed = norms(q) / norms(z) * norms(g) * oracles.bound_b1(d, s[keep], u)
            yield within(norms(got - want), 1.01 * allowed, "accuracy", f"|Jᵀg − exact| at level {view.index}")
