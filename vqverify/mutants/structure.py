"""Sign and grouped quantizers with one mistake each, and the right ones that they were made from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqverify.mutant import Mutant


class GroupLayer(nn.Module):
    """(B, N, D), G codebooks (G, K, D/G) learned by EMA without smoothing, codes (B, N, G). The control."""

    def __init__(self, dim: int, codebook_size: int, num_groups: int = 2, decay: float = 0.9) -> None:
        super().__init__()
        self.decay, self.groups = decay, num_groups
        self.register_buffer("codes", torch.randn(num_groups, codebook_size, dim // num_groups))
        self.register_buffer("counts", torch.ones(num_groups, codebook_size))
        self.register_buffer("sums", self.codes.clone())

    codes: Tensor
    counts: Tensor
    sums: Tensor

    def prepare(self, x: Tensor) -> Tensor:
        """Latents as they are searched, (G, N, D/G)."""
        return x

    @torch.no_grad()
    def update(self, x: Tensor, index: Tensor) -> None:
        """One EMA step a group."""
        hot = F.one_hot(index, self.codes.shape[1]).to(x)
        self.counts.mul_(self.decay).add_(hot.sum(1), alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(hot.transpose(1, 2) @ x, alpha=1 - self.decay)
        self.codes.copy_(self.sums / self.counts.unsqueeze(-1))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """From z (B, N, D) to (z_q, codes)."""
        x = z.reshape(-1, self.groups, z.shape[-1] // self.groups).transpose(0, 1)
        index = torch.cdist(self.prepare(x.detach()), self.codes).argmin(-1)
        q = torch.stack([F.embedding(i, book) for i, book in zip(index, self.codes, strict=True)])
        if self.training:
            self.update(x.detach(), index)
        out = (x + (q - x).detach()).transpose(0, 1).reshape(z.shape)
        return out, index.t().reshape(*z.shape[:-1], self.groups)


class NormalisedTogether(GroupLayer):
    """In training the search sees latents scaled by the norm of the whole latent."""

    def prepare(self, x: Tensor) -> Tensor:
        """Scaled by 1/(1 + |z|²) over every group."""
        return x / (1 + x.square().sum((0, 2), keepdim=True)) if self.training else x


class AveragedTogether(GroupLayer):
    """Counts are added up over the groups."""

    @torch.no_grad()
    def update(self, x: Tensor, index: Tensor) -> None:
        """One EMA step with the counts of all groups."""
        hot = F.one_hot(index, self.codes.shape[1]).to(x)
        self.counts.mul_(self.decay).add_(hot.sum((0, 1)).expand_as(self.counts), alpha=1 - self.decay)
        self.sums.mul_(self.decay).add_(hot.transpose(1, 2) @ x, alpha=1 - self.decay)
        self.codes.copy_(self.sums / self.counts.unsqueeze(-1))


class SignLayer(nn.Module):
    """(B, N, D), signs and their bits, no stored codebook. The control of its mutants."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def signs(self, z: Tensor) -> Tensor:
        """±1."""
        return torch.where(z > 0, 1.0, -1.0).to(z)

    def index(self, q: Tensor) -> Tensor:
        """Σ 2ⁱ[qᵢ > 0]."""
        return ((q > 0).long() << torch.arange(self.dim, device=q.device)).sum(-1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """From z (B, N, D) to (z_q, codes)."""
        q = self.signs(z)
        return z + (q - z).detach(), self.index(q)


class SignOfZero(SignLayer):
    """torch.sign: 0 has no sign, and no code."""

    def signs(self, z: Tensor) -> Tensor:
        """−1, 0 or 1."""
        return z.sign()


class BitsInt8(SignLayer):
    """Bits packed into one byte, whatever D."""

    def index(self, q: Tensor) -> Tensor:
        """Wraps at 128."""
        return super().index(q).to(torch.int8)


class BitLost(SignLayer):
    """2^(i − 1): the first two bits weigh the same."""

    def index(self, q: Tensor) -> Tensor:
        """Σ 2^max(i − 1, 0)."""
        return ((q > 0).long() << (torch.arange(self.dim) - 1).clamp_min(0)).sum(-1)


HERE = "vqverify.mutants.structure"
MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "groups_normalised_together",
        f"{HERE}:NormalisedTogether",
        ("product.independent",),
        "one norm over all groups",
        {"dim": 8, "codebook_size": 16},
        "systematic: wrong axis",
    ),
    Mutant(
        "groups_averaged_together",
        f"{HERE}:AveragedTogether",
        ("product.independent",),
        "counts mixed over groups",
        {"dim": 8, "codebook_size": 16},
        "systematic: wrong axis",
    ),
    Mutant("sign_of_zero", f"{HERE}:SignOfZero", ("lfq.sign",), "torch.sign(0)", {"dim": 8}, "theory T37: 0 output"),
    Mutant(
        "sign_bits_int8", f"{HERE}:BitsInt8", ("lfq.sign",), "bits in int8", {"dim": 10}, "theory T37: d ≥ 32 in int32"
    ),
    Mutant("sign_bit_lost", f"{HERE}:BitLost", ("lfq.sign",), "2^(i − 1)", {"dim": 6}, "systematic: off by one"),
)
