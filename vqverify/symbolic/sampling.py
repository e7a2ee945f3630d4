"""T30: codes drawn with probabilities exp(−D/T)."""

from __future__ import annotations

from typing import Any

import sympy as sp

from vqverify.symbolic.derivation import Derivation, Stated, algebra, certificate, lemma
from vqverify.symbolic.exact import same, zero
from vqverify.symbolic.notation import unit

T, tau, shift, gap, span = sp.symbols("T tau shift Delta rho", positive=True)
K: Any = sp.Symbol("K", integer=True, positive=True)
distance: Any = sp.Symbol("D_j", real=True)
rest: Any = sp.Symbol("rest", positive=True)  # the weights of all other codes, for every K
slack: Any = sp.Symbol("slack", positive=True)
n: Any = sp.Symbol("n", integer=True, positive=True)
f_j, p_j = sp.symbols("f_j p_j", positive=True)  # of a cell: what is drawn, what is claimed


def _shift(f: Stated) -> bool:
    # every weight gets the same factor, so that p_j = w_j/(w_j + rest) keeps its value
    weight = f["weight"]
    factor = sp.simplify(weight.subs(distance, distance + shift) / weight)
    moved = factor * weight / (factor * weight + factor * rest)
    return not factor.has(distance) and zero(sp.simplify(moved - weight / (weight + rest)))


def _race(f: Stated) -> bool:
    # argmin(D/T − Gumbel) is the first of independent exponentials with rates exp(−D/T)
    t, rate = sp.symbols("t w", positive=True)
    # the density of code j times the survival of all others, exp(−rest t)
    first = sp.integrate(rate * sp.exp(-rate * t) * sp.exp(-rest * t), (t, 0, sp.oo))
    clock = sp.Symbol("y", positive=True)
    # X = Gumbel − D/T has P(X <= x) = exp(−exp(−x − D/T)), so Y = exp(−X) survives y with exp(−y exp(−D/T))
    exponential = sp.exp(sp.log(clock) - distance / T) / clock
    return zero(sp.simplify(exponential - f["weight"])) and same(first, rate / (rate + rest))


def _relaxed(f: Stated) -> bool:
    # softmax at any τ orders the codes as their logits are ordered
    larger, smaller = (sp.exp(logit / tau) for logit in (distance + slack, distance))
    ratio = sp.expand_log(sp.log(larger / smaller), force=True)
    names = dict(zip(sp.symbols("l_i l_j"), (distance + slack, distance), strict=True))
    return zero(ratio - f["ln(y_i/y_j)"].subs(names)) and sp.expand(ratio).is_positive is True


def _concentrates(f: Stated) -> bool:
    # D_k = 0, another Delta + s: w/w_k = e^{−Δ/T} e^{−s/T}, and there are K − 1 of them; Σw ≥ w_k
    here = f["weight"].subs(distance, 0)
    worst = f["weight"].subs(distance, gap) / here
    smaller = sp.expand_log(sp.log(f["weight"].subs(distance, gap + slack) / here / worst), force=True)
    total = sp.Sum(worst, (sp.Symbol("i", integer=True), 1, K - 1)).doit()
    return sp.expand(smaller).is_negative is True and zero(sp.simplify(total - f["1 − p_k at most"]))


def _range(f: Stated) -> bool:
    # K p_j between the ratios of extreme weights: mean of weights lies between them
    low, high = (f["weight"].subs(distance, end) for end in (span, 0))
    least, most = sp.simplify(low / high), sp.simplify(high / low)
    return same(least, f["K p_j at least"]) and same(most, f["K p_j at most"])


def _variance(f: Stated) -> bool:
    # Z(s) = Σ e^{−sD}: each derivative brings down −D, so E[D] = −Z'/Z and E[D²] = Z''/Z, for every K
    inverse = sp.Symbol("s", positive=True)
    weight = f["weight"].subs(T, 1 / inverse)
    if not same(sp.diff(weight, inverse) / weight, -distance):
        return False
    Z = sp.Function("Z")(inverse)
    mean, second = -sp.diff(Z, inverse) / Z, sp.diff(Z, inverse, 2) / Z
    names = dict(zip(sp.symbols("E_D2 E_D"), (second, mean), strict=True))
    return zero(sp.expand(sp.diff(mean, inverse) - f["dE[D]/d(1/T)"].subs(names)))


def _spread(f: Stated) -> bool:
    # ½ Σ p_i p_j (D_i − D_j)², by E[x^a y^b] = m_a m_b for independent x, y
    x, y = sp.symbols("x y")
    moments = (sp.S.One, sp.Symbol("E_D"), sp.Symbol("E_D2"))
    terms = sp.Poly((x - y) ** 2, x, y).terms()
    squares = sum(factor * moments[one] * moments[other] for (one, other), factor in terms) / 2
    return same(squares, -f["dE[D]/d(1/T)"])


def _softmax(f: Stated) -> bool:
    one, other = sp.symbols("l_i l_j", real=True)
    weights = [sp.exp(logit / tau) for logit in (one, other)]
    y = [weight / (weights[0] + weights[1] + rest) for weight in weights]
    row, column, same_index = sp.symbols("y_i y_j delta_ij")

    def stated(second: Any, equal: int) -> Any:
        return f["softmax Jacobian"].subs({row: y[0], column: second, same_index: equal})

    # the columns other than i add up to −y_i(1 − y_i), as the y add up to 1
    across = stated(y[0], 1) + stated(1 - y[0], 0)
    return zero(sp.diff(y[0], one) - stated(y[0], 1)) and zero(sp.diff(y[0], other) - stated(y[1], 0)) and zero(across)


def _large(f: Stated) -> bool:
    # both bounds agree with the law at T → ∞, and the concentration at T → 0
    return sp.limit(f["K p_j at most"], T, sp.oo) == 1 and sp.limit(f["1 − p_k at most"], T, 0, "+") == 0


def _effect(f: Stated) -> bool:
    # the count of a cell is binomial: E(O − np)²/(np) from its generating function, less what f = p would give
    t = sp.Symbol("t", positive=True)
    generating = (1 - f_j + f_j * t) ** n
    mean, falling = (sp.diff(generating, t, order).subs(t, 1) for order in (1, 2))
    expected = (falling + mean - 2 * mean * n * p_j + (n * p_j) ** 2) / (n * p_j)
    return same(expected - f_j * (1 - f_j) / p_j, f["share of a cell in nw²"]) and same(
        expected.subs(f_j, p_j), f["Pearson's term at f = p"]
    )


SAMPLING = Derivation(
    id="stochastic.law",
    theorem="T30",
    title="Sampling codes",
    statement=(
        "p_j ∝ e^{−D_j/T}: shift-invariant in D; with unique minimum and gap Δ, 1 − p_k ≤ (K − 1)e^{−Δ/T}; with range ρ, "
        "e^{−ρ/T} ≤ Kp_j ≤ e^{ρ/T}; dE[D]/d(1/T) = −Var D. argmin(D/T − Gumbel) ~ p, whatever the relaxation temperature "
        "τ. Softmax Jacobian (diag y − yyᵀ)/τ, rows sum to 0. Pearson's χ² of n draws from f against p has the "
        "mean Σf(1 − f)/p + nw², w² = Σ(f − p)²/p: at f = p that is K − 1, and nw² is the noncentrality."
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
        "ln(y_i/y_j)": (sp.Symbol("l_i") - sp.Symbol("l_j")) / tau,
        "share of a cell in nw²": n * (f_j - p_j) ** 2 / p_j,
        "Pearson's term at f = p": 1 - p_j,
        "softmax Jacobian": sp.Symbol("y_i") * (sp.Symbol("delta_ij") - sp.Symbol("y_j")) / tau,
    },
    bounds=("1 − p_k at most", "K p_j at least", "K p_j at most"),
    tolerances={"p, relative": (2 * span / T + K + 6) * unit},
    steps=(
        algebra(
            "a shift multiplies every weight by one factor, which cancels (all other codes summed up: every K)", _shift
        ),
        algebra("Gumbel noise is a race of exponentials: the first has probability w/Σw, by integration", _race),
        certificate(
            "softmax of the noisy logits at any τ > 0 keeps their order, hence the law of the argmax", _relaxed
        ),
        certificate("1 − p_k ≤ Σ of ratios of weights, each at most e^{−Δ/T}", _concentrates),
        lemma("A mean lies between the least and the largest term"),
        algebra("so K p_j lies between the ratios of extreme weights", _range),
        algebra("derivative of the mean in 1/T, through a free normaliser Z: every K", _variance),
        certificate("the variance is ½ΣΣ p_i p_j (D_i − D_j)², so the mean falls", _spread),
        algebra("softmax Jacobian by differentiation, all other codes summed up; rows sum to 0", _softmax),
        algebra("limits for large and small T", _large),
        algebra("a cell of Pearson's statistic, by the binomial generating function", _effect),
    ),
    catches="√D where D is claimed, sign, T multiplied, shared noise",
)

DERIVATIONS = (SAMPLING,)
