"""The statistics of a timed case: a sequential t-test on log ratios, with a tolerance and a stated false-alarm rate.

A pair is two processes, one a commit, whose calls alternate; its log ratio is the median over the rounds. Within a pair
load and clock cancel; what is left varies from pair to pair by some per cent, and several pairs measure it. The pairs
of a batch are forked from one process a commit and share its layout of memory, so that a case is called changed only on
two batches that agree. Each case is looked at after every batch:

- **slower** (or faster): the interval of the mean log ratio lies above ``TOLERANCE``, and so does the mean of each of
  at least two batches. The intervals of all cases and looks together miss with probability ``ALARM`` at most, where
  nothing changed by more than the tolerance, if log ratios are normal; `benchmarks.gate.calibrate` measures the rate
  without that assumption.
- **unchanged**: the mean is near enough to 0 that a change of ``PROMISE`` is excluded at 99%.
- otherwise there is another batch; after the last one it is **undecided** if the promised change is not excluded.
"""

from __future__ import annotations

import math
import statistics
from functools import cache

from scipy.stats import t

BATCH, BATCHES = 8, 3
TOLERANCE = math.log(1.03)
PROMISE = math.log(1.10)
ALARM = 0.001


def batches_of(ratios: list[float]) -> list[list[float]]:
    """Return the pairs of each batch."""
    return [ratios[i : i + BATCH] for i in range(0, len(ratios), BATCH)]


def median_ratio(base: list[float], head: list[float]) -> float:
    """Return the log ratio of a pair: the median over its rounds."""
    return statistics.median(math.log(h / b) for b, h in zip(base, head, strict=True))


def interval(ratios: list[float], cases: int) -> tuple[float, float]:
    """Return mean and half width of the simultaneous interval of log ratios."""
    level = 1 - ALARM / (2 * cases * (BATCHES - 1))
    return statistics.fmean(ratios), _quantile(level, len(ratios) - 1) * _error(ratios)


def decide(ratios: list[float], cases: int, *, last: bool = False) -> str | None:
    """Return the verdict on log ratios of pairs, or None if another batch is wanted.

    Args:
        ratios: log of HEAD's time over BASE's, a pair each, batch after batch.
        cases: how many cases are judged together.
        last: there will be no more pairs.
    """
    if len(ratios) < 3:
        return "undecided" if last else None
    mean, half = interval(ratios, cases)
    batches = [statistics.fmean(batch) for batch in batches_of(ratios)]
    if len(batches) > 1 and min(mean - half, *batches) > TOLERANCE:
        return "slower"
    if len(batches) > 1 and max(mean + half, *batches) < -TOLERANCE:
        return "faster"
    if abs(mean) + _quantile(0.99, len(ratios) - 1) * _error(ratios) < PROMISE:
        return "unchanged"
    return "undecided" if last else None


def describe(ratios: list[float], cases: int) -> tuple[str, str]:
    """Return the change in per cent with its interval, and the pairs with their noise, as text."""
    if len(ratios) < 3:
        return "", f"{len(ratios)} pairs: out of time"
    mean, half = interval(ratios, cases)
    low, high = (100 * math.expm1(min(x, 5)) for x in (mean - half, mean + half))
    noise = 100 * statistics.stdev(ratios)
    return f"{100 * math.expm1(mean):+.1f}% ({low:+.0f} to {high:+.0f})", f"{len(ratios)} pairs, noise {noise:.1f}%"


def _error(ratios: list[float]) -> float:
    return statistics.stdev(ratios) / math.sqrt(len(ratios))


@cache
def _quantile(level: float, freedom: int) -> float:
    return float(t.ppf(level, freedom))
