"""asv: whole training steps: lookup, estimator, loss, backward, codebook update."""

import torch

from benchmarks import _cases, _measure
from vqverify.reference import VectorQuantizer


def step(layer, z):
    def run():
        out = layer(z)
        (out[0].square().sum() + out[2]).backward()
        z.grad = None

    return run


def work(n, k, d, *, others=False):
    z, codes = _cases.data(n, k, d)
    z.requires_grad_()
    found = {}
    for name in ("straight-through", "rotation"):
        layer = VectorQuantizer(d, k, estimator=name)
        layer.set_codebook(codes)
        found[name] = step(layer, z)
    if others:
        rotation, plain = (_cases.vq_pytorch(d, k, rotation_trick=flag) for flag in (True, False))
        found["vq-pytorch rotation"] = step(rotation, z)
        found["vq-pytorch straight-through"] = step(plain, z)
    return found


class Step:
    """A training step with either estimator."""

    params = ([(4096, 1024, 64), (4096, 8192, 64)],)
    param_names = ("shape",)

    def setup(self, shape):
        torch.set_num_threads(1)
        self.work = work(*shape)

    def time_step(self, shape):
        self.work["rotation"]()

    def track_rotation_to_straight_through(self, shape):
        return _measure.ratios(self.work, "straight-through", runs=1)["rotation"].median
