"""asv: gradient estimators, forward and backward."""

import torch

from benchmarks import _measure
from vqverify.reference import rotate


def work(n, d):
    generator = torch.Generator().manual_seed(0)
    z, q, g = (torch.randn(n, d, generator=generator) for _ in range(3))
    z.requires_grad_()
    return {
        "straight-through": lambda: torch.autograd.grad(z + (q - z).detach(), z, g),
        "rotation": lambda: torch.autograd.grad(rotate(z, q), z, g),
    }


class Rotation:
    """Rotation against the plain straight-through expression."""

    params = ([(65536, 64), (16384, 256), (65536, 8)],)
    param_names = ("shape",)

    def setup(self, shape):
        torch.set_num_threads(1)
        self.work = work(*shape)

    def time_rotation(self, shape):
        self.work["rotation"]()

    def track_ratio_to_straight_through(self, shape):
        return _measure.ratios(self.work, "straight-through", runs=1)["rotation"].median
