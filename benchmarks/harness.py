"""asv: what a check costs: examples a second, seconds a check."""

import time

import torch

from vqverify import check_quantizer


class Check:
    """A quick check of the reference layer, in process."""

    params = ([4, 64],)
    param_names = ("dim",)
    timeout = 300

    def setup(self, dim):
        torch.set_num_threads(1)
        # the first check imports and warms what later ones share
        check_quantizer("vqverify.reference:VectorQuantizer", {"dim": 2, "codebook_size": 2}, only=["lookup.*"])

    def track_examples_per_second(self, dim):
        start = time.perf_counter()
        report = check_quantizer("vqverify.reference:VectorQuantizer", {"dim": dim, "codebook_size": 8})
        seconds = time.perf_counter() - start
        return sum(result.examples or 0 for subject in report.subjects for result in subject.results) / seconds

    def track_seconds(self, dim):
        start = time.perf_counter()
        check_quantizer("vqverify.reference:VectorQuantizer", {"dim": dim, "codebook_size": 8})
        return time.perf_counter() - start
