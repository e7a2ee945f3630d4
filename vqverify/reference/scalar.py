"""Quantizers without a stored codebook: each channel is rounded to its own few levels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vqverify.reference import _checks
from vqverify.reference._layout import decoded, enter, leave
from vqverify.reference.estimators import straight_through

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vqverify.reference.result import Quantized


class FSQ(nn.Module):
    """Finite scalar quantization (Mentzer et al. 2023, section 3.2; theory T36).

    Channel i is bounded to just over its L_i levels, b(x) = h tanh(x + s) - o with h = (L - 1)(1 + ε)/2,
    o = ½ for even L and s = artanh(o/h), and rounded: to -⌊L/2⌋ ... ⌈L/2⌉ - 1, each of them reached. z_q is
    divided by ⌊L/2⌋, so that it lies in [-1, 1]. The gradient is that of b, rounding counted as the identity.
    All arithmetic is done in at least float32: bfloat16 would skip levels.

    Attributes:
        levels: L_i (D,), int64.
        strides: Π_{j<i} L_j (D,), int64: what one step of channel i adds to the code.
        codebook_size: Π L_i.
    """

    levels: Tensor
    strides: Tensor

    def __init__(self, levels: Sequence[int], *, channel_first: bool = False) -> None:
        """Build a layer.

        Args:
            levels: L_i ≥ 2, one a channel.
            channel_first: latents are (B, D, ...) and not (..., D).

        Raises:
            ValueError: if there is no level, one is below 2 or above 1000, or their product exceeds 2⁶³ - 1.
        """
        super().__init__()
        if isinstance(levels, str) or not hasattr(levels, "__len__") or not len(levels):
            raise ValueError(f"levels must be a list of at least one int; it was {levels!r}")
        sizes = [_checks.positive_int("levels[...]", size, at_least=2) for size in levels]
        if max(sizes) > 1000:
            # (L - 1) ε < 1 keeps tanh's overshoot from adding a level
            raise ValueError(f"levels[...] must be at most 1000; the largest was {max(sizes)}")
        self.codebook_size = math.prod(sizes)
        if self.codebook_size > 2**63 - 1:
            raise ValueError(f"levels must have a product below 2**63; it was {self.codebook_size}")
        self.dim = len(sizes)
        self.channel_first = channel_first
        strides = [math.prod(sizes[:i]) for i in range(len(sizes))]
        self.register_buffer("levels", torch.tensor(sizes), persistent=False)
        self.register_buffer("strides", torch.tensor(strides), persistent=False)

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantize latents (..., D), or (B, D, ...) with ``channel_first``.

        Args:
            z: the latents.
            mask: bool, the shape of the codes; False drops a latent: z_q 0, code -1, out of the loss.

        Returns:
            z_q; codes, Σ ℓ_i Π_{j<i} L_j with ℓ_i in [0, L_i), int64; loss, always 0: there is nothing to
            commit to.

        Raises:
            TypeError: on a dtype that is not floating-point.
            ValueError: on a shape that does not fit, or NaN in the latents.
        """
        rows = enter(z, self.dim, mask, channel_first=self.channel_first)
        bounded = self.bound(rows)
        grid = bounded.detach().round()
        _checks.finite("z", grid, infinity=True)
        z_q = (straight_through(bounded, grid) / self._width(grid)).to(z.dtype)
        codes = self.pack(grid)
        loss = z_q.new_zeros((), dtype=bounded.dtype)
        return leave(z_q, codes, loss, mask, channel_first=self.channel_first)

    def bound(self, z: Tensor) -> Tensor:
        """Return h tanh(z + s) - o (..., D), in at least float32, differentiable."""
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        half = (self.levels - 1).to(z.dtype) * (1.001 / 2)
        offset = (self.levels % 2 == 0).to(z.dtype) / 2
        return half * torch.tanh(z + torch.atanh(offset / half)) - offset

    def pack(self, grid: Tensor) -> Tensor:
        """Return the code of grid points -⌊L/2⌋ ... ⌈L/2⌉ - 1 (..., D), in int64 throughout."""
        return ((grid.long() + self.levels // 2) * self.strides).sum(-1)

    def decode(self, codes: Tensor) -> Tensor:
        """Return z_q of codes (...); -1 (dropped) gives 0.

        Raises:
            TypeError: if ``codes`` has no integer dtype.
            ValueError: if a code is outside [-1, ΠL).
        """
        index = _checks.code_indices(codes, self.codebook_size).unsqueeze(-1)
        grid = (index // self.strides) % self.levels - self.levels // 2
        grid = grid.to(torch.get_default_dtype())
        return decoded(grid / self._width(grid), index.squeeze(-1), channel_first=self.channel_first)

    def extra_repr(self) -> str:
        """Return the levels for ``print``."""
        return f"levels={self.levels.tolist()}"

    def _width(self, like: Tensor) -> Tensor:
        return (self.levels // 2).to(like.dtype)
