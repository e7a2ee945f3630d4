"""T28 and T29: lookups in floating point, and when their answer is certain."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Any

import sympy as sp

from vqverify.symbolic.derivation import Derivation, Stated, algebra, certificate, lemma
from vqverify.symbolic.exact import nonnegative, round_to, same
from vqverify.symbolic.notation import d, unit

z_norm, c_norm, distance2 = sp.symbols("z_norm c_norm D", nonnegative=True)


def _first_least(values: Any) -> int:
    return values.index(min(values))


def _direct(f: Stated) -> bool:
    # Σ(z − c)²: a rounded difference, squared (2 + 1), d − 1 additions
    return same((2 + 1 + (d - 1)) * unit * distance2, f["b, direct"])


def _expanded(f: Stated) -> bool:
    # three dot products with d roundings each (of |z|², 2|z||c|, |c|²), two additions of size <= (|z| + |c|)²
    derived = d * unit * (z_norm**2 + 2 * z_norm * c_norm + c_norm**2) + 2 * unit * (z_norm + c_norm) ** 2
    return nonnegative(f["b, expanded"] - derived, unit * (z_norm + c_norm) ** 2)


def _margin(f: Stated) -> bool:
    # D̂_j = D_j + x_j b_j, |x| <= 1: x_j = 1 − s_j, x_k = −1 + s_k are the worst
    computed_j, computed_k, b_j, b_k = sp.symbols("Dhat_j Dhat_k b_j b_k", real=True)
    spare = sp.Symbol("spare", positive=True)
    names = dict(zip(sp.symbols("b_j b_k"), (b_j, b_k), strict=True))
    exact = (computed_j - b_j) - (computed_k + b_k)  # worst case of D_j − D_k
    return same(exact.subs(computed_j, computed_k + f["margin"].subs(names) + spare), spare)


def _regret(f: Stated) -> bool:
    # D_k̂ <= D̂_k̂ + b_k̂ <= D̂_min + b_k̂ <= D_min + b_min + b_k̂
    least, b_hat, b_min = sp.symbols("D_min b_hat b_min", real=True)
    chain = (least + b_min) + b_hat
    names = dict(zip(sp.symbols("D_min b_hat b_min"), (least, b_hat, b_min), strict=True))
    return same(chain, f["regret bound"].subs(names))


def _far_away(f: Stated) -> bool:
    """f32, offset 10³, d = 2: the expanded form inverts an order, the direct one does not."""
    z = (Fraction(63993, 64), Fraction(32025, 32))
    codes = ((Fraction(2001, 2), Fraction(32021, 32)), (Fraction(7993, 8), Fraction(32019, 32)))
    exact = [sum((p - q) ** 2 for p, q in zip(z, code, strict=True)) for code in codes]

    def dot(x: Any, y: Any) -> Fraction:
        total = Fraction(0)
        for p, q in zip(x, y, strict=True):
            total = round_to(total + round_to(p * q, 24), 24)
        return total

    def direct(code: Any) -> Fraction:
        difference = [round_to(p - q, 24) for p, q in zip(z, code, strict=True)]
        return dot(difference, difference)

    expanded = [round_to(round_to(dot(z, z) - 2 * dot(z, code), 24) + dot(code, code), 24) for code in codes]
    straight = [direct(code) for code in codes]
    orders = [_first_least(values) for values in (exact, straight, expanded)]
    return orders == list(f["nearest: exact, direct, expanded"])


def _inputs(f: Stated) -> bool:
    # both factors of 2z·c rounded to a lower precision
    low = sp.Symbol("u_low", positive=True)
    first = sp.expand(2 * z_norm * c_norm * (1 + low) ** 2).coeff(low, 1) * low
    return same(first, f["rounded inputs add"].subs(sp.Symbol("u_low"), low))


def _root_ties(f: Stated) -> bool:
    # 1 and 1 + 2^-23 are different float32, their rounded roots are not: √(1 + 2x) < 1 + x
    x = Fraction(1, 2**24)
    tie = (1 + x) ** 2 > 1 + 2 * x and round_to(1 + x * Fraction(99, 100), 24) == 1
    return tie and f["√ of 1 + 2⁻²³ in f32"] == 1


def _chunks(_: Stated) -> bool:
    # every sequence of five values in {0, 1, 2}, every chunk size, strict < in increasing order
    for values in product(range(3), repeat=5):
        for size in range(1, 6):
            best, index = 3, -1
            for start in range(0, 5, size):
                piece = values[start : start + size]
                if min(piece) < best:
                    best, index = min(piece), start + piece.index(min(piece))
            if index != values.index(min(values)):
                return False
    return True


CERTIFIED = Derivation(
    id="lookup.certified",
    theorem="T28",
    title="Certified argmin",
    statement=(
        "|D̂_j − D_j| ≤ b_j: direct b = (d + 2)uD, expanded b = (d + 3)u(|z| + |c|)². D̂_j − D̂_k > b_j + b_k for all j "
        "⇒ k is the exact argmin; always D_k̂ ≤ D_min + b_k̂ + b_min. Rounded inputs add 4u'|z||c|. A chunked argmin "
        "with strict < is the full one on the same D̂."
    ),
    latex=r"b_{\rm direct}=(d+2)\,u\,D,\qquad b_{\rm expanded}=(d+3)\,u\,(|z|+|c|)^2,\qquad "
    r"D_{\hat k}\le D_{\min}+b_{\hat k}+b_{\min}",
    hypotheses=("first order in u", "squares in the normal range"),
    source="theory page",
    stated={
        "b, direct": (d + 2) * unit * distance2,
        "b, expanded": (d + 3) * unit * (z_norm + c_norm) ** 2,
        "margin": sp.Symbol("b_j") + sp.Symbol("b_k"),
        "regret bound": sp.Symbol("D_min") + sp.Symbol("b_hat") + sp.Symbol("b_min"),
        "nearest: exact, direct, expanded": sp.Tuple(0, 0, 1),
        "rounded inputs add": 4 * sp.Symbol("u_low") * z_norm * c_norm,
        "√ of 1 + 2⁻²³ in f32": sp.S.One,
    },
    bounds=("b, direct", "b, expanded", "margin", "regret bound", "rounded inputs add"),
    steps=(
        algebra("direct differences: 2 + 1 + (d − 1) roundings", _direct),
        certificate("expanded form: the roundings add up to the bound less u(|z| + |c|)²", _expanded),
        algebra("a computed margin above b_j + b_k is an exact one", _margin),
        algebra("the regret of the computed argmin", _regret),
        certificate("f32 at offset 10³, rounded exactly: the expanded form inverts an order", _far_away),
        algebra("rounded inputs, first order", _inputs),
        certificate("a root that makes a tie", _root_ties),
        lemma("the lexicographic minimum of (value, index) is associative"),
        certificate("chunked argmin on all 3⁵ sequences and 5 chunk sizes", _chunks),
    ),
    catches="D² cancellation, unstable merges",
)


def _perturbed(f: Stated) -> bool:
    # |z̃ − z| <= u_h|z| + η√d, the same for c; reverse triangle inequality
    low, least = sp.symbols("u_h eta", positive=True)
    one, other = (low * norm + least * sp.sqrt(d) for norm in (z_norm, c_norm))
    names = dict(zip(sp.symbols("u_h eta"), (low, least), strict=True))
    return same(one + other, f["change of a distance"].subs(names))


def _index_margin(f: Stated) -> bool:
    low, largest, least = sp.symbols("u_h c_max eta", positive=True)
    change = f["change of a distance"].subs(dict(zip(sp.symbols("u_h eta"), (low, least), strict=True)))
    names = dict(zip(sp.symbols("u_h c_max eta"), (low, largest, least), strict=True))
    return same(2 * change.subs(c_norm, largest), f["margin in half precision"].subs(names))


def _subnormal(f: Stated) -> bool:
    # what the least subnormal swallows: z = 0, codes 1/4 and 3/8 of it are both 0; their margin is within 4η√d alone
    least = sp.Rational(1, 2**24)
    gap = least / 8
    names = {"u_h": sp.Rational(1, 2**11), "c_max": least * 3 / 8, "z_norm": 0, "d": 1}
    stated = f["margin in half precision"].subs(
        {symbol: names.get(symbol.name, symbol) for symbol in f["margin in half precision"].free_symbols}
    )
    without, full = (stated.subs(sp.Symbol("eta"), eta) for eta in (0, least / 2))
    return bool(without < gap <= full)


def _half_example(f: Stated) -> bool:
    z, codes = 2049, (2051, 2046)
    exact = [abs(z - code) for code in codes]
    halved = [abs(round_to(z, 11) - round_to(code, 11)) for code in codes]
    answers = [_first_least(values) for values in (exact, halved)]
    return (
        answers == list(f["f16, z = 2049: exact, half"])
        and 300**2 > f["largest f16"] == (2 - sp.Rational(1, 2**10)) * 2**15
    )


HALF = Derivation(
    id="lookup.lower_precision",
    theorem="T29",
    title="Half precision",
    statement=(
        "||z̃ − c̃| − |z − c|| ≤ u_h(|z| + |c|) + 2η√d. The index is certain if d₂ − d₁ > 2u_h(|z| + max|c|) + 4η√d plus T28 on "
        "the rounded data. f16, z = 2049, C = {2051, 2046}: exact 0, half 1; z = 300: |z|² = inf."
    ),
    latex=r"\left||\tilde z-\tilde c|-|z-c|\right|\le u_h(|z|+|c|)+2\eta\sqrt d,\qquad d_2-d_1>2u_h(|z|+\max|c|)+4\eta\sqrt d",
    hypotheses=("rounding to nearest", "no overflow", "η half the least subnormal"),
    source="001 A.1 (claims no imprecision)",
    stated={
        "change of a distance": sp.Symbol("u_h") * (z_norm + c_norm) + 2 * sp.Symbol("eta") * sp.sqrt(d),
        "margin in half precision": 2 * sp.Symbol("u_h") * (z_norm + sp.Symbol("c_max"))
        + 4 * sp.Symbol("eta") * sp.sqrt(d),
        "f16, z = 2049: exact, half": sp.Tuple(0, 1),
        "largest f16": sp.Integer(65504),
    },
    bounds=("change of a distance", "margin in half precision"),
    steps=(
        lemma("Triangle inequality, and |fl(x) − x| ≤ u|x| + η per component"),
        algebra("both roundings added", _perturbed),
        algebra("two distances, each off by that much", _index_margin),
        certificate(
            "without its second term the margin is not enough: two subnormal codes that both become 0", _subnormal
        ),
        certificate("the f16 example, rounded exactly; 300² exceeds the largest f16", _half_example),
    ),
    catches="half distances without re-ranking",
)


DERIVATIONS = (CERTIFIED, HALF)
