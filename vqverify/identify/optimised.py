"""Codes that the task moves too (synchronized), and codes that an optimiser inside the layer moves (alternating)."""

from __future__ import annotations

import torch

from vqverify.identify.learning import bincounts, takes_gradient
from vqverify.identify.probes import Findings, Probe, Unknown, attempt, latents_at, relative
from vqverify.quantizer import Finding

EXPLAINS = 1e-3
NEAR = 1e-2  # of the latents: how far from one a code may be that was drawn to it


@attempt("synchronized")
def synchronized(probe: Probe) -> Findings:
    """ν of ∂⟨g, z_q⟩/∂e = ν Σ g over the latents of each code; 0 where z_q sends the codes nothing (T23)."""
    layer, out = probe.layer, probe.train
    if not out.codebook:
        raise Unknown("no stored codebook")
    if not takes_gradient(probe):
        return {"synchronized": Finding(0.0, evidence="the codebook takes no gradient")}
    g = torch.randn(out.z_q.rows.shape, generator=torch.Generator().manual_seed(18)).to(out.z_q.rows)
    received = layer.codebook_gradients((out.z_q.rows * g).sum())
    if not any(bool(rows.any()) for rows in received):
        return {"synchronized": Finding(0.0, evidence="z_q sends the codes no gradient")}
    if out.codes is None or out.codes.shape[1] > 1 or received[0].shape[1] != g.shape[1]:
        raise Unknown("z_q sends the codes a gradient; codes and z_q have no common space")
    got = received[0].double()
    want = torch.zeros_like(got).index_add_(0, out.codes[:, 0].clamp_min(0), g.double())
    nu = float((got * want).sum() / want.square().sum())
    off = relative(got - nu * want, got)
    if off > EXPLAINS:
        raise Unknown(f"z_q sends the codes a gradient that is no multiple of Σ g (ν = {nu:.3g} leaves {off:.0%})")
    return {"synchronized": Finding(float(f"{nu:.4g}"), evidence=f"z_q sends each code {nu:.4g} Σ g of its latents")}


@attempt("alternating")
def alternating(probe: Probe) -> Findings:
    """Whether a training pass itself steps a codebook that is a parameter, without averages of its own (001 eq. 17-18)."""
    layer, step = probe.layer, probe.crowded
    if not step.before:
        raise Unknown("no stored codebook to watch")
    moved = any(not torch.equal(a, b) for a, b in zip(step.before, step.after, strict=True))
    inside = moved and takes_gradient(probe) and not layer.plan.accumulators
    if inside and _drawn(probe):
        return {"alternating": Finding(False, evidence="codes that nothing chose become latents of the batch")}
    text = "the codebook is a parameter, keeps no averages, and a training pass moves it" if inside else (
        "its codes move by averages" if moved else "no training pass moves the codebook"
    )  # fmt: skip
    return {"alternating": Finding(inside, evidence=text)}


def _drawn(probe: Probe) -> bool:
    """Whether most codes that move without latents land on latents: anchors that replace them (CVQ-VAE), no optimiser."""
    step = probe.step(probe.lone)
    for level, (e, new) in enumerate(zip(step.before, step.after, strict=True)):
        try:
            z = latents_at(step.out, level).double()
        except Unknown:
            continue
        idle = torch.stack(bincounts(step, probe.layer, level)).sum(0) == 0
        moved = idle & ((new - e).norm(dim=1) > 1e-6 * e.norm(dim=1).max())
        near = torch.cdist(new.double(), z).amin(1) <= NEAR * z.norm(dim=1).mean()
        if moved.any() and float(near[moved].double().mean()) > 0.5:
            return True
    return False
