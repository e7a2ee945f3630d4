"""T9 to T11: how far an estimated gradient is from the gradient at the latent."""

from __future__ import annotations

from typing import Any

import sympy as sp

from vqverify.symbolic.derivation import Derivation

kappa: Any = sp.Symbol("kappa", nonnegative=True)
h: Any = sp.Symbol("h", nonnegative=True)
M: Any = sp.Symbol("M", nonnegative=True)
g_norm: Any = sp.Symbol("g_norm", nonnegative=True)
e_norm: Any = sp.Symbol("e_norm", positive=True)


def _plan(name: str, theorem: str, formula: Any) -> Derivation:
    return Derivation(name, theorem, "", "", "", (), "", {"bound": formula}, ())


STE = _plan("gap.ste", "T9", kappa * h)
ROTATION = _plan("gap.rotation", "T10", (kappa + g_norm / e_norm) * h)
HESSIAN = _plan("gap.order", "T11", M * h**2 / 2)

DERIVATIONS = (STE, ROTATION, HESSIAN)
