"""What a layer is expected to be: from the user, an adapter, and constructor parameters whose names the field shares.

Never from instance attributes, which a broken layer carries too. Claims are joined with what probing found,
and a claim that probing contradicts is a broken promise of its own.
"""

from __future__ import annotations

from vqverify.subject.claims.judging import consistent, contradictions, honesty, join
from vqverify.subject.claims.reading import read_claims
from vqverify.subject.claims.words import CLAIMS, COUNTS, NUMBERS, VALUES, ClaimError, normalise

__all__ = [
    "CLAIMS",
    "COUNTS",
    "NUMBERS",
    "VALUES",
    "ClaimError",
    "consistent",
    "contradictions",
    "honesty",
    "join",
    "normalise",
    "read_claims",
]
