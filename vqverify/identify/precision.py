"""Effective precision: a layer cast to float64 may still compute in float32."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqverify.identify.probes import Findings, Probe, attempt
from vqverify.quantizer import Finding
from vqverify.subject import state
from vqverify.subject.capture import pull

if TYPE_CHECKING:
    from collections.abc import Callable

    from vqverify.subject.layer import Layer

# a relative step that the format holds with room to spare, and that the next coarser format rounds away
LADDER = ((torch.float64, 1e-10), (torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2))


def _double(layer: Layer) -> Layer:
    twin = layer.build()
    twin.module.double()
    twin.domain = replace(twin.domain, dtype=torch.float64)
    return twin


def _stepped(tensor: Tensor, step: float, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, tensor.shape, generator=generator).double() * 2 - 1
    return tensor * (1 + step * signs).to(tensor)


def _value(layer: Layer, z: Tensor, step: float) -> Tensor:
    """z_q after every code (or, where none is stored, every number of the state) took a relative step."""
    saved, generator = layer.snapshot(), torch.Generator().manual_seed(5)
    tensors = state.all_tensors(layer.module)
    names = {slot.name for slot in layer.plan.slots} or set(tensors)
    with torch.no_grad():
        for name in sorted(names):
            if tensors[name].is_floating_point():
                tensors[name].data.copy_(_stepped(tensors[name], step, generator))
    out = layer.forward(z, train=True).z_q.rows.detach()
    layer.restore(saved)
    return out


def _gradient(layer: Layer, z: Tensor, step: float) -> Tensor:
    """Gradient of z_q after every latent took a relative step."""
    saved, generator = layer.snapshot(), torch.Generator().manual_seed(5)
    out = layer.forward(_stepped(z, step, generator), train=True)
    weights = torch.linspace(1, 2, z.shape[1], dtype=z.dtype).expand_as(z)
    gradient = pull(out.z_q.rows, out.z.tensor, weights.to(out.z_q.rows))
    layer.restore(saved)
    return gradient


def _follows(measure: Callable[[Layer, Tensor, float], Tensor], layer: Layer, z: Tensor) -> int | None:
    """The rung of the ladder whose step the measurement follows; None if it follows none."""
    base = measure(layer, z, 0.0)
    for rung, (_, step) in enumerate(LADDER):
        moved = (measure(layer, z, step) - base).abs() / base.abs().clamp_min(1e-300)
        if float(((moved > 0.05 * step) & (moved < 20 * step)).double().mean()) > 0.2:
            return rung
    return None


@attempt("effective_precision")
def effective_precision(probe: Probe) -> Findings:
    """The finest format whose steps show in z_q and in its gradient, of a float64 copy of the layer."""
    native = str(probe.layer.domain.dtype).removeprefix("torch.")
    try:
        twin, z = _double(probe.layer), probe.latents(32, seed=4).double()
        rungs = {"z_q": _follows(_value, twin, z), "its gradient": _follows(_gradient, twin, z)}
    except Exception as error:  # noqa: BLE001
        said = f"a float64 copy does not run ({type(error).__name__})"
        return {"effective_precision": Finding(native, evidence=said)}
    known = {what: rung for what, rung in rungs.items() if rung is not None}
    if not known:
        said = "neither z_q nor its gradient follows a small step: the layer's own dtype"
        return {"effective_precision": Finding(native, evidence=said)}
    said = ", ".join(f"{what} follows a relative step of {LADDER[rung][1]:g}" for what, rung in known.items())
    name = str(LADDER[max(known.values())][0]).removeprefix("torch.")
    return {"effective_precision": Finding(name, evidence=f"of a float64 copy, {said}")}
