"""Stacks with one mistake each, and the right one that they were made from."""

from __future__ import annotations

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
        """From z (B, N, D) to (z_q, codes (B, N, M), loss)."""
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
        """The next residual, r − sg q."""
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
        del z
        return torch.stack(outs).mean(0)


HERE = "vqverify.mutants.residual"
STACK = {"dim": 8, "codebook_size": 16, "num_quantizers": 3}
MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "residual_gain",
        f"{HERE}:Gain",
        ("residual.gradient",),
        "identity counted once a level",
        STACK,
        "vector-quantize-pytorch's ResidualVQ(rotation_trick=False); theory T34",
    ),
    Mutant(
        "residual_attached_twice",
        f"{HERE}:AttachedTwice",
        ("residual.gradient", "estimator.no_bypass"),
        "straight-through around attached levels",
        STACK,
        "systematic: doubled path",
    ),
    Mutant(
        "residual_rotation_detached",
        f"{HERE}:RotationDetached",
        ("residual.gradient",),
        "rotations on detached residuals",
        STACK,
        "systematic: detached; theory T13, T34",
    ),
    Mutant(
        "residual_first_loss_only",
        f"{HERE}:FirstLossOnly",
        ("residual.gradient", "loss.trains"),
        "later losses left out",
        STACK,
        "vector-quantize-pytorch: no gradient in later levels",
    ),
    Mutant("residual_stale", f"{HERE}:Stale", ("residual.sum",), "residual from z again", STACK, "systematic: stale"),
    Mutant(
        "residual_averaged", f"{HERE}:Averaged", ("residual.sum",), "mean of the levels", STACK, "systematic: averaged"
    ),
)
