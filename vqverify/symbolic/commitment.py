"""T16: the two conventions of the commitment loss and their gradients."""

from __future__ import annotations

from typing import Any

import sympy as sp

from vqverify.symbolic.derivation import Derivation

z: Any = sp.Symbol("z", real=True)  # one component of the latent
q: Any = sp.Symbol("q", real=True)  # one component of the code
beta: Any = sp.Symbol("beta", real=True)

CONVENTIONS = Derivation(
    id="commitment.conventions",
    theorem="T16",
    title="Conventions of the commitment loss",
    statement="",
    latex="",
    hypotheses=(),
    source="001 eq. 8–9; 002 eq. 1",
    stated={
        "A ∂z": (1 - beta) * (z - q),
        "A ∂q": beta * (q - z),
        "A value": (z - q) ** 2 / 2,
        "V ∂z": 2 * beta * (z - q),
        "V ∂q": 2 * (q - z),
        "V value": (1 + beta) * (z - q) ** 2,
    },
    steps=(),
)

DERIVATIONS = (CONVENTIONS,)
