"""Wrong quantizers: mistakes of rotation."""

from __future__ import annotations

from vqverify.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = ()
