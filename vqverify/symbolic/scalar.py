"""T36 and T37: finite scalar quantization and lookup-free quantization."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import prod
from typing import Any

import mpmath
import sympy as sp

from vqverify.symbolic.derivation import Derivation, Stated, algebra, certificate
from vqverify.symbolic.exact import round_to, same, small_floats, zero
from vqverify.symbolic.notation import d, unit

L: Any = sp.Symbol("L", integer=True, positive=True)
eps, T = sp.symbols("epsilon T", positive=True)
even: Any = sp.Symbol("even")  # 1 if L is even, else 0
tanh: Any = sp.Symbol("y", real=True)
Z = sp.symbols("z1:4", real=True)
BITS = {"f32": 24, "f16": 11, "bf16": 8}


def _ends(f: Stated, levels: int, excess: Any) -> tuple[int, int]:
    """The least and the largest level reached: round of the open range (−h − o, h − o)."""
    names = {L: levels, eps: excess, even: int(levels % 2 == 0)}
    h, o = f["h"].subs(names), f["o"].subs(names)
    low, high = -h - o, h - o
    half = sp.Rational(1, 2)
    # an open end is not reached: a half-integer end belongs to the level inside
    return int(sp.ceiling(low - half) if (low - half).is_integer is False else low + half), int(
        sp.floor(high + half) if (high + half).is_integer is False else high - half
    )


def _levels(f: Stated) -> bool:
    for levels in range(2, 60):
        inside = sp.Rational(1, 2 * (levels - 1))
        names = {L: levels, even: int(levels % 2 == 0)}
        stated = (f["least level"].subs(names), f["largest level"].subs(names))
        if _ends(f, levels, inside) != stated or stated[1] - stated[0] + 1 != levels:
            return False
    return True


def _overshoot(f: Stated) -> bool:
    # for every L: both ends of the range pass their level by (L − 1)ε/2, which is ½ at the largest ε
    beyond = (f["h"] - f["o"] - f["largest level"], f["least level"] - (-f["h"] - f["o"]))
    return (
        same(beyond, ((L - 1) * eps / 2,) * 2)
        and all(same(one.subs(eps, f["largest ε"]), sp.Rational(1, 2)) for one in beyond)
        and same(f["largest level"] - f["least level"] + 1, L)
    )


def _threshold(f: Stated) -> bool:
    # just above the stated excess there are levels too many, just below there are not
    for levels in (2, 3, 4, 9, 16):
        limit = f["largest ε"].subs(L, levels)
        if limit <= 0:
            return False
        for factor, right in ((sp.Rational(999, 1000), True), (sp.Rational(1001, 1000), False)):
            low, high = _ends(f, levels, limit * factor)
            if (high - low + 1 == levels) is not right:
                return False
    low, high = _ends(f, 1002, sp.Rational(1, 1000))
    return high - low + 1 == f["levels reached, L = 1002"]


def _centred(f: Stated) -> bool:
    # at x = 0 the shift artanh(o/h) makes h·tanh(s) − o vanish; L = 2 needs ε > 0 for o/h < 1
    at_zero = f["h"] * sp.tanh(sp.atanh(f["o"] / f["h"])) - f["o"]
    ratio = (f["o"] / f["h"]).subs({L: 2, even: 1})
    return zero(at_zero) and ratio.subs(eps, 0) == 1 and bool(ratio.subs(eps, sp.Rational(1, 1000)) < 1)


def _index(f: Stated) -> bool:
    sizes = (3, 2, 4)
    names = sp.symbols("l_1 l_2 l_3")
    radix = dict(zip(sp.symbols("L_1 L_2"), sizes[:2], strict=True))
    reached = sorted(
        f["index"].subs({**radix, **dict(zip(names, digits, strict=True))}) for digits in product(*map(range, sizes))
    )
    return reached == list(range(prod(sizes)))


def _exact_indices(f: Stated) -> bool:
    # integers up to 2^p are floats with p bits, 2^p + 1 is not
    limits = {"f32": f["f32 to"], "f16": f["f16 to"], "bf16": f["bf16 to"]}
    return all(
        round_to(int(limit), BITS[name]) == limit
        and round_to(int(limit) + 1, BITS[name]) != limit + 1
        and all(round_to(int(limit) - one, BITS[name]) == limit - one for one in range(3))
        for name, limit in limits.items()
    )


def _skipped(f: Stated) -> bool:
    """L = 256 for every bf16 input up to 8: s and each result rounded to bf16, h and o in full precision."""
    h, o = Fraction(255 * 1001, 2000), Fraction(1, 2)
    reached: set[int] = set()
    with mpmath.workdps(30):
        shift = round_to(_fraction(mpmath.atanh(mpmath.mpf(1000) / 255255)), 8)
        for size in (*small_floats(8, -10, 2), Fraction(0)):
            for value in (size, -size):
                inner = round_to(value + shift, 8)
                bounded = round_to(_fraction(mpmath.tanh(mpmath.mpf(inner.numerator) / inner.denominator)), 8)
                reached.add(round(round_to(round_to(h * bounded, 8) - o, 8)))
    return len(reached) == f["levels reached, L = 256 in bf16"]


def _fraction(value: Any) -> Fraction:
    sign, significand, exponent, _ = value._mpf_
    return (-1) ** sign * int(significand) * Fraction(2) ** exponent


def _backward(f: Stated) -> bool:
    x = sp.Symbol("x", real=True)
    return same(sp.diff(f["h"] * sp.tanh(x) - f["o"], x), f["derivative"].subs(tanh, sp.tanh(x)))


FSQ = Derivation(
    id="fsq.levels",
    theorem="T36",
    title="Finite scalar quantization",
    statement=(
        "round(h tanh(x + s) − o), h = (L − 1)(1 + ε)/2, o = ½[L even], s = artanh(o/h): exactly L levels "
        "−⌊L/2⌋..⌈L/2⌉−1 if (L − 1)ε < 1 (ε = 10⁻³: L = 1002 gives 1004). Index ΣℓΠL is a bijection; exact up to 2²⁴ "
        "(f32), 2¹¹ (f16), 2⁸ (bf16). L = 256 in bf16 reaches 253."
    ),
    latex=r"\mathrm{round}(h\tanh(x+s)-o),\quad h=\tfrac{(L-1)(1+\varepsilon)}2,\quad "
    r"(L-1)\varepsilon<1 \Rightarrow -\lfloor L/2\rfloor..\lceil L/2\rceil-1",
    hypotheses=("0 < ε < 1/(L − 1)",),
    source="theory page; FSQ",
    stated={
        "h": (L - 1) * (1 + eps) / 2,
        "o": even / 2,
        "least level": -(L - 1 + even) / 2,
        "largest level": (L - 1 - even) / 2,
        "largest ε": 1 / (L - 1),
        "levels reached, L = 1002": sp.Integer(1004),
        "index": sp.Symbol("l_1") + sp.Symbol("L_1") * (sp.Symbol("l_2") + sp.Symbol("L_2") * sp.Symbol("l_3")),
        "f32 to": sp.Integer(2**24),
        "f16 to": sp.Integer(2**11),
        "bf16 to": sp.Integer(2**8),
        "levels reached, L = 256 in bf16": sp.Integer(253),
        "derivative": (L - 1) * (1 + eps) / 2 * (1 - tanh**2),
    },
    bounds=("least level", "largest level", "largest ε", "f32 to"),
    steps=(
        algebra("the range overshoots both end levels by (L − 1)ε/2, every L, and there are L of them", _overshoot),
        certificate("the levels reached, L = 2..59", _levels),
        certificate("the bound on ε is sharp; L = 1002", _threshold),
        algebra("the shift centres the range; L = 2 needs ε > 0", _centred),
        certificate("mixed radix 3·2·4", _index),
        certificate("integers exact in p bits: up to 2^p and no further", _exact_indices),
        certificate("every bf16 input for L = 256: the grid of x + s skips three values of tanh", _skipped),
        algebra("the derivative of the bound", _backward),
    ),
    catches="off by one for even L, float indices",
)


def _nearest(f: Stated) -> bool:
    # |z − c|² for c ∈ {±1}^d is const − 2z·c: the difference between c and its nearest one is a sum of 4|z_i|
    signs = sp.symbols("c1:4")
    distance = sum((z - sign) ** 2 for z, sign in zip(Z, signs, strict=True))
    reduced = sp.expand(distance).subs({sign**2: 1 for sign in signs})
    paired = sum(z * sign for z, sign in zip(Z, signs, strict=True))
    names = {sp.Symbol("z2"): sum(z**2 for z in Z), sp.Symbol("dim"): 3, sp.Symbol("zc"): paired}
    flip = reduced.subs(signs[0], -1) - reduced.subs(signs[0], 1)
    return same(reduced, f["|z−c|²"].subs(names)) and same(flip, 4 * Z[0])


def _posterior(f: Stated) -> bool:
    # one bit beside any others: their weights w of W in all stay as they are, and the bit has a sigmoid
    w, W, x = sp.symbols("w W x", positive=True)
    z = T * sp.log(x)  # makes the exponentials rational

    def weight(sign: int) -> Any:
        return w * sp.exp(sp.expand(-((z - sign) ** 2 - z**2 - 1) / T))

    def sigmoid(sign: int) -> Any:
        return 1 / (1 + sp.exp(-sp.expand(f["argument of σ"].subs(sp.Symbol("z"), sign * z))))

    both = (weight(1) + weight(-1)) / w * W
    return all(zero(weight(sign) / both - w / W * sigmoid(sign)) for sign in (1, -1))


def _bits(f: Stated) -> bool:
    index = [
        sum(f["weight of bit i"].subs(sp.Symbol("i"), i) * (value > 0) for i, value in enumerate(row))
        for row in product((-1, 1), repeat=3)
    ]
    return sorted(index) == list(range(f["codes"].subs(sp.Symbol("dim"), 3)))


def _entropy(f: Stated) -> bool:
    # entropy of a product of two independent bits
    p, q, not_p, not_q = sp.symbols("p q not_p not_q", positive=True)

    def entropy(*weights: Any) -> Any:
        return sp.expand_log(-sum(weight * sp.log(weight) for weight in weights))

    joint = entropy(p * q, p * not_q, not_p * q, not_p * not_q)
    halves = (entropy(p, not_p), entropy(q, not_q))
    difference = sp.expand(joint - f["entropy"].subs(dict(zip(sp.symbols("H_1 H_2"), halves, strict=True))))
    logs = {sp.log(one): sp.Dummy() for one in (p, q, not_p, not_q)}
    return zero(difference.subs(logs).subs({not_p: 1 - p, not_q: 1 - q}))


LFQ = Derivation(
    id="lfq.signs",
    theorem="T37",
    title="Lookup-free quantization",
    statement=(
        "The sign code is the nearest in {±1}^d; index Σ2^i[z_i > 0], K = 2^d. softmax(−|z − c|²/T) = Πσ(±4z_i/T), the "
        "entropy adds over bits."
    ),
    latex=r"|z-c|^2=|z|^2+d-2z\cdot c,\qquad "
    r"\frac{e^{-|z-c|^2/T}}{\sum_{c'}e^{-|z-c'|^2/T}}=\prod_i\sigma\!\left(\frac{4c_iz_i}{T}\right)",
    hypotheses=("sign(0) = ±1",),
    source="theory page; LFQ",
    stated={
        "|z−c|²": sp.Symbol("z2") + sp.Symbol("dim") - 2 * sp.Symbol("zc"),
        "argument of σ": 4 * sp.Symbol("z") / T,
        "weight of bit i": 2 ** sp.Symbol("i"),
        "codes": 2 ** sp.Symbol("dim"),
        "entropy": sp.Symbol("H_1") + sp.Symbol("H_2"),
    },
    tolerances={"p, absolute": 4 * d * unit},
    steps=(
        algebra("the squared distance with c_i² = 1; flipping a bit costs 4z_i", _nearest),
        algebra(
            "a bit beside any others multiplies their softmax by its sigmoid: by induction the product", _posterior
        ),
        certificate("the index is a bijection for d = 3", _bits),
        algebra("entropy of two independent bits with free probabilities", _entropy),
    ),
    catches="0 output, 2/T for 4/T, d ≥ 32 in int32",
)

DERIVATIONS = (FSQ, LFQ)
