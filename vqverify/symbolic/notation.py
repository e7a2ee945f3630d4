"""The symbols of the theory page, shared by all derivations."""

from __future__ import annotations

from typing import Any

import sympy as sp

d: Any = sp.Symbol("d", integer=True, positive=True)
c: Any = sp.Symbol("c", real=True)  # cosine of the angle between e and q
sigma: Any = sp.Symbol("sigma", positive=True)  # |û + v̂| = 2 cos(theta / 2)
lam: Any = sp.Symbol("lambda", positive=True)  # |q| / |e|
unit: Any = sp.Symbol("u", positive=True)  # unit roundoff

identity: Any = sp.Identity(d)
uhat: Any = sp.MatrixSymbol("uhat", d, 1)  # e / |e|
vhat: Any = sp.MatrixSymbol("vhat", d, 1)  # q / |q|
s: Any = sp.MatrixSymbol("s", d, 1)  # û + v̂
x: Any = sp.MatrixSymbol("x", d, 1)
g: Any = sp.MatrixSymbol("g", d, 1)
turn: Any = sp.MatrixSymbol("M", d, d)  # v̂ûᵀ − ûv̂ᵀ

LATEX = {uhat: r"\hat u", vhat: r"\hat v", turn: "M"}
