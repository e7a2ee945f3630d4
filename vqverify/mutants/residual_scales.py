"""Stacks that squash their residuals again, as if each level met a latent of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqverify.mutant import Mutant
from vqverify.mutants.residual import StackLayer


class Squashed(StackLayer):
    """Each later level searches the tanh of its residual, in the domain that the first one was given."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From z (B, N, D) to (z_q, codes (B, N, M), loss)."""
        r, total, codes, loss = z, torch.zeros_like(z), list[Tensor](), z.new_zeros(())
        for level, book in enumerate(self.books):
            searched = r.detach().tanh() if level else r.detach()
            index = torch.cdist(searched, book.expand(len(r), -1, -1)).argmin(-1)
            q = F.embedding(index, book)
            loss = loss + self.cost(r, q, level)
            r, total = r - q.detach(), total + q.detach()
            codes.append(index)
        return z + (total - z).detach(), torch.stack(codes, -1), loss


class GridStack(nn.Module):
    """(…, D), scalar grids of odd L in [−1, 1], each on what the last left over, times (L − 1)⁻ⁱ. The control."""

    def __init__(self, levels: Sequence[int], num_quantizers: int = 3) -> None:
        super().__init__()
        self.count = num_quantizers
        self.register_buffer("widths", torch.tensor([float(level - 1) for level in levels]), persistent=False)
        strides = torch.tensor([1, *levels[:-1]]).cumprod(0)
        self.register_buffer("strides", strides, persistent=False)

    widths: Tensor
    strides: Tensor

    def inside(self, x: Tensor) -> Tensor:
        """A residual in units of its level, within [−1, 1] already but for rounding."""
        return x.clamp(-1, 1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """From z (…, D) to (z_q, codes (…, M))."""
        bounded = z.tanh()
        r, total, codes = bounded.detach(), torch.zeros_like(z), list[Tensor]()
        for level in range(self.count):
            scale = self.widths**-level
            grid = (self.inside(r / scale) * self.widths / 2).round()
            q = grid / (self.widths / 2) * scale
            r, total = r - q, total + q
            codes.append(((grid + self.widths / 2).long() * self.strides).sum(-1))
        return bounded + (total - bounded).detach(), torch.stack(codes, -1)


class GridSquashed(GridStack):
    """The tanh that bounds a latent bounds every residual again."""

    def inside(self, x: Tensor) -> Tensor:
        """Squashed into (−1, 1)."""
        return x.tanh()


HERE = "vqverify.mutants.residual_scales"
MUTANTS = (
    Mutant(
        "residual_squashed",
        f"{HERE}:Squashed",
        ("residual.distortion", "lookup.nearest"),
        "later levels search the tanh of their residual",
        {"dim": 8, "codebook_size": 16, "num_quantizers": 3},
        "systematic: domain of the first level taken for all",
    ),
    Mutant(
        "residual_grid_squashed",
        f"{HERE}:GridSquashed",
        ("residual.distortion", "residual.gradient"),
        "FSQ's bound applied at every level",
        {"levels": [5, 5, 5], "num_quantizers": 3},
        "vector-quantize-pytorch's ResidualFSQ before residuals were bounded once; domain mismatch between levels",
    ),
)
