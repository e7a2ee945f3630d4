"""Losses that are wrong in the gradient, in the value, or in what they move."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vqverify.mutant import Mutant
from vqverify.mutants.base import DictLayer, EmaLayer, ImageLayer, RotationLayer


class Swapped(ImageLayer):
    """The weight moves the codes and the latents get the whole of it: stop-gradients exchanged."""

    def loss(self, z: Tensor, q: Tensor) -> Tensor:
        """Stop-gradients exchanged: the value is right."""
        return F.mse_loss(q.detach(), z) + self.commitment_cost * F.mse_loss(q, z.detach())


class HalfLost(ImageLayer):
    """The codebook term is detached on both sides: nothing moves the codes."""

    def loss(self, z: Tensor, q: Tensor) -> Tensor:
        """The value is right."""
        return F.mse_loss(q.detach(), z.detach()) + self.commitment_cost * F.mse_loss(z, q.detach())


class OneDetachMissing(ImageLayer):
    """The codebook term moves the latents as well."""

    def loss(self, z: Tensor, q: Tensor) -> Tensor:
        """The value is right."""
        return F.mse_loss(q, z) + self.commitment_cost * F.mse_loss(z, q.detach())


class Bessel(ImageLayer):
    """An unbiased mean: divided by N·D − 1."""

    def loss(self, z: Tensor, q: Tensor) -> Tensor:
        """Sums, divided by one element too few."""
        count = z.numel() - 1
        codebook, commitment = (q - z.detach()).square().sum(), (z - q.detach()).square().sum()
        return (codebook + self.commitment_cost * commitment) / count


class Huber(ImageLayer):
    """smooth_l1_loss in place of mse_loss: linear beyond 1, halved below."""

    def loss(self, z: Tensor, q: Tensor) -> Tensor:
        """Huber for both terms."""
        return F.smooth_l1_loss(q, z.detach()) + self.commitment_cost * F.smooth_l1_loss(z, q.detach())


class AfterPatch(nn.Module):
    """(B, N, D), Parameter codebook; the loss is computed on the straight-through output."""

    def __init__(self, dim: int, codebook_size: int, commitment_weight: float = 0.25) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.5 * nn.init.normal_(nn.Parameter().new_empty(codebook_size, dim)))
        self.commitment_weight = commitment_weight

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From z (B, N, D) to (z_q, codes, loss)."""
        codes = (z.unsqueeze(-2) - self.weight).square().sum(-1).argmin(-1)
        q = F.embedding(codes, self.weight)
        q = z + (q - z).detach()
        loss = F.mse_loss(q, z.detach()) + self.commitment_weight * F.mse_loss(q.detach(), z)
        return q, codes, loss


class WeightsExchanged(nn.Module):
    """commitment_weight and codebook_weight exchanged."""

    def __init__(self, dim: int, num_codes: int, commitment_weight: float = 0.25, codebook_weight: float = 1.0) -> None:
        super().__init__()
        self.table = nn.Embedding(num_codes, dim)
        nn.init.normal_(self.table.weight)
        self.commitment_weight, self.codebook_weight = commitment_weight, codebook_weight

    def forward(self, x: Tensor) -> dict[str, Any]:
        """From x (B, N, D) to a dict."""
        codes = ((x[..., None, :] - self.table.weight) ** 2).sum(-1).argmin(-1)
        q = self.table(codes)
        commitment, codebook = F.mse_loss(x, q.detach()), F.mse_loss(q, x.detach())
        loss = self.codebook_weight * commitment + self.commitment_weight * codebook
        return {"quantized": x + (q - x).detach(), "indices": codes, "loss": loss}


class AfterRotation(RotationLayer):
    """The commitment is taken to the rotated output, which sends gradients to z itself."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss comes after the estimator."""
        flat = z.reshape(-1, z.shape[-1])
        codes = self.lookup(flat)
        q = self.estimate(flat, self.table[codes])
        if self.training:
            self.update(flat.detach(), codes)
        return q.reshape(z.shape), codes.reshape(z.shape[:-1]), self.commitment_weight * F.mse_loss(flat, q)


class _EmaLoss(EmaLayer):
    """EmaLayer with its loss as a method."""

    def cost(self, z: Tensor, q: Tensor) -> Tensor:
        """The commitment."""
        return self.commitment_weight * F.mse_loss(z, q)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From z (…, D) to (z_q, codes, loss)."""
        flat = z.reshape(-1, z.shape[-1])
        codes = self.lookup(flat)
        q = self.table[codes]
        loss = self.cost(flat, q)
        if self.training:
            self.update(flat.detach(), codes)
        return self.estimate(flat, q).reshape(z.shape), codes.reshape(z.shape[:-1]), loss


class Halved(_EmaLoss):
    """A ½ in front of the square that the weight does not know of."""

    def cost(self, z: Tensor, q: Tensor) -> Tensor:
        """½w |z − q|²."""
        return 0.5 * super().cost(z, q)


class Unsquared(_EmaLoss):
    """The mean distance in place of the mean square."""

    def cost(self, z: Tensor, q: Tensor) -> Tensor:
        """Mean |z − q|."""
        return self.commitment_weight * (z - q).norm(dim=-1).mean()


class Offset(_EmaLoss):
    """An ε added to every square."""

    def cost(self, z: Tensor, q: Tensor) -> Tensor:
        """Mean of |z − q|² + ε."""
        return self.commitment_weight * ((z - q).square() + 1e-2).mean()


class Sign(_EmaLoss):
    """The loss is maximised."""

    def cost(self, z: Tensor, q: Tensor) -> Tensor:
        """−w |z − q|²."""
        return -super().cost(z, q)


class WeightSquared(_EmaLoss):
    """The weight is applied where the term is made, and where it is added."""

    def cost(self, z: Tensor, q: Tensor) -> Tensor:
        """w² |z − q|²."""
        return self.commitment_weight * super().cost(z, q)


class WeightIgnored(_EmaLoss):
    """The weight is stored and never read."""

    def cost(self, z: Tensor, q: Tensor) -> Tensor:
        """|z − q|²/4, whatever the weight."""
        return 0.25 * F.mse_loss(z, q)


class SwappedUnderEma(_EmaLoss):
    """The latents are detached, and the codes are a buffer: nothing is left to move."""

    def cost(self, z: Tensor, q: Tensor) -> Tensor:
        """A number without a gradient."""
        return super().cost(z.detach(), q)


class SwappedUnnamed(SwappedUnderEma):
    """The same with a weight that no argument names."""

    def __init__(self, dim: int, codebook_size: int) -> None:
        super().__init__(dim, codebook_size)


class CommitmentDetached(DictLayer):
    """The commitment's latents come from .data: the term is there in value only."""

    def forward(self, z: Tensor) -> dict[str, Any]:
        """From z (B, N, D) to indices, quantized and loss."""
        index = self.search(z)
        q = self.codes_[index]
        loss = F.mse_loss(q, z.detach()) + self.beta * F.mse_loss(z.data, q.detach())
        return {"indices": index, "loss": loss, "quantized": self.patch(z, q)}


HERE = "vqverify.mutants.loss"
SIZES = {"dim": 8, "codebook_size": 16}
IMAGE = {"num_embeddings": 16, "embedding_dim": 8}
GRADIENTS = ("loss.gradients",)

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "loss_swapped",
        f"{HERE}:Swapped",
        GRADIENTS,
        "stop-gradients exchanged",
        IMAGE,
        "taming-transformers' VectorQuantizer before its legacy flag; theory T16",
    ),
    Mutant(
        "loss_weights_exchanged",
        f"{HERE}:WeightsExchanged",
        GRADIENTS,
        "each weight on the other term",
        {"dim": 8, "num_codes": 16},
        "theory T16: β for 1 − β",
    ),
    Mutant(
        "loss_half_lost",
        f"{HERE}:HalfLost",
        (*GRADIENTS, "loss.trains"),
        "codebook term detached on both sides",
        IMAGE,
        "systematic: detached",
    ),
    Mutant(
        "loss_detach_missing",
        f"{HERE}:OneDetachMissing",
        GRADIENTS,
        "codebook term moves the latents too",
        IMAGE,
        "systematic: missing detach",
    ),
    Mutant(
        "loss_after_patch",
        f"{HERE}:AfterPatch",
        ("loss.stop_gradients", *GRADIENTS),
        "loss of the straight-through output",
        SIZES,
        "theory T16; systematic: order of operations",
    ),
    Mutant(
        "loss_after_rotation",
        f"{HERE}:AfterRotation",
        ("loss.stop_gradients",),
        "loss of the rotated output",
        SIZES,
        "systematic: order of operations",
    ),
    Mutant("loss_halved", f"{HERE}:Halved", (*GRADIENTS, "loss.value"), "a ½ too many", SIZES, "theory T16: lost ½"),
    Mutant(
        "loss_unsquared", f"{HERE}:Unsquared", GRADIENTS, "distance for its square", SIZES, "001 eq. 14 against eq. 8"
    ),
    Mutant(
        "loss_offset",
        f"{HERE}:Offset",
        ("loss.zero_at_codes",),
        "an ε in every square",
        SIZES,
        "systematic: added constant",
    ),
    Mutant("loss_sign", f"{HERE}:Sign", ("loss.zero_at_codes", *GRADIENTS), "sign lost", SIZES, "systematic: sign"),
    Mutant(
        "loss_bessel", f"{HERE}:Bessel", ("loss.duplication",), "divided by N·D − 1", IMAGE, "systematic: off by one"
    ),
    Mutant("loss_huber", f"{HERE}:Huber", GRADIENTS, "smooth_l1 for mse", IMAGE, "systematic: another loss"),
    Mutant(
        "loss_weight_squared",
        f"{HERE}:WeightSquared",
        ("loss.terms", *GRADIENTS),
        "weight applied twice",
        SIZES,
        "systematic: squared",
    ),
    Mutant(
        "loss_weight_ignored",
        f"{HERE}:WeightIgnored",
        ("loss.terms",),
        "weight never read",
        SIZES,
        "systematic: dead kwarg",
    ),
    Mutant(
        "loss_swapped_under_ema",
        f"{HERE}:SwappedUnderEma",
        ("loss.trains",),
        "latents detached beside a buffer codebook",
        SIZES,
        "systematic: detached",
    ),
    Mutant(
        "loss_swapped_unnamed",
        f"{HERE}:SwappedUnnamed",
        ("loss.trains",),
        "latents detached beside a buffer codebook, with a weight in the code alone",
        SIZES,
        "systematic: detached",
    ),
    Mutant(
        "loss_commitment_detached",
        f"{HERE}:CommitmentDetached",
        GRADIENTS,
        "commitment in value only",
        SIZES,
        "systematic: .data",
    ),
)
