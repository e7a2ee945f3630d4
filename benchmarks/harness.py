"""asv: what a check costs: examples a second, seconds a check."""

import time

import torch

from vqverify import check_quantizer

TARGET = "vqverify.reference:VectorQuantizer"


class Check:
    """A quick check of the reference layer, in process."""

    params = ([4, 64],)
    param_names = ("dim",)
    timeout = 300

    def setup(self, dim):
        torch.set_num_threads(1)
        self.kwargs = {"dim": dim, "codebook_size": 8}
        # the first check imports and warms what later ones share
        check_quantizer(TARGET, self.kwargs, only=["lookup.*"])

    def track_examples_per_second(self, dim):
        start = time.perf_counter()
        report = check_quantizer(TARGET, self.kwargs)
        seconds = time.perf_counter() - start
        return sum(row.examples or 0 for subject in report.subjects for row in subject.results) / seconds

    def track_seconds(self, dim):
        start = time.perf_counter()
        check_quantizer(TARGET, self.kwargs)
        return time.perf_counter() - start
