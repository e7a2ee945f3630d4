"""What a row is tested on. The only caller of Hypothesis.

A search has three phases, since a fixed stream that misses a bug misses it for ever: corners, one mass pass,
then Hypothesis in blocks of 25 examples with a seed each, so that a longer profile contains a shorter one.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import hypothesis
from hypothesis import strategies as st

from vqverify import strategies
from vqverify.case import Case
from vqverify.invariant import Invariant, State
from vqverify.quantizer import Quantizer, per_subject

BLOCK = 25
BUNCH = 5  # cases that Hypothesis draws at a time: starting on an example costs it more than drawing one
MASS = {"law": 8, "limit": 8, "contract": 4, "hardening": 4}  # batches: numbers need many structures, shapes few


@dataclass(frozen=True)
class Profile:
    """How long to look.

    Attributes:
        name: quick, merge or nightly.
        blocks: of 25 examples for each searched row.
        fixed: the stream is a function of the seed; otherwise it is drawn anew, and printed.
    """

    name: str
    blocks: int
    fixed: bool = True


PROFILES = {
    "quick": Profile("quick", 1),
    "merge": Profile("merge", 8),
    "nightly": Profile("nightly", 40, fixed=False),
}


@dataclass(frozen=True)
class Stock:
    """What the rows of one subject share: what may be drawn, and the mass batches of each state."""

    frame: strategies.Frame
    batches: dict[State, tuple[Case, ...]] = field(default_factory=dict[State, tuple[Case, ...]])

    def mass(self, state: State, count: int) -> tuple[Case, ...]:
        """The first batches; fewer for a large layer."""
        count //= 3 if self.frame.large else 1
        have = self.batches.get(state, ())
        if len(have) < count:
            have = self.batches[state] = tuple(strategies.mass(self.frame, state, count))
        return have[:count]


@per_subject
def stock(subject: Quantizer) -> Stock:
    """The stock of a subject in its fresh state."""
    return Stock(strategies.frame(subject))


class Examples:
    """The examples of a row on a subject in its fresh state, and how its cases share them."""

    def __init__(self, row: Invariant, subject: Quantizer, profile: Profile, key: tuple[object, ...]) -> None:
        """Draw them.

        Args:
            row: what is tested.
            subject: on what.
            profile: how many blocks.
            key: what the streams depend on, beside the row: the seed of the run and the subject's name.
        """
        self.row, self.large = row, (have := stock(subject)).frame.large
        key = (*key, row.id)
        self.fixed: list[Case] = []
        self.searched: list[Case] = []
        if row.mode in {"statistical", "process"}:
            self.fixed = [replace(have.mass("fresh", 3)[0], seed=_digest(*key))]
            return
        self.fixed += strategies.corners(have.frame, row.corners, row.state)
        if row.mode == "search":
            self.fixed += have.mass(row.state, MASS[row.kind])
            strategy = strategies.searched(have.frame, row.state)
            for block in range(profile.blocks):
                self.searched += drawn(strategy, _digest(*key, block))

    def of_case(self, index: int, count: int) -> list[Case]:
        """What one of ``count`` cases of the row sees.

        All of it for a law; a contract deals the drawn examples out to its cases.
        """
        parts = max(count, 10 * self.large)
        step = 1 if self.row.kind in {"law", "limit"} else max(2, parts // 2)
        return [*self.fixed, *self.searched[index % step :: step]]


def drawn(strategy: st.SearchStrategy[Case], seed: int, count: int = BLOCK) -> list[Case]:
    """One block of examples from Hypothesis: the same for the same seed, no database, no deadline."""
    cases: list[Case] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=1 + -(-count // BUNCH),
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=cast("list[hypothesis.HealthCheck]", list(hypothesis.HealthCheck)),
        print_blob=False,
    )
    @hypothesis.given(st.tuples(*[strategy] * BUNCH))
    def collect(bunch: tuple[Case, ...]) -> None:
        cases.extend(bunch if cases else bunch[:1])  # the first example is the simplest case, again and again

    with _storage():
        collect()
    return cases[:count]


@contextmanager
def _storage() -> Generator[None]:
    """Keep Hypothesis's own cache out of the folder that the user stands in."""
    name = "HYPOTHESIS_STORAGE_DIRECTORY"
    before = os.environ.get(name)
    os.environ[name] = before or str(Path(tempfile.gettempdir()) / "vqverify-hypothesis")
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def _digest(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big")
