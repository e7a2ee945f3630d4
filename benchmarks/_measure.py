"""Interleaved measurements: absolute times drift on a shared machine, ratios within one round do not."""

from __future__ import annotations

import statistics
import time
import tracemalloc
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    Work = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """Median of a ratio over the runs, with the extremes."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def times(work: dict[str, Work], rounds: int, clock: Callable[[], float] = time.process_time) -> dict[str, float]:
    """Return the median time in seconds of each, over rounds that rotate the order."""
    names = list(work)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        work[name]()
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = clock()
            work[name]()
            taken[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def ratios(work: dict[str, Work], base: str, *, runs: int = 5, rounds: int = 5) -> dict[str, Ratio]:
    """Return each one's time over that of ``base``: median and extremes of ``runs`` runs."""
    collected: dict[str, list[float]] = {name: [] for name in work if name != base}
    for _ in range(runs):
        taken = times(work, rounds)
        for name, values in collected.items():
            values.append(taken[name] / taken[base])
    return {name: Ratio(statistics.median(values), min(values), max(values)) for name, values in collected.items()}


def geometric_mean(values: list[float]) -> float:
    return statistics.geometric_mean(values)


def peak_bytes(work: Work) -> int:
    """Return the most memory held at a time by ``work``: torch's CPU allocations and numpy's."""
    work()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        tracemalloc.start()
        work()
        numpy_peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak + numpy_peak
