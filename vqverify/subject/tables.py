"""Where a layer keeps its codes and the sums they are learnt from: reading and writing a plan's slots."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqverify.bounds import Violation
from vqverify.quantizer import Accumulators
from vqverify.subject import state
from vqverify.subject.plan import Plan, Slot


def codes(module: nn.Module, slot: Slot) -> Tensor:
    """A copy on the CPU of the codes (K, Dc) as the layer compares them."""
    rows = view(module, slot).detach().clone().cpu()
    return F.normalize(rows, dim=-1) if slot.transform == "normalize" else rows


@torch.no_grad()
def set_codes(module: nn.Module, plan: Plan, codebook: Sequence[Tensor], *, moved: bool = False) -> None:
    """Write the codes of every level, and sums to suit them, so that an update goes on from there.

    Args:
        module: the layer.
        plan: where its codes are.
        codebook: a (K, Dc) tensor a level.
        moved: the rows that are stored take gradients. Where they are normalised on the way to the codes, their own
            norms are then any: those of a layer's start, 1 as a rule, hide who forgets to normalise them.
    """
    for slot, rows in zip(plan.slots, codebook, strict=True):
        # times a power of two: the codes are the same to the bit
        powers = 2.0 ** (torch.arange(len(rows)) % 3 - 1.0)
        anyhow = moved and slot.transform == "normalize"
        view(module, slot).data.copy_(rows * powers[:, None].to(rows) if anyhow else rows)
    for (counts, sums), slot in zip(plan.accumulators, plan.slots, strict=False):
        size, rows = view(module, counts).data, view(module, slot)
        size.copy_(torch.where(size > 0, size, torch.ones_like(size)))
        view(module, sums).data.copy_(rows.to(size) * size[:, None])


def accumulators(module: nn.Module, plan: Plan) -> tuple[Accumulators, ...]:
    """Copies on the CPU of counts (K,) and sums (K, Dc), a level."""

    def copy(slot: Slot) -> Tensor:
        return view(module, slot).detach().clone().cpu()

    return tuple(Accumulators(copy(counts), copy(sums)) for counts, sums in plan.accumulators)


@torch.no_grad()
def set_accumulators(module: nn.Module, plan: Plan, wanted: Sequence[Accumulators]) -> None:
    """Write counts and sums of every level."""
    for (counts, sums), new in zip(plan.accumulators, wanted, strict=True):
        view(module, counts).data.copy_(new.counts)
        view(module, sums).data.copy_(new.sums)


def stored_gradient(module: nn.Module, slot: Slot, rows: Tensor) -> Tensor:
    """What a gradient (K, Dc) at the codes is at the rows that are stored."""
    if slot.transform != "normalize":
        return rows
    stored = view(module, slot).detach().cpu().to(rows)
    size = stored.norm(dim=1, keepdim=True).clamp_min(1e-12)
    unit = stored / size
    return (rows - unit * (rows * unit).sum(1, keepdim=True)) / size


def view(module: nn.Module, slot: Slot) -> Tensor:
    """The tensor (K, Dc) itself.

    Raises:
        Violation: if a pass took it out of the layer's state.
    """
    try:
        return slot.of(state.tensor_at(module, slot.name))
    except (KeyError, IndexError):
        raise Violation("state", f"the tensor {slot.name}{list(slot.index)} is gone from the layer's state") from None
