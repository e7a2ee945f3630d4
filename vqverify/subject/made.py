"""Codes that a layer computes in each pass, from a frozen codebook, say, or from sums over counts.

They are nowhere stored as they are used, but a pass makes a tensor (K, Dc) of them and takes rows from it:
the tensor whose rows, taken by the returned codes, appear in the same pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vqverify.subject import capture

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def holds(record: Sequence[Tensor], want: Tensor, level: int, levels: int, tolerance: float) -> bool:
    """Whether some recorded tensor holds the rows `want` (N, Dc) of a level, up to `tolerance`."""
    n, dim = want.shape
    return bool((_away(want[None], _seen(record, n, dim, level, levels)) <= tolerance).any())


def _seen(record: Sequence[Tensor], n: int, dim: int, level: int, levels: int) -> Tensor:
    """Everything in a record that may be rows (n, dim) of a level, (R, n, dim)."""
    found = [
        reading.rows(tensor.detach(), dim, levels).double()
        for tensor in record
        for reading in capture.readings(tensor, n, dim, levels)
        if reading.part in {None, level}
    ]
    return torch.stack(found) if found else torch.empty(0, n, dim, dtype=torch.float64)


def _away(wanted: Tensor, seen: Tensor) -> Tensor:
    """How far each of `wanted` (S, N, Dc) is from each of `seen` (R, N, Dc), (S, R)."""
    return torch.cdist(wanted.double().flatten(1), seen.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")


def find(record: Sequence[Tensor], codes: Tensor, level: int, rows: int, dim: int | None = None) -> Tensor | None:
    """The codes (K, Dc) of a level among the recorded tensors; None if there are none.

    Args:
        record: floating tensors of a pass, in order.
        codes: what the pass returned, (N, L).
        level: column of `codes`.
        rows: K.
        dim: Dc, where it is known.
    """
    picks = codes[:, level].clamp(0, rows - 1)
    seen: dict[int, Tensor] = {}
    for tensor in record:
        if tensor.ndim < 2 or tensor.shape[-2] != rows or dim not in {None, tensor.shape[-1]}:
            continue
        if tensor.shape[:-2].numel() > 64:
            continue
        width = tensor.shape[-1]
        if width not in seen:
            seen[width] = _seen(record, len(codes), width, level, codes.shape[1])
        tables = tensor.detach().reshape(-1, rows, width)
        wanted = tables[:, picks]
        near = _away(wanted, seen[width]) <= 1e-3 * wanted.double().flatten(1).norm(dim=1)[:, None]
        if near.any():
            return tables[int(near.any(1).nonzero()[0])].clone()
    return None
