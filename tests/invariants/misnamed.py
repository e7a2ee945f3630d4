"""Layers whose codes do not name the vectors that they stand for, in styles in which that is hard to see."""

import torch
import torch.nn.functional as F
from torch import nn


def beside(codes, size, wrong):
    """The number of the vector that is taken for a code: the next one, if wrong."""
    return (codes + wrong) % size


class Chain(nn.Module):
    """Images of time (B, D, N) in, codes (L, B, N) out, and an EMA state that all levels share (as encodec's looks)."""

    def __init__(self, dimension=8, n_q=3, bins=16, decay=0.9, wrong=1):
        super().__init__()
        self.decay, self.wrong = decay, wrong
        self.register_buffer("books", torch.randn(n_q, bins, dimension))
        self.books.div_(torch.arange(1.0, n_q + 1)[:, None, None])
        self.register_buffer("counts", torch.ones(n_q, bins))
        self.register_buffer("sums", self.books.clone())

    def forward(self, x):
        flat = x.transpose(1, 2).reshape(-1, x.shape[1])
        residual, total, ids, losses = flat, torch.zeros_like(flat), [], []
        for q in range(len(self.books)):
            book = self.books[q].clone()
            found = torch.cdist(residual, book).argmin(-1)
            hard = book[beside(found, len(book), self.wrong)]
            if self.training:
                self.counts[q].lerp_(torch.bincount(found, minlength=len(book)).to(book), 1 - self.decay)
                sums = torch.zeros_like(book).index_add_(0, found, residual.detach())
                self.sums[q].lerp_(sums, 1 - self.decay)
                self.books[q] = self.sums[q] / self.counts[q].clamp(1e-5)[:, None]
            losses.append(F.mse_loss(residual, hard))
            residual, total = residual - hard, total + hard
            ids.append(found.view(x.shape[0], x.shape[2]))
        out = flat + (total - flat).detach()
        return out.view(x.shape[0], x.shape[2], -1).transpose(1, 2), torch.stack(ids), torch.stack(losses).mean()


class AroundTheSum(nn.Module):
    """One estimator around the sum of the levels' codes."""

    def __init__(self, dim=8, k=16, levels=3, wrong=1):
        super().__init__()
        self.codebooks = nn.ParameterList([nn.Parameter(torch.randn(k, dim) / (i + 1)) for i in range(levels)])
        self.wrong = wrong

    def forward(self, z):
        res, total, codes, loss = z, torch.zeros_like(z), [], 0.0
        for codebook in self.codebooks:
            i = torch.cdist(res, codebook).argmin(-1)
            q = codebook[beside(i, len(codebook), self.wrong)]
            loss = loss + F.mse_loss(q, res.detach()) + 0.25 * F.mse_loss(res, q.detach())
            total, res = total + q, res - q.detach()
            codes.append(i)
        return z + (total - z).detach(), torch.stack(codes, -1), loss


class Swapped(nn.Module):
    """Two heads, each searched in its own table, and taken from the other one's."""

    def __init__(self, dim=8, k=16, heads=2, wrong=1):
        super().__init__()
        self.tables = nn.Parameter(torch.randn(heads, k, dim // heads))
        self.wrong = wrong

    def forward(self, z):
        parts = z.reshape(*z.shape[:-1], len(self.tables), -1)
        i = torch.stack([torch.cdist(parts[..., h, :], table).argmin(-1) for h, table in enumerate(self.tables)], -1)
        taken = [self.tables[beside(h, len(self.tables), self.wrong)][i[..., h]] for h in range(len(self.tables))]
        q = torch.cat(taken, -1)
        loss = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
        return z + (q - z).detach(), i, loss
