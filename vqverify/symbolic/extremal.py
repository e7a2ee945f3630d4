"""T3 and T7: the rotation is the nearest map that takes e to q, and commutes with rotating both."""

from __future__ import annotations

from typing import Any

import sympy as sp

from vqverify.symbolic.derivation import Derivation, Stated, algebra, certificate, lemma
from vqverify.symbolic.exact import nonnegative, same
from vqverify.symbolic.gram import Element, concrete
from vqverify.symbolic.householder import ROTATION, in_dimension, plane, with_vector
from vqverify.symbolic.notation import c, d, identity, lam, s, sigma, uhat, vhat, x
from vqverify.symbolic.rounding import B1

e_norm: Any = sp.Symbol("e_norm", positive=True)
slack: Any = sp.Symbol("slack", nonnegative=True)  # 1 - c
alpha, beta, phi = sp.symbols("alpha beta phi", real=True)
scale_e, scale_q = sp.symbols("a b", positive=True)

turning: Any = sp.MatrixSymbol("Q", d, d)  # orthogonal
rotation: Any = sp.MatrixSymbol("R", d, d)  # R(e, q)

MIRROR: Any = identity - (uhat - vhat) * (uhat - vhat).T / (1 - c)


def _norm2(vector: Element) -> Any:
    return (vector.T @ vector).scalar


def _moved(operator: Any, direction: Any) -> Any:
    """|(J - I)x|² by Gram algebra, for x along the direction."""
    span = with_vector(along=(0, 0))
    difference = span.of(operator) + span.of(identity).scaled(-1)
    return _norm2(difference @ span.of(direction)) / _norm2(span.of(direction))


def _on_plane(f: Stated) -> bool:
    return same(_moved(f["J"], alpha * uhat + beta * vhat), f["|(J−I)x|²/|x|² on the plane"])


def _is_distance(f: Stated) -> bool:
    span = plane()
    distance2 = _norm2(span.of(e_norm * lam * vhat - e_norm * uhat))
    return same(f["|(J−I)x|²/|x|² on the plane"] * e_norm**2, distance2) and same(f["|q−e|²"], distance2)


def _off_plane(f: Stated) -> bool:
    off = _moved(f["J"], x)
    difference = (f["|(J−I)x|²/|x|² on the plane"] - off).subs(c, 1 - slack)
    return same(off, f["|(J−I)x|²/|x|² off it"]) and nonnegative(difference, 2 * lam * slack)


def _splits(f: Stated) -> bool:
    # J − I keeps the plane and its complement apart, so the largest of the two factors is the norm
    span = with_vector(along=(0, 0))
    difference = span.of(f["J"]) + span.of(identity).scaled(-1)
    mixed = span.of(uhat * alpha + vhat * beta).T @ difference.T @ difference @ span.of(x)
    return mixed.scalar == 0


def _least(f: Stated) -> bool:
    # any A with Ae = q moves e by |q − e|; J is one of them
    span = plane()
    if not (span.of(f["J"]) @ span.of(e_norm * uhat)).equals(span.of(lam * e_norm * vhat)):
        return False
    moved = _norm2((span.of(f["J"]) + span.of(identity).scaled(-1)) @ span.of(e_norm * uhat))
    return same(moved, f["|q−e|²"])


def _frobenius(f: Stated) -> bool:
    span = plane()
    difference = span.of(f["J"].subs(lam, 1)) + span.of(identity).scaled(-1)
    chord2 = _norm2(span.of(uhat - vhat))
    spectral = _moved(f["J"].subs(lam, 1), alpha * uhat + beta * vhat)
    return (
        same((difference.T @ difference).trace(), f["‖R−I‖_F²"])
        and same(spectral, f["‖R−I‖₂²"])
        and same(chord2, f["‖R−I‖₂²"])
    )


def _weighted_cosine(f: Stated) -> bool:
    # in a plane of Q's normal form, y·Qy = |y|² cos(phi)
    y = sp.Matrix([alpha, beta])
    block = sp.Matrix([[sp.cos(phi), -sp.sin(phi)], [sp.sin(phi), sp.cos(phi)]])
    return same((y.T * block * y)[0, 0], f["y·Qy on a plane of Q"])


def _trace_bound(f: Stated) -> bool:
    # some cosine is at most c (excess >= 0 below it), it comes twice, the others are at most 1
    below, short = sp.symbols("below short", nonnegative=True)
    trace = 2 * (c - below) + (d - 2) - short
    attained = plane().of(f["J"].subs(lam, 1)).trace()
    return nonnegative(f["tr Q at most"] - trace, 2 * below + short) and same(attained, f["tr Q at most"])


def _nearest(f: Stated) -> bool:
    # ‖Q − I‖_F² = 2d − 2 tr Q for orthogonal Q
    return same(2 * d - 2 * f["tr Q at most"], f["‖R−I‖_F²"])


def _mirror(f: Stated) -> bool:
    span = plane()
    mirror = span.of(f["mirror"])
    difference = mirror + span.of(identity).scaled(-1)
    return (
        (mirror @ span.of(uhat)).equals(span.of(vhat))
        and (mirror.T @ mirror).equals(span.of(identity))
        and mirror.det() == -1
        and same((difference.T @ difference).trace(), f["mirror ‖·−I‖_F²"])
        and sp.solveset(f["‖R−I‖_F²"] - f["mirror ‖·−I‖_F²"] > 0, c, sp.Interval(-1, 1)) == sp.Interval.Ropen(-1, 0)
    )


EXTREMALITY = Derivation(
    id="rotation.extremal",
    theorem="T3",
    title="The nearest map that takes e to q",
    statement=(
        "‖J − I‖₂ = |q − e|/|e|, the least of any linear map with Je = q; among rotations with Qû = v̂, R is nearest to "
        "I: ‖R − I‖_F² = 4(1 − c), ‖R − I‖₂ = |û − v̂|. In O(d) the reflection that swaps û and v̂ is nearer when c < 0."
    ),
    latex=(
        r"\|J-I\|_2 = \frac{|q-e|}{|e|} = \min_{Ae=q}\|A-I\|_2,\qquad \|R-I\|_F^2 = 4(1-c) ="
        r" \min_{Q\in SO(d),\,Q\hat u=\hat v}\|Q-I\|_F^2"
    ),
    hypotheses=("e ≠ 0", "q ≠ 0", "θ ≠ π", "d ≥ 2"),
    source="theory page; 000 §4",
    stated={
        "J": lam * ROTATION,
        "|(J−I)x|²/|x|² on the plane": lam**2 - 2 * lam * c + 1,
        "|(J−I)x|²/|x|² off it": (lam - 1) ** 2,
        "|q−e|²": e_norm**2 * (lam**2 - 2 * lam * c + 1),
        "‖R−I‖_F²": 4 * (1 - c),
        "‖R−I‖₂²": 2 - 2 * c,
        "y·Qy on a plane of Q": (alpha**2 + beta**2) * sp.cos(phi),
        "tr Q at most": d - 2 + 2 * c,
        "mirror": MIRROR,
        "mirror ‖·−I‖_F²": sp.Integer(4),
    },
    bounds=("|(J−I)x|²/|x|² on the plane", "‖R−I‖_F²", "tr Q at most"),
    steps=(
        algebra("on span(e, q) J − I is a multiple of an isometry: the factor is independent of x", _on_plane),
        algebra("the factor is $|q-e|^2/|e|^2$", _is_distance),
        certificate(r"off the span $(\lambda-1)^2$, less by $2\lambda(1-c) \ge 0$", _off_plane),
        algebra("J − I keeps the two apart", _splits),
        algebra("any A with Ae = q moves e by |q − e|, which J attains", _least),
        algebra("Frobenius and spectral norm of R − I", _frobenius),
        lemma("Normal form of SO(d): planes turned by angles, the angles π in pairs, and fixed directions"),
        algebra(r"$c = \hat u\cdot Q\hat u$ is a convex mean of the cosines of Q", _weighted_cosine),
        certificate("hence tr Q ≤ d − 2 + 2c, attained by R", _trace_bound),
        algebra("$\\|Q-I\\|_F^2 = 2d - 2\\,\\mathrm{tr}\\,Q$", _nearest),
        certificate("the reflection has det −1 and 4 < 4(1 − c) exactly for c < 0", _mirror),
    ),
    catches="a map that turns out of the plane, a map of determinant −1",
)


def _cayley(dim: int) -> Any:
    """A family of orthogonal matrices with a free parameter, and one with a reflection."""
    w = sp.Symbol("w", real=True)
    skew = sp.zeros(dim, dim)
    for i in range(dim):
        for j in range(i):
            skew[i, j], skew[j, i] = w * (i + j), -w * (i + j)
    turned = ((sp.eye(dim) - skew) * (sp.eye(dim) + skew).inv()).applyfunc(sp.cancel)
    return turned, turned * sp.diag(-1, *[1] * (dim - 1))


def _equivariant(dim: int) -> Any:
    def check(f: Stated) -> bool:
        _, reduce, first, second, scale = in_dimension(ROTATION, dim)
        values = {sigma: sp.sqrt(2 + 2 * c)}
        plain = concrete(ROTATION, {uhat: first, vhat: second, s: first + second, **values}, dim)
        for Q in _cayley(dim):
            turned = {uhat: Q * first, vhat: Q * second, s: Q * (first + second), **values}
            difference = concrete(ROTATION, turned, dim) - concrete(f["R(Qe, Qq)"], {turning: Q, rotation: plain}, dim)
            entries = [
                sp.fraction(sp.cancel(sp.together((1 + c) * entry).subs(c, scale - 1)))[0] for entry in difference
            ]
            if not all(reduce(entry) == 0 for entry in entries):
                return False
        return True

    return check


def _every_dimension(f: Stated) -> bool:
    # Qû, Qv̂ and Qs in the formula, against QRQᵀ with QQᵀ = I; c and σ = |Qs| do not change, as (Qx)ᵀ(Qy) = xᵀy
    def refined(expression: Any) -> Any:
        return sp.refine(expression.expand().doit(), sp.Q.orthogonal(turning)).doit()

    moved = ROTATION.xreplace({vector: turning * vector for vector in (uhat, vhat, s)})
    stated = f["R(Qe, Qq)"].xreplace({rotation: ROTATION})
    products = [((turning * x).T * (turning * y)).doit() for x, y in ((uhat, vhat), (s, s))]
    kept = [refined(product) for product in products] == [uhat.T * vhat, s.T * s]
    return kept and refined(moved - stated) == sp.ZeroMatrix(d, d)


def _scales(f: Stated) -> bool:
    e, q = sp.symbols("e q", positive=True)
    return same((scale_q * q) / (scale_e * e) / (q / e), f["J(ae, bq) / J(e, q)"])


def _not_translation(f: Stated) -> bool:
    # e + t and q + t for t = (tau, 0): cosine and ratio of norms go to 1, so ‖J − I‖ goes to 0
    tau = sp.Symbol("tau", positive=True)
    e, q = sp.Matrix([1 + tau, 2]), sp.Matrix([3 + tau, -1])
    cosine2 = (e.dot(q)) ** 2 / (e.dot(e) * q.dot(q))
    ratio2 = q.dot(q) / e.dot(e)
    there = sp.Tuple(sp.limit(cosine2, tau, sp.oo), sp.limit(ratio2, tau, sp.oo))
    here = sp.Tuple(cosine2.subs(tau, 0), ratio2.subs(tau, 0))
    return there == f["cos², λ² at infinity"] and here != there


EQUIVARIANCE = Derivation(
    id="rotation.equivariance",
    theorem="T7",
    title="Equivariance",
    statement="J(Qe, Qq) = Q J(e, q) Qᵀ for Q ∈ O(d); J(ae, bq) = (b/a) J(e, q) for a, b > 0; not under translation.",
    latex=(
        r"J(Qe,Qq) = Q\,J(e,q)\,Q^{\mathsf T}\;(Q\in O(d)),\qquad J(ae,bq)=\tfrac ba J(e,q)\;(a,b>0),\qquad"
        r" J(e+t,q+t)\to I\;(|t|\to\infty)"
    ),
    hypotheses=("e ≠ 0", "q ≠ 0", "θ ≠ π"),
    source="theory page",
    stated={
        "R(Qe, Qq)": turning * rotation * turning.T,
        "J(ae, bq) / J(e, q)": scale_q / scale_e,
        "cos², λ² at infinity": sp.Tuple(1, 1),
    },
    tolerances={"relative to λ|x|": 2 * B1},
    steps=(
        algebra("the formula at Qe and Qq is $QRQ^T$, for an orthogonal Q of any size", _every_dimension),
        algebra("D = 2: a Cayley family and a reflection, free entries", _equivariant(2)),
        algebra("D = 3: the same", _equivariant(3)),
        algebra("scaling changes λ alone", _scales),
        certificate("far away the cosine and λ go to 1, hence J to I: the estimator has an origin", _not_translation),
    ),
    catches="centring, or a norm taken over the wrong axis",
)

DERIVATIONS = (EXTREMALITY, EQUIVARIANCE)
