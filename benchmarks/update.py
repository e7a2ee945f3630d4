"""asv: statistics of the moving averages."""

import torch

from benchmarks import _measure
from vqverify.reference import code_statistics


def work(n, k, d):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, d, generator=generator)
    codes = torch.randint(0, k, (n,), generator=generator)

    def one_hot():
        matrix = torch.nn.functional.one_hot(codes, k).float()
        return matrix.sum(0), matrix.t() @ z

    return {"one-hot": one_hot, "ours": lambda: code_statistics(z, codes, k)}


class Statistics:
    params = ([(4096, 1024, 64)],)
    param_names = ("shape",)

    def setup(self, shape):
        torch.set_num_threads(1)
        self.work = work(*shape)

    def time_statistics(self, shape):
        self.work["ours"]()

    def track_ratio_to_one_hot(self, shape):
        return _measure.ratios(self.work, "one-hot", runs=1)["ours"].median
