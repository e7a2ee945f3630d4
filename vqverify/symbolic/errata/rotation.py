"""Errata of "Restructuring vector quantization with the rotation trick" (000)."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import sympy as sp

from vqverify.symbolic.errata.erratum import Erratum, against
from vqverify.symbolic.exact import round_to, same

lam, eta, length, slope = sp.symbols("lambda eta e_norm g_norm", positive=True)


def _jacobian(e: Any, q: Any) -> Any:
    """The matrix λR of the paper, for explicit e and q."""
    e_norm, q_norm = sp.sqrt(e.dot(e)), sp.sqrt(q.dot(q))
    u, v = e / e_norm, q / q_norm
    s = u + v
    return q_norm / e_norm * (sp.eye(len(e)) - 2 * s * s.T / s.dot(s) + 2 * v * u.T)


def _whole_derivative(dropped: Any) -> bool:
    # d(λ(e)R(e)e)/de = λR + the dropped term, by differentiation at a rational point
    entries = sp.symbols("e1:3", real=True)
    e, q = sp.Matrix(entries), sp.Matrix([3, 4])
    at = dict(zip(entries, (5, 0), strict=True))
    held = _jacobian(e, q).subs(at)
    whole = (_jacobian(e, q) * e).jacobian(e).subs(at)
    return same(sp.simplify(whole - held), dropped * held)


def _forward(claim: Any) -> bool:
    # d = 1, eleven bits: λe rounded twice for small integers; and q + λ(e − e)
    pairs = [(Fraction(e), Fraction(q)) for e in range(1, 60) for q in (1, 2, 3)]
    outputs = {
        "rotated": [round_to(round_to(q / e, 11) * e, 11) for e, q in pairs],
        "residual": [round_to(q + round_to(q / e, 11) * (e - e), 11) for e, q in pairs],
    }
    return outputs[claim] == [q for _, q in pairs]


def _everywhere(excluded: Any) -> bool:
    # the points where the formula divides by 0, among four cases
    one, two = sp.Matrix([1, 0]), sp.Matrix([0, 2])
    cases = {"e = 0": (0 * one, two), "q = 0": (one, 0 * one), "q = −ae": (one, -3 * one), "other": (one, two)}

    def divides_by_zero(e: Any, q: Any) -> bool:
        lengths = (sp.sqrt(e.dot(e)), sp.sqrt(q.dot(q)))
        if 0 in lengths:
            return True
        s = e / lengths[0] + q / lengths[1]
        return s.dot(s) == 0

    return {name for name, (e, q) in cases.items() if divides_by_zero(e, q)} == set(excluded)


def _angle(claim: Any) -> bool:
    # e = |e|(1, 0), q = |q|(c, s'), g ⟂ q: the tangent of the angle by which e − ηJᵀg is turned
    cosine, sine = sp.Rational(3, 5), sp.Rational(4, 5)
    e = length * sp.Matrix([1, 0])
    q, g = lam * length * sp.Matrix([cosine, sine]), slope * sp.Matrix([-sine, cosine])
    moved = e - eta * _jacobian(e, q).T * g
    return same(moved[1] ** 2 / moved[0] ** 2, claim**2)


def _orders(claim: int) -> bool:
    ratio = Fraction("1.2e-2") / Fraction("7.2e-4")
    return 10**claim <= ratio < 10 ** (claim + 1)


ERRATA = (
    Erratum(
        "000.A2",
        "000 A.2",
        "dR/de cannot be computed, so it is dropped",
        "in a cell λRe ≡ q: the dropped term is −λR and the whole derivative is 0",
        "T4",
        "differentiate λ(e)R(e)e; the dropped term in multiples of λR",
        against(0, -1),
        _whole_derivative,
    ),
    Erratum(
        "000.s4.1",
        "000 §4.1",
        "the forward pass is unchanged",
        "up to B₁; bit-exact in the residual form q + J(e − sg e)",
        "T5",
        "d = 1, eleven bits: which form returns q for e < 60",
        against("rotated", "residual"),
        _forward,
    ),
    Erratum(
        "000.A4",
        "000 A.4, Alg. 1",
        "every e and q",
        "not e = 0, q = 0, q = −ae",
        "T6",
        "where the printed formula divides by 0, among four cases",
        against((), ("e = 0", "q = 0", "q = −ae")),
        _everywhere,
    ),
    Erratum(
        "000.s4.3",
        "000 §4.3",
        "g ⟂ q turns all e by the same angle",
        "by arctan(η|q||g|/|e|²): only at equal |e|",
        "T8",
        "the tangent of the turn of e − ηJᵀg",
        against(eta * slope, eta * lam * length * slope / length**2),
        _angle,
    ),
    Erratum(
        "000.s6",
        "000 §6",
        "two orders of magnitude less error",
        "1.2e-2/7.2e-4 = 17, one order",
        "",
        "powers of ten in the ratio",
        against(2, 1),
        _orders,
    ),
)
