"""Jacobians that `vqverify.subject.families` does not list: on a line, with noise, behind a bound or a linear map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vqverify.identify.probes import Probe, relative
from vqverify.quantizer import Finding

if TYPE_CHECKING:
    from vqverify.identify.estimator import Gradients

EXPLAINS = 1e-3


def on_a_line(m: Gradients, _probe: Probe, _train: bool) -> Finding | None:
    """D = 1, where no row is in general position: the identity, or λ where latent and code agree in sign."""
    code = m.value if m.code is None else m.code
    if m.z.shape != code.shape or m.z.shape[1] != 1:
        return None
    text = f"{m.where}: D = 1, {len(m.z)} latents"
    if relative(m.got - m.g, m.got) < EXPLAINS:
        return Finding("straight-through", evidence=f"{text}: Jᵀg = g")
    same = (m.z * code > 0).squeeze(1)
    turned = (code / m.z * m.g)[same]
    if bool(same.any()) and relative(m.got[same] - turned, turned) < EXPLAINS:
        return Finding("rotation", evidence=f"{text}: Jᵀg = λg where latent and code agree in sign")
    return None


def noise(m: Gradients, _probe: Probe, _train: bool) -> Finding | None:
    """Z + |q − z| w with a unit w held constant (NSVQ, DiVeQ): Jᵀg = g + (w·g)(z − q)/|z − q|."""
    if m.code is None or relative(m.value - m.code, m.code) < 1e-3:
        return None
    back, step, g = (m.z - m.code).double(), (m.value - m.z).double(), m.g.double()
    along = (step * g).sum(1, keepdim=True) / (step.norm(dim=1, keepdim=True) * back.norm(dim=1, keepdim=True))
    residual = relative(m.got.double() - g - along * back, m.got)
    if not residual < EXPLAINS:
        return None
    return Finding("noise", evidence=f"{m.where}: z + |q − z| w with w constant explains Jᵀg, residual {residual:.1e}")


def behind_norm(m: Gradients, _probe: Probe, _train: bool) -> Finding | None:
    """The identity behind a normalisation of z (binary spherical quantization): Jᵀg = (g − ẑ⟨ẑ, g⟩)/|z|."""
    if m.code is not None or m.z.shape[1] < 2:
        return None
    z, g, got = m.z.double(), m.g.double(), m.got.double()
    size = z.norm(dim=1, keepdim=True)
    want = (g - z * (z * g).sum(1, keepdim=True) / size**2) / size
    gain = float((got * want).sum() / want.square().sum())
    residual = relative(got - gain * want, got)
    if not residual < EXPLAINS:
        return None
    text = f"{m.where}: Jᵀg = {gain:.4g} (g − ẑ⟨ẑ, g⟩)/|z|: the identity behind z/|z|, residual {residual:.1e}"
    return Finding("straight-through", evidence=text)


def elementwise(m: Gradients, probe: Probe, _train: bool) -> Finding | None:
    """A diagonal Jacobian: rounding with identity gradient behind a componentwise bound (FSQ)."""
    if m.code is not None or m.z.shape[1] < 2:
        return None
    mask = torch.zeros_like(m.g)
    mask[:, ::2] = 1
    part = probe.layer.vjp(m.out, m.g * mask, m.src, m.dst)
    if relative(part * (1 - mask), m.got) > EXPLAINS:
        return None
    rate = m.got / m.g
    text = f"{m.where}: the Jacobian is diagonal, {float(rate.min()):.3g} to {float(rate.max()):.3g}: a bound, rounded"
    return Finding("straight-through", evidence=text)


def fixed_linear(m: Gradients, probe: Probe, _train: bool) -> Finding | None:
    """One constant matrix for all latents: straight-through between linear maps into and out of code space."""
    if m.code is not None or len(m.z) < 2:
        return None
    got = probe.layer.vjp(m.out, m.g[:1].expand_as(m.g), m.src, m.dst)
    if relative(got - got[:1], got) > EXPLAINS:
        return None
    text = f"{m.where}: Jᵀ is one matrix for all latents: the identity in code space between linear maps"
    return Finding("straight-through", evidence=text)
