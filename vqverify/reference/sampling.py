"""Stochastic codes: p_j ∝ exp(-|z - c_j|²/T) (Sønderby et al. 2017; Huh et al. 2023, eq. 12; theory T30)."""

from __future__ import annotations

import torch
from torch import Tensor

from vqverify.reference import _checks

_CHUNK = 1 << 18
"""Probabilities at hand at a time."""


def sample_codes(
    z: Tensor, codebook: Tensor, temperature: float, *, generator: torch.Generator | None = None
) -> Tensor:
    """Return a random code a latent: argmin_j (|z - c_j|²/T - G_j) with independent Gumbel G. **Stochastic**.

    One draw a latent and code. T → 0 gives the nearest code. Distances are computed by differences: exact to
    (D + 2)u relatively (T28).

    Args:
        z: latents (..., D).
        codebook: codes (K, D).
        temperature: T > 0, in units of squared distance.
        generator: where the noise is drawn from; the global generator if None.

    Returns:
        int64 indices (...).

    Raises:
        TypeError: on a dtype that is not floating-point.
        ValueError: on a shape or temperature that does not fit, or latents that are not finite, or so far from all
            codes that a squared distance overflows.
    """
    _checks.matrix_pair(z, codebook)
    temperature = _checks.positive_number("temperature", temperature)
    _checks.finite("z", z)
    rows = z.detach().reshape(-1, z.shape[-1])
    wide = torch.promote_types(torch.promote_types(z.dtype, codebook.dtype), torch.float32)
    codes = codebook.detach().to(wide)
    out = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    step = max(1, _CHUNK // codebook.numel())
    for part, index in zip(rows.split(step), out.split(step), strict=True):
        # codes that somebody set to NaN are never drawn, as they are never nearest
        distance = (part.to(wide).unsqueeze(1) - codes).square_().sum(2).nan_to_num_(torch.inf, torch.inf)
        least = distance.amin(1, keepdim=True)
        _checks.finite("the squared distance of z to the nearest code", least)
        # subtract the minimum first: a small T would overflow every distance
        energy = (distance - least).div_(temperature)
        torch.argmin(energy.sub_(gumbel_like(energy, generator)), 1, out=index)
    return out.reshape(z.shape[:-1])


def gumbel_like(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return standard Gumbel noise -log E, E exponential, shaped as ``x``."""
    noise = torch.empty_like(x).exponential_(generator=generator)
    return noise.clamp_(min=torch.finfo(x.dtype).tiny).log_().neg_()


def warm_up(step: int, steps: int, start: float = 0.0, end: float = 1.0) -> float:
    """Return the value of a linear ramp from ``start`` at step 0 to ``end`` at ``steps`` and after.

    For a temperature that cools, a learning rate or a weight that warms (Huh et al. 2023, figure 5).

    Raises:
        ValueError: if ``step`` or ``steps`` is out of range.
    """
    _checks.positive_int("step", step, at_least=0)
    _checks.positive_int("steps", steps)
    done = min(1.0, step / steps)
    return (1 - done) * start + done * end
