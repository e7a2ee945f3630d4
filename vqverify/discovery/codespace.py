"""From stored rows to codes: what a layer makes of the rows of a tensor before they are codes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vqverify.discovery.measure import differs, scale_of
from vqverify.subject import capture, made
from vqverify.subject.plan import enter
from vqverify.subject.state import all_tensors

if TYPE_CHECKING:
    from vqverify.discovery.bench import Bench, Look
    from vqverify.subject.plan import Slot


def view(module: torch.nn.Module, slot: Slot) -> Tensor:
    """The stored (K, Dc) tensor of a slot, sharing memory with the module."""
    return slot.of(all_tensors(module)[slot.name].data)


def as_codes(bench: Bench, look: Look, slots: tuple[Slot, ...], text: str) -> tuple[tuple[Slot, ...], str]:
    """Settle what the layer makes of stored rows; () if the codes are something else than rows."""
    normalized = _scale_free(bench, look, slots[0])
    if normalized:
        slots = tuple(replace(slot, transform="normalize") for slot in slots)
        text += "; their norms do not matter"
    bench.reset()
    record = bench.record(look.z)
    bench.reset()
    stored = all(_appear(record, look, level, effective(bench, slot)) for level, slot in enumerate(slots))
    if stored and _still_appear(bench, look, slots, record):
        return slots, text
    computed = _computed(bench, look, slots, record)
    if computed:
        return computed, f"{text}; the codes are not these rows but computed from them, and read from a pass"
    if stored:
        return slots, text
    return (
        (),
        f"{text}, but the codes are not these rows: the layer transforms them in a way that is not known",
    )


def _scale_free(bench: Bench, look: Look, slot: Slot) -> bool:
    def change() -> None:
        stored = view(bench.trial.module, slot)
        grow = torch.rand(len(stored), 1, generator=torch.Generator().manual_seed(3)) + 1.0
        stored.mul_(grow.to(stored))

    after = bench.look(look.z, change=change)
    return after is not None and float(differs(look.z_q, after.z_q, 1e-4 * scale_of(look.z_q)).double().mean()) < 0.05


def effective(bench: Bench, slot: Slot) -> Tensor:
    """The codes of a slot as the layer uses them now, a copy."""
    if slot.transform == "made":
        return bench.layer().codebooks()[bench.plan.slots.index(slot)]
    rows = view(bench.trial.module, slot).detach().clone()
    return F.normalize(rows, dim=-1) if slot.transform == "normalize" else rows


def _appear(record: list[Tensor], look: Look, level: int, rows: Tensor) -> bool:
    """Whether a tensor of the pass holds, roughly, the rows (K, Dc) that the codes of a level name."""
    want = _named(look, level, rows)
    spread = float((want - want.mean(0)).norm())
    return made.holds(record, want, level, _levels(look), capture.COARSE * spread)


def _named(look: Look, level: int, rows: Tensor) -> Tensor:
    """The rows (N, Dc) that the codes of a level name."""
    assert look.codes is not None
    return rows.to(look.z)[look.codes[:, level].clamp(0, len(rows) - 1)]


def _levels(look: Look) -> int:
    return 0 if look.codes is None else look.codes.shape[1]


def _still_appear(bench: Bench, look: Look, slots: tuple[Slot, ...], record: list[Tensor]) -> bool:
    """Whether stored rows are the codes after some training, too, where they are so to the last digits before it.

    Sums over counts are the sums themselves as long as all counts are 1.
    """

    def exact(of: list[Tensor], seen: Look) -> bool:
        wants = [_named(seen, level, effective(bench, slot)) for level, slot in enumerate(slots)]
        return all(
            made.holds(of, want, level, len(slots), 1e-4 * float(want.norm())) for level, want in enumerate(wants)
        )

    bench.reset()
    if bench.train or len(slots) != _levels(look) or not exact(record, look):
        return True
    for step in range(4):
        z = enter(bench.latents(len(look.z), 40 + step), bench.plan.calls[0].layout)
        if bench.trial.run(z, train=True, go_on=True) is None:
            bench.reset()
            return True
    after = bench.look(look.z, go_on=True)
    same = after is None or after.codes is None or exact(bench.record(look.z, go_on=True), after)
    bench.reset()
    return same


def _computed(bench: Bench, look: Look, slots: tuple[Slot, ...], record: list[Tensor]) -> tuple[Slot, ...]:
    """Slots of codes that each pass computes: a tensor of the pass, the same whatever the latents are."""
    other = bench.look(bench.latents(96, 33))
    if look.codes is None or other is None or other.codes is None:
        return ()
    again = bench.record(other.z)
    bench.reset()
    found: list[Slot] = []
    for level, slot in enumerate(slots):
        count = len(view(bench.trial.module, slot))
        rows, same = made.find(record, look.codes, level, count), made.find(again, other.codes, level, count)
        if rows is None or same is None or rows.shape != same.shape:
            return ()
        if differs(rows, same, 1e-5 * scale_of(rows)).any():
            return ()  # statistics of the batch are in the codes: there is no codebook before a pass
        found.append(replace(slot, transform="made", shape=(count, rows.shape[1])))
    return tuple(found)


def nearest(bench: Bench, look: Look, slot: Slot) -> float:
    """Share of latents whose code is the row nearest to them, by distance or by direction."""
    bench.reset()
    rows = effective(bench, slot).to(look.z)
    if rows.shape[1] != look.z.shape[1]:
        return 0.0
    assert look.codes is not None
    found = (
        torch.cdist(look.z, rows).argmin(1),
        (F.normalize(look.z, dim=1) @ F.normalize(rows, dim=1).t()).argmax(1),
    )
    return max(float((codes == look.codes[:, 0]).double().mean()) for codes in found)


def among(values: Tensor, rows: Tensor) -> bool:
    """Whether each of the values (N, D) is one of the rows (K, D)."""
    exact = "donot_use_mm_for_euclid_dist"
    gaps = torch.cdist(values.double(), rows.double(), compute_mode=exact).min(1).values
    return bool((gaps <= 1e-3 * values.double().norm(dim=1).mean()).all())
