"""How the codebook learns: EMA (decay, order of update and lookup), gradient of the loss, or of the decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vqverify.identify.probes import (
    Findings,
    Probe,
    Step,
    Unknown,
    attempt,
    code_rows,
    dormant,
    latents_at,
    relative,
)
from vqverify.quantizer import Finding
from vqverify.subject import state

if TYPE_CHECKING:
    from vqverify.subject.layer import Layer


def sharing(layer: Layer, level: int) -> list[int]:
    """The levels that search the same codebook as this one, itself included."""
    slots = layer.plan.slots
    return [i for i, slot in enumerate(slots) if (slot.name, slot.index) == (slots[level].name, slots[level].index)]


def bincounts(step: Step, layer: Layer, level: int) -> list[Tensor]:
    """How many latents each code of a level received, (K,): for each level that shares its codebook."""
    codes = step.out.codes
    if codes is None:
        raise Unknown("the layer returns no codes to count")
    columns = [codes] if len(layer.plan.slots) == 1 else [codes[:, i] for i in sharing(layer, level)]
    return [
        torch.bincount(column[column >= 0].flatten(), minlength=len(step.before[level])).double() for column in columns
    ]


@attempt("learning")
def learning(probe: Probe) -> Findings:
    """Which of EMA, loss gradient and decoder gradient move the codebook."""
    layer, step = probe.layer, probe.crowded
    if not step.before:
        raise Unknown("no stored codebook to watch")
    ways: list[str] = []
    moved = max(_moved(step, level) for level in range(len(step.before)))
    said = [f"one training pass moves the codebook by {moved:.1g} of its size"]
    if moved > 1e-6:
        ways.append("ema")
    out, takes = probe.train, takes_gradient(probe)
    g = torch.randn(out.z_q.rows.shape, generator=torch.Generator().manual_seed(8)).to(out.z_q.rows)
    values = {"gradient": out.loss, "decoder": (out.z_q.rows * g).sum()}
    for name, value in values.items():
        if takes and value is not None and any(bool(grad.any()) for grad in layer.codebook_gradients(value)):
            ways.append(name)
            said.append(f"{'the loss' if name == 'gradient' else 'z_q'} sends it a gradient")
    if not ways:
        said.append("nothing sends it a gradient")
    return {"learning": Finding(ways or ["none"], evidence="; ".join(said))}


def _moved(step: Step, level: int) -> float:
    """By how much a pass moves codes, relative to the largest; those that became latents were replaced, not moved."""
    a, b = step.before[level].double(), step.after[level].double()
    try:
        z = latents_at(step.out, level).double()
        replaced = torch.cdist(b, z, compute_mode="donot_use_mm_for_euclid_dist").amin(1) <= 1e-6 * z.norm(dim=1).mean()
    except Unknown:
        replaced = torch.zeros(len(b), dtype=torch.bool)
    change = (b - a)[~replaced].abs()
    return float(change.max()) / max(float(a.abs().max()), 1e-30) if change.numel() else 0.0


def takes_gradient(probe: Probe) -> bool:
    """Whether some stored codebook is a parameter that is not frozen."""
    tensors = state.all_tensors(probe.layer.module)
    return any(tensors[slot.name].requires_grad for slot in probe.layer.plan.slots)


@attempt("decay")
def decay(probe: Probe) -> Findings:
    """γ of N' = γN + (1 − γ)n, from one step; where counts are hidden, from how far codes moved to their means."""
    layer, step = probe.layer, probe.crowded
    counts = [(a.counts, b.counts) for a, b in zip(step.counted, step.recounted, strict=True)]
    if all(torch.equal(a, b) for a, b in [*counts, *zip(step.before, step.after, strict=True)]):
        return {"decay": dormant("no training pass moves codebook or counts")}
    if step.out.codes is None:
        raise Unknown("the layer returns no codes, so that nobody knows what is counted")
    found: list[float] = []
    turns = False
    for level, (old, new) in enumerate(zip(step.counted, step.recounted, strict=True)):
        gamma, turns = _gamma(old.counts.double(), new.counts.double(), bincounts(step, layer, level))
        found.append(gamma)
    text = "γ = (N' − n)/(N − n) of one step"
    if not found:
        found, text = (
            _confirmed(probe, step),
            "codes move to the mean of their latents by a constant part 1 − γ; no counts were found",
        )
    if not found:
        raise Unknown("no counts were found, and the codes move by no constant part towards the mean of their latents")
    if max(found) - min(found) > 0.1 * max(1e-3, 1 - min(found)):
        raise Unknown(f"one step fits no single decay: {', '.join(f'{gamma:.4g}' for gamma in found)}")
    if not -1e-3 <= found[0] <= 1 + 1e-3:
        raise Unknown(f"one step gives γ = {found[0]:.4g}, which is no decay")
    shown = {"decay": Finding(round(found[0], 6), evidence=f"{text}: {', '.join(f'{gamma:.6g}' for gamma in found)}")}
    return shown | _sharing(layer, in_turn=turns) if step.counted else shown


def _sharing(layer: Layer, *, in_turn: bool) -> Findings:
    """Which levels share a codebook, and so its counts."""
    owners = [sharing(layer, level)[0] for level in range(len(layer.plan.slots))]
    if len(set(owners)) == len(owners):
        return {}
    text = (
        "one update of the counts for each level that shares them, in turn" if in_turn else "one update for all levels"
    )
    return {
        "sharing": Finding(owners, evidence="for each level, the first one that searches the same stored codebook"),
        "sharing_order": Finding("in turn" if in_turn else "together", evidence=text),
    }


def _gamma(before: Tensor, after: Tensor, received: list[Tensor]) -> tuple[float, bool]:
    """γ of one update with all the counts, or (True) of one update for each level that shares them."""
    n = torch.stack(received).sum(0)
    heavy = (before - n).abs() > 0.25 * float((before - n).abs().max())
    one = float(((after - n) / (before - n))[heavy].median())

    def off(gamma: float, parts: list[Tensor]) -> float:
        counts = before
        for part in parts:
            counts = gamma * counts + (1 - gamma) * part
        return relative((counts - after)[heavy], (after - before)[heavy])

    best, turns = one, False
    if len(received) > 1:
        by_turn, width = 0.5, 0.5
        for _ in range(4):  # a grid, and finer ones around the best
            grid = torch.linspace(max(0.0, by_turn - width), min(1.0, by_turn + width), 101, dtype=torch.float64)
            by_turn, width = min(grid.tolist(), key=lambda gamma: off(gamma, received)), width / 25
        turns = off(by_turn, received) < off(one, [n])
        best = by_turn if turns else one
    left = off(best, received if turns else [n])
    if left > 0.2:
        raise Unknown(f"counts follow no moving average (γ = {best:.4g} leaves {left:.0%} of their move)")
    return best, turns


def _confirmed(probe: Probe, step: Step) -> list[float]:
    """The decay of codes that remember no counts, where four times the latents give the same one.

    A moving average whose counts are hidden moves codes by a part that grows with the latents that they receive.
    """
    z = probe.clustered
    more = torch.cat([z + 1e-3 * shift * probe.latents(len(z), seed=20 + shift) for shift in range(4)])
    again = probe.step(more)
    for way in ("direction", "mean") if probe.layer.plan.sphere else ("plain",):
        one, other = _memoryless(step, way), _memoryless(again, way)
        if one and other and _alike(one[0], other[0]):
            return one
    return []


def _alike(a: float, b: float) -> bool:
    return abs(a - b) <= 0.05 * min(a, b, 1 - a, 1 - b) + 1e-5


def _memoryless(step: Step, way: str) -> list[float]:
    """1 − η of c' = c + η(z̄ − c), where η is the same for every code; put back on a sphere if the way is not plain."""
    rates: list[Tensor] = []
    assert step.out.codes is not None
    for level, (e, new) in enumerate(zip(step.before, step.after, strict=True)):
        z, codes = latents_at(step.out, level).double(), step.out.codes[:, level]
        for k in codes.unique():
            c, moved, mean = e[k].double(), new[k].double(), z[codes == k].mean(0)
            if way != "plain":
                ends = torch.stack([c, mean if way == "mean" else F.normalize(mean, dim=0)], 1)
                parts = torch.linalg.lstsq(ends, moved[:, None], driver="gelsd").solution[:, 0]
                rate, off = parts[1] / parts.sum(), moved - ends @ parts
            else:
                rate = ((moved - c) @ (mean - c)) / ((mean - c) @ (mean - c))
                off = moved - c - rate * (mean - c)
            if relative(off, mean - c) > 0.02:
                return []
            rates.append(rate)
    values = torch.stack(rates)
    if float(values.abs().max()) <= 1e-5:
        return []  # latents move no code of theirs: something else moves codes
    return [1 - float(values.median())] if _alike(1 - float(values.max()), 1 - float(values.min())) else []


@attempt("update_order")
def update_order(probe: Probe) -> Findings:
    """Whether z_q of a training pass comes from the codebook before its update, or after."""
    step = probe.crowded
    if all(torch.equal(a, b) for a, b in zip(step.before, step.after, strict=True)):
        return {"update_order": dormant("no training pass moves the codebook")}
    if step.out.levels:
        q = step.out.levels[0].q_c.rows.detach()
    elif (
        step.out.codes is not None
        and step.out.codes.shape[1] == 1
        and step.before[0].shape[1] == step.out.z.rows.shape[1]
    ):
        q = step.out.z_q.rows.detach()
    else:
        raise Unknown("code space was not located")
    old, new = (code_rows(step.out, 0, e) for e in (step.before[0], step.after[0]))
    near_old, near_new = (relative(q - rows, old - new) for rows in (old, new))
    if min(near_old, near_new) > 0.3:
        raise Unknown(
            f"z_q is neither the code before nor after the update (off by {near_old:.2g} and {near_new:.2g} of the move)"
        )
    value = "before" if near_old < near_new else "after"
    return {
        "update_order": Finding(
            value,
            evidence=f"the code returned is off by {near_old:.1g} (before), {near_new:.1g} (after) of the move",
        )
    }
