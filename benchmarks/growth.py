"""How time and memory grow: exponents p of size^p, fitted in N, K and D."""

from __future__ import annotations

from dataclasses import replace

from benchmarks import _measure
from benchmarks._table import Case, Table, track

SIZES = {"n": [2048, 4096, 8192, 16384, 32768], "k": [512, 1024, 2048, 4096, 8192], "d": [16, 32, 64, 128, 256]}
BASE = Case(4096, 1024, 64)
OPERATIONS = ("lookup", "rotation", "update", "layer")
CASES = [f"{operation} in {axis.upper()}" for operation in OPERATIONS for axis in SIZES]


def ours(operation: str, case: Case) -> _measure.Work:
    from benchmarks import estimator, layer, lookup, update

    module, method = {
        "lookup": (lookup, "euclidean"),
        "rotation": (estimator, "rotation"),
        "update": (update, "ema"),
        "layer": (layer, "rotation"),
    }[operation]
    return module.work(replace(case, method=method), beside=False)["ours"]


def curve(operation: str, axis: str) -> tuple[list[int], list[float], list[int]]:
    """Return sizes, least seconds and peak bytes; the sizes are interleaved in time."""
    sizes = SIZES[axis]
    work = {str(size): ours(operation, replace(BASE, **{axis: size})) for size in sizes}
    taken = _measure.samples(work, budget=1.0)
    return sizes, [min(taken[name]) for name in work], [_measure.peak_bytes(call) for call in work.values()]


def measured() -> Table:
    import torch

    torch.set_num_threads(1)
    table: Table = {}
    for operation in OPERATIONS:
        for axis in SIZES:
            sizes, seconds, peaks = curve(operation, axis)
            table[f"{operation} in {axis.upper()}"] = {
                "time": _measure.exponent(sizes, seconds),
                "memory": _measure.exponent(sizes, [max(1, peak) for peak in peaks]),
            }
    return table


class Growth:
    params = (CASES,)
    param_names = ("case",)
    timeout = 900

    def setup_cache(self):
        return measured()

    track_time_exponent = track(
        "Growth: exponent of time",
        "exponent",
        "time",
        "p of time = c size^p over five sizes, by least squares in logarithms (the others: N 4096, K 1024, D 64).\n"
        "A lookup has at most 1 in each of N, K and D.",
    )
    track_memory_exponent = track(
        "Growth: exponent of memory",
        "exponent",
        "memory",
        "p of peak bytes allocated in a call = c size^p. A lookup that held the N x K matrix would have 1 in N and K.",
    )
