"""The way in and out of every layer: layout, mask, and what is said about a bad input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vqverify.reference import _checks
from vqverify.reference.result import Quantized

if TYPE_CHECKING:
    from torch import Tensor


def enter(z: Tensor, dim: int, mask: Tensor | None, *, channel_first: bool) -> Tensor:
    """Return latents (..., D) of checked input, 0 where masked.

    Raises:
        TypeError: on a dtype that does not fit.
        ValueError: on a shape that does not fit.
    """
    _checks.latents("z", z, dim, axis=1 if channel_first else -1)
    rows = z.movedim(1, -1) if channel_first else z
    if mask is None:
        return rows
    _checks.mask(mask, rows.shape[:-1])
    return torch.where(mask.unsqueeze(-1), rows, 0)


def leave(z_q: Tensor, codes: Tensor, loss: Tensor, mask: Tensor | None, *, channel_first: bool) -> Quantized:
    """Return a result in the layer's layout, z_q 0 and codes (..., or ..., L) -1 where masked."""
    if mask is not None:
        z_q = torch.where(mask.unsqueeze(-1), z_q, 0)
        codes = torch.where(mask if codes.ndim == mask.ndim else mask.unsqueeze(-1), codes, -1)
    return Quantized(z_q.movedim(-1, 1) if channel_first else z_q, codes, loss)


def decoded(z_q: Tensor, index: Tensor, *, channel_first: bool) -> Tensor:
    """Return decoded latents in the layer's layout, 0 where the code ``index`` (...) is -1."""
    z_q = torch.where((index >= 0).unsqueeze(-1), z_q, 0)
    return z_q.movedim(-1, 1) if channel_first else z_q


def kept(rows: Tensor, mask: Tensor | None) -> Tensor:
    """Return the rows (N, D) that count."""
    return rows.reshape(-1, rows.shape[-1]) if mask is None else rows[mask]
