"""Wrong quantizers: mistakes of update."""

from __future__ import annotations

from vqverify.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = ()
