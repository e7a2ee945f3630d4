"""T27: nearest codes and the symmetries of their lookup."""

from __future__ import annotations

from typing import Any

import sympy as sp

from vqverify.symbolic.derivation import Derivation, Stated, algebra, certificate, lemma
from vqverify.symbolic.exact import same
from vqverify.symbolic.gram import Span
from vqverify.symbolic.notation import d

a: Any = sp.Symbol("a", real=True)
positive: Any = sp.Symbol("p", positive=True)
Z = sp.Matrix(sp.symbols("z1:4", real=True))
C1 = sp.Matrix(sp.symbols("x1:4", real=True))
C2 = sp.Matrix(sp.symbols("y1:4", real=True))
near, far, gap, move, half = sp.symbols("d_1 d_2 gap delta half", nonnegative=True)
cosine: Any = sp.Symbol("c", real=True)


def _square(vector: Any) -> Any:
    return vector.dot(vector)


def _similar(f: Stated) -> bool:
    # with w = z − c, which t leaves alone: |aQw|² for a free w and an orthogonal Q of any size
    Q, w = sp.MatrixSymbol("Q", d, d), sp.MatrixSymbol("w", d, 1)
    move, z, c = (sp.MatrixSymbol(name, d, 1) for name in "tzc")
    difference = ((a * Q * z + move) - (a * Q * c + move) - a * Q * (z - c)).expand().doit()
    after = sp.refine(((a * Q * w).T * (a * Q * w)).doit(), sp.Q.orthogonal(Q)).doit()
    return difference == sp.ZeroMatrix(d, 1) and after == (f["scale of D"] * w.T * w).doit()


def _cosine(f: Stated) -> bool:
    # |ẑ − ĉ|² expanded with ẑ·ẑ = ĉ·ĉ = 1; the cosine does not change under positive scaling
    expanded = 1 - 2 * cosine + 1
    value = Z.dot(C1) / sp.sqrt(_square(Z) * _square(C1))
    scaled = (positive * Z).dot(C1) / sp.sqrt(_square(positive * Z) * _square(C1))
    return same(expanded, f["|ẑ−ĉ|²"]) and sp.simplify(value - scaled) == 0


def _half_space(f: Stated) -> bool:
    # Gram algebra: three free vectors of any dimension
    z, c_j, c_k = vectors = tuple(sp.MatrixSymbol(name, d, 1) for name in ("z", "c_j", "c_k"))
    gram = sp.Matrix(3, 3, lambda i, m: sp.Symbol(f"g{min(i, m)}{max(i, m)}", real=True))
    space = Span(vectors, gram, {}, {}, d)

    def dot(left: Any, right: Any) -> Any:
        return (space.of(left).T @ space.of(right)).scalar

    names = dict(zip(sp.symbols("zc cc"), (dot(z, c_k - c_j), dot(c_k, c_k) - dot(c_j, c_j)), strict=True))
    return same(dot(z - c_k, z - c_k) - dot(z - c_j, z - c_j), f["D_k − D_j"].subs(names))


def _convex(f: Stated) -> bool:
    # D_k − D_j is affine in z, so a cell is an intersection of half-spaces
    t, other = sp.Symbol("t", real=True), sp.Matrix(sp.symbols("q1:4", real=True))

    def excess(point: Any) -> Any:
        names = dict(zip(sp.symbols("zc cc"), (point.dot(C2 - C1), _square(C2) - _square(C1)), strict=True))
        return f["D_k − D_j"].subs(names)

    return same(excess(t * Z + (1 - t) * other), t * excess(Z) + (1 - t) * excess(other))


def _certified(f: Stated) -> bool:
    # |z − c_k| = r − s with r the stated radius; every other code is at least |c_j − c_k| − |z − c_k| away
    spacing, slack = sp.symbols("spacing slack", positive=True)
    inside = f["certain radius"].subs(sp.Symbol("spacing"), spacing) - slack
    other = spacing - inside
    edge = f["certain radius"].subs(sp.Symbol("spacing"), spacing)
    return (other - inside).expand().is_positive is True and same(spacing - edge, edge)


def _stable(f: Stated) -> bool:
    slack = sp.Symbol("slack", positive=True)
    moved = f["safe move"].subs({sp.Symbol("d_1"): near, sp.Symbol("d_2"): far}) - slack
    margin = (far - moved) - (near + moved)
    return same(margin, 2 * slack)


SYMMETRIES = Derivation(
    id="lookup.symmetries",
    theorem="T27",
    title="Symmetries of the lookup",
    statement=(
        "Euclidean index: invariant under z, C ↦ aQz + t, a ≠ 0. Cosine: under positive scaling of z and each code; it "
        "is the Euclidean index of normalised vectors. Cells are convex, {z: (z − ½(c_j + c_k))·(c_k − c_j) ≥ 0}; "
        "|z − c_k| < ½ min|c_j − c_k| ⇒ k; constant under |δ| < ½(d₂ − d₁)."
    ),
    latex=(
        r"|aQ(z-c)|^2=a^2|z-c|^2,\qquad |\hat z-\hat c|^2=2-2\cos,\qquad D_j-D_k=2\left(z-\tfrac12(c_j+c_k)\right)\cdot"
        r"(c_k-c_j)"
    ),
    hypotheses=("outside ties", "a ≠ 0", "non-zero vectors for the cosine"),
    source="theory page",
    stated={
        "scale of D": a**2,
        "|ẑ−ĉ|²": 2 - 2 * cosine,
        "D_k − D_j": sp.Symbol("cc") - 2 * sp.Symbol("zc"),
        "certain radius": sp.Symbol("spacing") / 2,
        "safe move": (sp.Symbol("d_2") - sp.Symbol("d_1")) / 2,
    },
    bounds=("certain radius", "safe move"),
    steps=(
        algebra("distances under a similarity, Q orthogonal of any size", _similar),
        algebra("distance of normalised vectors; scaling", _cosine),
        algebra("$D_k - D_j = |c_k|^2-|c_j|^2-2z\\cdot(c_k-c_j)$ (Gram algebra, every d)", _half_space),
        algebra("which is affine in z: cells are convex", _convex),
        lemma(
            "Triangle inequality: $|z-c_j| \\ge |c_j-c_k|-|z-c_k|$; it is 0 only at z = c, so codes are fixed points"
        ),
        certificate("a latent within half the spacing is certain; at the radius it is a tie", _certified),
        certificate("a move of less than half the margin keeps the order", _stable),
    ),
    catches="unsquared or unnormalised mixtures, wrong axis, argmax",
)


DERIVATIONS = (SYMMETRIES,)
