"""Stacks, scalar, sign and grouped quantizers with one mistake each, and the right ones that they were made from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqverify.mutant import Mutant


class StackLayer(nn.Module):
    """(B, N, D), one (M, K, D) parameter; levels straight-through on the residual of attached codes. The control."""

    def __init__(self, dim: int, codebook_size: int, num_quantizers: int = 3, commitment_weight: float = 0.25) -> None:
        super().__init__()
        scales = 0.5 ** torch.arange(num_quantizers).view(-1, 1, 1)
        self.books = nn.Parameter(scales * torch.randn(num_quantizers, codebook_size, dim))
        self.commitment_weight = commitment_weight

    def estimate(self, r: Tensor, q: Tensor) -> Tensor:
        """Straight-through."""
        return r + (q - r).detach()

    def left(self, r: Tensor, out: Tensor) -> Tensor:
        """What the next level gets."""
        return r - out

    def gather(self, outs: list[Tensor], z: Tensor) -> Tensor:
        """z_q from the levels."""
        del z
        return torch.stack(outs).sum(0)

    def cost(self, r: Tensor, q: Tensor, level: int) -> Tensor:
        """Codebook and commitment loss of one level."""
        del level
        return F.mse_loss(q, r.detach()) + self.commitment_weight * F.mse_loss(r, q.detach())

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z (B, N, D) to (z_q, codes (B, N, M), loss)."""
        r, anchor, outs, codes, loss = z, z, list[Tensor](), list[Tensor](), z.new_zeros(())
        for level, book in enumerate(self.books):
            index = torch.cdist(r.detach(), book.expand(len(r), -1, -1)).argmin(-1)
            q = F.embedding(index, book)
            loss = loss + self.cost(anchor, q, level)
            out = self.estimate(r, q)
            r, anchor = self.left(r, out), self.left(anchor, out.detach())
            outs.append(out)
            codes.append(index)
        return self.gather(outs, z), torch.stack(codes, -1), loss


class Gain(StackLayer):
    """The residual subtracts detached codes: every level carries the identity."""

    def left(self, r: Tensor, out: Tensor) -> Tensor:
        """r − sg q."""
        return r - out.detach()


class AttachedTwice(StackLayer):
    """A second straight-through around a sum that is attached already."""

    def gather(self, outs: list[Tensor], z: Tensor) -> Tensor:
        """z_q with the gradient of z twice."""
        total = super().gather(outs, z)
        return total + (z - z.detach())


class RotationDetached(Gain):
    """Rotation a level, on residuals of detached codes: J₁ + J₂ + …, which is not I where the stack is exact."""

    def estimate(self, r: Tensor, q: Tensor) -> Tensor:
        """λRr with detached factors."""
        u, v = F.normalize(r, dim=-1).detach(), F.normalize(q, dim=-1).detach()
        w = F.normalize(u + v, dim=-1)
        scale = (q.norm(dim=-1, keepdim=True) / r.norm(dim=-1, keepdim=True).clamp_min(1e-6)).detach()
        return scale * (r - 2 * w * (w * r).sum(-1, keepdim=True) + 2 * v * (u * r).sum(-1, keepdim=True))


class FirstLossOnly(StackLayer):
    """Only the first level's loss is added up: the other codes never move."""

    def cost(self, r: Tensor, q: Tensor, level: int) -> Tensor:
        """0 after the first level."""
        return super().cost(r, q, level) if level == 0 else r.new_zeros(())


class Stale(StackLayer):
    """Each level searches z minus the last code only."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The residual starts from z again."""
        r, outs, codes, loss = z, list[Tensor](), list[Tensor](), z.new_zeros(())
        for level, book in enumerate(self.books):
            index = torch.cdist(r.detach(), book.expand(len(r), -1, -1)).argmin(-1)
            q = F.embedding(index, book)
            loss = loss + self.cost(r, q, level)
            outs.append(q)
            codes.append(index)
            r = z - q.detach()
        total = torch.stack(outs).sum(0)
        return z + (total - z).detach(), torch.stack(codes, -1), loss


class Averaged(StackLayer):
    """The mean of the levels for their sum."""

    def gather(self, outs: list[Tensor], z: Tensor) -> Tensor:
        """Mean over the levels."""
        return torch.stack(outs).mean(0)


class ScalarLayer(nn.Module):
    """(B, …, D), FSQ as in its paper's appendix. The control of its mutants."""

    eps = 1e-3

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = [int(level) for level in levels]
        self.register_buffer("_l", torch.tensor(self.levels), persistent=False)
        self.register_buffer("_basis", torch.tensor(self.basis()), persistent=False)

    _l: Tensor
    _basis: Tensor

    def basis(self) -> list[int]:
        """Strides of the code."""
        return [math.prod(self.levels[:i]) for i in range(len(self.levels))]

    def bound(self, z: Tensor) -> Tensor:
        """h tanh(z + s) − o."""
        half = (self._l - 1) * (1 + self.eps) / 2
        offset = (self._l % 2 == 0) * 0.5
        return (z + (offset / half).atanh()).tanh() * half - offset

    def index(self, grid: Tensor) -> Tensor:
        """The code of a grid point."""
        return ((grid.long() + self._l // 2) * self._basis).sum(-1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (…, D) to (z_q, codes)."""
        bounded = self.bound(z)
        grid = bounded.round()
        z_q = (bounded + (grid - bounded).detach()) / (self._l // 2)
        return z_q, self.index(grid.detach())


class Unoffset(ScalarLayer):
    """No offset for even L: the outer levels are half as wide again, and there is one too many."""

    def bound(self, z: Tensor) -> Tensor:
        """h tanh(z)."""
        return z.tanh() * (self._l - 1) * (1 + self.eps) / 2


class HalfLevel(ScalarLayer):
    """The offset of even L is used for odd L too."""

    def bound(self, z: Tensor) -> Tensor:
        """h tanh(z + s) − ½ for every L."""
        half = (self._l - 1) * (1 - self.eps) / 2
        return (z + (0.5 / half).atanh()).tanh() * half - 0.5


class Unshifted(ScalarLayer):
    """The offset is subtracted, and the tanh not shifted to meet it: z = 0 lies on a boundary."""

    def bound(self, z: Tensor) -> Tensor:
        """h tanh(z) − o."""
        return z.tanh() * (self._l - 1) * (1 + self.eps) / 2 - (self._l % 2 == 0) * 0.5


class LevelTooMany(ScalarLayer):
    """h = L/2 for (L − 1)/2."""

    def bound(self, z: Tensor) -> Tensor:
        """L/2 tanh(z)."""
        return z.tanh() * self._l * (1 + self.eps) / 2


class LevelLostScalar(ScalarLayer):
    """ε with the wrong sign and far too large: the outermost level is never reached."""

    eps = -0.3


class IndexBf16(ScalarLayer):
    """The code is added up in bfloat16, which holds 256 integers."""

    def index(self, grid: Tensor) -> Tensor:
        """Σ in bfloat16."""
        return ((grid + self._l // 2).bfloat16() * self._basis.bfloat16()).sum(-1).long()


class IndexInt8(ScalarLayer):
    """The code is returned in int8."""

    def index(self, grid: Tensor) -> Tensor:
        """Wraps at 128."""
        return super().index(grid).to(torch.int8)


class BasisInclusive(ScalarLayer):
    """cumprod without the leading 1."""

    def basis(self) -> list[int]:
        """Π_{j ≤ i} L_j."""
        return [math.prod(self.levels[: i + 1]) for i in range(len(self.levels))]


class NoisyTrain(ScalarLayer):
    """Codes come after the noise of training, and run out of range."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z (…, D) to (z_q, codes)."""
        bounded = self.bound(z)
        noise = (torch.rand_like(bounded) - 0.5).mul(3).round() * self.training
        grid = bounded.round() + noise
        return (bounded + (grid - bounded).detach()) / (self._l // 2), self.index(grid.detach())


HERE = "vqverify.mutants.structure"
STACK = {"dim": 8, "codebook_size": 16, "num_quantizers": 3}
LEVELS = {"levels": [8, 5, 5]}
FSQ = ("fsq.bijection",)

MUTANTS: tuple[Mutant, ...] = (
    Mutant("residual_gain", f"{HERE}:Gain", ("residual.gradient",), "identity counted once a level", STACK,
           "vector-quantize-pytorch's ResidualVQ(rotation_trick=False); theory T34"),
    Mutant("residual_attached_twice", f"{HERE}:AttachedTwice", ("residual.gradient",), "straight-through around attached levels", STACK,
           "systematic: doubled path"),
    Mutant("residual_rotation_detached", f"{HERE}:RotationDetached", ("residual.gradient",), "rotations on detached residuals", STACK,
           "systematic: detached; theory T13, T34"),
    Mutant("residual_first_loss_only", f"{HERE}:FirstLossOnly", ("residual.gradient", "loss.trains"), "later losses left out", STACK,
           "vector-quantize-pytorch: no gradient in later levels"),
    Mutant("residual_stale", f"{HERE}:Stale", ("residual.sum",), "residual from z again", STACK, "systematic: stale"),
    Mutant("residual_averaged", f"{HERE}:Averaged", ("residual.sum",), "mean of the levels", STACK, "systematic: averaged"),
    Mutant("fsq_unoffset", f"{HERE}:Unoffset", FSQ, "no offset for even L", LEVELS, "theory T36: even-L off by one"),
    Mutant("fsq_half_level", f"{HERE}:HalfLevel", FSQ, "even L's offset for odd L", LEVELS, "theory T36"),
    Mutant("fsq_unshifted", f"{HERE}:Unshifted", FSQ, "tanh not shifted", LEVELS, "Mentzer 2023, appendix A.1: s forgotten"),
    Mutant("fsq_level_too_many", f"{HERE}:LevelTooMany", FSQ, "L/2 for (L − 1)/2", LEVELS, "systematic: off by one"),
    Mutant("fsq_level_lost", f"{HERE}:LevelLostScalar", FSQ, "outer levels out of reach", LEVELS, "systematic: sign of ε"),
    Mutant("fsq_index_bf16", f"{HERE}:IndexBf16", FSQ, "code in bfloat16", {"levels": [8, 8, 8]},
           "vector-quantize-pytorch's FSQ under autocast; theory T36"),
    Mutant("fsq_index_int8", f"{HERE}:IndexInt8", FSQ, "code in int8", LEVELS, "systematic: dtype"),
    Mutant("fsq_basis_inclusive", f"{HERE}:BasisInclusive", FSQ, "strides from L₁ on", LEVELS, "systematic: off by one"),
    Mutant("fsq_noise_in_code", f"{HERE}:NoisyTrain", FSQ, "code after the noise", LEVELS, "systematic: order of operations"),
)
