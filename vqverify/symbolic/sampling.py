"""T30: codes drawn with probabilities exp(−D/T)."""

from __future__ import annotations

from typing import Any

import sympy as sp

from vqverify.symbolic.derivation import Derivation, Stated, algebra, certificate, lemma
from vqverify.symbolic.exact import nonnegative, same, zero
from vqverify.symbolic.notation import unit

T, tau, shift, gap, span = sp.symbols("T tau shift Delta rho", positive=True)
K: Any = sp.Symbol("K", positive=True)
D = sp.symbols("D1:4", real=True)
j, k = sp.symbols("j k")
distance: Any = sp.Symbol("D_j", real=True)
normaliser: Any = sp.Symbol("Z", positive=True)


def _law(f: Stated, distances: Any = D) -> list[Any]:
    """The stated weights, normalised over three codes."""
    weights = [f["weight"].subs(distance, one) for one in distances]
    return [weight / sum(weights) for weight in weights]


def _shift(f: Stated) -> bool:
    plain, moved = _law(f), _law(f, [one + shift for one in D])
    return all(
        zero(sp.powsimp(sp.expand(p - q)) if p == q else sp.simplify(p - q)) for p, q in zip(plain, moved, strict=True)
    )


def _race(f: Stated) -> bool:
    # argmin(D/T − Gumbel) is the first of independent exponentials with rates exp(−D/T)
    t = sp.Symbol("t", positive=True)
    rates = sp.symbols("w1:4", positive=True)
    first = sp.integrate(rates[0] * sp.exp(-sum(rates) * t), (t, 0, sp.oo))
    clock = sp.Symbol("y", positive=True)
    # X = Gumbel − D/T has P(X <= x) = exp(−exp(−x − D/T)), so Y = exp(−X) survives y with exp(−y exp(−D/T))
    rate = sp.exp(sp.log(clock) - distance / T) / clock
    weights = dict(zip(rates, (f["weight"].subs(distance, one) for one in D), strict=True))
    return (
        same(sp.simplify(rate - f["weight"]), 0)
        and same(first, rates[0] / sum(rates))
        and same(first.subs(weights), _law(f)[0])
    )


def _concentrates(f: Stated) -> bool:
    # D_k = 0, the others Delta + s_j: 1 − p_k = Σ_{j≠k} p_j <= Σ weight_j / weight_k
    slack = sp.symbols("s1:3", nonnegative=True)
    worst = [f["weight"].subs(distance, gap) / f["weight"].subs(distance, 0)] * 2
    each = [f["weight"].subs(distance, gap + one) / f["weight"].subs(distance, 0) for one in slack]
    smaller = all(
        sp.simplify(one / most - sp.exp(-s / T)) == 0 for one, most, s in zip(each, worst, slack, strict=True)
    )
    return smaller and sp.simplify(sum(worst) - f["1 − p_k at most"].subs(K, 3)) == 0


def _range(f: Stated) -> bool:
    # K p_j between the ratios of extreme weights: mean of weights lies between them
    low, high = (f["weight"].subs(distance, end) for end in (span, 0))
    least, most = sp.simplify(low / high), sp.simplify(high / low)
    return same(least, f["K p_j at least"]) and same(most, f["K p_j at most"])


def _variance(f: Stated) -> bool:
    inverse = sp.Symbol("s", positive=True)
    law = [p.subs(T, 1 / inverse) for p in _law(f)]
    mean = sum(p * one for p, one in zip(law, D, strict=True))
    second = sum(p * one**2 for p, one in zip(law, D, strict=True))
    names = dict(zip(sp.symbols("E_D2 E_D"), (second, mean), strict=True))
    return zero(sp.expand(sp.simplify(sp.diff(mean, inverse) - f["dE[D]/d(1/T)"].subs(names))))


def _softmax(f: Stated) -> bool:
    logits = sp.symbols("l1:4", real=True)
    weights = [sp.exp(one / tau) for one in logits]
    y = [weight / sum(weights) for weight in weights]
    jacobian = sp.Matrix([[sp.diff(one, other) for other in logits] for one in y])
    row, column, same_index = sp.symbols("y_i y_j delta_ij")
    stated = sp.Matrix(
        3, 3, lambda i, m: f["softmax Jacobian"].subs({row: y[i], column: y[m], same_index: int(i == m)})
    )
    return all(zero(entry) for entry in jacobian - stated) and all(zero(sum(jacobian.row(i))) for i in range(3))


def _large(f: Stated) -> bool:
    # both bounds agree with the law at T → ∞, and the concentration at T → 0
    return sp.limit(f["K p_j at most"], T, sp.oo) == 1 and sp.limit(f["1 − p_k at most"], T, 0, "+") == 0


def _spread(_: Stated) -> bool:
    p, q, x, y = sp.symbols("p q x y", nonnegative=True)
    variance = (p * x**2 + q * y**2) * (p + q) - (p * x + q * y) ** 2
    return nonnegative(variance, p * q * sp.Symbol("difference", real=True) ** 2) or same(
        variance, p * q * (x - y) ** 2
    )


SAMPLING = Derivation(
    id="stochastic.law",
    theorem="T30",
    title="Sampling codes",
    statement=(
        "p_j ∝ e^{−D_j/T}: shift-invariant in D; with unique minimum and gap Δ, 1 − p_k ≤ (K − 1)e^{−Δ/T}; with range ρ, "
        "e^{−ρ/T} ≤ Kp_j ≤ e^{ρ/T}; dE[D]/d(1/T) = −Var D. argmin(D/T − Gumbel) ~ p. Softmax Jacobian (diag y − yyᵀ)/τ."
    ),
    latex=(
        r"p_j\propto e^{-D_j/T},\quad 1-p_k\le(K-1)e^{-\Delta/T},\quad e^{-\rho/T}\le Kp_j\le e^{\rho/T},\quad"
        r" \frac{d\,\mathbb E D}{d(1/T)}=-\operatorname{Var}D"
    ),
    hypotheses=("T > 0", "unique minimum (for the gap bound)"),
    source="001 eq. 12",
    stated={
        "weight": sp.exp(-distance / T),
        "1 − p_k at most": (K - 1) * sp.exp(-gap / T),
        "K p_j at least": sp.exp(-span / T),
        "K p_j at most": sp.exp(span / T),
        "dE[D]/d(1/T)": sp.Symbol("E_D") ** 2 - sp.Symbol("E_D2"),
        "softmax Jacobian": sp.Symbol("y_i") * (sp.Symbol("delta_ij") - sp.Symbol("y_j")) / tau,
    },
    bounds=("1 − p_k at most", "K p_j at least", "K p_j at most"),
    tolerances={"p, relative": (2 * span / T + K + 6) * unit},
    steps=(
        algebra("shift invariance, three codes", _shift),
        algebra("Gumbel noise is a race of exponentials: the first has probability w/Σw, by integration", _race),
        certificate("1 − p_k ≤ Σ of ratios of weights, each at most e^{−Δ/T}", _concentrates),
        lemma("A mean lies between the least and the largest term"),
        algebra("so K p_j lies between the ratios of extreme weights", _range),
        algebra("derivative of the mean in 1/T, three codes", _variance),
        certificate("a variance is a sum of squares p q (x − y)²", _spread),
        algebra("softmax Jacobian by differentiation; rows sum to 0", _softmax),
        algebra("limits for large and small T", _large),
    ),
    catches="√D where D is claimed, sign, T multiplied, shared noise",
)

DERIVATIONS = (SAMPLING,)
