"""T34 and T35: residual and product quantizers."""

from __future__ import annotations

from itertools import product
from typing import Any

import sympy as sp

from vqverify.symbolic.derivation import Derivation, Stated, algebra, certificate
from vqverify.symbolic.exact import same
from vqverify.symbolic.notation import d, unit

Z = sp.Symbol("z", real=True)
Q = sp.symbols("q0:4", real=True)  # outputs of the stages
held = sp.symbols("s0:4", real=True)  # behind a stop-gradient
stages: Any = sp.Symbol("M", integer=True, positive=True)
r, c = sp.symbols("r c", real=True)
G, K = sp.symbols("G K", integer=True, positive=True)


def _telescopes(f: Stated) -> bool:
    # induction: z at the start, and a stage adds to the sum what it takes from the rest
    before = {sp.Symbol("sum_q"): sum(Q[:2]), sp.Symbol("r_M"): r}
    after = {sp.Symbol("sum_q"): sum(Q[:2]) + Q[2], sp.Symbol("r_M"): r - Q[2]}
    start = {sp.Symbol("sum_q"): 0, sp.Symbol("r_M"): Z}
    return same(f["z"].subs(before), f["z"].subs(after)) and same(f["z"].subs(start), Z)


def _shorter(f: Stated) -> bool:
    # |r − c|² − |r|² by expansion; 0 gives equality; C = {10}, r = 1
    longer = abs(1 - 10)
    change = f["|r'|² − |r|²"]
    return same((r - c) ** 2 - r**2, change) and change.subs(c, 0) == 0 and longer == f["|r'| for C = {10}, r = 1"]


def _greedy(f: Stated) -> bool:
    z = sp.Rational(14, 10)
    first, second = (sp.Integer(0), sp.Integer(3)), (-sp.Rational(16, 10), sp.Integer(0))
    rest = z - min(first, key=lambda one: abs(z - one))
    greedy = min(abs(rest - one) for one in second)
    joint = min(abs(z - one - other) for one in first for other in second)
    return same((greedy, joint), f["z = 1.4: greedy, joint"])


def _gradient(f: Stated) -> bool:
    """Stages y_i = r_i + sg(q_i − r_i); subtract y_i (attached) or its held value."""
    for depth in range(1, 5):
        for attached in (True, False):
            rest, total = Z, sp.S.Zero
            for one in range(depth):
                output = rest + held[one]
                total += output
                rest = rest - output if attached else rest - sp.Symbol(f"q{one}_held")
            name = "∂y/∂z, attached" if attached else "∂y/∂z, sg"
            if not same(sp.diff(total, Z), f[name].subs(stages, depth)):
                return False
    return True


def _every_depth(f: Stated) -> bool:
    # (∂ of the sum, ∂ of the rest) from (0, 1); a stage's output has the derivative of the rest it is made of
    def stage(of_sum: Any, of_rest: Any, *, attached: bool) -> tuple[Any, Any]:
        return of_sum + of_rest, (of_rest - of_rest if attached else of_rest)

    one, depth = f["∂y/∂z, attached"], f["∂y/∂z, sg"]
    first = stage(sp.S.Zero, sp.S.One, attached=True)
    following = stage(depth, sp.S.One, attached=False)
    return (
        first == (one, 0) == stage(*first, attached=True)
        and same(following, (depth.subs(stages, stages + 1), 1))
        and depth.subs(stages, 0) == 0
    )


RESIDUAL = Derivation(
    id="residual.telescopes",
    theorem="T34",
    title="Residual quantizer",
    statement=(
        "r₀ = z, r_{i+1} = r_i − q_i: z = Σq_i + r_M. |r_{i+1}| ≤ |r_i| iff some c has |c|² ≤ 2c·r_i; 0 ∈ C suffices. "
        "Greedy is not joint: z = 1.4, C₁ = {0, 3}, C₂ = {−1.6, 0}: 1.4 against 0. Subtracting the attached output gives "
        "the Jacobian I, subtracting sg(q) M·I."
    ),
    latex=r"z=\sum_iq_i+r_M,\qquad |r_i-c|^2-|r_i|^2=|c|^2-2c\cdot r_i,\qquad \frac{\partial y}{\partial z}=I\ \text{or}\ M\cdot I",
    hypotheses=("straight-through per stage (for the Jacobians)",),
    source="theory page",
    stated={
        "z": sp.Symbol("sum_q") + sp.Symbol("r_M"),
        "|r'|² − |r|²": c**2 - 2 * c * r,
        "|r'| for C = {10}, r = 1": sp.Integer(9),
        "z = 1.4: greedy, joint": sp.Tuple(sp.Rational(7, 5), 0),
        "∂y/∂z, attached": sp.S.One,
        "∂y/∂z, sg": stages,
    },
    tolerances={"relative to Σ|q|": (stages + 1) * unit},
    steps=(
        algebra("telescoping, by induction", _telescopes),
        algebra("one stage: expand; 0 as a code; C = {10}", _shorter),
        certificate("greedy against joint, in rationals", _greedy),
        algebra("the Jacobian of both wirings, one to four stages", _gradient),
        algebra("and by induction for every number of stages", _every_depth),
    ),
    catches="gradient × M",
)


def _adds(f: Stated) -> bool:
    z, codes = sp.symbols("z1:5", real=True), sp.symbols("c1:5", real=True)
    whole = sum((one - other) ** 2 for one, other in zip(z, codes, strict=True))
    groups = [sum((z[i] - codes[i]) ** 2 for i in pair) for pair in ((0, 1), (2, 3))]
    return same(whole, f["D"].subs(dict(zip(sp.symbols("D_1 D_2"), groups, strict=True))))


def _factors(f: Stated) -> bool:
    # every table of distances in {0, 1, 2} for two groups of three codes: the joint argmin is the pair of argmins
    weight = f["index"].subs({G: 2, K: 3})
    for values in product(range(3), repeat=6):
        first, second = values[:3], values[3:]
        joint = [first[i] + second[m] for m in range(3) for i in range(3)]
        pair = {sp.Symbol("k_1"): first.index(min(first)), sp.Symbol("k_2"): second.index(min(second))}
        if joint.index(min(joint)) != weight.subs(pair):
            return False
    return True


def _radix(f: Stated) -> bool:
    for size in (2, 3, 5):
        index = f["index"].subs(K, size)
        names = sp.symbols("k_1 k_2")
        reached = sorted(index.subs(dict(zip(names, pair, strict=True))) for pair in product(range(size), repeat=2))
        if reached != list(range(f["codes"].subs({K: size, G: 2}))):
            return False
    return True


def _count(f: Stated) -> bool:
    return all(
        len(list(product(range(size), repeat=groups))) == f["codes"].subs({K: size, G: groups})
        for size in (2, 3)
        for groups in (1, 2, 3)
    )


PRODUCT = Derivation(
    id="product.cartesian",
    theorem="T35",
    title="Product quantizer",
    statement="G groups of K codes are a quantizer with the Cartesian codebook of K^G codes: D adds, argmin factors.",
    latex=r"D=\sum_gD_g,\qquad \#\text{codes}=K^G,\qquad k=\sum_gk_gK^{g-1}",
    hypotheses=("the groups split the components",),
    source="theory page",
    stated={
        "D": sp.Symbol("D_1") + sp.Symbol("D_2"),
        "codes": K**G,
        "index": sp.Symbol("k_1") + K * sp.Symbol("k_2"),
    },
    tolerances={"D, relative": (d + 2) * unit},
    steps=(
        algebra("the squared distance splits", _adds),
        certificate("argmin of a sum of independent terms, on all 3⁶ tables of distances", _factors),
        certificate("the mixed-radix index is a bijection, K = 2, 3, 5", _radix),
        algebra("the number of codes", _count),
    ),
    catches="interleaved channels",
)

DERIVATIONS = (RESIDUAL, PRODUCT)
