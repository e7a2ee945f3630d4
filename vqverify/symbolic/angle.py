"""T2: what the rotation estimator keeps of a gradient, the angle with q and, up to lambda, the norm."""

from __future__ import annotations

import sympy as sp

from vqverify.symbolic.derivation import Derivation, Stated, algebra
from vqverify.symbolic.gram import Element, Span, concrete
from vqverify.symbolic.householder import ROTATION, SIGMA, SUM, b, e_norm, n2, plane, with_vector
from vqverify.symbolic.notation import c, d, g, identity, lam, s, sigma, uhat, unit, vhat
from vqverify.symbolic.rounding import B1


def _jacobian(span: Span, f: Stated) -> Element:
    return span.of(f["J"])


def _pairing(f: Stated) -> bool:
    span = with_vector(g)
    back = _jacobian(span, f).T @ span.of(g)
    received = (span.of(e_norm * uhat).T @ back).scalar
    sent = (span.of(lam * e_norm * vhat).T @ span.of(g)).scalar
    return sp.expand(received - f["⟨e, Jᵀg⟩"]) == 0 and sp.expand(sent - f["⟨e, Jᵀg⟩"]) == 0


def _norm(f: Stated) -> bool:
    span = with_vector(g)
    back = _jacobian(span, f).T @ span.of(g)
    return sp.expand((back.T @ back).scalar - f["|Jᵀg|²"]) == 0


def _conformal(f: Stated) -> bool:
    span = plane()
    jacobian = _jacobian(span, f)
    return (jacobian @ jacobian.T).equals(span.of(f["JJᵀ"]))


def _cosines(f: Stated) -> bool:
    # ∠(e, Jᵀg) = ∠(q, g): both cosines from the two facts above
    cos_received = f["⟨e, Jᵀg⟩"] / (e_norm * sp.sqrt(f["|Jᵀg|²"]))
    return sp.simplify(cos_received - b / sp.sqrt(n2)) == 0


def _not_the_transpose(f: Stated) -> bool:
    first, second = sp.Matrix([1, 0]), sp.Matrix([0, 1])
    values = {uhat: first, vhat: second, s: first + second, sigma: sp.sqrt(2), lam: 1}
    jacobian = concrete(f["J"], values, 2)
    cotangent = (first + second) / sp.sqrt(2)  # at 45 degrees from both
    angles = sp.Tuple(*((first.T * matrix * cotangent)[0, 0] for matrix in (jacobian.T, jacobian)))
    return angles == f["cosines for Jᵀ and J"]


def _reflection_passes(f: Stated) -> bool:
    # λ times the reflection that takes û to v̂ pairs and scales alike: T2 does not see det −1
    span = Span((uhat, vhat, g), with_vector(g).gram, SUM, SIGMA, d)
    mirror = span.of(identity - (uhat - vhat) * (uhat - vhat).T / (1 - c)).scaled(lam)
    back = mirror.T @ span.of(g)
    pairing = (span.of(e_norm * uhat).T @ back).scalar - f["⟨e, Jᵀg⟩"]
    return sp.expand(pairing) == 0 and sp.expand((back.T @ back).scalar - f["|Jᵀg|²"]) == 0


ANGLE = Derivation(
    id="rotation.angle",
    theorem="T2",
    title="Angle and norm of the received gradient",
    statement="⟨e, Jᵀg⟩ = ⟨q, g⟩ and |Jᵀg| = λ|g| for all g; hence ∠(e, Jᵀg) = ∠(q, g). It is Jᵀ, not J.",
    latex=(
        r"\langle e, J^{\mathsf T}g\rangle = \langle q, g\rangle,\qquad |J^{\mathsf T}g| = \lambda|g|,\qquad"
        r" \angle(e, J^{\mathsf T}g) = \angle(q, g)"
    ),
    hypotheses=("e ≠ 0", "q ≠ 0", "θ ≠ π"),
    source="000 A.3",
    stated={
        "J": lam * ROTATION,
        "⟨e, Jᵀg⟩": lam * e_norm * b,
        "|Jᵀg|²": lam**2 * n2,
        "JJᵀ": lam**2 * identity,
        "cosines for Jᵀ and J": sp.Tuple(1 / sp.sqrt(2), -1 / sp.sqrt(2)),
    },
    tolerances={"|⟨e, Jᵀg⟩ − ⟨q, g⟩|/(|q||g|)": B1 + 2 * d * unit},
    steps=(
        algebra("$JJ^T = \\lambda^2 I$ in Gram algebra", _conformal),
        algebra("$\\langle e, J^Tg\\rangle$ and $\\langle q, g\\rangle$, computed apart, agree", _pairing),
        algebra("$|J^Tg|^2 = \\lambda^2|g|^2$", _norm),
        algebra("the two cosines agree", _cosines),
        algebra(
            "û = x̂, v̂ = ŷ, g at 45° from both: the angle is 45° for $J^T$ and 135° for $J$",
            _not_the_transpose,
        ),
        algebra("a single reflection satisfies both as well: only T1, T3 and T13 reject it", _reflection_passes),
    ),
    catches="a transposed vector-Jacobian product, a gradient not scaled by λ",
)

DERIVATIONS = (ANGLE,)
