"""Wrong quantizers: mistakes of stochastic."""

from __future__ import annotations

from vqverify.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = ()
