"""What a check costs: examples a second and seconds a check, beside the layer's own passes."""

from __future__ import annotations

import math
import time

from benchmarks._measure import Work
from benchmarks._table import Table, cell, track

TARGET = "vqverify.reference:VectorQuantizer"
CASES = {f"{profile}, D {dim}": (profile, dim) for profile, dim in (("quick", 4), ("quick", 64), ("merge", 4))}


def layer_pass(dim: int) -> Work:
    """Forward and backward of the layer at the sizes of a drawn case: what an example cannot do without."""
    import torch

    from vqverify.reference import VectorQuantizer

    layer, z = VectorQuantizer(dim, 8), torch.randn(16, dim, requires_grad=True)
    return lambda: layer(z)[0].sum().backward()


def measured() -> Table:
    """Run each check once, after a warm-up that imports what all checks share."""
    import torch

    from benchmarks import _measure
    from vqverify import check_quantizer

    torch.set_num_threads(1)
    check_quantizer(TARGET, {"dim": 4, "codebook_size": 8}, only=["lookup.*"])
    table: Table = {}
    for name, (profile, dim) in CASES.items():
        start = time.perf_counter()
        report = check_quantizer(TARGET, {"dim": dim, "codebook_size": 8}, profile=profile)
        seconds = time.perf_counter() - start
        examples = sum(row.examples or 0 for subject in report.subjects for row in subject.results)
        one = min(_measure.samples({"pass": layer_pass(dim)})["pass"])
        table[name] = {"seconds": seconds, "example": seconds / examples, "passes": seconds / examples / one}
    return table


def gate():
    """Checks of a row, some tenths of a second each, timed in CPU time."""

    def build(row):
        from vqverify import check_quantizer

        return lambda: check_quantizer(TARGET, {"dim": 4, "codebook_size": 8}, only=[row])

    return {f"check of {row}": lambda row=row: build(row) for row in ("lookup.nearest", "update.ema_law")}


class Check:
    params = (list(CASES),)
    param_names = ("case",)
    timeout = 600

    def setup_cache(self):
        return measured()

    track_seconds = track(
        "Harness: time of a check",
        "s",
        "seconds",
        "vqverify check of the reference layer with a profile: all rows that apply, in process.",
    )
    track_seconds_an_example = track(
        "Harness: time of an example",
        "s",
        "example",
        "Seconds of a check over the examples that it drew: the inverse of examples a second, since asv counts up as worse.",
    )
    track_passes_an_example = track(
        "Harness: time of an example in passes of the layer",
        "x pass",
        "passes",
        "An example's time over one forward and backward pass of the layer: what drawing, oracles and bookkeeping add.",
    )

    def track_examples_a_second(self, table, case):
        example = cell(table, case, "example")
        return math.nan if math.isnan(example) else 1 / example

    track_examples_a_second.pretty_name = "Harness: examples a second (higher is better)"
    track_examples_a_second.unit = "1/s"
    track_examples_a_second.version = "1"
    track_examples_a_second.pretty_source = (
        "Examples that a check draws a second; the one number here where up is better."
    )
