"""Commitment and codebook losses, and the conversions between the conventions of the papers (theory T16)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor


def commitment_loss(z: Tensor, q: Tensor, keep: Tensor | None = None) -> Tensor:
    """Return mean |z - sg q|² over all B·D elements: its gradient moves the latents only (2 (z - q)/(B·D)).

    Args:
        z: latents (..., D).
        q: codes, the same shape.
        keep: bool (...), True for the latents that count; the mean is over those.

    Returns:
        A scalar, in at least float32; 0 where nothing counts.
    """
    return _mean_square(z, q.detach(), keep)


def codebook_loss(z: Tensor, q: Tensor, keep: Tensor | None = None) -> Tensor:
    """Return mean |sg z - q|² over all B·D elements: its gradient moves the codes only (2 (q - z)/(B·D))."""
    return _mean_square(z.detach(), q, keep)


def interpolated_loss(z: Tensor, q: Tensor, beta: float, keep: Tensor | None = None) -> Tensor:
    """Return the mean of A_β = (1 - β) ½|z - sg q|² + β ½|sg z - q|² (Huh et al. 2023, eq. 8-9; T16).

    The mean is over B·D elements. The value is ½ mean |z - q|² for every β; 2(1 + b) A_β at β = 1/(1 + b) has
    the gradients of the codebook loss plus b times the commitment loss, of value (1 + b) mean |z - q|².

    Raises:
        ValueError: if β is outside [0, 1].
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must lie in [0, 1]; it was {beta!r}")
    return (1 - beta) / 2 * commitment_loss(z, q, keep) + beta / 2 * codebook_loss(z, q, keep)


def beta_of_commitment(weight: float) -> float:
    """Return the β of A_β that matches |sg z - q|² + b |z - sg q|²: β = 1/(1 + b) (T16; b = ¼ gives 0.8)."""
    if weight < 0:
        raise ValueError(f"weight must be at least 0; it was {weight!r}")
    return 1 / (1 + weight)


def _mean_square(z: Tensor, q: Tensor, keep: Tensor | None) -> Tensor:
    # half precision would lose the mean: at least float32
    wide = torch.promote_types(torch.promote_types(z.dtype, q.dtype), torch.float32)
    z, q = z.to(wide), q.to(wide)
    if keep is None and z.numel():
        return functional.mse_loss(z, q)
    if keep is None:
        return (z - q).square().sum()
    # where, not a product: what is masked may be infinite or NaN
    difference = torch.where(keep.unsqueeze(-1), z - q, 0)
    return difference.square().sum() / (keep.sum() * z.shape[-1]).clamp(min=1)
