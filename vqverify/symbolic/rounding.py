"""T5 and T14: what floating point does to the rotation and to the straight-through forward."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import sympy as sp

from vqverify.symbolic.derivation import Derivation, Stated, algebra, certificate, lemma
from vqverify.symbolic.exact import nonnegative, round_to, same, small_floats
from vqverify.symbolic.gram import Span
from vqverify.symbolic.notation import c, d, identity, sigma, unit, x

B1: Any = (9 * d + 41 + (4 * d + 16) / sigma) * unit
"""Forward and VJP of the rotation, relative to lambda |x|."""

excess: Any = sp.Symbol("excess", real=True)  # |w|² - 1 of a computed unit vector
along: Any = sp.Symbol("along", real=True)  # w·x
t: Any = sp.Symbol("t", positive=True)  # epsilon / |e|
z, q, first, second = sp.symbols("z q delta_1 delta_2", real=True)


def budget() -> dict[str, Any]:
    """Errors of x − 2w(w·x) + 2v̂(û·x) for |x| = 1, operation by operation, to first order in u."""
    norm = (d / 2 + 1) * unit  # dot product of d terms, halved by the root, and the root
    direction = norm + unit  # and the division: |δû|, |δv̂|
    mirror = 2 * direction / sigma + unit + direction  # s inherits both, is rounded, is normalised
    dot = d * unit
    reflection = 2 * (2 * mirror + dot) + 2 * unit  # |2w(w·x)| <= 2, w twice
    shift = 2 * (2 * direction + dot) + 2 * unit  # |2v̂(û·x)| <= 2, v̂ and û
    sums = 2 * unit  # both partial sums have norm 1: the reflection of x, and Rx
    scale = 2 * norm + unit + unit  # two norms, their quotient, the product
    return {"direction": direction, "mirror": mirror, "total": reflection + shift + sums + scale}


def _within(f: Stated) -> bool:
    return nonnegative(sp.expand(f["B1"] - budget()["total"]), f["slack of B1"])


def _one_plus_cosine(f: Stated) -> bool:
    # û·v̂ carries two directions, a dot product and the addition; 2/σ² = 1/(1 + c); the term it scales is <= 2
    error = 2 * budget()["direction"] + d * unit + unit
    return same(2 * error / (1 + c), f["extra of 1 + c"].subs(sigma, sp.sqrt(2 + 2 * c)))


def _shrinks(f: Stated) -> bool:
    # at e = q: û and v̂ shrink by k = 1/(1 + t), λ too, s is normalised exactly: J e = k(1 − 2 + 2k²) e
    k = 1 / (1 + t)
    relative = k * (1 - 2 + 2 * k**2) - 1
    return same(sp.diff(relative, t).subs(t, 0) * t, f["shrinkage at e = q"])


def _reflection_norm(f: Stated) -> bool:
    # w need not be right for |H_w x| to be: only |w| = 1 matters, at every σ
    w = sp.MatrixSymbol("w", d, 1)
    span = Span((w, x), sp.Matrix([[1 + excess, along], [along, 1]]), {}, {}, d)
    image = span.of(identity - 2 * w * w.T) @ span.of(x)
    return same((image.T @ image).scalar, f["|H_w x|²"])


ROTATION = Derivation(
    id="rotation.rounding",
    theorem="T5",
    title="Rounding of the rotation",
    statement=(
        "Forward and VJP of x − 2w(w·x) + 2v̂(û·x), w = s/|s|, are within B₁ = (9d + 41 + (4d + 16)/σ)u of exact, "
        "relative to λ|x|. Dividing by 1 + c adds 4(2d + 5)u/σ². Adding ε to each norm costs 5ε/|e| at e = q. "
        "Two reflections keep |Jx| to O(du) at every σ."
    ),
    latex=(
        r"|\mathrm{fl}(Jx)-Jx| \le B_1\,\lambda|x|,\qquad B_1 = \left(9d+41+\frac{4d+16}{\sigma}\right)u,\qquad"
        r" |\hat u+\hat v| = \sigma"
    ),
    hypotheses=("first order in u, sequential sums", "squares in the normal range", "σ ≫ du"),
    source="theory page; 000 §4.1 claims no change",
    stated={
        "B1": B1,
        "slack of B1": 11 * unit,
        "extra of 1 + c": 4 * (2 * d + 5) * unit / sigma**2,
        "shrinkage at e = q": -5 * t,
        "|H_w x|²": 1 + 4 * excess * along**2,
    },
    bounds=("B1", "extra of 1 + c"),
    tolerances={"| |Jx|/(λ|x|) − 1 |, two reflections": (9 * d + 26) * unit},
    steps=(
        lemma(
            "First-order error analysis: $|\\mathrm{fl}(x\\cdot y)-x\\cdot y| \\le d\\,u\\,|x||y|$, each operation adds u"
        ),
        certificate("the errors of the single operations add up to B₁ − 11u", _within),
        algebra(
            "the denominator 1 + c has relative error (2d + 5)u/(1 + c), and scales a term of norm ≤ 2",
            _one_plus_cosine,
        ),
        algebra("the first-order shrinkage by ε", _shrinks),
        algebra("$|H_wx|^2 = |x|^2 + 4(|w|^2-1)(w\\cdot x)^2$: whatever the direction of w", _reflection_norm),
    ),
    catches="1 + c denominators, shrinkage by ε",
)


def _first_order(f: Stated) -> bool:
    y = (z + (q - z) * (1 + first)) * (1 + second)
    origin = {first: 0, second: 0}
    slopes = [sp.diff(y, delta).subs(origin) for delta in (first, second)]
    bound = unit * sum(sp.Abs(sp.factor(slope)) for slope in slopes)
    return y.subs(origin) == q and sp.simplify(bound - f["|y−q| bound"]) == 0


def _sterbenz(f: Stated) -> bool:
    low, high = (Fraction(int(end.p), int(end.q)) for end in f["exact for z/q in"])
    numbers = small_floats(4, -2, 2)

    def exact(latent: Fraction, code: Fraction) -> bool:
        return round_to(latent + round_to(code - latent, 4), 4) == code

    pairs = [(latent, code) for latent in numbers for code in numbers]
    inside = all(exact(*pair) for pair in pairs if low <= pair[0] / pair[1] <= high)
    # the interval is not wider: just outside it, on both sides, some pair is not exact
    below = any(not exact(*pair) for pair in pairs if low / 2 <= pair[0] / pair[1] < low)
    above = any(not exact(*pair) for pair in pairs if high < pair[0] / pair[1] <= 2 * high)
    return inside and below and above


def _vanishes(f: Stated) -> bool:
    bits = 4
    ratio = Fraction(str(f["y = 0 for |q|/|z| below"].subs(unit, sp.Rational(1, 2**bits))))
    pairs = [(latent, code) for latent in small_floats(bits, 0, 0) for code in small_floats(bits, -bits - 3, -bits + 1)]

    def value(latent: Fraction, code: Fraction) -> Fraction:
        return round_to(latent + round_to(code - latent, bits), bits)

    swallowed = all(value(*pair) == 0 for pair in pairs if pair[1] < ratio * pair[0])
    survives = any(value(*pair) != 0 for pair in pairs if ratio * pair[0] < pair[1] <= 2 * ratio * pair[0])
    example = round_to(2**26 + round_to(1 - 2**26, 24), 24)
    return swallowed and survives and example == f["f32: z = 2^26, q = 1"]


def _residual(f: Stated) -> bool:
    # q + (z − sg z): the bracket is exactly 0 for finite z, its derivative 1; likewise for z + sg(q − z)
    held = sp.Symbol("held")
    forms = (q + (z - held), z + held)
    return sp.Tuple(*(sp.diff(form, z) for form in forms)) == f["∂y/∂z of both forms"] and forms[0].subs(held, z) == q


STRAIGHT_THROUGH = Derivation(
    id="estimator.forward",
    theorem="T14",
    title="Straight-through forward",
    statement=(
        "y = z + sg(q − z): |y − q| ≤ u(|q| + |q − z|) per component; exact if ½ ≤ z/q ≤ 2; 0 once |q| < ½u|z|. "
        "q + (z − sg z) is exact for every finite z. Both return g bit for bit."
    ),
    latex=(
        r"|\mathrm{fl}(z+(q-z)) - q| \le u\,(|q|+|q-z|),\qquad \tfrac12\le \tfrac zq\le 2 \Rightarrow y=q,\qquad"
        r" |q|<\tfrac12u|z| \Rightarrow y=0"
    ),
    hypotheses=("first order in u", "no overflow or underflow"),
    source="theory page",
    stated={
        "|y−q| bound": unit * (sp.Abs(q) + sp.Abs(q - z)),
        "exact for z/q in": sp.Tuple(sp.Rational(1, 2), sp.Integer(2)),
        "y = 0 for |q|/|z| below": unit / 2,
        "f32: z = 2^26, q = 1": sp.Integer(0),
        "∂y/∂z of both forms": sp.Tuple(1, 1),
    },
    bounds=("|y−q| bound", "exact for z/q in", "y = 0 for |q|/|z| below"),
    steps=(
        algebra("the two roundings, to first order", _first_order),
        lemma("Sterbenz: q − z is exact if ½ ≤ z/q ≤ 2"),
        certificate("every pair of 4-bit floats: exact inside the interval, not everywhere outside", _sterbenz),
        certificate("every pair of 4-bit floats below the threshold vanishes; f32 example, rounded exactly", _vanishes),
        algebra("q + (z − sg z) is q, and both forms have derivative 1", _residual),
    ),
    catches="bitwise codebook rows required of the first form; decoder input ≠ decode(index)",
)

DERIVATIONS = (ROTATION, STRAIGHT_THROUGH)
