"""Codes that move together: one componentwise affine map of a stored table, by moments of the batches or learnt (T25, T26)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqverify.identify.metric import AGREES, agreement
from vqverify.identify.probes import Findings, Probe, Unknown, attempt, relative
from vqverify.quantizer import Finding
from vqverify.subject import state
from vqverify.subject.capture import pull

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vqverify.subject.layer import Layer

EXPLAINS = 1e-3
PASSES = 24  # in which some row is replaced by a latent, if any is
SEVERAL = 4  # codes in use: two would lie on a line whatever the layer does
NAMES = (
    "affine", "affine_table", "affine_order", "affine_decay", "affine_table_decay", "affine_variance", "affine_scale", "affine_bias",
)  # fmt: skip


@dataclass(frozen=True)
class Map:
    """What one training pass did: z_q = s ⊙ x[k] + b."""

    s: Tensor
    b: Tensor
    x: Tensor
    z: Tensor
    k: Tensor

    @property
    def identity(self) -> bool:
        """Whether the table is the codebook."""
        size = self.x.std()
        return bool((self.s - 1).abs().max() < EXPLAINS) and bool(self.b.abs().max() < EXPLAINS * size)


@attempt(*NAMES)
def affine(probe: Probe) -> Findings:
    """Which table and map give the codes, whether the map follows the batches, and with which decays."""
    layer = probe.layer
    first = probe.train
    if first.codes is None or first.codes.shape[1] > 1:
        return _none("no single code a latent")
    layer.restore()
    name = _table(layer, [_batch(probe, 0), _batch(probe, 1)])
    if name is None:
        return _none("z_q is no componentwise affine map of a stored table")
    maps = [_fresh(layer, name, _batch(probe, number)) for number in (0, 1)]
    layer.restore()
    _map(layer, name, _batch(probe, 1))
    late = _map(layer, name, _batch(probe, 0))
    if not _alike(maps[0], late) or not _alike(*maps):
        order = "past" if _alike(*maps) else "batch"
        text = (
            f"z_q = s ⊙ x[k] + b with x = {name}; s and b follow the {'batches before' if order == 'past' else 'batch'}"
        )
        found = {"affine": "moments", "affine_table": name, "affine_order": order}
        ways = _ways(layer, name, _batch(probe, 0))
        ways |= _replaced(layer, name, _crowd(probe))
        ways |= _metric(late)
        ways["codebook_size"] = Finding(len(late.x), evidence=f"rows of {name}, which one map makes the codes of")
        return {key: Finding(value, evidence=text) for key, value in found.items()} | ways | _decays(probe, name, order)
    return _learnable(layer, name, _batch(probe, 0), maps[0])


def _ways(layer: Layer, name: str, z: Tensor) -> Findings:
    """How the table learns: a pass moves it, or the loss sends it a gradient."""
    layer.restore()
    before = state.all_tensors(layer.module)[name].detach().clone()
    out = layer.forward(z, train=True)
    table = state.all_tensors(layer.module)[name]
    found = [] if torch.equal(before, table) else ["ema"]
    if table.requires_grad and out.loss is not None and out.loss.requires_grad:
        found += ["gradient"] if bool(pull(out.loss, table, torch.ones_like(out.loss)).any()) else []
    text = f"what a training pass and its loss do to {name}"
    return {"learning": Finding(found or ["none"], evidence=text), **_shared(layer, name, z)}


def _replaced(layer: Layer, name: str, z: Tensor) -> Findings:
    """Whether rows of the table become latents, raw or where the map sends them to one; nothing if none does."""
    layer.restore()
    near = float(z.std())
    for step in range(PASSES):
        try:
            seen = _map(layer, name, z, seed=step)
        except Unknown:  # too few codes are in use to see the map
            return {}
        rows = state.all_tensors(layer.module)[name].detach().reshape(seen.x.shape).double()
        new = rows[(rows != seen.x).any(1)]
        found = [
            bool((torch.cdist(some, seen.z) <= 1e-4 * near).any()) for some in (new, seen.s * new + seen.b) if len(new)
        ]
        if any(found):
            text = f"rows of {name} became latents{'' if found[1] else ', which its map moves,'} in training pass {step + 1}"
            return {"replacement": Finding("batch", evidence=text)}
    return {}


def _metric(seen: Map) -> Findings:
    """The metrics by which codes are chosen among those that the map makes of the whole table; nothing if none is."""
    found = agreement([(seen.z, seen.s * seen.x + seen.b, seen.k)])
    shares = {name: share for name, share in found.items() if ":" not in name}
    best = max(shares, key=lambda name: shares[name])
    if shares[best] < AGREES:
        return {}
    text = f"{best} explains {shares[best]:.0%} of the codes, among those that the map makes of the table"
    equal = [name for name, share in shares.items() if share > shares[best] - 0.02]
    return {"metric": Finding(best, evidence=text), "metric_equivalent": Finding(equal, evidence=text)}


def _shared(layer: Layer, name: str, z: Tensor) -> Findings:
    """ν of ∂⟨g, z_q⟩/∂x = ν s ⊙ Σ g over the latents of each code: what the task sends the table (T23)."""
    layer.restore()
    table = state.all_tensors(layer.module)[name]
    x = table.detach().clone().reshape(-1, z.shape[1]).double()
    out = layer.forward(z, train=True)
    assert out.codes is not None
    q, k = out.z_q.rows, out.codes[:, 0].clamp_min(0)
    g = torch.randn(q.shape, generator=torch.Generator().manual_seed(18)).to(q)
    if not table.requires_grad or not q.requires_grad:
        return {"synchronized": Finding(0.0, evidence=f"{name} takes no gradient")}
    got = pull((q * g).sum(), table, torch.ones(()).to(q)).reshape(x.shape).double()
    if not got.any():
        return {"synchronized": Finding(0.0, evidence=f"z_q sends {name} no gradient")}
    s, *_ = _fit(x, k, q.detach().double())
    want = torch.zeros_like(x).index_add_(0, k, g.double() * s)
    nu = float((got * want).sum() / want.square().sum())
    if relative(got - nu * want, got) > EXPLAINS:
        return {}
    return {"synchronized": Finding(float(f"{nu:.4g}"), evidence=f"z_q sends {name} {nu:.4g} s ⊙ Σ g of its latents")}


def _none(text: str) -> Findings:
    return {"affine": Finding("none", evidence=text)}


def _batch(probe: Probe, number: int) -> Tensor:
    """Batches whose mean and spread differ."""
    z = probe.latents(max(128, probe.layer.plan.min_n), seed=30 + number)
    return z * (1 + number) + 0.5 * number * probe.scale


def _crowd(probe: Probe) -> Tensor:
    """A batch around a few places, so that most codes receive no latent."""
    z = _batch(probe, 1)
    return z[:SEVERAL].repeat(-(-len(z) // SEVERAL), 1)[: len(z)] + 0.01 * z.flip(0)


def _table(layer: Layer, batches: Sequence[Tensor]) -> str | None:
    """The state tensor (..., K, D) of which z_q is an affine map in each of some passes, one after the other."""
    worst = dict.fromkeys(state.all_tensors(layer.module), 0.0)
    for z in batches:
        before = {name: tensor.detach().clone() for name, tensor in state.all_tensors(layer.module).items()}
        out = layer.forward(z, train=True, grad=False)
        assert out.codes is not None
        k, q = out.codes[:, 0].clamp_min(0), out.z_q.rows.detach().double()
        if k.unique().numel() < SEVERAL:
            return None
        for name in worst:
            worst[name] = max(worst[name], _off(before.get(name), k, q))
    named = state.named_state(layer.module)  # a copy that a layer keeps of its table is none
    fitting = [(name not in named, off, name) for name, off in worst.items() if off <= EXPLAINS]
    return min(fitting)[2] if fitting else None


def _off(table: Tensor | None, k: Tensor, q: Tensor) -> float:
    """How far q is from an affine map of a tensor's rows k; 1 if it has no such rows."""
    if table is None or not table.is_floating_point() or table.ndim < 2 or table.shape[-1] != q.shape[1]:
        return 1.0
    x = table.reshape(-1, q.shape[1]).double()
    return _fit(x, k, q)[2] if len(x) > int(k.max()) else 1.0


def _fit(x: Tensor, k: Tensor, q: Tensor) -> tuple[Tensor, Tensor, float]:
    """Least squares a coordinate, and what is left."""
    rows = x[k]
    centred, target = rows - rows.mean(0), q - q.mean(0)
    s = (centred * target).sum(0) / centred.square().sum(0).clamp_min(1e-300)
    b = q.mean(0) - s * rows.mean(0)
    return s, b, relative(s * rows + b - q, target)


def _fresh(layer: Layer, name: str, z: Tensor) -> Map:
    layer.restore()
    return _map(layer, name, z)


def _map(layer: Layer, name: str, z: Tensor, seed: int = 0) -> Map:
    x = state.all_tensors(layer.module)[name].detach().clone().reshape(-1, z.shape[1]).double()
    out = layer.forward(z, train=True, seed=seed, grad=False)
    assert out.codes is not None
    k = out.codes[:, 0].clamp_min(0)
    s, b, off = _fit(x, k, out.z_q.rows.detach().double())
    if off > EXPLAINS:
        raise Unknown(f"z_q is an affine map of {name} in one pass and not in another ({off:.0%} off)")
    return Map(s, b, x, z.double(), k)


def _alike(one: Map, other: Map) -> bool:
    size = float(one.x.std())
    near = float((one.b - other.b).abs().max()) < 10 * EXPLAINS * max(size, float(one.b.abs().max()))
    return near and float((one.s - other.s).abs().max()) < 10 * EXPLAINS * float(one.s.abs().max())


def _decays(probe: Probe, name: str, order: str) -> Findings:
    """γ of the batches' means and κ of the table's, from b + s x̄ = γμ₁ + (1 − γ)μ₂ − κ s(x̄₁ − x̄₂) after two batches."""
    twin = probe.layer.build(warm=False)
    seen = [
        _map(twin, name, _batch(probe, number), seed=number) for number in ((0, 1) if order == "batch" else (0, 1, 2))
    ]
    one, two, now = seen[0], seen[1], seen[-1]
    mean = [part.z.mean(0) for part in (one, two)]
    table = one.x.mean(0) if order == "batch" else now.x.mean(0)
    left = now.b + now.s * now.x.mean(0) - mean[1]
    columns = torch.stack([mean[0] - mean[1], -now.s * (table - now.x.mean(0))], dim=1)
    if float(columns[:, 1].norm()) < 1e-4 * float(columns[:, 0].norm()):
        columns[:, 1] = 0
    solution = torch.linalg.lstsq(columns, left[:, None], driver="gelsd").solution[:, 0]
    gamma, kappa = (round(float(value), 3) + 0.0 for value in solution)
    if relative(columns @ solution - left, mean[0] - mean[1]) > 0.02 or not (0 <= gamma <= 1 and 0 <= kappa <= 1):
        return {}
    text = f"after two batches the codes' mean is that of averages with γ = {gamma:g} (batches), {kappa:g} (table)"
    variance = [part.z.var(0, correction=0) for part in (one, two)]
    spread = kappa * one.x.var(0, correction=0) + (1 - kappa) * now.x.var(0, correction=0)
    averaged = gamma * variance[0] + (1 - gamma) * variance[1]
    merged = averaged + gamma * (1 - gamma) * (mean[0] - mean[1]).square()
    off = [relative(now.s.square() * spread - want, want) for want in (averaged, merged)]
    kind = "merged" if off[1] < off[0] else "averaged"
    return {
        "affine_decay": Finding(gamma, evidence=text),
        "affine_table_decay": Finding(kappa, evidence=text),
        "affine_variance": Finding(
            kind, evidence=f"σ² of the batches, averaged: {off[0]:.0%} off, merged: {off[1]:.0%} off"
        ),
    }


def _learnable(layer: Layer, name: str, z: Tensor, start: Map) -> Findings:
    """Parameters of D numbers that scale or shift every code."""
    found: dict[str, str] = {}
    for key, parameter in layer.module.named_parameters():
        if key == name or parameter.numel() != z.shape[1] or not parameter.requires_grad:
            continue
        layer.restore()
        tensor = state.all_tensors(layer.module)[key]
        tensor.data.add_(0.25 * torch.linspace(1, 2, tensor.numel()).reshape(tensor.shape).to(tensor))
        try:
            moved = _map(layer, name, z)
        except Unknown:
            continue
        scaled = relative(moved.s - start.s, start.s) > EXPLAINS
        shifted = relative(moved.b - start.b, start.s * start.x.std(0)) > EXPLAINS
        if scaled != shifted:
            found["affine_scale" if scaled else "affine_bias"] = key
    layer.restore()
    if len(found) < 2:
        return _none(f"{name} holds the codes, and no parameter moves them together")
    text = f"{found['affine_scale']} scales and {found['affine_bias']} shifts every code of {name}"
    values = {"affine": "learnable", "affine_table": name, **found}
    return {key: Finding(value, evidence=text) for key, value in values.items()}
