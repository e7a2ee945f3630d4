"""T17 to T22: codebooks learned by exponential moving averages."""

from __future__ import annotations

from typing import Any

import sympy as sp

from vqverify.symbolic.derivation import Derivation, Stated, algebra

gamma: Any = sp.Symbol("gamma", positive=True)  # decay
N: Any = sp.Symbol("N", positive=True)  # accumulated count of a code
m: Any = sp.Symbol("m", real=True)  # accumulated sum, one component
n: Any = sp.Symbol("n", positive=True)  # latents of this batch assigned to the code
S: Any = sp.Symbol("S", real=True)  # their sum, one component
code: Any = sp.Symbol("code", real=True)  # the code before the step, one component
eps: Any = sp.Symbol("epsilon", positive=True)
total: Any = sp.Symbol("T", positive=True)  # sum of N over the codes
K: Any = sp.Symbol("K", integer=True, positive=True)

COUNT = gamma * N + (1 - gamma) * n
SUM = gamma * m + (1 - gamma) * S


def _is_quotient(f: Stated) -> bool:
    quotient = f["m'"].subs(m, N * code) / f["N'"]
    return sp.cancel(quotient - f["c'"]) == 0


STEP = Derivation(
    id="ema.step",
    theorem="T17",
    title="EMA is a gradient step",
    statement="",
    latex="",
    hypotheses=("m = Nc",),
    source="001 eq. 11, A.2; 002 eq. 3–5",
    stated={
        "N'": COUNT,
        "m'": SUM,
        "c'": code + (1 - gamma) * n / COUNT * (S / n - code),
    },
    steps=(algebra("substitute $m = Nc$", _is_quotient),),
)

LAPLACE = Derivation(
    id="ema.laplace",
    theorem="T21",
    title="Laplace smoothing",
    statement="",
    latex="",
    hypotheses=(),
    source="000, 002",
    stated={"N̂": (N + eps) * total / (total + K * eps)},
    steps=(),
)

DERIVATIONS = (STEP, LAPLACE)
