"""Estimators that see the decoder: told by the gradient that a smooth task, which is no quadratic, sends to z."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vqverify.identify.probes import relative
from vqverify.identify.unusual import EXPLAINS
from vqverify.quantizer import Finding

if TYPE_CHECKING:
    from torch import Tensor

    from vqverify.identify.probes import Probe


def waves(x: Tensor) -> Tensor:
    """A task with another slope and curvature everywhere: Σ sin(x + phase of the coordinate)."""
    return torch.sin(x + torch.arange(x.shape[-1]).to(x)).sum()


def identify(probe: Probe) -> Finding:
    """Exact, Hessian or straight-through, with a mistake where the gradient is a known wrong one."""
    layer, z = probe.layer, probe.z
    layer.restore()
    codes = layer.forward(z, train=True, grad=False).codes
    assert codes is not None
    q = layer.codebooks()[0][codes[:, 0]].to(z)
    got = layer.grad(z, waves)
    phase = torch.arange(z.shape[-1]).to(z)
    there, here, curved = torch.cos(z + phase), torch.cos(q + phase), -torch.sin(q + phase)
    known = [
        ("exact", None, there),
        ("hessian", None, here + curved * (z - q)),
        ("straight-through", None, here),
        ("hessian", "step reversed", here + curved * (q - z)),
    ]
    for name, mistake, want in known:
        gain = float((got * want).sum() / want.square().sum())
        for factor in (1.0, gain):
            if factor and relative(got - factor * want, got) < EXPLAINS:
                wrong = mistake if factor == 1.0 else ", ".join(filter(None, (mistake, f"gain {gain:.4g}")))
                return Finding(name, evidence="the gradient at z of a task that is no quadratic", mistake=wrong)
    return Finding("other", evidence="no family explains the gradient at z of a task that is no quadratic")
