"""The EMA counts and sums of a layer: tensors that move towards those of a batch in training passes."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vqverify.discovery.codespace import effective, view
from vqverify.subject import state
from vqverify.subject.plan import Slot, enter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vqverify.discovery.bench import Bench
    from vqverify.quantizer import Quantized

COARSE = 0.2  # a broken accumulator is still recognised, and then checked tightly
STEPS = 3


def find_accumulators(bench: Bench) -> tuple[tuple[tuple[Slot, Slot], ...], str]:
    """EMA counts (K,) and sums (K, Dc) a level, by the best fit of N' − N = c (n − N), m' − m = c (s − m).

    Levels that share a codebook share what is counted: all their latents at once, or one level after the other.
    All levels or none: a level that found another one's accumulators would be a false alarm later.
    """
    module, slots = bench.trial.module, bench.plan.slots
    if not slots:
        return (), "no codebook, so none was looked for"
    history: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    counted: list[list[Tensor]] = []
    summed: list[list[Tensor] | None] = []
    bench.reset()
    layer = bench.layer()
    for step in range(STEPS):
        z = _near_codes(bench, step)
        before = _floats(module)
        books = [effective(bench, slot) for slot in slots]
        out = bench.traced(layer, z)
        if out is None or out.codes is None:
            return (), "no training pass with codes could be made"
        history.append((before, _floats(module)))
        latent = _latents(out) or _residuals(z, out.codes, books)
        codes = out.codes.T
        counted.append([_counts(k, len(book)) for k, book in zip(codes, books, strict=False)])
        summed.append(latent and [_sums(z_c, k, len(e)) for z_c, k, e in zip(latent, codes, books, strict=False)])
    bench.reset()
    pairs: dict[Slot, tuple[Slot, Slot]] = {}
    fits: list[float] = []
    for level, slot in enumerate(slots):
        if slot in pairs:
            continue
        mine = [other for other, shared in enumerate(slots) if shared == slot]
        rows, width = view(module, slot).shape
        taken = {(s.name, s.index) for pair in pairs.values() for s in pair}
        fitting = _fitting(history, [[c[i] for i in mine] for c in counted], (rows,), taken, slots)
        counts = _used(bench, slot, fitting)
        wanted = [s and [s[i] for i in mine] for s in summed]
        sums = None if None in wanted else _used(bench, slot, _fitting(history, wanted, (rows, width), taken, slots))
        if counts is None or sums is None:
            return (), _absent(counts, sums, level)
        pairs[slot] = counts[1], sums[1]
        fits.append(max(counts[0], sums[0]))
    names = ", ".join(f"{n.name}, {m.name}" for n, m in list(pairs.values())[:2])
    names += " and so on" if len(pairs) > 2 else ""
    shared = ", which levels share," if len(pairs) < len(slots) else ""
    text = f"{names}{shared} move towards the counts and sums of the batch (worst fit {max(fits):.1e})"
    return tuple(pairs[slot] for slot in slots), text


def _absent(counts: object, sums: object, level: int) -> str:
    what = "counts or sums" if counts is None and sums is None else "sums" if sums is None else "counts"
    return f"no tensor of level {level} moves towards the {what} of a batch within {COARSE:.0%}"


def _floats(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: tensor.detach().clone().double()
        for name, tensor in state.all_tensors(module).items()
        if tensor.is_floating_point() and tensor.ndim
    }


def _near_codes(bench: Bench, step: int) -> Tensor:
    """Latents around the codes, most of them used; generic ones where the codes are in another space."""
    codes = effective(bench, bench.plan.slots[0]).to(bench.dtype)
    n = min(max(16 * len(codes), 128), 1024)
    z = bench.latents(n, 90 + step)
    if codes.shape[1] != bench.plan.dim:
        return z
    spread = float((codes - codes.mean(0)).std().nan_to_num(0.0)) or 1.0
    generator = torch.Generator().manual_seed(90 + step)
    # unequal counts: equal ones can be just those that the layer starts with, and nothing would move
    some = torch.randperm(len(codes), generator=generator)[: n // 2]
    picks = torch.cat([some, torch.randint(len(codes), (n - len(some),), generator=generator)])
    return codes[picks] + 0.3 * spread / bench.scale * z


def _counts(codes: Tensor, size: int) -> Tensor:
    return torch.bincount(codes[codes >= 0], minlength=size)[:size].double()


def _sums(z: Tensor, codes: Tensor, size: int) -> Tensor:
    return torch.zeros(size, z.shape[1], dtype=torch.float64).index_add_(0, codes.clamp(0, size - 1), z.double())


def _latents(out: Quantized) -> list[Tensor]:
    """Latents of every level where capture located them all."""
    found = [level.z_c.rows.detach() for level in out.levels if level.z_c is not None]
    return found if len(found) == len(out.codebook) else []


def _residuals(z: Tensor, codes: Tensor, books: list[Tensor]) -> list[Tensor] | None:
    """Latents of a plain residual stack; None where code space is not the input's."""
    if any(book.shape[1] != z.shape[1] for book in books):
        return None
    found = [z.detach()]
    for level, book in enumerate(books[:-1]):
        found.append(found[-1] - book.to(z)[codes[:, level].clamp(0, len(book) - 1)])
    return found


def _fitting(
    history: list[tuple[dict[str, Tensor], dict[str, Tensor]]],
    wanted: Sequence[list[Tensor] | None],
    shape: tuple[int, ...],
    taken: set[tuple[str, tuple[int, ...]]],
    slots: tuple[Slot, ...],
) -> list[tuple[float, Slot]]:
    """Tensors that move towards what is wanted, the best fit first."""
    found: list[tuple[float, Slot]] = []
    books = {(slot.name, slot.index) for slot in slots if slot.transform != "made"}
    for name, tensor in history[0][0].items():
        for index in product(*(range(size) for size in tensor.shape[: tensor.ndim - len(shape)])):
            for transposed in (False, True)[: len(shape)]:
                if (name, index) in taken | books or tuple(
                    tensor[index].t().shape if transposed else tensor[index].shape
                ) != shape:
                    continue
                fit = _fit(history, wanted, name, index, transposed=transposed)
                if fit < COARSE:
                    found.append((fit, Slot(name, index, transposed)))
    return sorted(found, key=lambda pair: pair[0])


def _used(bench: Bench, codes: Slot, fitting: list[tuple[float, Slot]]) -> tuple[float, Slot] | None:
    """The best fit; among several the best of those that the codes are made of.

    A layer may keep another average of its counts, to tell which codes are in use.
    """
    if len(fitting) < 2:
        return fitting[0] if fitting else None
    after = _codes_after(bench, codes, None)
    moves = [pair for pair in fitting if not torch.equal(_codes_after(bench, codes, pair[1]), after)]
    return (moves or fitting)[0]


def _codes_after(bench: Bench, codes: Slot, other: Slot | None) -> Tensor:
    """The codes after a training pass, with or without a change of another tensor before it."""
    bench.reset()
    if other is not None:
        with torch.no_grad():
            state.all_tensors(bench.trial.module)[other.name][other.index].mul_(1.25)
    bench.trial.run(enter(bench.latents(64, 95), bench.plan.calls[0].layout), train=True, go_on=True)
    after = effective(bench, codes).detach().clone()
    bench.reset()
    return after


def _fit(
    history: list[tuple[dict[str, Tensor], dict[str, Tensor]]],
    wanted: Sequence[list[Tensor] | None],
    name: str,
    index: tuple[int, ...],
    *,
    transposed: bool,
) -> float:
    """Residual of x' − x = c (w − x) over all steps, relative to the change, with c in (0, 1].

    Several w are those of levels that share x; x' − x = Σ bᵢwᵢ − c x then, whatever the order of the updates.
    """
    changes: list[Tensor] = []
    olds: list[Tensor] = []
    columns: list[Tensor] = []
    for (before, after), wants in zip(history, wanted, strict=True):
        if name not in after or after[name].shape != before[name].shape or wants is None:
            return 1.0
        old, new = before[name][index], after[name][index]
        old, new = (old.t(), new.t()) if transposed else (old, new)
        changes.append((new - old).reshape(-1))
        olds.append(old.reshape(-1))
        columns.append(torch.stack([want.reshape(-1) for want in wants], dim=1))
    change, old, want = torch.cat(changes), torch.cat(olds), torch.cat(columns)
    size = float(change.norm())
    if not size or not change.isfinite().all():
        return 1.0
    if want.shape[1] > 1:
        return _fit_of_shared(change, old, want)
    pull = want[:, 0] - old
    weight = float(change @ pull / (pull @ pull).clamp_min(1e-300))
    fit = float((change - weight * pull).norm()) / size if 0 < weight <= 1.05 else 1.0
    return fit if fit < COARSE else _fit_of_most(change, pull)


def _fit_of_shared(change: Tensor, old: Tensor, wants: Tensor) -> float:
    basis = torch.cat([-old[:, None], wants], dim=1)
    weights = torch.linalg.lstsq(basis, change[:, None], driver="gelsd").solution[:, 0]
    if not bool(((weights > 0) & (weights <= 1.05)).all()):
        return 1.0
    return float((change - basis @ weights).norm() / change.norm())


def _fit_of_most(change: Tensor, pull: Tensor) -> float:
    """A fit that some entries may miss, such as codes replaced in the step; worse than any full fit."""
    moved = pull.abs() > 1e-9
    if not moved.any():
        return 1.0
    weight = float((change[moved] / pull[moved]).median())
    missed = float(((change - weight * pull).abs() > COARSE * (weight * pull).abs())[moved].double().mean())
    return COARSE * (0.5 + missed) if 0 < weight <= 1.05 else 1.0
