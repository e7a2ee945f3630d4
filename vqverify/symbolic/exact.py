"""Deciding: identities, certificates of sign, and rounding, all without floating point."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import sympy as sp


def zero(expression: Any) -> bool:
    """Whether the expression is identically zero, by rational normal form."""
    expression = sp.sympify(expression)
    return expression == 0 or sp.expand(sp.cancel(sp.together(sp.expand(expression)))) == 0


def same(left: Any, right: Any) -> bool:
    """Whether two expressions, or two matrices or tuples entry by entry, are identical."""
    if isinstance(left, (sp.MatrixBase, sp.Tuple, tuple, list)):
        one, other = (side.flat() if isinstance(side, sp.MatrixBase) else tuple(side) for side in (left, right))
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return zero(sp.sympify(left) - sp.sympify(right))


def is_root(stated: Any, square: Any) -> bool:
    """Whether a stated length is the nonnegative root of a square."""
    stated = sp.sympify(stated)
    return same(square, stated**2) and stated.is_nonnegative is True


def nonnegative(expression: Any, certificate: Any) -> bool:
    """Whether the expression equals a certificate that is nonnegative at sight.

    Args:
        expression: the difference of the two sides of an inequality.
        certificate: a sum of squares, or of products of symbols declared nonnegative.

    Returns:
        True if they are identical and SymPy's assumptions decide the sign of the certificate.
    """
    return same(expression, certificate) and sp.sympify(certificate).is_nonnegative is True


def round_to(value: Any, bits: int) -> Fraction:
    """Round to the nearest number with ``bits`` significant bits, ties to even; unbounded exponents.

    Args:
        value: an exact number.
        bits: precision, 24 for float32, 11 for float16, 8 for bfloat16.

    Returns:
        The rounded number, exactly.
    """
    exact = Fraction(value)
    if exact == 0:
        return exact
    # 2^exponent <= |value| / 2^(bits - 1) < 2^(exponent + 1)
    exponent = exact.numerator.bit_length() - exact.denominator.bit_length() - bits
    while abs(exact) >= Fraction(2) ** (exponent + bits):
        exponent += 1
    return round(exact / Fraction(2) ** exponent) * Fraction(2) ** exponent


def small_floats(bits: int, low: int, high: int) -> tuple[Fraction, ...]:
    """All positive floats with ``bits`` significant bits and exponents in [low, high], for exhaustive checks."""
    return tuple(
        significand * Fraction(2) ** (exponent - bits + 1)
        for exponent in range(low, high + 1)
        for significand in range(2 ** (bits - 1), 2**bits)
    )
