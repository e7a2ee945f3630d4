"""A stack whose replaced codes carry the graph of the batch that they were taken from (moshi 0.2.13)."""

import torch
import torch.nn.functional as F
from torch import nn


class Level(nn.Module):
    def __init__(self, dim, bins, decay=0.99, dead=0.1):
        super().__init__()
        self.decay, self.dead = decay, dead
        self.register_buffer("cluster_usage", torch.ones(bins))
        self.register_buffer("embedding_sum", torch.randn(bins, dim))

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        embedding = self.embedding_sum / self.cluster_usage.clamp(min=1e-5)[:, None]
        codes = torch.cdist(flat, embedding).argmin(-1)
        q = F.embedding(codes, embedding).view_as(x)
        if self.training:
            gone = self.cluster_usage < self.dead
            if gone.any():
                picked = flat[torch.arange(len(gone)) % len(flat)]
                self.embedding_sum = torch.where(gone[:, None], picked, self.embedding_sum)
                self.cluster_usage = torch.where(gone, torch.ones_like(self.cluster_usage), self.cluster_usage)
            n = torch.bincount(codes, minlength=len(gone)).to(flat)
            s = torch.zeros_like(embedding).index_add_(0, codes, flat.detach())
            self.cluster_usage = self.decay * self.cluster_usage + (1 - self.decay) * n
            self.embedding_sum = self.decay * self.embedding_sum + (1 - self.decay) * s
        loss = F.mse_loss(q.detach(), x)
        return x + (q - x).detach(), codes.view(x.shape[:-1]), loss


class Carried(nn.Module):
    def __init__(self, dim=6, bins=12, levels=3):
        super().__init__()
        self.levels = nn.ModuleList([Level(dim, bins) for _ in range(levels)])

    def forward(self, x):
        residual, total, codes, losses = x, torch.zeros_like(x), [], []
        for level in self.levels:
            q, ids, loss = level(residual)
            residual, total = residual - q.detach(), total + q
            codes.append(ids)
            losses.append(loss)
        return total, torch.stack(codes, -1), torch.stack(losses).mean()
