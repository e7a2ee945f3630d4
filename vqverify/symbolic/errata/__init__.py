"""The errors of the papers, each with a proof that is executed."""

from __future__ import annotations

from vqverify.symbolic.errata import rotation, straightening, straightening_appendix, straightening_updates, two_stage
from vqverify.symbolic.errata.erratum import Erratum

ERRATA: tuple[Erratum, ...] = (
    *straightening.ERRATA,
    *straightening_updates.ERRATA,
    *straightening_appendix.ERRATA,
    *rotation.ERRATA,
    *two_stage.ERRATA,
)
