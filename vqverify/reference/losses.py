"""Commitment and codebook losses, and the conversions between the conventions of the papers (theory T16)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from vqverify.reference import _checks

if TYPE_CHECKING:
    from torch import Tensor


def commitment_loss(z: Tensor, q: Tensor, keep: Tensor | None = None, *, reduction: str = "mean") -> Tensor:
    """Return mean |z - sg q|² over all B·D elements: its gradient moves the latents only (2 (z - q)/(B·D)).

    Args:
        z: latents (..., D).
        q: codes, the same shape.
        keep: bool (...), True for the latents that count; the mean is over those.
        reduction: ``"mean"``, or ``"sum"`` over all elements.

    Returns:
        A scalar, in at least float32; 0 where nothing counts.

    Raises:
        TypeError: on a dtype that is not floating-point, or a ``keep`` that is not bool.
        ValueError: if a shape does not fit, or the reduction is unknown.
    """
    return _square(z, q.detach(), keep, reduction)


def codebook_loss(z: Tensor, q: Tensor, keep: Tensor | None = None, *, reduction: str = "mean") -> Tensor:
    """Return mean |sg z - q|² over all B·D elements: its gradient moves the codes only (2 (q - z)/(B·D)).

    Arguments and errors are those of :func:`commitment_loss`.
    """
    return _square(z.detach(), q, keep, reduction)


def interpolated_loss(z: Tensor, q: Tensor, beta: float, keep: Tensor | None = None) -> Tensor:
    """Return the mean of A_β = (1 - β) ½|z - sg q|² + β ½|sg z - q|² (Huh et al. 2023, eq. 8-9; T16).

    The mean is over B·D elements. The value is ½ mean |z - q|² for every β; 2(1 + b) A_β at β = 1/(1 + b) has
    the gradients of the codebook loss plus b times the commitment loss, of value (1 + b) mean |z - q|².

    Raises:
        ValueError: if β is outside [0, 1].
    """
    beta = _checks.number("beta", beta, 0, 1)
    return (1 - beta) / 2 * commitment_loss(z, q, keep) + beta / 2 * codebook_loss(z, q, keep)


def beta_of_commitment(weight: float) -> float:
    """Return the β of A_β that matches |sg z - q|² + b |z - sg q|²: β = 1/(1 + b) (T16; b = ¼ gives 0.8)."""
    return 1 / (1 + _checks.number("weight", weight))


def _square(z: Tensor, q: Tensor, keep: Tensor | None, reduction: str) -> Tensor:
    _checks.same_shape("q", q, "z", z)
    if keep is not None:
        _checks.mask(keep, z.shape[:-1], "keep")
    mean = _checks.choice("reduction", reduction, {"mean": True, "sum": False})
    # half precision would lose the mean: at least float32
    wide = torch.promote_types(torch.promote_types(z.dtype, q.dtype), torch.float32)
    z, q = z.to(wide), q.to(wide)
    if keep is None:
        # an empty mean is 0, not NaN
        return functional.mse_loss(z, q, reduction=reduction if z.numel() else "sum")
    # where, not a product: what is masked may be infinite or NaN
    total = torch.where(keep.unsqueeze(-1), z - q, 0).square().sum()
    return total / (keep.sum() * z.shape[-1]).clamp(min=1) if mean else total
