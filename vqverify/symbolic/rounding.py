"""T5: rounding of the rotation; first-order bounds."""

from __future__ import annotations

from vqverify.symbolic.derivation import Derivation
from vqverify.symbolic.notation import d, sigma, unit

B1 = (9 * d + 41 + (4 * d + 16) / sigma) * unit

ROTATION = Derivation(
    id="rotation.rounding",
    theorem="T5",
    title="Rounding of the rotation",
    statement="",
    latex="",
    hypotheses=(),
    source="theory page",
    stated={"B1": B1},
    steps=(),
)

DERIVATIONS = (ROTATION,)
