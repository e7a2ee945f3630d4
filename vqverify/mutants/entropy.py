"""Regularisers with a mistake: entropies over the wrong axis, of the wrong sign, summed; orthogonality with its diagonal."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqverify.mutant import Mutant
from vqverify.mutants.base import ImageLayer


class SignEntropy(nn.Module):
    """(B, N, D), signs with the entropy loss of LFQ over all 2^D codes; (z_q, codes, loss). The control."""

    def __init__(self, dim: int, entropy_weight: float = 0.1, diversity_gamma: float = 1.0) -> None:
        super().__init__()
        self.entropy_weight, self.diversity_gamma = entropy_weight, diversity_gamma
        self.register_buffer("bits", torch.arange(dim), persistent=False)
        patterns = (torch.arange(2**dim)[:, None] >> self.bits) & 1
        self.register_buffer("corners", 2.0 * patterns - 1, persistent=False)

    bits: Tensor
    corners: Tensor

    def entropy(self, logs: Tensor) -> Tensor:
        """−Σ p log p over the codes, from logarithms."""
        return -(logs.exp() * logs).sum(-1)

    def mean(self, logs: Tensor) -> Tensor:
        """Logarithm of the mean use, (K,)."""
        return logs.logsumexp(0) - math.log(len(logs))

    def aside(self, logs: Tensor) -> Tensor:
        """E[H] − γH(mean) of log-probabilities (N, K)."""
        return self.entropy(logs).mean() - self.diversity_gamma * self.entropy(self.mean(logs))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From z (B, N, D) to (z_q, codes, loss)."""
        q = torch.where(z > 0, 1.0, -1.0).to(z)
        logs = (2 * z.reshape(-1, z.shape[-1]) @ self.corners.to(z).t()).log_softmax(-1)
        codes = ((q > 0).long() << self.bits).sum(-1)
        return z + (q - z).detach(), codes, self.entropy_weight * self.aside(logs)


class WrongAxis(SignEntropy):
    """The mean use is a mean over the codes: its entropy is each latent's own once more."""

    def aside(self, logs: Tensor) -> Tensor:
        """E[H] − γE[H]."""
        return self.entropy(logs).mean() - self.diversity_gamma * self.entropy(logs).mean()


class EntropySign(SignEntropy):
    """γH(mean) − E[H]: latents are made unsure, and the codebook is emptied."""

    def aside(self, logs: Tensor) -> Tensor:
        """The negative."""
        return -super().aside(logs)


class EntropySummed(SignEntropy):
    """The entropies of the latents are added up."""

    def aside(self, logs: Tensor) -> Tensor:
        """Σ H − γH(mean)."""
        return self.entropy(logs).sum() - self.diversity_gamma * self.entropy(self.mean(logs))


class OrthogonalLayer(nn.Module):
    """(…, D), Parameter codebook kept orthogonal by a term of the loss; (z_q, codes, loss). The control."""

    def __init__(
        self, dim: int, codebook_size: int, orthogonal_weight: float = 1.0, active_codes_only: bool = False
    ) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(codebook_size, dim))
        self.orthogonal_weight, self.active_codes_only = orthogonal_weight, active_codes_only

    def active(self, codes: Tensor) -> Tensor:
        """The codes that the term is about."""
        return self.codes[codes.unique()] if self.active_codes_only else self.codes

    def off(self, cosines: Tensor) -> Tensor:
        """Cosines that should be 0."""
        return cosines - torch.eye(len(cosines)).to(cosines)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From z (…, D) to (z_q, codes, loss)."""
        flat = z.reshape(-1, z.shape[-1])
        codes = (flat[:, None] - self.codes[None]).square().sum(-1).argmin(1)
        q = F.embedding(codes, self.codes)
        unit = F.normalize(self.active(codes), dim=-1)
        term = self.off(unit @ unit.t()).square().mean()
        loss = F.mse_loss(q, flat.detach()) + 0.25 * F.mse_loss(flat, q.detach()) + self.orthogonal_weight * term
        return (flat + (q - flat).detach()).reshape(z.shape), codes.reshape(z.shape[:-1]), loss


class Diagonal(OrthogonalLayer):
    """|CCᵀ|² with its diagonal: 1/K for orthogonal codes."""

    def off(self, cosines: Tensor) -> Tensor:
        """All cosines."""
        return cosines


class CountsInactive(OrthogonalLayer):
    """The flag for codes in use is read, and forgotten."""

    def active(self, codes: Tensor) -> Tensor:
        """Every code."""
        del codes
        return self.codes


class WithEntropy(ImageLayer):
    """Both usual terms and the mean entropy of a soft assignment, right."""

    def loss(self, z: Tensor, q: Tensor) -> Tensor:
        """Commitment, codebook and a tenth of the entropy."""
        return super().loss(z, q) + 0.1 * self.entropy(-self.distances(z))

    def entropy(self, logits: Tensor) -> Tensor:
        """Mean over latents, sum over codes."""
        return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()


class OverBatch(WithEntropy):
    """The logarithm is normalised over the batch: N equal latents add log N."""

    def entropy(self, logits: Tensor) -> Tensor:
        """Another axis."""
        return -(logits.softmax(-1) * logits.log_softmax(0)).sum(-1).mean()


HERE = "vqverify.mutants.entropy"
CLOSED = ("loss.closed_forms",)
MUTANTS = (
    Mutant(
        "entropy_wrong_axis",
        f"{HERE}:WrongAxis",
        CLOSED,
        "mean over the codes for the mean over the batch",
        {"dim": 4},
        "vector-quantize-pytorch's codebook_diversity_loss averages over batch entries, and not over their latents",
    ),
    Mutant("entropy_sign", f"{HERE}:EntropySign", CLOSED, "both entropies negated", {"dim": 4}, "systematic: sign"),
    Mutant(
        "entropy_summed",
        f"{HERE}:EntropySummed",
        ("lfq.sign",),
        "entropies added up over the batch",
        {"dim": 4},
        "systematic: sum for mean",
    ),
    Mutant(
        "orthogonal_diagonal",
        f"{HERE}:Diagonal",
        CLOSED,
        "the diagonal is not subtracted",
        {"dim": 4, "codebook_size": 8},
        "systematic: term dropped; Shin 2021 eq. 2",
    ),
    Mutant(
        "orthogonal_counts_inactive",
        f"{HERE}:CountsInactive",
        CLOSED,
        "codes out of use are counted",
        {"dim": 4, "codebook_size": 8, "active_codes_only": True},
        "vector-quantize-pytorch's orthogonal_reg_active_codes_only, left out",
    ),
    Mutant(
        "entropy_over_batch",
        f"{HERE}:OverBatch",
        ("loss.repeats",),
        "the softmax of an entropy is over the batch",
        {"num_embeddings": 8, "embedding_dim": 4},
        "systematic: dim=0 for dim=-1 after a reshape",
    ),
)
