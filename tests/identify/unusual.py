"""Right layers of unusual shapes, each of which once raised a false alarm."""

import torch
import torch.nn.functional as F
from torch import nn


class Kept(nn.Module):
    """Codes kept in half precision beside averages in float32; counts smoothed (ε) or clamped, K as small as 3."""

    def __init__(self, dim=2, n_embed=16, decay=0.9, eps=1e-5, clamp=False, half="bfloat16"):
        super().__init__()
        embed = torch.randn(n_embed, dim)
        self.decay, self.eps, self.clamp = decay, eps, clamp
        self.register_buffer("embed", embed.to(getattr(torch, half)))
        self.register_buffer("cluster_size", torch.ones(n_embed))
        self.register_buffer("embed_avg", self.embed.float().clone())

    def forward(self, x):
        embed, flat = self.embed.float(), x.reshape(-1, x.shape[-1])
        idx = (flat.unsqueeze(1) - embed).square().sum(-1).argmin(1)
        q = F.embedding(idx, embed).view_as(x)
        if self.training:
            with torch.no_grad():
                onehot = F.one_hot(idx, len(embed)).to(flat.dtype)
                self.cluster_size.mul_(self.decay).add_(onehot.sum(0), alpha=1 - self.decay)
                self.embed_avg.mul_(self.decay).add_(onehot.t() @ flat, alpha=1 - self.decay)
                total = self.cluster_size.sum()
                smooth = (self.cluster_size + self.eps) / (total + len(embed) * self.eps) * total
                size = self.cluster_size.clamp(min=self.eps) if self.clamp else smooth
                self.embed.copy_(self.embed_avg / size[:, None])
        return x + (q - x).detach(), idx.view(x.shape[:-1]), F.mse_loss(x, q.detach())


class SharedResidual(nn.Module):
    """Three levels of a residual stack that search one codebook."""

    def __init__(self, dim=8, n=16, levels=3):
        super().__init__()
        self.levels, self.codebook = levels, nn.Embedding(n, dim)

    def forward(self, x):
        residual, total, codes, loss = x, torch.zeros_like(x), [], 0.0
        for _ in range(self.levels):
            idx = torch.cdist(residual.reshape(-1, x.shape[-1]), self.codebook.weight).argmin(-1).view(x.shape[:-1])
            q = self.codebook(idx)
            loss = loss + F.mse_loss(residual, q.detach()) * 0.25 + F.mse_loss(q, residual.detach())
            total, residual = total + q, residual - q.detach()
            codes.append(idx)
        return x + (total - x).detach(), torch.stack(codes, -1), loss / self.levels


class Lines(nn.Module):
    """Every coordinate has a learnt codebook of numbers."""

    def __init__(self, dim=3, n=7):
        super().__init__()
        self.levels = nn.Parameter(torch.randn(dim, n))

    def forward(self, x):
        idx = (x.unsqueeze(-1) - self.levels).abs().argmin(-1)
        q = self.levels.expand(*x.shape[:-1], -1, -1).gather(-1, idx.unsqueeze(-1)).squeeze(-1)
        loss = F.mse_loss(q, x.detach()) + 0.25 * F.mse_loss(x, q.detach())
        return x + (q - x).detach(), idx, loss


class Directions(nn.Module):
    """Codes are chosen by direction and returned with their norms."""

    def __init__(self, dim=5, n=20):
        super().__init__()
        self.embed = nn.Embedding(n, dim)

    def forward(self, x):
        idx = (F.normalize(x, dim=-1) @ F.normalize(self.embed.weight, dim=-1).t()).argmax(-1)
        q = self.embed(idx)
        loss = 0.25 * (q.detach() - x).pow(2).mean() + (q - x.detach()).pow(2).mean()
        return x + (q - x).detach(), idx, loss


class Scaled(nn.Module):
    """Codes of any size and precision, in a codebook that takes gradients."""

    def __init__(self, dim=8, n=16, scale=100.0, double=False):
        super().__init__()
        self.down, self.up = (nn.Linear(dim, dim) for _ in range(2)) if double else (nn.Identity(), nn.Identity())
        self.embedding = nn.Embedding(n, dim)
        self.embedding.weight.data.mul_(scale)
        if double:
            self.double()

    def forward(self, x):
        z = self.down(x)
        idx = ((z.unsqueeze(-2) - self.embedding.weight) ** 2).sum(-1).min(-1).indices
        q = self.embedding(idx)
        loss = 0.25 * (z - q.detach()).square().mean() + (q - z.detach()).square().mean()
        return self.up(z + q.detach() - z.detach()), loss, idx


class Lent(nn.Module):
    """A codebook in bfloat16 that takes gradients; computes in float32 and answers in the format of its latents."""

    def __init__(self, dim=8, n=16):
        super().__init__()
        self.embedding = nn.Embedding(n, dim, dtype=torch.bfloat16)

    def forward(self, x):
        embed, flat = self.embedding.weight.float(), x.float().reshape(-1, x.shape[-1])
        idx = torch.cdist(flat, embed).argmin(1)
        q = embed[idx]
        loss = F.mse_loss(q, flat.detach()) + 0.25 * F.mse_loss(q.detach(), flat)
        return (flat + (q - flat).detach()).view(x.shape).to(x.dtype), idx.view(x.shape[:-1]), loss


class AroundTheSum(nn.Module):
    """A stack with one estimator around the sum; what later levels add is small beside the first code."""

    def __init__(self, dim=4, k=8, levels=3):
        super().__init__()
        self.codebooks = nn.ParameterList([nn.Parameter(torch.randn(k, dim) / (i + 1)) for i in range(levels)])

    def forward(self, z):
        res, total, codes, loss = z, torch.zeros_like(z), [], 0.0
        for codebook in self.codebooks:
            i = torch.cdist(res, codebook).argmin(-1)
            q = codebook[i]
            loss = loss + F.mse_loss(q, res.detach()) + 0.25 * F.mse_loss(res, q.detach())
            total, res = total + q, res - q.detach()
            codes.append(i)
        return z + (total - z).detach(), torch.stack(codes, -1), loss


class SearchesTwiceTheLatent(nn.Module):
    """Codes of 2z, computed once for the lookup and once for the estimator; half the code is returned."""

    def __init__(self, dim=4, k=8):
        super().__init__()
        self.codebook = nn.Parameter(torch.randn(k, dim))

    def forward(self, x):
        squares = (2 * x).pow(2).sum(-1, keepdim=True) + self.codebook.pow(2).sum(-1)
        i = (squares - 2 * (2 * x) @ self.codebook.t()).argmin(-1)
        q, y = self.codebook[i], 2 * x
        loss = F.mse_loss(q, y.detach()) + 0.25 * F.mse_loss(y, q.detach())
        return (y + (q - y).detach()) / 2, i, loss


class Between(nn.Module):
    """A search between two projections of one width: latents and codes have the same shape, and not the same space."""

    def __init__(self, dim=8, n=16):
        super().__init__()
        self.down, self.up = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.embedding = nn.Embedding(n, dim)

    def forward(self, x):
        z = self.down(x)
        idx = torch.cdist(z, self.embedding.weight).argmin(-1)
        q = self.embedding(idx)
        loss = 0.25 * (z - q.detach()).square().mean() + (q - z.detach()).square().mean()
        return self.up(z + (q - z).detach()), loss, idx


class Renumbered(nn.Module):
    """Many codes, drawn as randn draws them under the construction's seed, and returned under other numbers."""

    def __init__(self, dim=4, n=1000):
        super().__init__()
        self.book = nn.Parameter(torch.randn(n, dim))
        self.register_buffer("number", torch.randperm(n))

    def forward(self, x):
        idx = torch.cdist(x, self.book).argmin(-1)
        q = self.book[idx]
        loss = 0.25 * (x - q.detach()).square().mean() + (q - x.detach()).square().mean()
        return x + (q - x).detach(), self.number[idx], loss


class _Average(nn.Module):
    """A moving average from 0, divided by 1 − γᵗ."""

    def __init__(self, decay, *shape):
        super().__init__()
        self.decay = decay
        self.register_buffer("counter", torch.zeros((), dtype=torch.long))
        self.register_buffer("hidden", torch.zeros(shape))

    def forward(self, value):
        self.counter += 1
        self.hidden -= (self.hidden - value) * (1 - self.decay)
        return self.hidden / (1 - self.decay ** self.counter.item())


class Debiased(nn.Module):
    """Sonnet's VectorQuantizerEMA: averages start at 0 and are divided by 1 − γᵗ, then smoothed."""

    def __init__(self, embedding_dim=6, num_embeddings=16, commitment_cost=0.25, decay=0.9, epsilon=1e-5):
        super().__init__()
        self.commitment_cost, self.epsilon = commitment_cost, epsilon
        self.register_buffer("embeddings", torch.randn(embedding_dim, num_embeddings))
        self.ema_cluster_size = _Average(decay, num_embeddings)
        self.ema_dw = _Average(decay, embedding_dim, num_embeddings)

    def forward(self, inputs):
        flat = inputs.reshape(-1, inputs.shape[-1])
        codes = torch.cdist(flat, self.embeddings.t()).argmin(1)
        quantized = F.embedding(codes, self.embeddings.t()).view_as(inputs)
        if self.training:
            one = F.one_hot(codes, self.embeddings.shape[1]).to(flat)
            with torch.no_grad():
                size, dw = self.ema_cluster_size(one.sum(0)), self.ema_dw(flat.t() @ one)
                n = size.sum()
                size = (size + self.epsilon) / (n + len(size) * self.epsilon) * n
                self.embeddings.copy_(dw / size)
        loss = self.commitment_cost * F.mse_loss(inputs, quantized.detach())
        quantized = inputs + (quantized - inputs).detach()
        return {"quantize": quantized, "loss": loss, "encoding_indices": codes.view(inputs.shape[:-1])}
