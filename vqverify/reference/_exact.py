"""Which code is nearest, decided without rounding, for the rows that a certificate leaves open."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vqverify.reference._products import Table, certified, full_precision, gap_error, prepare, ranked

_BLOCK = 1 << 17
"""Float64 numbers of one block of scores or differences: 1 MiB."""
_FEW = 32
_SHARE = 16
"""Up to so many rows, or one in so many, they are what is nearly a tie in any data: few codes compete for each."""
_NEAR = 4
"""So many codes of a row are compared directly at once."""
_MODERATE = 400
"""Exponents up to this one leave squares, and 2⁵³ times less, normal numbers of float64."""
_PAIRS = 3
"""With more candidates a row than this, codes are probably equal, and looking for that pays."""


def settle(z: Tensor, codebook: Tensor, rows: Tensor, table: Table) -> Tensor:
    """Return the exact nearest code of the given rows, ties to the lowest index.

    A few rows are decided among the few codes that the error bound allows: by direct differences in float64, then,
    for ties and what is nearly one, without rounding. If they are many, the cause is sought first: codes that repeat
    are left out; numbers on a common grid have exact products; else a second certificate in float64 decides nearly all.

    Args:
        z: latents (N, D) as given.
        codebook: codes (K, D) as given.
        rows: the rows to decide (M,), int64.
        table: the codebook made ready for the products.

    Returns:
        int64 indices (M,).

    Raises:
        ValueError: if one of the rows holds NaN or infinity.
    """
    if len(rows) <= max(_FEW, len(z) // _SHARE):
        return _settle_few(z, codebook, rows, table)
    _require_finite(z, rows)
    distinct = (~_repeats(codebook, torch.arange(len(codebook), device=z.device))).nonzero().squeeze(1)
    if 2 * len(distinct) > len(codebook):  # else the copy is small
        return _settle_many(z, codebook, rows, table)
    return distinct[_settle_many(z, codebook[distinct], rows, None)]


def _settle_few(z: Tensor, codebook: Tensor, rows: Tensor, table: Table) -> Tensor:
    """Compare the codes of the best scores directly, in float64; :func:`_decide` where that proves nothing."""
    out = torch.empty_like(rows)
    near = min(_NEAR, len(codebook))
    # the scores of all codes, and the differences to a few
    step = max(1, _BLOCK // max(len(codebook), near * table.dim))
    for part, index in zip(rows.split(step), out.split(step), strict=True):
        latents = z[part]
        scores, error = _scores(latents, table)
        best, codes = scores.topk(near, largest=False)
        found = codebook[codes].double()
        distance, order = found.sub_(latents.double().unsqueeze(1)).square_().sum(2).sort()
        torch.gather(codes, 1, order[:, :1], out=index.unsqueeze(1))
        # the last one at hand is too far to matter (or there are no others), and the first is alone: NaN is neither
        others = distance[:, 1:2] if near > 1 else distance.new_full((1, 1), torch.inf)
        certain = others > _close(distance[:, :1], table.dim)
        if near < len(codebook):
            certain &= best[:, -1:] > best[:, :1] + error.unsqueeze(1)
        if not bool(certain.all()):
            open_rows = (~certain).nonzero()[:, 0]
            _require_finite(z, part)
            index[open_rows] = _decide(latents[open_rows], codebook, table)
    return out


def _settle_many(z: Tensor, codebook: Tensor, rows: Tensor, table: Table | None) -> Tensor:
    out = torch.empty_like(rows)
    step = max(1, _BLOCK // codebook.shape[1])
    for part, index in zip(rows.split(step), out.split(step), strict=True):
        latents = z[part]
        exact = _grid_table(latents, codebook)
        if exact is not None:
            for _ in ranked(latents, exact, index):
                pass
            continue
        if table is None or table.centre.dtype != torch.float64:
            # not stored: it would take twice the memory of the codebook
            table = prepare(codebook, torch.float64, store=False)
        found, certain = certified(latents, table)
        index.copy_(found)
        left_open = (~certain).nonzero().squeeze(1)
        index[left_open] = _decide(latents[left_open], codebook, table)
    return out


def _grid_table(z: Tensor, codebook: Tensor) -> Table | None:
    """Return a table in float64 whose scores of z are exact, if all numbers are multiples of one that is large enough.

    With a = z - c₁ and b = c - c₁ whole numbers of at most 2^m of such units, |b|² - 2 a·b adds up to at most
    3D·2^2m: below 2⁵³ no sum is rounded, whatever its order.
    """
    dim, step = codebook.shape[1], max(1, _BLOCK // codebook.shape[1])
    centre = codebook[0].double()
    blocks = [*z.split(step), *codebook.split(step)]
    reach = max(float((block.double() - centre).abs().max()) for block in blocks)
    if not math.isfinite(reach) or abs(size := math.frexp(reach)[1]) > _MODERATE:
        return None
    scale = 2.0 ** ((53 - math.ceil(math.log2(3 * dim))) // 2 - size)
    for block in blocks:
        wide = block.double()
        whole = (wide * scale).round()
        # above 2^53 z - c₁ may be rounded
        if bool(((whole / scale != wide) | (whole.abs() > 2.0**53)).any()):
            return None
    return Table(codebook, None, centre, centre.new_zeros(()))


def _require_finite(z: Tensor, rows: Tensor) -> None:
    step = max(1, _BLOCK // z.shape[1])
    bad = [i for part in rows.split(step) for i in part[~z[part].isfinite().all(1)].tolist()]
    if bad:
        shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise ValueError(f"z must be finite; {len(bad)} of its {len(z)} rows hold NaN or infinity: {shown}")


def _decide(z: Tensor, codebook: Tensor, table: Table) -> Tensor:
    """Return the nearest codes of latents (M, D), comparing all candidates exactly."""
    out = torch.empty(len(z), dtype=torch.int64, device=z.device)
    step = max(1, _BLOCK // len(codebook))
    for part, index in zip(z.split(step), out.split(step), strict=True):
        row, code = _candidates(part, table)
        if len(row) > _PAIRS * len(part):
            row, code = _distinct(codebook, row, code)
        row, code = _closest(part, codebook, row, code)
        index[row] = code
        tied = (torch.bincount(row, minlength=len(part)) > 1)[row]
        if bool(tied.any()):
            _break_ties(part, codebook, row[tied], code[tied], index)
    return out


def _candidates(z: Tensor, table: Table) -> tuple[Tensor, Tensor]:
    """Return (row, code) pairs, in lexicographic order: every code that may be the nearest of a row."""
    scores, error = _scores(z, table)
    # NaN, from overflow or a broken code, compares as "may be nearest"
    row, code = (~(scores > (scores.amin(1) + error).unsqueeze(1))).nonzero().unbind(1)
    return row, code


def _scores(z: Tensor, table: Table) -> tuple[Tensor, Tensor]:
    """Return the scores of latents (M, D) for all codes (M, K), and the error of a difference of two of a row (M,)."""
    left = table.left(z)
    with full_precision():
        blocks = [left @ block for block in table.blocks(max(_BLOCK // table.dim + 1, 1 << 10))]
    return torch.cat(blocks, 1), gap_error(torch.linalg.vector_norm(left[:, :-1], dim=1), table)


def _close(distance: Tensor, dim: int) -> Tensor:
    """Return what a squared distance in float64 may be to be the same: its relative error is (D + 2)u."""
    info = torch.finfo(torch.float64)
    return distance * (1 + 4 * (dim + 4) * info.eps) + dim * info.tiny


def _distinct(codebook: Tensor, row: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
    """Drop the pairs whose code repeats a candidate of lower index: it is as near, and loses the tie."""
    repeats = torch.zeros(len(codebook), dtype=torch.bool, device=codebook.device)
    repeats[code] = True
    used = repeats.nonzero().squeeze(1)
    repeats[used] = _repeats(codebook, used)
    keep = ~repeats[code]
    return row[keep], code[keep]


def _repeats(codebook: Tensor, used: Tensor) -> Tensor:
    """Return which of the given codes, indices in increasing order, equal one before them."""
    wide = torch.promote_types(codebook.dtype, torch.float32)
    weights = torch.randn(codebook.shape[1], generator=torch.Generator().manual_seed(0), dtype=wide, device="cpu")
    weights = weights.to(codebook.device)
    blocks = used.split(max(1, _BLOCK // codebook.shape[1]))
    keys = [codebook[block].to(wide) @ weights for block in blocks]
    _, group = torch.cat(keys).unique(return_inverse=True)
    first = torch.full_like(used, len(codebook)).scatter_reduce_(0, group, used, "amin")[group]
    # equal keys only suggest it
    same = [(codebook[a] == codebook[b]).all(1) for a, b in zip(blocks, first.split(len(blocks[0])), strict=True)]
    return (first != used) & torch.cat(same)


def _closest(z: Tensor, codebook: Tensor, row: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the pairs whose float64 distance is the least of its row, up to its relative error (D + 2) u."""
    step = max(1, _BLOCK // z.shape[1])
    pairs = zip(row.split(step), code.split(step), strict=True)
    blocks = [(z[r].double() - codebook[c].double()).square_().sum(1) for r, c in pairs]
    distance = torch.cat(blocks)
    least = distance.new_full((len(z),), torch.inf).scatter_reduce_(0, row, distance, "amin")
    close = ~(distance > _close(least[row], z.shape[1]))
    return row[close], code[close]


def _break_ties(z: Tensor, codebook: Tensor, row: Tensor, code: Tensor, index: Tensor) -> None:
    """Write the winners of pairs to ``index``, compared as integers on a common grid, else as rationals."""
    distance, exact = _grid_distances(z, codebook, row, code)
    last = torch.iinfo(torch.int64).max
    least = torch.full_like(index, last).scatter_reduce_(0, row, distance, "amin")
    winner = distance == least[row]
    lowest = torch.full_like(index, last).scatter_reduce_(0, row[winner], code[winner], "amin")
    index[row] = lowest[row]
    for r in row[~exact].unique().tolist():
        index[r] = _nearest_rational(z[r], codebook, code[row == r])


def _grid_distances(z: Tensor, codebook: Tensor, row: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
    """Return squared distances of pairs as int64, in units of a common grid, and which of them are exact.

    The unit is the power of two that makes the largest number at hand just fit: Σ(a - b)² < 2⁶³.
    """
    dim = codebook.shape[1]
    room = 30 - math.ceil(math.log2(dim) / 2)
    # frexp: the largest number is below 2^exponent; 2^shift itself must be a float64
    shift = min(room - math.frexp(max(_largest(z), _largest(codebook)))[1], 1000)
    blocks: list[tuple[Tensor, Tensor]] = []
    step = max(1, _BLOCK // dim)
    for r, c in zip(row.split(step), code.split(step), strict=True):
        (a, a_exact), (b, b_exact) = _to_grid(z[r], shift), _to_grid(codebook[c], shift)
        blocks.append(((a - b).square_().sum(1), a_exact & b_exact))
    distance, exact = zip(*blocks, strict=True)
    return torch.cat(distance), torch.cat(exact)


def _largest(x: Tensor) -> float:
    return max(float(x.abs().nan_to_num(0, 0).max()), torch.finfo(torch.float64).tiny)


def _to_grid(x: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """Return x·2^shift as int64 and, a row, whether that is exact."""
    wide = x.double()
    whole = (wide * 2.0**shift).nan_to_num(0, 0, 0).round()
    # not `whole == wide * 2^shift`: a product that underflows is whole
    return whole.long(), (whole * 2.0**-shift == wide).all(1)


def _nearest_rational(z: Tensor, codebook: Tensor, candidates: Tensor) -> int:
    """Compare squared distances as whole numbers of any length; codes that are not finite are farthest of all."""
    point = [_whole(x) for x in z.double().tolist()]
    best, nearest = None, int(candidates[0])
    for k in candidates.tolist():
        code = codebook[k].double().tolist()
        if all(map(math.isfinite, code)):
            distance = sum((a - _whole(b)) ** 2 for a, b in zip(point, code, strict=True))
            if best is None or distance < best:
                best, nearest = distance, k
    return nearest


def _whole(x: float) -> int:
    """Return x in units of the least subnormal number of float64, exactly."""
    numerator, denominator = x.as_integer_ratio()
    return numerator << (1075 - denominator.bit_length())
