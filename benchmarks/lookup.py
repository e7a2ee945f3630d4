"""asv: the certified exact lookup."""

import torch

from benchmarks import _cases, _measure


class Lookup:
    """Time of the lookup, and its ratio to the bare matrix product of the same size."""

    params = ([4096], [512, 1024, 8192], [8, 64, 256])
    param_names = ("N", "K", "D")

    def setup(self, n, k, d):
        torch.set_num_threads(1)
        self.z, self.codes = _cases.data(n, k, d)

    def time_lookup(self, n, k, d):
        _cases.ours(self.z, self.codes)

    def track_ratio_to_product(self, n, k, d):
        work = {
            "lookup": lambda: _cases.ours(self.z, self.codes),
            "product": lambda: _cases.product_buffered(self.z, self.codes),
        }
        return _measure.ratios(work, "product", runs=1)["lookup"].median


class Offset:
    """Time where the fast pass proves little: two clusters, and a bfloat16 grid full of ties."""

    params = (["clusters", "ties"],)
    param_names = ("data",)

    def setup(self, name):
        torch.set_num_threads(1)
        z, codes = _cases.data(8192, 512, 8)
        if name == "clusters":
            z[::2] += 1000
            codes[::2] += 1000
            self.z, self.codes = z, codes
        else:
            self.z, self.codes = (z + 1000).bfloat16(), (codes + 1000).bfloat16()

    def time_lookup(self, name):
        _cases.ours(self.z, self.codes)
