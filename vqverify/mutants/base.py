"""Three right layers in three styles, whose methods the mutants override one at a time; the controls of the kill matrix."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EmaLayer(nn.Module):
    """(…, D) latents, buffer codebook with EMA accumulators, returns (z_q, codes, commitment loss)."""

    def __init__(self, dim: int, codebook_size: int, decay: float = 0.9, commitment_weight: float = 0.25) -> None:
        super().__init__()
        self.decay, self.commitment_weight = decay, commitment_weight
        table = torch.randn(codebook_size, dim)
        self.register_buffer("table", table)
        self.register_buffer("size", torch.ones(codebook_size))
        self.register_buffer("total", table.clone())

    table: Tensor
    size: Tensor
    total: Tensor

    def lookup(self, flat: Tensor) -> Tensor:
        """Index of the nearest code."""
        return torch.cdist(flat, self.table).argmin(1)

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        """Straight-through."""
        return z + (q - z).detach()

    @torch.no_grad()
    def update(self, flat: Tensor, codes: Tensor) -> None:
        """One EMA step."""
        hot = F.one_hot(codes, len(self.table)).to(flat)
        self.size.mul_(self.decay).add_(hot.sum(0), alpha=1 - self.decay)
        self.total.mul_(self.decay).add_(hot.t() @ flat, alpha=1 - self.decay)
        self.table.copy_(self.total / self.size[:, None])

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Z (…, D) to (z_q, codes, loss)."""
        flat = z.reshape(-1, z.shape[-1])
        codes = self.lookup(flat)
        q = self.table[codes]
        if self.training:
            self.update(flat.detach(), codes)
        loss = self.commitment_weight * F.mse_loss(flat, q.detach())
        return self.estimate(flat, q.detach()).reshape(z.shape), codes.reshape(z.shape[:-1]), loss


class RotationLayer(EmaLayer):
    """The same with the rotation trick, written with detached unit vectors as in the paper's code."""

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        decay: float = 0.9,
        commitment_weight: float = 0.25,
        rotation_trick: bool = True,
    ) -> None:
        super().__init__(dim, codebook_size, decay, commitment_weight)
        self.rotation_trick = rotation_trick

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        """λ(z − 2r(r·z) + 2q̂(ẑ·z)), factors detached."""
        u, v = F.normalize(z, dim=-1).detach(), F.normalize(q, dim=-1).detach()
        r = F.normalize(u + v, dim=-1)
        scale = (q.norm(dim=-1, keepdim=True) / z.norm(dim=-1, keepdim=True).clamp_min(1e-6)).detach()
        return scale * self.turn(z, u, v, r)

    def turn(self, z: Tensor, u: Tensor, v: Tensor, r: Tensor) -> Tensor:
        """Rz without forming R."""
        return z - 2 * r * (r * z).sum(-1, keepdim=True) + 2 * v * (u * z).sum(-1, keepdim=True)


class ImageLayer(nn.Module):
    """(B, D, H, W) latents, nn.Embedding codebook learned by its loss, returns (loss, z_q, perplexity, codes)."""

    def __init__(self, num_embeddings: int, embedding_dim: int, commitment_cost: float = 0.25) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_embeddings, embedding_dim)
        self.commitment_cost = commitment_cost

    def distances(self, flat: Tensor) -> Tensor:
        """Expanded squared distances."""
        e = self.embedding.weight
        return flat.square().sum(1, keepdim=True) - 2 * flat @ e.t() + e.square().sum(1)

    def choose(self, flat: Tensor) -> Tensor:
        """Index of the nearest code."""
        return self.distances(flat).argmin(1)

    def loss(self, z: Tensor, q: Tensor) -> Tensor:
        """Codebook loss and commitment loss."""
        return F.mse_loss(q, z.detach()) + self.commitment_cost * F.mse_loss(z, q.detach())

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        """Straight-through."""
        return z + (q - z).detach()

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Z (B, D, H, W) to (loss, z_q, perplexity, codes)."""
        last = z.permute(0, 2, 3, 1)
        flat = last.reshape(-1, last.shape[-1])
        codes = self.choose(flat)
        q = self.embedding(codes)
        share = torch.bincount(codes, minlength=self.embedding.num_embeddings).to(flat) / max(1, len(codes))
        perplexity = torch.exp(-(share * (share + 1e-10).log()).sum())
        out = self.estimate(flat, q).reshape(last.shape).permute(0, 3, 1, 2)
        return self.loss(flat, q), out, perplexity, codes.reshape(last.shape[:-1])


class DictLayer(nn.Module):
    """(B, N, D) latents, Parameter codebook, returns a dict."""

    def __init__(self, dim: int, codebook_size: int, beta: float = 0.25) -> None:
        super().__init__()
        self.codes_ = nn.Parameter(torch.randn(codebook_size, dim))
        self.beta = beta

    def search(self, z: Tensor) -> Tensor:
        """Index of the nearest code."""
        return (z[..., None, :] - self.codes_).square().sum(-1).argmin(-1)

    def patch(self, z: Tensor, q: Tensor) -> Tensor:
        """Straight-through."""
        return z + (q - z).detach()

    def forward(self, z: Tensor) -> dict[str, Any]:
        """Z (B, N, D) to indices, quantized and loss."""
        index = self.search(z)
        q = self.codes_[index]
        loss = F.mse_loss(q, z.detach()) + self.beta * F.mse_loss(z, q.detach())
        return {"indices": index, "loss": loss, "quantized": self.patch(z, q)}
