"""Which of the candidate codes is nearest, decided without rounding."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

_PAIR_BYTES = 1 << 21
"""Memory for one chunk of float64 differences."""


def working_dtype(z: Tensor, codebook: Tensor) -> torch.dtype:
    """Return the dtype of the fast pass: float64 if either side is, else float32."""
    return torch.promote_types(torch.promote_types(z.dtype, codebook.dtype), torch.float32)


def settle(z: Tensor, codebook: Tensor, rows: Tensor) -> Tensor:
    """Return the exact nearest code of the given rows, ties to the lowest index.

    Direct differences in float64 decide all but the nearest calls (relative error (D + 2) u of theory T28);
    those are compared as rational numbers.

    Args:
        z: latents (N, D) as given.
        codebook: codes (K, D) as given.
        rows: the rows to decide (M,), int64.

    Returns:
        int64 indices (M,).

    Raises:
        ValueError: if one of the rows holds NaN or infinity.
    """
    latents, codes = z[rows].double(), codebook.double()
    finite = latents.isfinite().all(1)
    if not bool(finite.all()):
        bad = rows[~finite].tolist()
        shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise ValueError(f"z must be finite; {len(bad)} of its {len(z)} rows hold NaN or infinity: {shown}")
    k, dim = codes.shape
    out = torch.empty_like(rows)
    step = max(1, _PAIR_BYTES // (8 * k * dim))
    slack = 1 + 4 * (dim + 4) * torch.finfo(torch.float64).eps
    for i in range(0, len(rows), step):
        part = slice(i, i + step)
        distance = _distances(latents[part], codes)
        best, index = distance.min(1)
        # NaN and overflow compare as "may be nearest": the rational comparison sorts them out
        close = ~(distance > best.unsqueeze(1) * slack + torch.finfo(torch.float64).tiny)
        for row in (close.sum(1) != 1).nonzero().flatten().tolist():
            candidates = close[row].nonzero().flatten().tolist()
            index[row] = _nearest_rational(latents[i + row], codes, candidates)
        out[part] = index
    return out


def _distances(z: Tensor, codes: Tensor) -> Tensor:
    return (z.unsqueeze(1) - codes).square_().sum(2)


def _nearest_rational(z: Tensor, codes: Tensor, candidates: list[int]) -> int:
    """Compare squared distances as rational numbers; codes that are not finite are farthest of all."""
    point = [Fraction(x) for x in z.tolist()]
    best, nearest = None, candidates[0]
    for k in candidates:
        code = codes[k].tolist()
        if all(map(math.isfinite, code)):
            distance = sum(((a - Fraction(b)) ** 2 for a, b in zip(point, code, strict=True)), Fraction(0))
            if best is None or distance < best:
                best, nearest = distance, k
    return nearest
