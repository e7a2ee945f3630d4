"""The levels of a pass in its record: q_c by value, z_c as a cut of the graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vqverify.quantizer import Level
from vqverify.subject.capture.places import Located, Position, Reading, attached, pull, readings, steps, tensor_at
from vqverify.subject.families import recognised

COARSE = 0.35  # relative to the spread of the codes: a code with a wrong norm is still found
TIGHT = 1e-3  # an intermediate of the estimator (a rotated latent not yet rescaled) is not


def _near(tensor: Tensor, want: Tensor, tolerance: float) -> bool:
    spread = (want - want.mean(0)).norm()
    size = torch.where(spread > 1e-6 * want.norm(), spread, want.norm())  # a single code has no spread
    return bool((tensor.detach() - want).norm() <= tolerance * size)


def locate(record: Sequence[Tensor], leaf: Tensor, codes: Tensor, codebook: Sequence[Tensor]) -> Located | None:
    """Find every level of a pass in its record.

    Args:
        record: tensors in order of appearance; the input leaf is among them or not.
        leaf: input rows (N, D), the leaf of the graph.
        codes: (N, L).
        codebook: one (K, Dc) tensor a level, from before the pass.

    Returns:
        Positions, or None unless every level was found that has codes (−1: the pass dropped it).
    """
    found: list[tuple[Position | None, Position | None]] = []
    levels = codes.shape[1]
    wants = [table.to(leaf)[codes[:, level].clamp(0, len(table) - 1)] for level, table in enumerate(codebook)]
    for level, want in enumerate(wants):
        if bool((codes[:, level] < 0).all()):
            found.append((None, None))
            continue
        looked_up = _LookedUp(want, codebook[level].to(leaf))
        pair = _locate_level(record, leaf, looked_up, _sums(wants, level), level, levels)
        if pair is None:
            return None
        found.append(pair)
    dropped = any(q is None for _, q in found)
    if levels > 1 and not dropped and found[0][0] == Position(-1, Reading()) and all(z is None for z, _ in found[1:]):
        found = _remainders(record, leaf, wants, found)
    if not any(q is not None and record[q.index].requires_grad for _, q in found):
        return Located(len(record), None, tuple(found))  # an eval pass, say
    places = tuple((_among(record, z), _among(record, q)) for z, q in found)
    return Located(len(record), len(attached(record)), places, steps=steps(record))


def _sums(wants: Sequence[Tensor], level: int) -> list[Tensor]:
    """What a stack adds up from a level on: near the code of that level where later codes are small, and not that code."""
    if any(want.shape != wants[0].shape for want in wants):
        return []
    return [torch.stack(list(wants[: last + 1])).sum(0) for last in range(max(level, 1), len(wants))]


def _remainders(
    record: Sequence[Tensor],
    leaf: Tensor,
    wants: Sequence[Tensor],
    found: Sequence[tuple[Position | None, Position | None]],
) -> list[tuple[Position | None, Position | None]]:
    """Latents of a stack without a graph (one estimator around the whole): what is left of z after the levels before."""
    rest, out = leaf.detach(), list(found[:1])
    for want, (_, q_c) in zip(wants, found[1:], strict=False):
        rest = rest - want
        same = [
            Position(index, reading)
            for index, tensor in enumerate(record)
            for reading in readings(tensor, len(rest), rest.shape[1], 1)
            if _near(reading.rows(tensor.to(rest.dtype), rest.shape[1], 1), rest, TIGHT)
        ]
        # the one on the graph, if any: a commitment loss of the level starts there
        same.sort(key=lambda place: not record[place.index].requires_grad)
        out.append((same[0] if same else None, q_c))
    return out


def _among(record: Sequence[Tensor], place: Position | None) -> Position | None:
    return None if place is None else _settled(record, place)


def _settled(record: Sequence[Tensor], place: Position) -> Position:
    """Count an attached tensor among the attached ones."""
    if place.index < 0 or not record[place.index].requires_grad:
        return place
    return Position(len(attached(record[: place.index])), place.reading, attached=True)


def _locate_level(
    record: Sequence[Tensor], leaf: Tensor, looked_up: _LookedUp, sums: Sequence[Tensor], level: int, levels: int
) -> tuple[Position | None, Position] | None:
    want = looked_up.codes
    n, dim = want.shape
    near = [
        Position(index, reading)
        for index, tensor in enumerate(record)
        for reading in readings(tensor, n, dim, levels)
        if reading.part in {None, level} and _near(reading.rows(tensor.to(want.dtype), dim, levels), want, COARSE)
    ]
    near = [
        spot
        for spot in near
        if _close(record, spot, want, levels) or not any(_close(record, spot, total, levels) for total in sums)
    ]
    if not near:
        return None
    # on a line or a circle a latent is near its code, too: what an estimator returns comes after the code was looked up
    known_at = next((spot.index for spot in near if _close(record, spot, want, levels)), -1)
    near = [spot for spot in near if spot.index >= known_at or not record[spot.index].requires_grad]
    probe = torch.randn(want.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(want)
    attached = [
        spot for spot in near if record[spot.index].requires_grad and _reaches(record, spot, leaf, probe, dim, levels)
    ]
    if not attached and (pair := _cancelled(record, leaf, near, probe, dim, levels)):
        return pair
    if not attached:  # a pass without an estimator: only the first level's latent is known, if it is the input
        tight = [spot for spot in near if _close(record, spot, want, levels)]
        last = tight[-1] if levels > 1 and tight else near[-1]  # in a stack, a sum of codes is near its first
        return (Position(-1, Reading()) if leaf.shape[1] == dim and level == 0 else None), last
    # where codes lie close together, on a circle, say, a latent is near its code too
    first = next((spot for spot in near if _close(record, spot, want, levels)), near[0])
    cuts = [(_cut(record, leaf, first, spot, probe, looked_up, levels), spot) for spot in attached]
    pairs = [(cut, spot) for cut, spot in cuts if cut is not None]
    close = [(cut, spot) for cut, spot in pairs if _close(record, spot, want, levels)]
    known = (pair for pair in close if _known(record, leaf, pair, probe, dim, levels))
    return next(known, (close or pairs or [None])[-1])


def _close(record: Sequence[Tensor], spot: Position, want: Tensor, levels: int) -> bool:
    """Whether a recorded tensor holds the codes themselves."""
    rows = spot.reading.rows(record[spot.index].to(want.dtype), want.shape[1], levels)
    return _near(rows, want, TIGHT)


def _reaches(record: Sequence[Tensor], spot: Position, leaf: Tensor, probe: Tensor, dim: int, levels: int) -> bool:
    rows = spot.reading.rows(record[spot.index], dim, levels)
    return bool(pull(rows, leaf, probe.to(rows)).any())


def _cut(
    record: Sequence[Tensor],
    leaf: Tensor,
    first: Position,
    spot: Position,
    probe: Tensor,
    looked_up: _LookedUp,
    levels: int,
) -> Position | None:
    """The last tensor before the code first appears through which every gradient from the code to z passes.

    A latent that is computed a second time after the lookup (normalised once for each) takes its place.
    """
    dim = looked_up.codes.shape[1]
    search = _Cuts(record, leaf, spot, probe, dim, levels)
    before = next(search.among(range(first.index - 1, -1, -1)), None)
    if before is None and leaf.shape[1] == dim:
        before = Position(-1, Reading())
    for again in search.among(range(spot.index - 1, first.index - 1, -1)):
        if _seen_before(record[: first.index], record[again.index]) and (
            before is None or looked_up.by(search.rows(again).detach(), search.rows(before).detach())
        ):
            return again
    return before


@dataclass(frozen=True)
class _LookedUp:
    """Codes (N, Dc) of a level, and the table (K, Dc) in which they were looked up."""

    codes: Tensor
    table: Tensor

    def by(self, again: Tensor, before: Tensor) -> bool:
        """Whether `again` may be the latent rather than `before`.

        A multiple of it, which an expanded distance computes too (2z), is so only where it explains more of the codes:
        else a gain in the gradient would pass for another latent.
        """
        factor = (again * before).sum() / before.square().sum()
        if not torch.allclose(again, factor * before, rtol=1e-4, atol=1e-6):
            return True
        return self._explained(again) > self._explained(before)

    def _explained(self, latents: Tensor) -> float:
        own = (latents - self.codes).norm(dim=1)
        return float((own <= torch.cdist(latents, self.table).amin(1) * (1 + 1e-4)).double().mean())


@dataclass(frozen=True)
class _Cuts:
    """The cuts of the graph between a code and the input."""

    record: Sequence[Tensor]
    leaf: Tensor
    spot: Position
    probe: Tensor
    dim: int
    levels: int

    def rows(self, place: Position) -> Tensor:
        """Latents at a place."""
        return place.reading.rows(tensor_at(self.record, self.leaf, place.index), self.dim, self.levels)

    def among(self, indices: range) -> Iterator[Position]:
        """Cuts among some recorded tensors, in the order given."""
        part, q_rows = self.spot.reading.part, self.rows(self.spot)
        total = pull(q_rows, self.leaf, self.probe.to(q_rows))
        for index in indices:
            tensor = self.record[index]
            if tensor is self.leaf or not tensor.requires_grad:
                continue
            for reading in readings(tensor, len(self.probe), self.dim, self.levels):
                if part is not None and reading.part not in {None, part, 0}:
                    continue
                if reading.part is not None and not _row_by_row(
                    q_rows, tensor, reading, part, self.probe, self.dim, self.levels
                ):
                    continue
                through = pull(q_rows, tensor, self.probe.to(q_rows))
                if through.any() and torch.allclose(pull(tensor, self.leaf, through), total, rtol=1e-4, atol=1e-6):
                    own = part is None or reading.part is None
                    yield Position(index, reading if own else Reading(reading.axis, part, reading.leading))
                    break


def _seen_before(record: Sequence[Tensor], tensor: Tensor) -> bool:
    """Whether a latent is only computed again: a layer may normalise once for the lookup and once for the estimator."""
    return any(
        earlier.numel() == tensor.numel()
        and earlier.dtype == tensor.dtype
        and torch.equal(earlier.reshape(-1), tensor.reshape(-1))
        for earlier in record
    )


def _row_by_row(
    q_rows: Tensor, tensor: Tensor, reading: Reading, part: int | None, probe: Tensor, dim: int, levels: int
) -> bool:
    """Whether the gradient of one row of the code lies in the same row of this reading of the tensor."""
    g = torch.zeros_like(probe)
    g[1] = probe[1]
    rows = Reading(reading.axis, reading.part if part is None else part, reading.leading).rows(
        pull(q_rows, tensor, g.to(q_rows)), dim, levels
    )
    return bool(rows[1].any()) and not bool(rows[2:].any())


def _cancelled(
    record: Sequence[Tensor], leaf: Tensor, near: Sequence[Position], probe: Tensor, dim: int, levels: int
) -> tuple[Position, Position] | None:
    """A level whose gradient reaches its latent and cancels from there on to z (T34: attached straight-through)."""
    found: tuple[Position, Position] | None = None
    for spot in (spot for spot in near if record[spot.index].requires_grad):
        q_rows = spot.reading.rows(record[spot.index], dim, levels)
        for index in range(near[0].index - 1, -1, -1):
            tensor = record[index]
            reading = next(
                (r for r in readings(tensor, len(probe), dim, levels) if r.part in {None, spot.reading.part}), None
            )
            if (
                reading is None
                or tensor is leaf
                or not tensor.requires_grad
                or not pull(q_rows, tensor, probe.to(q_rows)).any()
            ):
                continue
            found = Position(index, reading), spot
            if _known(record, leaf, found, probe, dim, levels):
                return found
            break
    return found


def _known(
    record: Sequence[Tensor], leaf: Tensor, pair: tuple[Position, Position], probe: Tensor, dim: int, levels: int
) -> bool:
    z_c, q_c = pair
    source, target = tensor_at(record, leaf, z_c.index), record[q_c.index]
    rows = q_c.reading.rows(target, dim, levels)
    got = z_c.reading.rows(pull(rows, source, probe.to(rows)), dim, levels)
    return recognised(z_c.reading.rows(source, dim, levels), rows, probe.to(rows), got)


def is_plain(level: Level, leaf: Tensor, z_q: Tensor) -> bool:
    """Whether a level's latent and code are the pass's input and output rows, in value and in gradient."""
    if level.z_c is None or level.z_c.tensor.numel() != leaf.numel():
        return False
    if not z_q.requires_grad:
        return level.z_c.tensor is leaf and torch.equal(level.q_c.rows, z_q)
    probe = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(leaf)
    same = torch.equal(level.z_c.rows, leaf) and torch.equal(level.q_c.rows, z_q)
    inward = torch.equal(pull(level.z_c.rows, leaf, probe), probe)
    outward = torch.equal(level.q_c.to_rows(pull(z_q, level.q_c.tensor, probe)), probe)
    around = torch.equal(pull(z_q, leaf, probe), pull(level.q_c.rows, leaf, probe))  # no path but the code's
    return same and inward and outward and around
