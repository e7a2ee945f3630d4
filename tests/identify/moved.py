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
