"""Wrong quantizers: mistakes of estimator."""

from __future__ import annotations

from vqverify.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = ()
