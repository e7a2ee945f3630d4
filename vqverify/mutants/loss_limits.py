"""Losses whose gradient is not the slope of their value, or whose value is of other codes than the nearest."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqverify.mutant import Mutant
from vqverify.mutants.base import DictLayer, EmaLayer, ImageLayer


class CommitmentTwice(DictLayer):
    """Two losses of their own, the commitment with its stop-gradient at the latents: the codebook's term again."""

    def __init__(self, dim: int, codebook_size: int) -> None:
        super().__init__(dim, codebook_size)

    def forward(self, z: Tensor) -> dict[str, Any]:
        """Z (B, N, D) to indices, quantized, commitment and codebook loss."""
        out = super().forward(z)
        q = self.codes_[out["indices"]]
        del out["loss"]
        return out | {"commitment": F.mse_loss(z.detach(), q), "codebook": F.mse_loss(q, z.detach())}


class CodebookOverwritten(EmaLayer):
    """The loss is the least expanded distance, whose backward reads the table; the update writes it through .data."""

    @torch.no_grad()
    def update(self, flat: Tensor, codes: Tensor) -> None:
        """One EMA step that autograd does not see."""
        hot = F.one_hot(codes, len(self.table)).to(flat)
        self.size.mul_(self.decay).add_(hot.sum(0), alpha=1 - self.decay)
        self.total.mul_(self.decay).add_(hot.t() @ flat, alpha=1 - self.decay)
        self.table.data.copy_(self.total / self.size[:, None])

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Z (…, D) to (z_q, codes, loss)."""
        flat = z.reshape(-1, z.shape[-1])
        d = flat.square().sum(1, keepdim=True) - 2 * flat @ self.table.t() + self.table.square().sum(1)
        least, codes = d.min(1)
        q = self.table[codes]
        if self.training:
            self.update(flat.detach(), codes)
        loss = self.commitment_weight * least.mean() / z.shape[-1]
        return self.estimate(flat, q).reshape(z.shape), codes.reshape(z.shape[:-1]), loss


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return ctx.factor * grads[0], None


class ScaledInBackward(DictLayer):
    """The gradient of the commitment is multiplied on its way back, beside the weight."""

    def forward(self, z: Tensor) -> dict[str, Any]:
        """Z (B, N, D) to indices, quantized and loss."""
        out = super().forward(z)
        q = self.codes_[out["indices"]]
        loss = F.mse_loss(q, z.detach()) + self.beta * F.mse_loss(_Multiply.apply(z, 0.1), q.detach())
        return {**out, "loss": loss}


class OverAllCodes(EmaLayer):
    """The mean over all codes in place of the nearest one."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Z (…, D) to (z_q, codes, loss)."""
        z_q, codes, _ = super().forward(z)
        loss = self.commitment_weight * (z.reshape(-1, 1, z.shape[-1]) - self.table).square().mean()
        return z_q, codes, loss


class Misaligned(ImageLayer):
    """Latents and codes are flattened in two ways: each latent meets its neighbour's code."""

    def loss(self, z: Tensor, q: Tensor) -> Tensor:
        """Both terms, one row off."""
        return super().loss(z, q.roll(1, 0))


HERE = "vqverify.mutants.loss_limits"
SIZES = {"dim": 4, "codebook_size": 8}
IMAGE = {"embedding_dim": 4, "num_embeddings": 8}
MUTANTS = (
    Mutant(
        "commitment_twice",
        f"{HERE}:CommitmentTwice",
        ("loss.trains",),
        "the commitment's stop-gradient at the latents, with a loss of its own",
        SIZES,
        "descript-audio-codec's pair of losses; systematic: exchanged",
    ),
    Mutant(
        "codebook_overwritten_before_backward",
        f"{HERE}:CodebookOverwritten",
        ("loss.gradient_of_value", "loss.gradients"),
        "the codebook that backward reads is written through .data",
        SIZES,
        "torch: in-place writes through .data bypass the version check",
    ),
    Mutant(
        "loss_scaled_in_backward",
        f"{HERE}:ScaledInBackward",
        ("loss.gradient_of_value", "loss.gradients"),
        "gradient multiplied beside the weight",
        SIZES,
        "fairseq's GradMultiply around the latents of a loss",
    ),
    Mutant(
        "loss_over_all_codes",
        f"{HERE}:OverAllCodes",
        ("loss.variance_bound", "loss.gradients"),
        "mean over the codes for their minimum",
        SIZES,
        "systematic: averaged; theory T33",
    ),
    Mutant(
        "loss_misaligned",
        f"{HERE}:Misaligned",
        ("loss.variance_bound", "loss.gradients"),
        "the loss meets the neighbour's code",
        IMAGE,
        "systematic: order of axes when flattening",
    ),
)
