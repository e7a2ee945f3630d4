"""T1: the rotation that takes û to v̂, and the estimator J = lambda R, in every dimension.

The stated formula of R is the only place where it is written; the oracles are lambdified from it.
"""

from __future__ import annotations

from typing import Any

import sympy as sp

from vqverify.symbolic.derivation import Derivation, Stated, algebra, lemma
from vqverify.symbolic.gram import Element, Span, concrete
from vqverify.symbolic.notation import c, d, g, identity, lam, s, sigma, turn, uhat, vhat, x
from vqverify.symbolic.rounding import B1

a: Any = sp.Symbol("on_u", real=True)  # û·x or û·g
b: Any = sp.Symbol("on_v", real=True)  # v̂·x or v̂·g
n2: Any = sp.Symbol("n2", nonnegative=True)  # |x|² or |g|²
e_norm: Any = sp.Symbol("e_norm", positive=True)

SUM = {s: uhat + vhat, turn: vhat * uhat.T - uhat * vhat.T}
SIGMA = {sigma: sp.sqrt(2 + 2 * c)}

ROTATION: Any = identity - 2 * s * s.T / sigma**2 + 2 * vhat * uhat.T
"""R, as stated in T1."""


def plane() -> Span:
    """The span of û and v̂ with c = û·v̂."""
    return Span((uhat, vhat), sp.Matrix([[1, c], [c, 1]]), SUM, SIGMA, d)


def with_vector(vector: Any = x, along: tuple[Any, Any] = (a, b)) -> Span:
    """The span of û, v̂ and one more vector with the given inner products with them."""
    gram = sp.Matrix([[1, c, along[0]], [c, 1, along[1]], [along[0], along[1], n2]])
    return Span((uhat, vhat, vector), gram, SUM, SIGMA, d)


def reflection(span: Span, vector: Any, norm2: Any) -> Element:
    """H_w = I − 2wwᵀ/|w|², the definition."""
    return span.of(identity - 2 * vector * vector.T / norm2)


def two_reflections(span: Span) -> Element:
    """The rotation by its definition: the reflection in s after the one in û."""
    return reflection(span, s, 2 + 2 * c) @ reflection(span, uhat, 1)


def _maps(f: Stated) -> bool:
    span = plane()
    return (span.of(f["R"]) @ span.of(uhat)).equals(span.of(f["image of û"]))


def _orthogonal(f: Stated) -> bool:
    span = plane()
    rotation = span.of(f["R"])
    return (rotation.T @ rotation).equals(span.of(identity))


def _defined(f: Stated) -> bool:
    span = plane()
    rotation = span.of(f["R"])
    other = reflection(span, vhat, 1) @ reflection(span, s, 2 + 2 * c)
    return rotation.equals(two_reflections(span)) and rotation.equals(other)


def _fixes_complement(f: Stated) -> bool:
    span = with_vector(along=(0, 0))
    return (span.of(f["R"]) @ span.of(x)).equals(span.of(f["image of x ⟂ span"]))


def _determinant(f: Stated) -> bool:
    span = plane()
    halves = [reflection(span, vector, norm2).det() for vector, norm2 in ((uhat, 1), (s, 2 + 2 * c))]
    return halves == [-1, -1] and span.of(f["R"]).det() == sp.prod(halves) == f["det R"]


def _trace(f: Stated) -> bool:
    span = plane()
    return sp.expand(span.of(f["R"]).trace() - f["tr R"]) == 0


def _eigenvalues(f: Stated) -> bool:
    t, angle = sp.Symbol("t"), sp.Symbol("theta", real=True)
    acts: Any = plane().of(f["R"]).action()
    roots = sp.prod(t - root.subs(sp.Symbol("theta"), angle) for root in f["eigenvalues on the span"])
    difference = acts.charpoly(t).as_expr().subs(c, sp.cos(angle)) - roots
    return sp.expand(sp.expand(difference).rewrite(sp.cos), trig=False) == 0


def _other_form(f: Stated) -> bool:
    span = plane()
    return span.of(f["R by M"]).equals(two_reflections(span))


def _takes_e_to_q(f: Stated) -> bool:
    span = plane()
    jacobian = span.of(f["J"])
    return (jacobian @ span.of(e_norm * uhat)).equals(span.of(f["J e"]))


def in_dimension(expression: Any, dim: int) -> Any:
    """The expression with explicit unit vectors of free symbols, cleared of the denominator 1 + c.

    Args:
        expression: a matrix expression in û, v̂, s, M.
        dim: 2 or 3.

    Returns:
        The explicit matrix times 1 + û·v̂, the map that reduces a polynomial modulo |û|² = |v̂|² = 1, û, v̂, and
        1 + û·v̂.
    """
    names = [sp.symbols(f"{name}1:{dim + 1}", real=True) for name in "uv"]
    first, second = (sp.Matrix(entries) for entries in names)
    cosine = (first.T * second)[0, 0]
    values = {
        uhat: first,
        vhat: second,
        s: first + second,
        turn: second * first.T - first * second.T,
        sigma: sp.sqrt(2 + 2 * c),
    }
    explicit = concrete(expression, values, dim).applyfunc(
        lambda entry: sp.expand(sp.cancel((1 + c) * entry).subs(c, cosine)),
    )
    relations = [sum(entry**2 for entry in entries) - 1 for entries in names]
    symbols = [entry for entries in names for entry in reversed(entries)]

    def reduce(entry: Any) -> Any:
        return sp.reduced(sp.expand(entry), relations, *symbols)[1]

    return explicit, reduce, first, second, 1 + cosine


def _explicit(dim: int) -> Any:
    def check(f: Stated) -> bool:
        matrix, reduce, first, second, scale = in_dimension(f["R"], dim)
        orthogonal = matrix.T * matrix - scale**2 * sp.eye(dim)
        maps = matrix * first - scale * second
        determinant = matrix.det(method="berkowitz") - scale**dim
        trace = matrix.trace() - scale * f["tr R"].subs({d: dim, c: scale - 1})
        return all(reduce(entry) == 0 for entry in (*orthogonal, *maps, determinant, trace))

    return check


ALGEBRA = Derivation(
    id="rotation.algebra",
    theorem="T1",
    title="The rotation in the plane of e and q",
    statement=(
        "R = I − 2ssᵀ/|s|² + 2v̂ûᵀ satisfies Rû = v̂, RᵀR = I, det R = 1, Rx = x for x ⟂ span(e, q), "
        "tr R = d − 2 + 2c, has the eigenvalues e^{±iθ} and 1 (d − 2 times), equals H_v̂ H_s = H_s H_û and I + M + M²/(1 + c) with "
        "M = v̂ûᵀ − ûv̂ᵀ; J = λR takes e to q."
    ),
    latex=(
        r"R = I - \frac{2ss^{\mathsf T}}{|s|^2} + 2\hat v\hat u^{\mathsf T} = H_{\hat v}H_s = H_sH_{\hat u}"
        r" = I + M + \frac{M^2}{1+c},\qquad R\hat u=\hat v,\; R^{\mathsf T}R=I,\; \det R=1,\;"
        r" \operatorname{tr}R=d-2+2c,\; \lambda R e=q"
    ),
    hypotheses=("e ≠ 0", "q ≠ 0", "θ ≠ π"),
    source="000 §4.2, A.4",
    stated={
        "R": ROTATION,
        "image of û": vhat,
        "image of x ⟂ span": x,
        "det R": sp.S.One,
        "tr R": d - 2 + 2 * c,
        "eigenvalues on the span": sp.Tuple(sp.exp(sp.I * sp.Symbol("theta")), sp.exp(-sp.I * sp.Symbol("theta"))),
        "R by M": identity + turn + turn**2 / (1 + c),
        "J": lam * ROTATION,
        "J e": lam * e_norm * vhat,
    },
    tolerances={"|Rû − v̂|, | |Rx|/|x| − 1 |": B1},
    steps=(
        algebra(
            r"$R$ is the product of two reflections, $H_sH_{\hat u} = H_{\hat v}H_s$ (Gram algebra, every d)",
            _defined,
        ),
        algebra("$R\\hat u = \\hat v$", _maps),
        algebra("$R^T R = I$", _orthogonal),
        algebra("$Rx = x$ for x orthogonal to both", _fixes_complement),
        lemma("Sylvester: $\\det(aI_d + XCX^T) = a^{d-n}\\det(aI_n + CX^TX)$"),
        algebra("$\\det R$ is the product of the determinants −1 of the two reflections", _determinant),
        algebra("the trace on the span and its complement", _trace),
        algebra("the characteristic polynomial on the span has the roots $e^{\\pm i\\theta}$", _eigenvalues),
        algebra("$I + M + M^2/(1+c)$ is the same operator", _other_form),
        algebra("$Je = q$", _takes_e_to_q),
        algebra("D = 2, free entries: $R^TR = I$, $R\\hat u=\\hat v$, determinant, trace", _explicit(2)),
        algebra("D = 3, free entries: the same", _explicit(3)),
    ),
    catches="2ûv̂ᵀ in place of 2v̂ûᵀ (that is Rᵀ), one reflection (det −1), a forgotten λ",
)


def coefficients(rotation: Any = ROTATION) -> tuple[dict[str, Any], dict[str, Any]]:
    """Coefficients of Rᵀg and of Rx on (û, v̂, s, g), for the oracles.

    s stays a generator of its own: replaced by û + v̂ it would cancel near antiparallel pairs.

    Args:
        rotation: a formula of R in û, v̂, s.

    Returns:
        Two mappings (transposed, forward) from "ident", "uhat", "vhat", "s" to expressions in û·g (``ug``),
        v̂·g (``vg``), s·g (``sg``), sigma.
    """
    products = sp.symbols("ug vg sg", real=True)
    gram = sp.zeros(4, 4)
    for row, product in enumerate(products):
        gram[row, 3] = gram[3, row] = product
    span = Span((uhat, vhat, s, g), gram, {}, {}, d)
    operator = span.of(rotation)
    names = ("uhat", "vhat", "s", "ident")

    def read(element: Element) -> dict[str, Any]:
        return dict(zip(names, element.coeff, strict=True))

    return read(operator.T @ span.of(g)), read(operator @ span.of(g))


DERIVATIONS = (ALGEBRA,)
