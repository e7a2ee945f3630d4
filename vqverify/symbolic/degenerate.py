"""T6: what happens where the rotation is not defined."""

from __future__ import annotations

from typing import Any

import sympy as sp

from vqverify.symbolic.derivation import Derivation, Stated, algebra, certificate, lemma
from vqverify.symbolic.exact import same, zero
from vqverify.symbolic.gram import Span, concrete
from vqverify.symbolic.householder import ROTATION, SIGMA
from vqverify.symbolic.notation import c, d, identity, s, sigma, uhat, vhat
from vqverify.symbolic.rounding import B1

w: Any = sp.Symbol("w", positive=True)  # tan(phi / 2)
tau: Any = sp.Symbol("tau", positive=True)
tangent: Any = sp.MatrixSymbol("t", d, 1)  # unit, orthogonal to û
normal: Any = sp.MatrixSymbol("y", d, 1)  # unit, orthogonal to û and v̂
q_norm, e_norm, target, unit = sp.symbols("q_norm e_norm tau_0 u", positive=True)


def _limit(f: Stated) -> bool:
    """R at v̂ = −cos(phi) û + sin(phi) t as phi → 0: rational in w = tan(phi/2), σ = 2w/√(1 + w²)."""
    near = (w**2 - 1) / (1 + w**2) * uhat + 2 * w / (1 + w**2) * tangent
    span = Span((uhat, tangent), sp.eye(2), {vhat: near, s: uhat + near}, {sigma: 2 * w / sp.sqrt(1 + w**2)}, d)
    rotation = span.of(ROTATION)
    coefficients = rotation.coeff.applyfunc(lambda entry: span.normal(entry).subs(w, 0))
    flat = Span((uhat, tangent), sp.eye(2), {}, {}, d)
    stated = flat.of(f["limit of R along t"])
    return same(coefficients, stated.coeff) and stated.ident == rotation.ident


def _plane(f: Stated) -> bool:
    # d = 2: ûûᵀ + ttᵀ = I whatever t is; d = 3: two tangents give two limits
    first, second, third = (sp.Matrix(3, 1, lambda i, _, j=j: int(i == j)) for j in range(3))
    two = concrete(f["limit of R along t"], {uhat: first[:2, 0], tangent: second[:2, 0]}, 2)
    limits = [concrete(f["limit of R along t"], {uhat: first, tangent: t}, 3) for t in (second, third)]
    return two == f["d = 2"] * sp.eye(2) and limits[0] != limits[1]


def _condition(f: Stated) -> bool:
    """The derivative of R for v̂ moving along a unit y ⟂ û, v̂: its two singular values are the condition number."""
    gram = sp.Matrix([[1, c, 0], [c, 1, 0], [0, 0, 1]])
    moved = {vhat: sp.MatrixSymbol("v_0", d, 1) + tau * normal}
    generators = (uhat, sp.MatrixSymbol("v_0", d, 1), normal)
    span = Span(generators, gram, {**moved, s: uhat + moved[vhat]}, SIGMA, d)
    rate = span.of(ROTATION)
    rate = type(rate)(span, rate.rows, rate.cols, sp.S.Zero, sp.diff(rate.coeff, tau).subs(tau, 0))
    squared = rate.T @ rate
    if f["‖dR‖₂/‖dv̂‖"].is_positive is not True:
        return False
    value = f["‖dR‖₂/‖dv̂‖"] ** 2
    y = span.of(normal)
    pure = (squared @ y).equals(y.scaled(value.subs(SIGMA)))
    return pure and same(squared.trace(), 2 * value.subs(SIGMA)) and _rank_two(squared, value)


def _in_plane(f: Stated) -> bool:
    """The same for v̂ moving in the plane, at cos = (1 − w²)/(1 + w²): dRᵀdR is the identity on it."""
    cosine, sine = (1 - w**2) / (1 + w**2), 2 * w / (1 + w**2)
    base = sp.MatrixSymbol("v_0", d, 1)
    moved = base + tau * (uhat - cosine * base) / sine
    linear = {vhat: moved, s: uhat + moved}
    span = Span((uhat, base), sp.Matrix([[1, cosine], [cosine, 1]]), linear, {}, d)
    rotation = span.of(ROTATION.subs(sigma, sp.sqrt(2 + 2 * (cosine + tau * sine))))
    rate = type(rotation)(span, rotation.rows, rotation.cols, sp.S.Zero, sp.diff(rotation.coeff, tau).subs(tau, 0))
    stated = f["‖dR‖₂/‖dv̂‖ in the plane"]
    return same((rate.T @ rate).action(), stated**2 * sp.eye(2)) and stated > 0


def _rank_two(squared: Any, value: Any) -> bool:
    # S = dRᵀdR satisfies S² = value · S and has trace 2 value: two equal singular values, the rest 0
    return (squared @ squared).equals(squared.scaled(value.subs(SIGMA)))


def _quaternion(f: Stated) -> bool:
    u = sp.symbols("u0:4", real=True)
    v = sp.symbols("v0:4", real=True)
    relations = [sum(entry**2 for entry in row) - 1 for row in (u, v)]

    def left(p: Any) -> Any:
        w, i, j, k = p
        return sp.Matrix([[w, -i, -j, -k], [i, w, -k, j], [j, k, w, -i], [k, -j, i, w]])

    def reduced(entry: Any) -> Any:
        return sp.reduced(sp.expand(entry), relations, *reversed(u), *reversed(v))[1]

    Q = left(v) * left((u[0], -u[1], -u[2], -u[3]))
    antipode = Q.subs(dict(zip(v, (-entry for entry in u), strict=True))).applyfunc(reduced)
    return (
        all(reduced(entry) == 0 for entry in (*(Q * sp.Matrix(u) - sp.Matrix(v)), *(Q.T * Q - sp.eye(4))))
        and Q.subs(dict(zip(v, u, strict=True))).applyfunc(reduced) == sp.eye(4)  # connected to I: det 1
        and antipode == f["d = 4 at the antipode"] * sp.eye(4)
    )


def _norms(f: Stated) -> bool:
    ratio = q_norm / e_norm
    ends = sp.Tuple(sp.limit(ratio, e_norm, 0, "+"), sp.limit(ratio, q_norm, 0, "+"))
    return ends == f["λ as e → 0, q → 0"]


def _threshold(f: Stated) -> bool:
    # at σ₀ the part of B1 that depends on σ is τ; the rest is first order in u
    at = B1.subs(sigma, f["σ₀"])
    rest = sp.cancel(at - target)
    return not rest.has(target) and zero(rest.subs(unit, 0)) and rest.is_positive is True


DEGENERATE = Derivation(
    id="rotation.degenerate",
    theorem="T6",
    title="Degenerate points",
    statement=(
        "θ → π along a unit t ⟂ û: R → I − 2ûûᵀ − 2ttᵀ, which depends on t for d ≥ 3; ‖dR‖₂/‖dv̂‖ = 2/σ (d = 2: 1). d = 2 extends "
        "by −I, d = 1 has no rotation. Without planarity a continuous choice exists only for d = 2, 4, 8. e → 0: λ → ∞; "
        "q → 0: J → 0. With σ₀ = (4d + 16)u/τ, σ ≥ σ₀ keeps B₁ ≲ τ."
    ),
    latex=(
        r"\lim_{\theta\to\pi} R = I - 2\hat u\hat u^{\mathsf T} - 2tt^{\mathsf T},\qquad"
        r" \frac{\|dR\|_2}{\|d\hat v\|} = \frac2\sigma,\qquad \sigma_0 = \frac{(4d+16)u}{\tau}"
    ),
    hypotheses=("t a unit vector orthogonal to û", "d ≥ 3 for the condition 2/σ"),
    source="theory page; 000 A.4, Alg. 1",
    stated={
        "limit of R along t": identity - 2 * uhat * uhat.T - 2 * tangent * tangent.T,
        "d = 2": sp.Integer(-1),
        "‖dR‖₂/‖dv̂‖": 2 / sigma,
        "‖dR‖₂/‖dv̂‖ in the plane": sp.S.One,
        "d = 4 at the antipode": sp.Integer(-1),
        "λ as e → 0, q → 0": sp.Tuple(sp.oo, 0),
        "σ₀": (4 * d + 16) * unit / target,
    },
    bounds=("‖dR‖₂/‖dv̂‖", "σ₀"),
    steps=(
        algebra("the limit of R's coefficients along t", _limit),
        certificate("d = 2 gives −I for every t; in d = 3 two tangents give two limits", _plane),
        algebra("dR for v̂ moving off the plane: two singular values 2/σ, the rest 0", _condition),
        algebra("for v̂ moving in the plane they are 1, which is less", _in_plane),
        lemma("Hairy ball, and Adams: $S^{d-1}$ is framed only for d = 2, 4, 8; SO(1) = {1}"),
        algebra(
            "d = 4: left multiplication by $\\hat v\\hat u^{-1}$ is orthogonal, takes û to v̂, −I at antipodes",
            _quaternion,
        ),
        algebra("e → 0 and q → 0", _norms),
        algebra("the threshold σ₀ makes the conditioned part of B₁ equal to τ", _threshold),
    ),
    catches="NaN, det −1 at q = −e, a sign flip for d = 1",
)

DERIVATIONS = (DEGENERATE,)
