"""asv: memory beyond inputs, outputs and one copy of the codebook."""

import torch

from benchmarks import _cases, _measure


class Lookup:
    params = ([(4096, 8192, 64), (16384, 2048, 64), (65536, 1024, 256)],)
    param_names = ("shape",)
    unit = "bytes"

    def setup(self, shape):
        torch.set_num_threads(1)
        self.z, self.codes = _cases.data(*shape)

    def track_extra(self, shape):
        return extra(self.z, self.codes)


def extra(z, codes, lookup=_cases.ours):
    """Return the peak of what a lookup allocates, less its indices and one copy of the codebook."""
    return _measure.peak_bytes(lambda: lookup(z, codes)) - 8 * len(z) - 4 * codes.numel()
