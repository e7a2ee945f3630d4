"""T4 and T8: which factors are detached, and what a step does to the distance between e and q."""

from __future__ import annotations

from typing import Any

import sympy as sp

from vqverify.symbolic.derivation import Derivation, Stated, algebra
from vqverify.symbolic.exact import same
from vqverify.symbolic.gram import Element, Span
from vqverify.symbolic.householder import ROTATION, with_vector
from vqverify.symbolic.notation import c, d, g, identity, lam, s, sigma, uhat, unit, vhat
from vqverify.symbolic.rounding import B1

a, b = sp.symbols("a b", real=True)  # û·x and v̂·x of a direction x, or û·g and v̂·g
t: Any = sp.Symbol("t", real=True)  # e moves to e + t x
e_norm: Any = sp.Symbol("e_norm", positive=True)
step: Any = sp.Symbol("eta", positive=True)
along: Any = sp.Symbol("alpha", real=True)  # g = alpha q
base: Any = sp.MatrixSymbol("u_0", d, 1)
direction: Any = sp.MatrixSymbol("x", d, 1)
rotation: Any = sp.MatrixSymbol("R", d, d)  # R(e, q), held


def _moving() -> Span:
    """û, v̂ and a direction x; û moves with e: û + t (x − aû)/|e|, to first order."""
    gram = sp.Matrix([[1, c, a], [c, 1, b], [a, b, sp.Symbol("n2", positive=True)]])
    velocity = (direction - a * base) / e_norm
    held = ROTATION.xreplace({uhat: base, s: base + vhat})
    linear = {uhat: base + t * velocity, s: base + t * velocity + vhat, rotation: held}
    cosine = c + t * (b - a * c) / e_norm
    return Span((base, vhat, direction), gram, linear, {sigma: sp.sqrt(2 + 2 * cosine)}, d)


def _rate(element: Element) -> Element:
    """Derivative in t at 0."""
    return Element(
        element.span,
        element.rows,
        element.cols,
        sp.diff(element.ident, t).subs(t, 0),
        element.coeff.applyfunc(lambda entry: sp.diff(sp.sympify(entry).subs(element.span.relations), t).subs(t, 0)),
    )


def _derivative(f: Stated, *, scale: bool, turn: bool) -> bool:
    """The derivative of (factor)(rotation)(e + t x), each factor moving or held, against the stated Jacobian."""
    span = _moving()
    turns, here = span.of(ROTATION), span.of(rotation)
    here = Element(span, here.rows, here.cols, here.ident, here.coeff.applyfunc(lambda entry: entry.subs(t, 0)))
    e, x = span.of(e_norm * base), span.of(direction)
    rate = (here @ x).scaled(lam)
    if turn:
        rate += (_rate(turns) @ e).scaled(lam)
    if scale:  # λ = |q|/|e| falls at the rate λ (û·x)/|e|
        rate += (here @ e).scaled(-lam * a / e_norm)
    name = {(False, False): "both", (True, False): "R", (False, True): "λ", (True, True): "neither"}[scale, turn]
    stated = span.of(f[f"detached: {name}"].xreplace({uhat: base})) @ x
    return all(same(entry.subs(t, 0).subs(span.relations).subs(t, 0), 0) for entry in (rate + stated.scaled(-1)).coeff)


def _dropped(f: Stated) -> bool:
    # the term that the paper calls incomputable: d(λR)·e, by the product rule on the constant λRe = q
    span = _moving()
    held = span.of(rotation)
    dropped = (_rate(span.of(ROTATION)) @ span.of(e_norm * base)).scaled(lam)
    dropped += (held @ span.of(e_norm * base)).scaled(-lam * a / e_norm)
    stated = span.of(f["dropped term"]) @ span.of(direction)
    difference = dropped + stated.scaled(-1)
    return all(same(sp.sympify(entry).subs(span.relations).subs(t, 0), 0) for entry in difference.coeff)


def _no_radial(f: Stated) -> bool:
    span = with_vector(g, along=(a, b))
    back = span.of(f["detached: R"].xreplace({rotation: ROTATION})).T @ span.of(g)
    return (span.of(uhat).T @ back).scalar == 0


DETACHMENT = Derivation(
    id="estimator.detached",
    theorem="T4",
    title="Detachment",
    statement=(
        "Jacobian of λ(e)R(e)e inside a cell: both factors detached, λR; only R, λR(I − ûûᵀ), whose VJP is orthogonal "
        "to e; only λ, λv̂ûᵀ; neither, 0. The term that detachment drops is −λR."
    ),
    latex=(
        r"\lambda R\;(\text{both}),\qquad \lambda R(I-\hat u\hat u^{\mathsf T})\;(\text{only } R),\qquad"
        r" \lambda\hat v\hat u^{\mathsf T}\;(\text{only }\lambda),\qquad 0\;(\text{neither})"
    ),
    hypotheses=("e ≠ 0", "q ≠ 0", "θ ≠ π", "e in the interior of a cell"),
    source="000 A.2",
    stated={
        "detached: both": lam * rotation,
        "detached: R": lam * rotation * (identity - uhat * uhat.T),
        "detached: λ": lam * vhat * uhat.T,
        "detached: neither": sp.ZeroMatrix(d, d),
        "dropped term": -lam * rotation,
    },
    tolerances={
        "VJP, relative to λ|g|": B1 + 2 * d * unit,
        "VJP with R in the graph, relative to λ|g|": (B1 + 2 * d * unit) * (1 + 4 / sigma),
    },
    steps=(
        algebra("both held: $\\lambda R$", lambda f: _derivative(f, scale=False, turn=False)),
        algebra("λ moves: $\\lambda R(I-\\hat u\\hat u^T)$", lambda f: _derivative(f, scale=True, turn=False)),
        algebra("R moves: $\\lambda\\hat v\\hat u^T$", lambda f: _derivative(f, scale=False, turn=True)),
        algebra("both move: 0, as λRe = q is constant in the cell", lambda f: _derivative(f, scale=True, turn=True)),
        algebra("the dropped term is computable: −λR", _dropped),
        algebra("with only R detached the VJP is orthogonal to e: all radial gradient is lost", _no_radial),
    ),
    catches="normalising e inside the graph, R recomputed with gradients",
)


def _rate_of_distance(f: Stated) -> bool:
    span = with_vector(g, along=(a, b))
    e, q, cotangent = span.of(e_norm * uhat), span.of(lam * e_norm * vhat), span.of(g)
    back = span.of(f["J"]).T @ cotangent
    apart = e + q.scaled(-1)
    after = apart + (back + cotangent.scaled(-1)).scaled(-step)
    rate = sp.diff(sp.expand((after.T @ after).scalar), step).subs(step, 0)
    sent, received = (q.T @ cotangent).scalar, (e.T @ cotangent).scalar
    names = dict(zip(sp.symbols("qg eg"), (sent, received), strict=True))
    return same(rate, f["d|e−q|²/dη"].subs(names)) and same(
        rate.subs(lam, 1), f["d|e−q|²/dη at λ=1"].subs(names).subs(lam, 1)
    )


def _straight_through(f: Stated) -> bool:
    # e and q move alike, so the distance does not change at all
    span = with_vector(g, along=(a, b))
    apart = span.of(e_norm * uhat - lam * e_norm * vhat)
    after = apart + (span.of(f["A of the STE"]).T @ span.of(g) + span.of(g).scaled(-1)).scaled(-step)
    return same(sp.diff((after.T @ after).scalar, step), 0)


def _radial(f: Stated) -> bool:
    span = with_vector(g)
    back = span.of(f["J"]).T @ span.of(along * lam * e_norm * vhat)
    return back.equals(span.of(f["Jᵀ(αq)"]))


def _turns(f: Stated) -> bool:
    # g ⟂ q: Jᵀg ⟂ e, so e turns by the angle whose tangent is η|Jᵀg|/|e|
    span = with_vector(g, along=(a, 0))
    back = span.of(f["J"]).T @ span.of(g)
    g_norm, q_norm = sp.symbols("g_norm q_norm", positive=True)
    tangent2 = step**2 * (back.T @ back).scalar / e_norm**2
    names = {sp.Symbol("n2", nonnegative=True): g_norm**2, lam: q_norm / e_norm}
    stated = f["tan of the turn"].subs({sp.Symbol("g_norm"): g_norm, sp.Symbol("q_norm"): q_norm})
    return (span.of(uhat).T @ back).scalar == 0 and same(tangent2.subs(names), stated**2) and stated.is_positive


PUSH_PULL = Derivation(
    id="rotation.push_pull",
    theorem="T8",
    title="Push and pull",
    statement=(
        "With e ← e − ηJᵀg, q ← q − ηg: d|e−q|²/dη at 0 is −2[(2 − 2cλ)⟨q,g⟩ − (1 − λ²)⟨e,g⟩]; for λ = 1, "
        "−4(1 − cos θ)⟨q,g⟩; for the STE 0. g = αq gives Jᵀg = αλ²e. g ⟂ q turns e by arctan(η|q||g|/|e|²)."
    ),
    latex=(
        r"\left.\frac{d}{d\eta}|e-q|^2\right|_0 = -2\left[(2-2c\lambda)\langle q,g\rangle -"
        r" (1-\lambda^2)\langle e,g\rangle\right],\qquad J^{\mathsf T}(\alpha q) = \alpha\lambda^2 e"
    ),
    hypotheses=("e ≠ 0", "q ≠ 0", "θ ≠ π", "both moved by one step of rate η"),
    source="000 §4.3 (its signs belong to the step −g)",
    stated={
        "J": lam * ROTATION,
        "d|e−q|²/dη": -2 * ((2 - 2 * c * lam) * sp.Symbol("qg") - (1 - lam**2) * sp.Symbol("eg")),
        "d|e−q|²/dη at λ=1": -4 * (1 - c) * sp.Symbol("qg"),
        "A of the STE": identity,
        "Jᵀ(αq)": along * lam**2 * e_norm * uhat,
        "tan of the turn": step * sp.Symbol("q_norm") * sp.Symbol("g_norm") / e_norm**2,
    },
    tolerances={"relative to |e−q||g|": 2 * B1 * (1 + lam) ** 2},
    steps=(
        algebra("the derivative, by Gram algebra, in general and for λ = 1", _rate_of_distance),
        algebra("straight-through: the distance is constant in η", _straight_through),
        algebra("$J^T(\\alpha q) = \\alpha\\lambda^2 e$", _radial),
        algebra("g ⟂ q: $J^Tg \\perp e$, and the tangent of the turn", _turns),
    ),
    catches="the sign of Rᵀg",
)

DERIVATIONS = (DETACHMENT, PUSH_PULL)
