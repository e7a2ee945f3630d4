"""Affine reparametrization by moments and learnt: right in the base layers, wrong below (001 eq. 15, 43)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqverify.mutant import Mutant


class MomentLayer(nn.Module):
    """A learnt table whose codes take mean and deviation of the latents, by moving averages, rightly."""

    def __init__(self, dim: int, codebook_size: int, affine_param: bool = True) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(codebook_size, dim))
        self.on, self.gamma = affine_param, 0.9
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))
        self.register_buffer("seen", torch.tensor(False))

    mean: Tensor
    variance: Tensor
    seen: Tensor

    @torch.no_grad()
    def observe(self, flat: Tensor) -> None:
        """Moments of the latents."""
        weight = 1 - self.gamma if bool(self.seen) else 1.0
        self.mean.lerp_(flat.mean(0), weight)
        self.variance.lerp_(flat.var(0, correction=0), weight)
        self.seen.fill_(True)

    def scaled(self, x: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
        """The map, from the variance of the table."""
        return (x - centre) * (self.variance / spread).sqrt() + self.mean

    def codes(self) -> Tensor:
        """Effective codes (K, D)."""
        fixed = self.table.detach()
        return self.scaled(self.table, fixed.mean(0), fixed.var(0, correction=0))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (B, N, D) to (z_q, codes, loss)."""
        if self.training:
            self.observe(z.detach().reshape(-1, z.shape[-1]))
        e = self.codes() if bool(self.seen) else self.table
        index = (z[..., None, :] - self.searched(e)).square().sum(-1).argmin(-1)
        q = F.embedding(index, e)
        loss = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
        return z + (q - z).detach(), index, loss

    def searched(self, codes: Tensor) -> Tensor:
        """What latents are compared with."""
        return codes


class Unsearched(MomentLayer):
    """Latents are compared with the table, and given what the map makes of it."""

    def searched(self, codes: Tensor) -> Tensor:  # noqa: ARG002
        """The table."""
        return self.table


class VarianceForDeviation(MomentLayer):
    """The ratio of variances scales the codes."""

    def scaled(self, x: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
        """No root."""
        return (x - centre) * (self.variance / spread) + self.mean


class MeansSwapped(MomentLayer):
    """The mean of the latents is subtracted, that of the codes added."""

    def scaled(self, x: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
        """Means in each other's place."""
        return (x - self.mean) * (self.variance / spread).sqrt() + centre


class ReplacingMoments(MomentLayer):
    """Codes unused for some passes become latents, in use as they are: rightly."""

    def __init__(self, dim: int, codebook_size: int, affine_param: bool = True, lifespan: int = 2) -> None:
        super().__init__(dim, codebook_size, affine_param)
        self.lifespan = lifespan
        self.register_buffer("idle", torch.zeros(codebook_size, dtype=torch.long))

    idle: Tensor

    def placed(self, fresh: Tensor) -> Tensor:
        """The inverse of the map."""
        spread = self.table.var(0, correction=0)
        return (fresh - self.mean) * (spread / self.variance).sqrt() + self.table.mean(0)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (B, N, D) to (z_q, codes, loss)."""
        out = super().forward(z)
        if self.training:
            self.replace(z.detach().reshape(-1, z.shape[-1]), out[1].reshape(-1))
        return out

    @torch.no_grad()
    def replace(self, flat: Tensor, codes: Tensor) -> None:
        """Write latents into rows that nothing chose; no one twice. The graph of this pass keeps the old rows."""
        self.idle.add_(1)
        self.idle[codes] = 0
        dead = (self.idle >= self.lifespan).nonzero().flatten()[: len(flat)]
        fresh = self.placed(flat[torch.randperm(len(flat))[: len(dead)]])
        self.table.data = self.table.data.index_copy(0, dead, fresh)
        self.idle[dead] = 0


class ReplacedRaw(ReplacingMoments):
    """Latents are stored where the map takes them for rows of the table."""

    def placed(self, fresh: Tensor) -> Tensor:
        """As they come."""
        return fresh


class LearntLayer(nn.Module):
    """A table with learnt scale and shift for all codes, rightly."""

    def __init__(self, dim: int, codebook_size: int, rate: float = 2.0) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(codebook_size, dim))
        self.gain, self.shift = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.rate = rate

    def codes(self) -> Tensor:
        """Effective codes (K, D)."""
        return (1 + self.rate * self.gain) * self.table + self.rate * self.shift

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (B, N, D) to (z_q, loss, codes)."""
        e = self.codes()
        index = (z[..., None, :] - e).square().sum(-1).argmin(-1)
        q = F.embedding(index, e)
        loss = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
        return z + (q - z).detach(), loss, index


class RateSquared(LearntLayer):
    """The rate scales the gain twice."""

    def codes(self) -> Tensor:
        """A rate a² for the scale, and a for the shift."""
        return (1 + self.rate**2 * self.gain) * self.table + self.rate * self.shift


HERE = "vqverify.mutants.update_affine"
SIZES = {"dim": 4, "codebook_size": 8}
ROWS = ("update.affine",)
MUTANTS = (
    Mutant("affine_variance", f"{HERE}:VarianceForDeviation", ROWS, "variances for deviations", SIZES, "theory T26"),
    Mutant("affine_means_swapped", f"{HERE}:MeansSwapped", ROWS, "means exchanged", SIZES, "theory T26"),
    Mutant(
        "affine_replaced_raw",
        f"{HERE}:ReplacedRaw",
        ROWS,
        "replaced codes are stored as raw latents",
        SIZES,
        "vector-quantize-pytorch 1.26.0, and 1.32.0 again",
    ),
    Mutant(
        "affine_unsearched",
        f"{HERE}:Unsearched",
        ROWS,
        "the search is in the table, not among the codes",
        SIZES,
        "systematic: search",
    ),
    Mutant("affine_rate_squared", f"{HERE}:RateSquared", ROWS, "the rate counted twice", SIZES, "theory T25"),
)
