"""Functions lambdified from the stated formulas of the derivations, made on first use and kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

# oracle formula -> (module, derivation, stated formula, names of the arguments)
_SOURCES = {
    "b1": ("rounding", "ROTATION", "B1", "d sigma u"),
    "ema count": ("ema", "STEP", "N'", "N n gamma"),
    "ema sum": ("ema", "STEP", "m'", "m S gamma"),
    "laplace": ("ema", "LAPLACE", "N̂", "N T K epsilon"),
    "A ∂z": ("commitment", "CONVENTIONS", "A ∂z", "z q beta"),
    "A ∂q": ("commitment", "CONVENTIONS", "A ∂q", "z q beta"),
    "A value": ("commitment", "CONVENTIONS", "A value", "z q beta"),
    "V ∂z": ("commitment", "CONVENTIONS", "V ∂z", "z q beta"),
    "V ∂q": ("commitment", "CONVENTIONS", "V ∂q", "z q beta"),
    "V value": ("commitment", "CONVENTIONS", "V value", "z q beta"),
    "gap ste": ("gap", "STE", "bound", "kappa h"),
    "gap rotation": ("gap", "ROTATION", "bound", "kappa g_norm e_norm h"),
    "gap hessian": ("gap", "HESSIAN", "bound", "M h"),
}


def _lambdify(expression: Any, names: str, modules: str) -> Callable[..., Any]:
    import sympy as sp

    expression = sp.sympify(tuple(expression)) if isinstance(expression, list) else sp.sympify(expression)
    known = {symbol.name: symbol for symbol in expression.free_symbols}
    arguments = [known.pop(name, sp.Dummy(name)) for name in names.split()]
    if known:
        raise ValueError(f"the formula {expression} needs {sorted(known)}, which the oracle does not have")
    return sp.lambdify(arguments, expression, modules=modules)


@cache
def formula(name: str, modules: str = "numpy") -> Callable[..., Any]:
    """The function of a stated formula.

    Args:
        name: a key of the table above.
        modules: ``numpy`` or ``mpmath``.

    Returns:
        The formula as a function of the arguments in the table.

    Raises:
        ValueError: the formula needs a symbol that is no argument of the oracle.
    """
    module, derivation, stated, arguments = _SOURCES[name]
    source = getattr(import_module(f"vqverify.symbolic.{module}"), derivation)
    return _lambdify(source.stated[stated], arguments, modules)


class Rotation(NamedTuple):
    """Coefficients on û, v̂, s and the argument x, as functions of û·x, v̂·x, s·x and sigma."""

    vjp: Callable[..., tuple[Any, Any, Any, Any]]
    jvp: Callable[..., tuple[Any, Any, Any, Any]]


@cache
def rotation(modules: str = "numpy") -> Rotation:
    """The scalar coefficients of Rᵀg and of Rx, from the stated formula of R; arguments as in ``formula``."""
    from vqverify.symbolic import householder

    order = ("uhat", "vhat", "s", "ident")
    return Rotation(
        *(
            _lambdify([side[name] for name in order], "ug vg sg sigma", modules)
            for side in householder.coefficients(householder.ALGEBRA.stated["R"])
        ),
    )


def clear() -> None:
    """Forget the generated functions, so that they are made again from the derivations as they are now."""
    formula.cache_clear()
    rotation.cache_clear()
