"""Gram algebra: vectors and operators of R^d for every d at once.

With generators x_1..x_n and Gram matrix G_ij = x_i . x_j, the operators a I + sum C_ij x_i x_j^T, the
vectors sum b_i x_i and their transposes are closed under sum, product and transpose, and everything is
computed in the n x n matrices C and G: (X C X^T)(X D X^T) = X (C G D) X^T. An identity between coefficients is an identity in
every dimension. (It is sufficient; where the generators are independent it is necessary as well.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sympy as sp

if TYPE_CHECKING:
    from collections.abc import Mapping

Matrix = Any  # SymPy's matrices carry no useful types


@dataclass(frozen=True)
class Element:
    """``ident`` I + X ``coeff`` X^T, where X is left out on a side that is one-dimensional.

    Attributes:
        span: the generators and their Gram matrix.
        rows: whether the row side is R^d (else 1).
        cols: whether the column side is R^d (else 1).
        ident: coefficient of the identity (0 unless both sides are R^d).
        coeff: (n or 1) x (n or 1) matrix of coefficients.
    """

    span: Span
    rows: bool
    cols: bool
    ident: Any
    coeff: Matrix

    def __add__(self, other: Element) -> Element:
        if (self.rows, self.cols) != (other.rows, other.cols):
            raise ValueError("sum of elements of different shape")
        return Element(self.span, self.rows, self.cols, self.ident + other.ident, self.coeff + other.coeff)

    def __matmul__(self, other: Element) -> Element:
        if not (self.rows or self.cols):
            return other.scaled(self.coeff[0, 0])
        if not (other.rows or other.cols):
            return self.scaled(other.coeff[0, 0])
        if self.cols != other.rows:
            raise ValueError("product of elements of incompatible shape")
        inner = self.span.gram if self.cols else sp.eye(1)
        coeff = self.coeff * inner * other.coeff
        coeff += self.ident * other.coeff if self.ident != 0 else sp.zeros(*coeff.shape)
        coeff += other.ident * self.coeff if other.ident != 0 else sp.zeros(*coeff.shape)
        return Element(self.span, self.rows, other.cols, self.ident * other.ident, coeff)

    def scaled(self, factor: Any) -> Element:
        """This element times a scalar."""
        return Element(self.span, self.rows, self.cols, self.ident * factor, self.coeff * factor)

    @property
    def T(self) -> Element:  # noqa: N802  the transpose is written T everywhere
        """The transpose."""
        return Element(self.span, self.cols, self.rows, self.ident, self.coeff.T)

    @property
    def scalar(self) -> Any:
        """The value of a 1 x 1 element.

        Raises:
            ValueError: the element is a vector or an operator.
        """
        if self.rows or self.cols:
            raise ValueError("not a scalar")
        return self.span.normal(self.coeff[0, 0])

    def trace(self) -> Any:
        """Trace of an operator: ident d + tr(C G)."""
        return self.span.normal(self.ident * self.span.dim + (self.coeff * self.span.gram).trace())

    def action(self) -> Matrix:
        """Matrix of the operator on the span, in the basis of the generators: ident 1 + C G."""
        return (self.ident * sp.eye(self.span.gram.rows) + self.coeff * self.span.gram).applyfunc(self.span.normal)

    def det(self) -> Any:
        """Determinant of an operator from its action on the span, by Sylvester's identity."""
        n = self.span.gram.rows
        return self.span.normal(self.ident ** (self.span.dim - n) * self.action().det())

    def equals(self, other: Element) -> bool:
        """Whether all coefficients agree."""
        if (self.rows, self.cols) != (other.rows, other.cols):
            return False
        difference = self + other.scaled(-1)
        return all(self.span.normal(entry) == 0 for entry in (difference.ident, *difference.coeff))


@dataclass(frozen=True)
class Span:
    """Generators of R^d and what is known of their inner products.

    Attributes:
        generators: d x 1 matrix symbols.
        gram: their Gram matrix.
        linear: symbols that abbreviate a combination of generators, as s = u + v.
        relations: scalar abbreviations, as sigma = sqrt(2 + 2c); applied before expressions are compared.
        dim: the dimension d.
    """

    generators: tuple[Any, ...]
    gram: Matrix
    linear: Mapping[Any, Any]
    relations: Mapping[Any, Any]
    dim: Any

    def normal(self, expression: Any) -> Any:
        """Canonical form of a scalar, after the relations."""
        return sp.cancel(sp.together(sp.sympify(expression).subs(self.relations)))

    def of(self, expression: Any) -> Element:
        """Interpret a SymPy matrix expression.

        Args:
            expression: built of the generators, ``linear`` symbols, Identity, sums, products and transposes.

        Returns:
            Its element.

        Raises:
            ValueError: shapes do not fit, or the expression holds something else.
        """
        n = len(self.generators)
        if expression in self.linear:
            return self.of(self.linear[expression])
        if expression in self.generators:
            column = sp.zeros(n, 1)
            column[self.generators.index(expression), 0] = 1
            return Element(self, rows=True, cols=False, ident=sp.S.Zero, coeff=column)
        if isinstance(expression, sp.Identity):
            return Element(self, rows=True, cols=True, ident=sp.S.One, coeff=sp.zeros(n, n))
        if isinstance(expression, sp.ZeroMatrix):
            rows, cols = (side != 1 for side in expression.shape)
            return Element(self, rows, cols, sp.S.Zero, sp.zeros(n if rows else 1, n if cols else 1))
        if isinstance(expression, sp.Transpose):
            return self.of(expression.arg).T
        if isinstance(expression, sp.MatAdd):
            first, *rest = (self.of(term) for term in expression.args)
            return sum(rest, start=first)
        if isinstance(expression, sp.MatPow) and expression.exp == 2:
            return self.of(expression.base) @ self.of(expression.base)
        if isinstance(expression, sp.MatMul):
            scalars, matrices = expression.as_coeff_matrices()
            first, *rest = (self.of(factor) for factor in matrices)
            for factor in rest:
                first = first @ factor
            return first.scaled(scalars)
        raise ValueError(f"no Gram algebra for {expression}")


def concrete(expression: Any, values: Mapping[Any, Any], dim: int) -> Matrix:
    """The same matrix expression with explicit vectors: the second route, for D = 2 and 3.

    Args:
        expression: a SymPy matrix expression.
        values: explicit ``dim`` x 1 matrices for its symbols, and values for its scalars.
        dim: the dimension.

    Returns:
        An explicit matrix.

    Raises:
        ValueError: the expression holds something else.
    """
    if expression in values:
        return values[expression]
    if isinstance(expression, sp.Identity):
        return sp.eye(dim)
    if isinstance(expression, sp.Transpose):
        return concrete(expression.arg, values, dim).T
    if isinstance(expression, sp.MatAdd):
        first, *rest = (concrete(term, values, dim) for term in expression.args)
        return sum(rest, start=first)
    if isinstance(expression, sp.MatPow):
        return concrete(expression.base, values, dim) ** expression.exp
    if isinstance(expression, sp.MatMul):
        scalars, matrices = expression.as_coeff_matrices()
        product: Any = scalars.subs(
            {key: value for key, value in values.items() if key.is_Symbol and key.is_commutative}
        )
        for factor in matrices:
            product = product * concrete(factor, values, dim)
        return product
    raise ValueError(f"no explicit value for {expression}")
