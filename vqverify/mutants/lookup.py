"""Wrong quantizers: mistakes of lookup."""

from __future__ import annotations

from vqverify.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = ()
