"""Effective precision: a layer cast to float64 may still compute in float32."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqverify import state
from vqverify.capture import pull
from vqverify.identify.probes import Findings, Probe, attempt
from vqverify.quantizer import Finding

if TYPE_CHECKING:
    from vqverify.layer import Layer

# a relative step that the format holds with room to spare, and that the next coarser format rounds away
LADDER = ((torch.float64, 1e-10), (torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2))


def _double(layer: Layer) -> Layer:
    twin = layer.build()
    twin.module.double()
    twin.domain = replace(twin.domain, dtype=torch.float64)
    return twin


def _measure(layer: Layer, z: Tensor, step: float) -> Tensor:
    """z_q and its gradient after every latent and every stored number took a relative step, up or down."""
    saved, generator = layer.snapshot(), torch.Generator().manual_seed(5)

    def stepped(tensor: Tensor) -> Tensor:
        signs = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
        return tensor * (1 + step * signs).to(tensor)

    with torch.no_grad():
        for tensor in state.all_tensors(layer.module).values():
            if tensor.is_floating_point():
                tensor.data.copy_(stepped(tensor))
    out = layer.forward(stepped(z), train=True)
    weights = torch.linspace(1, 2, out.z_q.rows.shape[1], dtype=z.dtype).expand_as(out.z_q.rows)
    gradient = pull(out.z_q.rows, out.z.tensor, weights.to(out.z_q.rows))
    layer.restore(saved)
    return torch.cat([out.z_q.rows.detach(), gradient], dim=1)


@attempt("effective_precision")
def effective_precision(probe: Probe) -> Findings:
    """The finest format whose steps show in z_q, or in its gradient, of a float64 copy of the layer."""
    native = probe.layer.domain.dtype
    name = str(native).removeprefix("torch.")
    try:
        twin = _double(probe.layer)
        z = probe.latents(32, seed=4).double()
        base = _measure(twin, z, 0.0)
    except Exception as error:  # noqa: BLE001
        return {
            "effective_precision": Finding(
                name, evidence=f"a float64 copy does not run ({type(error).__name__})"
            )
        }
    for dtype, step in LADDER:
        moved = (_measure(twin, z, step) - base).abs() / base.abs().clamp_min(1e-300)
        share = float(((moved > 0.05 * step) & (moved < 20 * step)).double().mean())
        if share > 0.2:
            text = f"of a float64 copy, {share:.0%} of the entries of z_q and its gradient follow a relative step of {step:g}"
            return {"effective_precision": Finding(str(dtype).removeprefix("torch."), evidence=text)}
    return {
        "effective_precision": Finding(
            name, evidence="z_q follows no small step of the codes: the layer's own dtype"
        )
    }
