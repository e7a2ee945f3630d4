"""Layers that report wrong numbers about their codes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqverify.mutant import Mutant
from vqverify.mutants.base import ImageLayer


class Reporting(ImageLayer):
    """ImageLayer that reports other numbers in the place of its perplexity. The control: usage."""

    def report(self, codes: Tensor, size: int) -> Tensor:
        """Share of the codes in use."""
        return torch.tensor(len(codes.unique()) / size)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """From z (B, D, H, W) to (loss, z_q, number, codes)."""
        loss, z_q, _, codes = super().forward(z)
        return loss, z_q, self.report(codes, self.embedding.num_embeddings), codes


class PerplexityBase(Reporting):
    """2 to the power of an entropy in nats."""

    def report(self, codes: Tensor, size: int) -> Tensor:
        """2^H, H in nats."""
        p = torch.bincount(codes.flatten(), minlength=size) / codes.numel()
        return 2.0 ** -(p * (p + 1e-10).log()).sum()


class PerplexityEpsilon(Reporting):
    """An ε of a thousandth inside the logarithm."""

    def report(self, codes: Tensor, size: int) -> Tensor:
        """H of p + 10⁻³, exponentiated."""
        p = torch.bincount(codes.flatten(), minlength=size) / codes.numel()
        return (-(p * (p + 1e-3).log()).sum()).exp()


class PerplexityIsEntropy(nn.Module):
    """An entropy in nats that is called a perplexity; a dictionary out."""

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.layer = ImageLayer(num_embeddings, embedding_dim)

    def forward(self, z: Tensor) -> dict[str, Tensor]:
        """Z (B, D, H, W) to a dictionary."""
        loss, z_q, perplexity, codes = self.layer(z)
        return {"loss": loss, "z_q": z_q, "perplexity": perplexity.log(), "codes": codes}


class UsageOfRange(Reporting):
    """The largest index for the number of codes."""

    def report(self, codes: Tensor, size: int) -> Tensor:
        """(max + 1)/K."""
        return (codes.max() + 1) / size


HERE = "vqverify.mutants.metrics"
IMAGE = {"num_embeddings": 16, "embedding_dim": 8}
MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "perplexity_base",
        f"{HERE}:PerplexityBase",
        ("metrics.perplexity",),
        "2^H of nats",
        IMAGE,
        "theory T31: base mismatch",
    ),
    Mutant(
        "perplexity_epsilon",
        f"{HERE}:PerplexityEpsilon",
        ("metrics.perplexity",),
        "ε inside the logarithm",
        IMAGE,
        "theory T31: ε bias",
    ),
    Mutant(
        "perplexity_is_entropy",
        f"{HERE}:PerplexityIsEntropy",
        ("metrics.perplexity",),
        "the exponential left out",
        IMAGE,
        "systematic: step left out",
    ),
    Mutant(
        "usage_of_range",
        f"{HERE}:UsageOfRange",
        ("metrics.usage",),
        "largest index counted",
        IMAGE,
        "systematic: max for count",
    ),
)
