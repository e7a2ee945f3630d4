"""The one statistical gate: a fixed design, one exact test, and one budget of false alarms for a whole run.

A test that rejects is made once more on fresh randomness, and only a second rejection is reported. Under the null
the two are independent, so that each may be made at the square root of its share of the budget.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vqverify.bounds import Clause

BUDGET = 1e-6  # probability that a run over a right layer reports any statistical failure
TESTS = 64  # statistical clauses that a run may hold; they share the budget evenly
LEVEL = math.sqrt(BUDGET / TESTS)  # of each of the two rounds of a test
POWER = 0.99  # at which a detectable effect is stated, for both rounds together

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Round:
    """What one round of a test found.

    Attributes:
        p_value: at most the probability, under the null, of data at least as extreme: exact, or a bound.
        found: what was seen, for the reader of a rejection.
        effect: the smallest deviation that the design detects with probability `POWER`.
    """

    p_value: float
    found: str
    effect: str


def fresh_seed(*parts: object) -> int:
    """A seed that is a digest of its parts: streams of different parts are independent for all that is known."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big")


def rejects_null(test: Callable[[int], Round], seed: int, label: str, message: str, *, level: float = LEVEL) -> Clause:
    """Test one null hypothesis within the run's false-alarm budget.

    Args:
        test: makes one round from a seed: draws its own sample, of a size that does not depend on the data.
        seed: of the clause; each round gets a digest of it.
        label: which statement this is.
        message: what to tell the reader when it is rejected.
        level: of one round; the clause as a whole has level² (`BUDGET / TESTS` by default).

    Returns:
        A clause that fails if two rounds on fresh randomness both reject; its message states the detectable
        effect when it holds. The margin is log p / log level: 1 where a round rejects.

    Raises:
        ValueError: if a p-value is not a number in [0, 1]: a fault of the test.
    """
    rounds: list[Round] = []
    for number in range(2):
        tested = test(fresh_seed(seed, label, number))
        if not 0 <= tested.p_value <= 1:
            raise ValueError(f"p-value of {label!r} must lie in [0, 1], got {tested.p_value}")
        rounds.append(tested)
        if tested.p_value > level:
            margin = math.log(tested.p_value) / math.log(level)
            return Clause(label, margin, holds=True, message=f"detects {tested.effect}")
    worst = max(tested.p_value for tested in rounds)
    margin = math.log(max(worst, 1e-300)) / math.log(level)
    said = f"{message}: {rounds[-1].found} (p ≤ {worst:.1g} in each of two rounds)"
    return Clause(label, margin, holds=False, message=said)


def frequencies(counts: ArrayLike, law: ArrayLike, *, slack: float = 0.0, floor: float = 0.0) -> Round:
    """Exact test that rows of counts are draws from given laws: a binomial test a cell, with Bonferroni's bound.

    Args:
        counts: (M, K), each row the counts of independent draws from the row of `law`.
        law: (M, K) probabilities, rows that sum to 1.
        slack: relative uncertainty of the law (rounding, a fitted scale): any p within it is in the null.
        floor: absolute uncertainty, for what the noise of a generator cannot resolve.
    """
    from scipy.stats import binom

    seen, p = np.asarray(counts, np.float64), np.asarray(law, np.float64)
    total = np.broadcast_to(seen.sum(1, keepdims=True), seen.shape)
    high, low = np.clip(p * (1 + slack) + floor, 0, 1), np.clip(p * (1 - slack) - floor, 0, 1)
    more, fewer = binom.sf(seen - 1, total, high), binom.cdf(seen, total, low)
    tails = np.minimum(more, fewer)
    row, column = np.unravel_index(int(tails.argmin()), tails.shape)
    n = int(total.min())
    found = (
        f"code {column} came {int(seen[row, column])} times of {int(total[row, column])} at latent {row}, "
        f"{total[row, column] * p[row, column]:.1f} expected"
    )
    effect = f"a frequency that is off by {detectable(n, LEVEL / tails.size / 2):.3g} (n = {n} a latent)"
    return Round(min(1.0, 2 * tails.size * float(tails[row, column])), found, effect)


def detectable(n: int, tail: float, p: float = 0.5, power: float = POWER) -> float:
    """Smallest shift of a frequency p that a one-sided binomial test of level `tail` finds with this power, twice."""
    from scipy.stats import binom

    critical = float(binom.isf(tail, n, p)) + 1
    each = math.sqrt(power)
    low, high = p, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if binom.sf(critical - 1, n, middle) >= each else (middle, high)
    return high - p


def samples_needed(effect: float, cells: int, p: float = 0.5) -> int:
    """Draws a row that `frequencies` needs to detect a shift of this size in one of `cells` cells."""
    if not 0 < effect < 1 - p:
        raise ValueError(f"the effect must lie in (0, {1 - p:g}); it was {effect}")
    n = 16
    while detectable(n, LEVEL / cells / 2, p) > effect:
        n *= 2
    low, high = n // 2, n
    while high - low > max(1, low // 64):
        middle = (low + high) // 2
        low, high = (low, middle) if detectable(middle, LEVEL / cells / 2, p) <= effect else (middle, high)
    return high
