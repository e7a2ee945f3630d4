"""Right layers whose loss holds more, or weighs it otherwise, than the usual two terms."""

import torch
import torch.nn.functional as F
from torch import nn


class WithEntropy(nn.Module):
    """MaskGIT's: a dict with one-hot rows beside the indices, and an entropy that is weak while the codes are small."""

    def __init__(self, codebook_size=16, dim=6, commitment_cost=0.25, entropy_loss_ratio=0.1):
        super().__init__()
        self.commitment_cost, self.entropy_loss_ratio = commitment_cost, entropy_loss_ratio
        self.codebook = nn.Parameter(torch.empty(codebook_size, dim).uniform_(-1 / codebook_size, 1 / codebook_size))

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        distances = flat.square().sum(1, keepdim=True) - 2 * flat @ self.codebook.t() + self.codebook.square().sum(1)
        codes = distances.argmin(-1).reshape(x.shape[:-1])
        q = F.embedding(codes, self.codebook)
        share = F.softmax(-distances, dim=-1)
        mean = share.mean(0)
        entropy = (mean * (mean + 1e-5).log()).sum() - (share * F.log_softmax(-distances, dim=-1)).sum(-1).mean()
        loss = self.commitment_cost * (q.detach() - x).square().mean() + (q - x.detach()).square().mean()
        loss = loss + self.entropy_loss_ratio * entropy
        found = {"encodings": F.one_hot(codes, len(self.codebook)), "encoding_indices": codes, "loss": loss}
        return x + (q - x).detach(), found


class Convex(nn.Module):
    """β of the commitment and 1 − β of the codebook's term; other weights than from 0 to 1 are refused."""

    def __init__(self, dim=6, codebook_size=16, beta=0.9):
        super().__init__()
        if not 0 <= beta <= 1:
            raise ValueError(f"beta must be in [0, 1] but got {beta}")
        self.beta = beta
        self.codebook = nn.Embedding(codebook_size, dim)

    def forward(self, z):
        with torch.no_grad():
            codes = (z[..., None, :] - self.codebook.weight).square().sum(-1).argmin(-1)
        q = self.codebook(codes)
        loss = self.beta * (z - q.detach()).square().mean() + (1 - self.beta) * (z.detach() - q).square().mean()
        return z + (q - z).detach(), {"q": codes[..., None], "loss": loss}


class BetweenDirections(nn.Module):
    """ViT-VQGAN's: latents and codes are normalised in the loss, and the raw latent goes around the code."""

    def __init__(self, embed_dim=6, n_embed=16, beta=0.25):
        super().__init__()
        self.beta = beta
        self.embedding = nn.Embedding(n_embed, embed_dim)

    def forward(self, z):
        unit, book = F.normalize(z, dim=-1), F.normalize(self.embedding.weight, dim=-1)
        codes = (unit[..., None, :] - book).square().sum(-1).argmin(-1)
        q = F.normalize(self.embedding(codes), dim=-1)
        loss = self.beta * (q.detach() - unit).square().mean() + (q - unit.detach()).square().mean()
        return z + (q - z).detach(), loss, codes
