"""Small measurements that every probe needs: generic latents, which rows differ, how large, what gradient."""

from __future__ import annotations

import torch
from torch import Tensor


def latents(n: int, dim: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Generic latents (n, dim), from a stream that no construction seed is likely to share."""
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(0x5EED0000 + seed)).to(dtype)


def differs(a: Tensor, b: Tensor, tolerance: float) -> Tensor:
    """Which rows of two tensors (N, ...) differ by more than a tolerance; NaN equals NaN."""
    change = (a - b).abs().nan_to_num(0.0) > tolerance
    change |= a.isnan() != b.isnan()
    return change.flatten(1).any(1) if change.ndim > 1 else change


def scale_of(value: Tensor) -> float:
    """Typical magnitude of the finite entries of a tensor, at least tiny."""
    finite = value[value.isfinite()]
    return max(float(finite.abs().mean()) if finite.numel() else 0.0, 1e-12)


def pull_sum(value: Tensor | None, leaf: Tensor) -> Tensor | None:
    """Gradient of a generic weighted sum of a tensor's entries; None if nothing connects them."""
    if value is None or not value.requires_grad:
        return None
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(5)).to(value)
    try:
        (grad,) = torch.autograd.grad(value, leaf, weights, retain_graph=True, allow_unused=True)
    except RuntimeError:
        return None
    return grad
