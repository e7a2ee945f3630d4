"""Which codes are replaced by latents of the batch: those unused for so many steps, or those with small counts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vqverify.bounds import Violation
from vqverify.identify.probes import Findings, Probe, attempt, latents_at
from vqverify.quantizer import Accumulators, Finding
from vqverify.subject import state

if TYPE_CHECKING:
    from vqverify.subject.layer import Layer

ROUNDS = 12
CANDIDATES = 32  # codes with small counts at a time: fewer than there are latents to take their place
HORIZON = 64  # steps that a code is watched for, unless a longer lifespan is claimed
MOST = 512


@attempt("replacement", "replacement_rule", "lifespan", "dead_below")
def replacement(probe: Probe) -> Findings:
    """After how many unused steps a code becomes a latent, and whether larger counts would put that off.

    Nothing is found where the counts that were discovered are all that a layer remembers: `smoothing` probes those.
    """
    layer = probe.layer
    if not layer.plan.slots:
        return {}
    steps = _horizon(layer) if _remembers(probe) else 2
    age = _age(probe, steps, 1.0)
    if age is None:
        text = f"no code became a latent of the batch in {steps} passes, and no counts are kept"
        idle: Findings = {} if layer.plan.accumulators else {"replacement": Finding("none", evidence=text)}
        return idle or rare(probe)
    text = f"codes that no latent chose became latents of the batch in training pass {age}"
    found = {"replacement": Finding("batch", evidence=text)}
    if layer.plan.accumulators and _age(probe, age, 1e4) != age:
        return (
            found | {"replacement_rule": Finding("count", evidence=f"{text}, with larger counts later")} | rare(probe)
        )
    return found | {
        "replacement_rule": Finding("age", evidence=f"{text}, whatever their counts"),
        "lifespan": Finding(age, evidence=text),
    }


def rare(probe: Probe) -> Findings:
    """The count below which a code is replaced, between two counts that are ever closer; nothing if there is none."""
    layer = probe.layer
    if not layer.plan.accumulators:
        return {}
    low, high = 1e-6, 1e6
    for _ in range(ROUNDS):
        layer.restore()
        books = layer.codebooks()
        counts = [torch.full_like(a.counts, 1e9) for a in layer.accumulators()]
        some = torch.arange(len(counts[0]))[:CANDIDATES]
        counts[0][some] = torch.logspace(math.log10(low), math.log10(high), len(some), dtype=torch.float64).to(
            counts[0]
        )
        layer.set_accumulators([Accumulators(n, e.to(n) * n[:, None]) for n, e in zip(counts, books, strict=False)])
        out = layer.forward(probe.lone, train=True, trace=True)
        if out.codes is None:
            return {}
        idle = torch.bincount(out.codes[:, 0].clamp_min(0), minlength=len(counts[0]))[some] == 0
        after, kept = layer.codebooks()[0], layer.accumulators()[0].counts[some]
        gone = _are_latents(after[some], latents_at(out, 0).double()) & idle
        left = idle & ~gone
        if not bool(gone.any()):
            return {}
        if not bool(left.any()):
            break
        shrunk = float((kept / counts[0][some])[left].median())  # γ
        top, bottom = counts[0][some][gone].max() * shrunk, counts[0][some][left].min() * shrunk
        if top > bottom:
            break  # which codes go is no matter of counts
        low, high = float(top) / shrunk, float(bottom) / shrunk
        if bottom < 1.1 * top:
            text = f"unused codes with N′ = {float(top):.4g} became latents, those with {float(bottom):.4g} did not"
            found = {
                "replacement": Finding("batch", evidence=text),
                "replacement_rule": Finding("count", evidence=text),
            }
            return found | {"dead_below": Finding(float(f"{float(top * bottom) ** 0.5:.2g}"), evidence=text)}
    return {}


def _horizon(layer: Layer) -> int:
    claim = layer.claims.get("lifespan")
    return min(MOST, max(HORIZON, claim.value + 2 if claim else 0))


def _remembers(probe: Probe) -> bool:
    """Whether a pass changes state besides codebook, counts and sums."""
    layer = probe.layer
    layer.restore()
    before = {name: tensor.detach().clone() for name, tensor in state.all_tensors(layer.module).items()}
    layer.forward(probe.lone, train=True, grad=False)
    known = {slot.name for slot in layer.plan.slots} | {
        slot.name for pair in layer.plan.accumulators for slot in pair
    }  # fmt: skip
    after = state.all_tensors(layer.module)
    return any(name not in known and not torch.equal(tensor, after[name]) for name, tensor in before.items())


def _age(probe: Probe, steps: int, larger: float) -> int | None:
    """The pass in which half of the codes that nothing chose have become latents; None if they stay."""
    layer, z = probe.layer, probe.lone
    layer.restore()
    if larger != 1.0:  # counts that start at 0 would stay there
        books, counts = layer.codebooks(), [a.counts.clamp_min(1) * larger for a in layer.accumulators()]
        layer.set_accumulators([Accumulators(n, e.to(n) * n[:, None]) for n, e in zip(counts, books, strict=False)])
    replaced: Tensor | None = None
    latents: Tensor | None = None
    unused: Tensor | None = None
    for step in range(1, steps + 1):
        before = layer.codebooks()[0]
        out = layer.forward(z, train=True, seed=step, trace=latents is None)
        if out.codes is None:
            return None
        latents = latents_at(out, 0).double() if latents is None else latents
        idle = torch.bincount(out.codes[:, 0].clamp_min(0), minlength=len(before)) == 0
        unused = idle if unused is None else unused
        try:
            after = layer.codebooks()[0]
        except Violation:
            return None
        new = _are_latents(after, latents) & ~_are_latents(before, latents) & unused
        replaced = new if replaced is None else replaced | new
        if bool(unused.any()) and 2 * int(replaced.sum()) >= min(int(unused.sum()), len(z)):
            return step
    return None


def _are_latents(codes: Tensor, z: Tensor) -> Tensor:
    """Codes that are latents but for a factor: raw latents among codes on the sphere are a known mistake."""
    u, v = F.normalize(codes.double(), dim=1), F.normalize(z, dim=1)
    if codes.shape[1] == 1:
        u, v = codes.double(), z
    return torch.cdist(u, v, compute_mode="donot_use_mm_for_euclid_dist").amin(1) <= 1e-5 * v.norm(dim=1).mean()
