"""The one timing helper: interleaved calls, on CPU by clock and on CUDA by events.

Absolute times drift on a shared machine by tens of per cent; ratios of neighbouring calls do not. Torch is imported on
use: asv imports these modules in a new process for each number that it stores.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

Work = Callable[[], object]
Samples = dict[str, list[float]]


@dataclass(frozen=True)
class Ratio:
    """Median of a ratio over the runs, with the extremes."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def samples(
    work: Mapping[str, Work], *, device: str = "cpu", budget: float = 1.0, most: int = 60, cpu: bool = False
) -> Samples:
    """Return seconds of single calls of each, over rounds that rotate the order.

    Args:
        work: what to call, by name.
        device: ``"cuda"`` measures by events, after a warm-up and with synchronisation at the end.
        budget: seconds after which no further round begins; there are three rounds at least.
        most: rounds at most.
        cpu: time of the processor and not of the clock: what else runs on the machine then counts little. Of use on one
            thread alone.
    """
    names = list(work)
    taken: Samples = {name: [] for name in names}
    timed = _cuda_times if device == "cuda" else partial(_cpu_times, time.process_time if cpu else time.perf_counter)
    first = timed([work[name] for name in names])
    if device == "cuda":
        for _ in range(10):
            timed([work[name] for name in names])
    if sum(first) > budget:
        # so long a call needs no warm-up
        for name, seconds in zip(names, first, strict=True):
            taken[name].append(seconds)
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        for i in range(len(taken[names[0]]), most):
            order = names[i % len(names) :] + names[: i % len(names)]
            for name, seconds in zip(order, timed([work[name] for name in order]), strict=True):
                taken[name].append(seconds)
            if i >= 2 and time.perf_counter() - start > budget:
                break
    finally:
        if enabled:
            gc.enable()
    return taken


def _cpu_times(clock: Callable[[], float], calls: list[Work]) -> list[float]:
    out = []
    for call in calls:
        start = clock()
        call()
        out.append(clock() - start)
    return out


def _cuda_times(calls: list[Work]) -> list[float]:
    import torch

    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in calls]
    for (begin, end), call in zip(marks, calls, strict=True):
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) / 1e3 for begin, end in marks]


def paired(taken: Samples, name: str, base: str) -> float:
    """Return the median over rounds of the time of ``name`` over that of ``base``."""
    return statistics.median(a / b for a, b in zip(taken[name], taken[base], strict=True))


def ratios(
    work: Mapping[str, Work], base: str, *, runs: int = 5, budget: float = 1.0, cpu: bool = False
) -> dict[str, Ratio]:
    """Return each one's time over that of ``base``: median and extremes of ``runs`` paired medians."""
    found: dict[str, list[float]] = {name: [] for name in work if name != base}
    for _ in range(runs):
        taken = samples(work, budget=budget, cpu=cpu)
        for name, values in found.items():
            values.append(paired(taken, name, base))
    return {name: Ratio(statistics.median(values), min(values), max(values)) for name, values in found.items()}


def exponent(sizes: list[int], values: list[float]) -> float:
    """Return the slope of log(value) on log(size): p where value ∝ size^p."""
    return statistics.linear_regression([math.log(s) for s in sizes], [math.log(v) for v in values]).slope


def peak_bytes(work: Work, device: str = "cpu") -> int:
    """Return the most memory held at a time by ``work``: torch's allocations and, on a CPU, numpy's."""
    import torch

    work()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
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
