"""T16 and T33: the commitment loss, its two conventions and its upper bound."""

from __future__ import annotations

from typing import Any

import sympy as sp

from vqverify.symbolic.derivation import Derivation, Stated, algebra, certificate
from vqverify.symbolic.exact import nonnegative, same
from vqverify.symbolic.notation import d, unit

z: Any = sp.Symbol("z", real=True)  # one component of the latent
q: Any = sp.Symbol("q", real=True)  # one component of the code
beta: Any = sp.Symbol("beta", real=True)
held_z, held_q = sp.symbols("sg_z sg_q", real=True)  # behind a stop-gradient
weight: Any = sp.Symbol("b", positive=True)
mean, variance, size = sp.symbols("mu v n", real=True)
B: Any = sp.Symbol("B", positive=True)

HELD = {held_z: z, held_q: q}
LOSSES: dict[str, Any] = {
    "A": (1 - beta) * (z - held_q) ** 2 / 2 + beta * (held_z - q) ** 2 / 2,
    "V": (held_z - q) ** 2 + beta * (z - held_q) ** 2,
}


def _gradients(loss: Any) -> tuple[Any, Any, Any]:
    """(∂z, ∂q, value): differentiate with the held copies constant, then release them."""
    return tuple(part.subs(HELD) for part in (sp.diff(loss, z), sp.diff(loss, q), loss))  # type: ignore[return-value]


def _convention(name: str) -> Any:
    def check(f: Stated) -> bool:
        return same(_gradients(LOSSES[name]), tuple(f[f"{name} {part}"] for part in ("∂z", "∂q", "value")))

    return check


def _equivalent(f: Stated) -> bool:
    ours = [part.subs(beta, f["β of b"]) * f["factor of b"] for part in _gradients(LOSSES["A"])]
    theirs = [part.subs(beta, weight) for part in _gradients(LOSSES["V"])]
    quarter = {weight: sp.Rational(1, 4)}
    pair = sp.Tuple(f["β of b"].subs(quarter), f["factor of b"].subs(quarter))
    (ninth,) = sp.solve(f["β of b"] - sp.Rational(9, 10), weight)
    # the values agree as well: 2(1 + b)·½|z − q|² = (1 + b)|z − q|²
    return same(ours, theirs) and (*pair, ninth) == tuple(f["b = 1/4, β = 9/10"])


def _swapped(f: Stated) -> bool:
    # the stop-gradients exchanged: same value, gradients exchanged, unseen only at beta = 1/2 (b = 1)
    exchange = {z: held_z, held_z: z, q: held_q, held_q: q}
    fixed = []
    for loss in LOSSES.values():
        plain, other = _gradients(loss), _gradients(loss.xreplace(exchange))
        if not same(plain[2], other[2]) or not same(plain[0] + other[1], 0) or not same(plain[1] + other[0], 0):
            return False
        (where,) = sp.solve(sp.expand((plain[0] - other[0]) / (z - q)), beta)
        fixed.append(where)
    return tuple(fixed) == tuple(f["swap is invisible at β, b"])


CONVENTIONS = Derivation(
    id="loss.conventions",
    theorem="T16",
    title="Conventions of the commitment loss",
    statement=(
        "A_β = (1 − β)½|z − sg q|² + β½|sg z − q|²: ∂z = (1 − β)(z − q), ∂q = β(q − z), value ½|z − q|². "
        "V_b = |sg z − q|² + b|z − sg q|²: ∂z = 2b(z − q), ∂q = 2(q − z), value (1 + b)|z − q|². V_b ≡ 2(1 + b)A_β with "
        "β = 1/(1 + b). Swapped stop-gradients leave the value and exchange the gradients."
    ),
    latex=(
        r"A_\beta:\ \partial_z=(1-\beta)(z-q),\ \partial_q=\beta(q-z);\qquad V_b:\ \partial_z=2b(z-q),\ \partial_q=2(q-z);"
        r"\qquad V_b\equiv 2(1+b)\,A_{1/(1+b)}"
    ),
    hypotheses=("Euclidean distance", "per latent, before any mean"),
    source="001 eq. 8–9; 002 eq. 1",
    stated={
        "A ∂z": (1 - beta) * (z - q),
        "A ∂q": beta * (q - z),
        "A value": (z - q) ** 2 / 2,
        "V ∂z": 2 * beta * (z - q),
        "V ∂q": 2 * (q - z),
        "V value": (1 + beta) * (z - q) ** 2,
        "β of b": 1 / (1 + weight),
        "factor of b": 2 * (1 + weight),
        "b = 1/4, β = 9/10": sp.Tuple(sp.Rational(4, 5), sp.Rational(5, 2), sp.Rational(1, 9)),
        "swap is invisible at β, b": sp.Tuple(sp.Rational(1, 2), 1),
    },
    tolerances={"gradients, relative": 4 * unit},
    steps=(
        algebra("gradients and value of $A_\\beta$, with held copies constant", _convention("A")),
        algebra("gradients and value of $V_b$", _convention("V")),
        algebra("$V_b \\equiv 2(1+b)A_\\beta$: gradients and value; b = 1/4 and β = 9/10", _equivalent),
        algebra("swapping the stop-gradients", _swapped),
    ),
    catches="swapped stop-gradients, β for 1 − β, a lost ½",
)


def _parallel_axis(f: Stated) -> bool:
    # mean of (z − c)² over a sample, against variance + (c − mean)², for 2, 3 and 4 points and by moments
    centre = sp.Symbol("c", real=True)
    for number in (2, 3, 4):
        points = sp.symbols(f"z1:{number + 1}", real=True)
        average = sum(points) / number
        spread = sum(point**2 for point in points) / number - average**2
        names = {variance: spread, mean: average, sp.Symbol("c"): centre}
        if not same(sum((point - centre) ** 2 for point in points) / number, f["E|z−c|²"].subs(names)):
            return False
        if not same(sum((point - centre) ** 2 for point in points), f["cluster sum"].subs({**names, size: number})):
            return False
    moments = variance + mean**2 - 2 * centre * mean + centre**2  # E z² − 2c E z + c²
    return same(moments, f["E|z−c|²"].subs(sp.Symbol("c"), centre))


def _bound(f: Stated) -> bool:
    # E min_j <= min_j E: the slack of each latent against one code is nonnegative
    distances = sp.symbols("D1:4", nonnegative=True)
    # min_j D_j − D_i = min_j (D_j − D_i), whose term j = i is 0
    least = all(sp.Min(*(other - one for other in distances)).is_nonpositive for one in distances)
    spread, apart2 = sp.symbols("v dist2", nonnegative=True)
    half = f["upper bound"].subs({variance: spread, sp.Symbol("dist2"): apart2})
    expected = f["E|z−c|²"].subs({variance: spread, mean: sp.Symbol("c") + sp.sqrt(apart2)}) / 2
    return least and same(half, expected) and nonnegative(half - spread / 2, apart2 / 2)


def _counterexample(f: Stated) -> bool:
    # P = delta_0, C = {1}: loss ½, ½ Var = 0
    loss = sp.Rational(1, 2) * min((0 - 1) ** 2 for _ in (0,))
    right = f["upper bound"].subs({variance: 0, sp.Symbol("dist2"): 1})
    return same(right, loss) and loss == f["loss of δ₀ with C = {1}"] and loss > 0


def _covered(f: Stated) -> bool:
    # a latent in C: one distance is 0, whatever the others are; a latent outside C: all are positive
    others, apart = sp.symbols("D1:4", nonnegative=True), sp.symbols("P1:4", positive=True)
    return sp.Min(sp.S.Zero, *others) == f["D when supp P ⊆ C"] and sp.Min(*apart).is_positive is True


UPPER_BOUND = Derivation(
    id="loss.upper_bound",
    theorem="T33",
    title="Upper bound of the commitment loss",
    statement=(
        "½E min_j|z − c_j|² ≤ ½ min_j E|z − c_j|² = ½(tr Cov P + min_j|c_j − μ|²), which is ½ tr Cov P iff μ ∈ C. "
        "Cluster form: Σ_B|z − c|² = |B|(Var B + |c − μ|²). D(P, C) = 0 iff supp P ⊆ C."
    ),
    latex=(
        r"\tfrac12\mathbb E\min_j|z-c_j|^2 \le \tfrac12\left(\operatorname{tr}\operatorname{Cov}P +"
        r" \min_j|c_j-\mu|^2\right),\qquad \sum_{z\in B}|z-c|^2 = |B|\left(\operatorname{Var}B+|c-\mu_B|^2\right)"
    ),
    hypotheses=("P has second moments",),
    source="001 eq. 13, 30–37",
    stated={
        "E|z−c|²": variance + (sp.Symbol("c") - mean) ** 2,
        "cluster sum": size * (variance + (sp.Symbol("c") - mean) ** 2),
        "upper bound": (variance + sp.Symbol("dist2")) / 2,
        "loss of δ₀ with C = {1}": sp.Rational(1, 2),
        "D when supp P ⊆ C": sp.S.Zero,
    },
    bounds=("upper bound",),
    tolerances={"relative to the right side": (B + d + 4) * unit},
    steps=(
        algebra("parallel axis: by moments, and for 2, 3 and 4 free points (components add)", _parallel_axis),
        certificate("E min ≤ min E; the bound exceeds ½ Var by ½ dist(μ, C)²", _bound),
        certificate("P = δ₀, C = {1}: loss ½, printed bound 0", _counterexample),
        certificate("a latent in C has distance 0, whatever unused codes there are; one outside has not", _covered),
    ),
    catches="testing loss ≤ ½ Var at initialisation",
)

DERIVATIONS = (CONVENTIONS, UPPER_BOUND)
