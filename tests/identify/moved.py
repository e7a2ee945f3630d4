"""Right codebooks that move in other ways than by the means of their own latents."""

import torch
import torch.nn.functional as F
from torch import nn


class Neighbours(nn.Module):
    """A self-organising map: the winner's neighbours on a line move half as far as it does."""

    def __init__(self, dim=6, codebook_size=16, rate=0.1):
        super().__init__()
        self.rate = rate
        self.register_buffer("codebook", torch.randn(codebook_size, dim))
        place = torch.arange(codebook_size)
        self.register_buffer("near", 0.5 ** (place[:, None] - place).abs().float(), persistent=False)
        self.near[self.near < 0.5] = 0

    def forward(self, x):
        flat = x.detach().reshape(-1, x.shape[-1])
        index = (flat[:, None] - self.codebook).square().sum(-1).argmin(1)
        q = self.codebook[index].view_as(x)
        if self.training:
            share = self.near[index]
            total = share.sum(0)
            mean = share.t() @ flat / total.clamp_min(1e-9)[:, None]
            self.codebook = torch.where(total[:, None] > 0, self.codebook.lerp(mean, self.rate), self.codebook)
        return x + (q - x).detach(), index.view(x.shape[:-1]), F.mse_loss(x, q.detach())


class SoftShares(nn.Module):
    """All codes move to the mean of all latents by soft shares, in every other training pass."""

    def __init__(self, dim=6, codebook_size=16, rate=0.1, temperature=0.5):
        super().__init__()
        self.rate, self.temperature = rate, temperature
        self.register_buffer("codebook", torch.randn(codebook_size, dim))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        flat = x.detach().reshape(-1, x.shape[-1])
        away = (flat[:, None] - self.codebook).square().sum(-1)
        index = away.argmin(1)
        q = self.codebook[index].view_as(x)
        if self.training:
            self.step += 1
            if int(self.step) % 2 == 0:
                share = (-away / self.temperature).softmax(-1)
                total = share.sum(0)
                mean = share.t() @ flat / total.clamp_min(1e-12)[:, None]
                gain = self.rate * total / (total + 1)
                self.codebook = self.codebook + gain[:, None] * (mean - self.codebook)
        return x + (q - x).detach(), index.view(x.shape[:-1]), F.mse_loss(x, q.detach())


class Anchors(nn.Module):
    """Rows out of use are drawn to the closest latent of the batch, a parameter all the same (CVQ-VAE)."""

    def __init__(self, dim=6, codebook_size=16, beta=0.25, decay=0.99):
        super().__init__()
        self.size, self.beta, self.decay = codebook_size, beta, decay
        self.embedding = nn.Embedding(codebook_size, dim)
        nn.init.uniform_(self.embedding.weight, -1.0, 1.0)
        self.register_buffer("embed_prob", torch.zeros(codebook_size))

    def forward(self, z):
        flat = z.reshape(-1, z.shape[-1])
        away = (flat.detach()[:, None] - self.embedding.weight.detach()).square().sum(-1)
        index = away.argmin(1)
        q = self.embedding(index).view_as(z)
        loss = self.beta * F.mse_loss(z, q.detach()) + F.mse_loss(q, z.detach())
        if self.training and len(flat):
            with torch.no_grad():
                share = F.one_hot(index, self.size).to(z.dtype).mean(0)
                self.embed_prob.mul_(self.decay).add_(share, alpha=1 - self.decay)
                drawn = torch.exp(-self.embed_prob * self.size * 10 / (1 - self.decay) - 1e-3)[:, None]
                anchor = flat.detach()[away.argmin(0)]
                self.embedding.weight.data = self.embedding.weight.data * (1 - drawn) + anchor * drawn
        return z + (q - z).detach(), loss, index.view(z.shape[:-1])
