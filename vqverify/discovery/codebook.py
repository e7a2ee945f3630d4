"""Where the codebook is stored: change rows of a tensor, and see which latents' z_q change.

Rows of a codebook change z_q exactly where the code is one of them; rows of any other weight change it
elsewhere too. So projections, cosine codebooks, heads and levels need no rule of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vqverify.discovery.codespace import among, as_codes, effective, nearest, view
from vqverify.discovery.measure import differs, scale_of
from vqverify.subject.plan import Slot
from vqverify.subject.state import all_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vqverify.discovery.bench import Bench, Look

EFFECT = "changes z_q where the code is one of them"
ROUNDS = 4  # groups of rows that are changed, a third of all rows each
MOST = 64  # rows that are changed one by one
MATCH = 0.7  # agreement (Jaccard) of changed latents with those of a changed code; equal codes cost some


@dataclass(frozen=True)
class _View:
    slot: Slot
    rows: int


def find_codebook(bench: Bench, look: Look, *, odd: bool) -> tuple[tuple[Slot, ...], str]:
    """A slot a level, or () with the reason.

    Args:
        bench: call known.
        look: a pass that reaches many codes.
        odd: z_q is not the function of the codes that it must be: look for what they name by distance too.
    """
    if look.codes is None:
        return _by_value(bench, look)
    levels = look.codes.shape[1]
    idle = [level for level in range(levels) if len(look.codes[:, level].unique()) < 2]
    if idle and len(idle) < levels:
        return (
            (),
            f"level {idle[0]} uses one code for all latents: its codebook cannot be told from other weights",
        )
    scores: dict[int, tuple[float, Slot]] = {}
    shared: tuple[float, Slot] | None = None
    least = int(look.codes.max(0).values.min()) + 1
    for candidate in _views(bench, look, least):
        alone, together = _agreement(bench, look, candidate)
        level = int(torch.tensor(alone).argmax())
        if alone[level] >= MATCH and alone[level] > scores.get(level, (0.0,))[0] + 1e-3:
            scores[level] = (alone[level], candidate.slot)
        elif levels > 1 and together >= MATCH and together > (shared or (0.0,))[0]:
            shared = (together, candidate.slot)
    if len(scores) == levels:
        slots = tuple(scores[level][1] for level in range(levels))
        worst = min(score for score, _ in scores.values())
        text = f"changing rows of {_names(slots)} {EFFECT} (agreement {worst:.2f})"
    elif shared is not None:
        slots = (shared[1],) * levels
        text = f"changing rows of {_names(slots[:1])}, which levels share, {EFFECT} (agreement {shared[0]:.2f})"
    else:
        return _renumbered(bench, look, odd=odd)
    return as_codes(bench, look, slots, text)


def _views(bench: Bench, look: Look, least: int, *, idle: bool = False) -> Iterator[_View]:
    """Readings of the state as (K, Dc) with K ≥ least, of tensors that matter for z_q (of all if idle)."""
    seen: set[int] = set()
    bench.reset()
    for name, tensor in all_tensors(bench.trial.module).items():
        if not tensor.is_floating_point() or tensor.ndim < 2 or id(tensor) in seen or not tensor.numel():
            continue
        seen.add(id(tensor))
        if not idle and not _matters(bench, look, name):
            continue
        for index in product(*(range(size) for size in tensor.shape[:-2])):
            for transposed in (False, True):
                rows = tensor.shape[-1 if transposed else -2]
                codes = None if transposed else _unpadded(bench.trial.module, name, rows)
                if rows >= least and len(list(index)) <= 3:
                    yield _View(Slot(name, index, transposed, rows=codes), codes or rows)


def _unpadded(module: nn.Module, name: str, rows: int) -> int | None:
    """Number of codes of an `nn.Embedding` whose last row torch keeps for padding; None for any other tensor."""
    path, _, last = name.rpartition(".")
    owner = module.get_submodule(path)
    padded = isinstance(owner, nn.Embedding) and last == "weight" and owner.padding_idx == rows - 1
    return rows - 1 if padded else None


def _matters(bench: Bench, look: Look, name: str) -> bool:
    def change() -> None:
        tensor = all_tensors(bench.trial.module)[name].data
        tensor.add_(_noise(tensor, 71))

    after = bench.look(look.z, change=change)
    return after is not None and bool(differs(look.z_q, after.z_q, 1e-5 * scale_of(look.z_q)).any())


def _noise(tensor: Tensor, seed: int) -> Tensor:
    # a seed of its own: with the construction's seed the noise would be a multiple of the codebook itself
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0x5EED1000 + seed)).to(tensor)
    return 0.02 * max(scale_of(tensor), 1e-3) * noise


def _changed(bench: Bench, look: Look, slot: Slot, rows: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Noise on some rows of a slot: which latents' z_q change (N,), by how much (N, D), the noise (K, Dc)."""
    bench.reset()
    stored = view(bench.trial.module, slot)
    noise = _noise(stored, seed) * rows[:, None]
    after = bench.look(look.z, change=lambda: view(bench.trial.module, slot).add_(noise))
    if after is None:
        return None
    return differs(look.z_q, after.z_q, 1e-5 * scale_of(look.z_q)), after.z_q - look.z_q, noise


def _agreement(bench: Bench, look: Look, candidate: _View) -> tuple[list[float], float]:
    """Agreement with each level alone, and with all levels together."""
    assert look.codes is not None
    codes = look.codes
    alone, together = [0.0] * codes.shape[1], 0.0
    idle = 0  # rounds in which no code was changed, and no latent
    for step in range(ROUNDS):
        chosen = torch.rand(candidate.rows, generator=torch.Generator().manual_seed(100 + step)) < 1 / 3
        chosen[0] |= candidate.rows == 1 or (step == 0 and not codes.any())  # the only code in use
        result = _changed(bench, look, candidate.slot, chosen.to(look.z), step)
        if result is None:
            return [0.0] * codes.shape[1], 0.0
        inside = codes < candidate.rows
        hit = chosen[codes.clamp(0, candidate.rows - 1)] & inside & (codes >= 0)
        idle += not (hit.any() or result[0].any())
        for level in range(codes.shape[1]):
            alone[level] += _jaccard(result[0], hit[:, level])
        together += _jaccard(result[0], hit.any(1))
        if max(*alone, together) < MATCH / 2 * (step + 1 - idle):
            break
    rounds = max(1, ROUNDS - idle)
    return [score / rounds for score in alone], together / rounds


def _jaccard(a: Tensor, b: Tensor) -> float:
    either = int((a | b).sum())
    return int((a & b).sum()) / either if either else 0.0


def _renumbered(bench: Bench, look: Look, *, odd: bool) -> tuple[tuple[Slot, ...], str]:
    """Where codes do not name the rows that z_q is made of: what they could name, to be checked."""
    assert look.codes is not None
    levels = look.codes.shape[1]
    single = levels == 1
    owned: dict[int, Slot] = {}
    for candidate in _views(bench, look, 2):
        for level in range(levels):
            if level not in owned and _owns(bench, look, candidate, level):
                owned[level] = candidate.slot
                break
        if len(owned) == levels:
            slots = tuple(owned[level] for level in range(levels))
            return (
                slots,
                f"each row of {_names(slots)} owns the latents of one code, but of another number than its own",
            )
    for candidate in _views(bench, look, int(look.codes.max()) + 1, idle=True) if single and odd else ():
        if nearest(bench, look, candidate.slot) >= 0.9:
            text = "the codes name the rows of {} nearest to z, but z_q is not made of them alone"
            return (candidate.slot,), text.format(candidate.slot.name)
    return (), f"no tensor of the state has rows whose change {EFFECT}: no codebook is stored"


def _owns(bench: Bench, look: Look, candidate: _View, level: int) -> bool:
    """Whether nearly every row's latents are those of one code; a row of few latents also moves some over a boundary."""
    assert look.codes is not None
    codes, good, bad = look.codes[:, level], 0, 0
    for row in range(min(candidate.rows, MOST)):
        chosen = torch.arange(candidate.rows) == row
        result = _changed(bench, look, candidate.slot, chosen.to(look.z), row)
        if result is None:
            return False
        mine = result[0]
        if int(mine.sum()) < 2:
            continue
        owns = _jaccard(mine, codes == codes[mine].mode().values) >= MATCH
        good, bad = good + owns, bad + (not owns)
        if bad > good + 1:
            return False
        if good >= 4 * max(bad, 1):
            return True
    return good >= max(2, 4 * bad)


def _by_value(bench: Bench, look: Look) -> tuple[tuple[Slot, ...], str]:
    """Without codes: a tensor whose rows are the values that z_q takes."""
    for candidate in _views(bench, look, 2):
        for transform in ("identity", "normalize"):
            slot = replace(candidate.slot, transform=transform)
            bench.reset()
            rows = effective(bench, slot).to(look.z)
            if rows.shape[1] == look.z_q.shape[1] and among(look.z_q, rows):
                return (slot,), f"every z_q is a row of {slot.name}; codes are not returned"
    return (), "codes are not returned, and no tensor of the state has the values of z_q as rows"


def _names(slots: tuple[Slot, ...]) -> str:
    names = [
        f"{slot.name}{list(slot.index) if slot.index else ''}{' transposed' if slot.transposed else ''}"
        for slot in slots
    ]
    return ", ".join(names if len(names) <= 4 else [*names[:3], f"{len(names) - 3} more"])
