"""Layers as strangers write them: the styles of well-known repositories, each retold in a few lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ImageTuple(nn.Module):
    """BCHW, nn.Embedding, a nested tuple with metrics; codes as a flat column (taming-transformers)."""

    def __init__(self, n_e: int, e_dim: int, beta: float = 0.25) -> None:
        super().__init__()
        self.n_e, self.e_dim, self.beta = n_e, e_dim, beta
        self.embedding = nn.Embedding(n_e, e_dim)
        self.embedding.weight.data.uniform_(-1.0 / n_e, 1.0 / n_e)

    def forward(self, z: Tensor) -> Any:
        z = z.permute(0, 2, 3, 1).contiguous()
        flat = z.view(-1, self.e_dim)
        d = (
            flat.pow(2).sum(1, keepdim=True)
            + self.embedding.weight.pow(2).sum(1)
            - 2 * flat @ self.embedding.weight.t()
        )
        indices = d.argmin(1).unsqueeze(1)
        one_hot = torch.zeros(indices.shape[0], self.n_e).scatter_(1, indices, 1)
        z_q = (one_hot @ self.embedding.weight).view(z.shape)
        loss = ((z_q.detach() - z) ** 2).mean() + self.beta * ((z_q - z.detach()) ** 2).mean()
        z_q = z + (z_q - z).detach()
        mean = one_hot.mean(0)
        perplexity = torch.exp(-(mean * torch.log(mean + 1e-10)).sum())
        return z_q.permute(0, 3, 1, 2).contiguous(), loss, (perplexity, one_hot, indices)


class LossFirst(nn.Module):
    """BCHW, EMA with Laplace smoothing, loss first, codes only as one-hot rows (zalandoresearch)."""

    def __init__(
        self, num_embeddings: int, embedding_dim: int, commitment_cost: float = 0.25, decay: float = 0.9
    ) -> None:
        super().__init__()
        self.dim, self.count, self.cost, self.decay = embedding_dim, num_embeddings, commitment_cost, decay
        self.embedding = nn.Embedding(num_embeddings, embedding_dim)
        self.embedding.weight.data.normal_()
        self.register_buffer("cluster", torch.zeros(num_embeddings))
        self.ema_w = nn.Parameter(torch.randn(num_embeddings, embedding_dim))

    def forward(self, inputs: Tensor) -> Any:
        inputs = inputs.permute(0, 2, 3, 1).contiguous()
        flat = inputs.view(-1, self.dim)
        distances = torch.cdist(flat, self.embedding.weight)
        encodings = F.one_hot(distances.argmin(1), self.count).float()
        quantized = (encodings @ self.embedding.weight).view(inputs.shape)
        if self.training:
            self.cluster = self.cluster * self.decay + (1 - self.decay) * encodings.sum(0)
            n = self.cluster.sum()
            self.cluster = (self.cluster + 1e-5) / (n + self.count * 1e-5) * n
            self.ema_w = nn.Parameter(self.ema_w * self.decay + (1 - self.decay) * encodings.t() @ flat)
            self.embedding.weight = nn.Parameter(self.ema_w / self.cluster[:, None])
        loss = self.cost * F.mse_loss(quantized.detach(), inputs)
        quantized = inputs + (quantized - inputs).detach()
        mean = encodings.mean(0)
        perplexity = torch.exp(-(mean * torch.log(mean + 1e-10)).sum())
        return loss, quantized.permute(0, 3, 1, 2).contiguous(), perplexity, encodings


class Transposed(nn.Module):
    """Channels last of any shape, codebook and sums stored as (D, K) (rosinality)."""

    def __init__(self, dim: int, n_embed: int, decay: float = 0.99, eps: float = 1e-5) -> None:
        super().__init__()
        self.dim, self.n_embed, self.decay, self.eps = dim, n_embed, decay, eps
        embed = torch.randn(dim, n_embed)
        self.register_buffer("embed", embed)
        self.register_buffer("cluster_size", torch.zeros(n_embed))
        self.register_buffer("embed_avg", embed.clone())

    def forward(self, x: Tensor) -> Any:
        flat = x.reshape(-1, self.dim)
        dist = flat.pow(2).sum(1, keepdim=True) - 2 * flat @ self.embed + self.embed.pow(2).sum(0, keepdim=True)
        ind = (-dist).max(1).indices
        onehot = F.one_hot(ind, self.n_embed).type(flat.dtype)
        ind = ind.view(*x.shape[:-1])
        quantize = self.embed_code(ind)
        if self.training:
            self.cluster_size.data.mul_(self.decay).add_(onehot.sum(0), alpha=1 - self.decay)
            self.embed_avg.data.mul_(self.decay).add_((flat.t() @ onehot).detach(), alpha=1 - self.decay)
            n = self.cluster_size.sum()
            size = (self.cluster_size + self.eps) / (n + self.n_embed * self.eps) * n
            self.embed.data.copy_(self.embed_avg / size.unsqueeze(0))
        diff = (quantize.detach() - x).pow(2).mean()
        return x + (quantize - x).detach(), diff, ind

    def embed_code(self, embed_id: Tensor) -> Tensor:
        return F.embedding(embed_id, self.embed.transpose(0, 1))


class Sequence(nn.Module):
    """(B, T, D), a dict with a total beside its parts and the unquantized latents."""

    def __init__(self, features: int = 6, entries: int = 20) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(entries, features))

    def forward(self, x: Tensor) -> dict[str, Any]:
        assert x.ndim == 3
        assert x.shape[-1] == self.table.shape[1]
        codes = torch.cdist(x, self.table[None]).argmin(-1)
        hard = self.table[codes]
        commit, book = F.mse_loss(x, hard.detach()), F.mse_loss(hard, x.detach())
        total = book + 0.25 * commit
        return {
            "latents": x,
            "commit": commit,
            "out": x + (hard - x).detach(),
            "loss": total,
            "book": book,
            "stats": {"codes": codes, "used": torch.tensor(len(codes.unique()))},
        }

    def lookup(self, codes: Tensor) -> Tensor:
        return self.table[codes]


@dataclass
class Coded:
    audio: Tensor
    ids: Tensor
    continuous: Tensor
    penalty: Tensor


class Projected(nn.Module):
    """(B, D, T), 1x1 convolutions around a small cosine search, a dataclass out (descript-audio-codec)."""

    def __init__(self, input_dim: int = 10, codebook_size: int = 24, codebook_dim: int = 3) -> None:
        super().__init__()
        self.in_proj = nn.Conv1d(input_dim, codebook_dim, 1)
        self.out_proj = nn.Conv1d(codebook_dim, input_dim, 1)
        self.codebook = nn.Embedding(codebook_size, codebook_dim)

    def forward(self, z: Tensor) -> Coded:
        z_e = self.in_proj(z)
        flat = F.normalize(z_e.transpose(1, 2).reshape(-1, z_e.shape[1]), dim=1)
        ids = (flat @ F.normalize(self.codebook.weight, dim=1).t()).argmax(1).view(z.shape[0], -1)
        z_q = F.embedding(ids, self.codebook.weight).transpose(1, 2)
        penalty = F.mse_loss(z_e, z_q.detach(), reduction="none").mean([1, 2]) + F.mse_loss(
            z_q, z_e.detach(), reduction="none"
        ).mean([1, 2])
        return Coded(self.out_proj(z_e + (z_q - z_e).detach()), ids, z_e, penalty)

    def decode(self, ids: Tensor) -> Tensor:
        return self.out_proj(F.embedding(ids, self.codebook.weight).transpose(1, 2))


class Reply(NamedTuple):
    ids: Tensor
    value: Tensor
    cost: Tensor


class Flat(nn.Module):
    """Images in, flat codes out, a named tuple in an unusual order; codes normalised at use (ViT-VQGAN)."""

    def __init__(self, dim: int = 8, size: int = 32) -> None:
        super().__init__()
        self.e = nn.Embedding(size, dim)

    def forward(self, z: Tensor) -> Reply:
        rows = F.normalize(z.permute(0, 2, 3, 1), dim=-1)
        book = F.normalize(self.e.weight, dim=-1)
        ids = (rows.reshape(-1, rows.shape[-1]) @ book.t()).argmax(1)
        hard = book[ids].view(rows.shape)
        cost = 0.25 * (hard.detach() - rows).pow(2).mean() + (hard - rows.detach()).pow(2).mean()
        return Reply(ids, (rows + (hard - rows).detach()).permute(0, 3, 1, 2), cost)


class Stack(nn.Module):
    """A residual stack with Python lists of codes and losses, one a level."""

    def __init__(self, levels: int = 3, dim: int = 6, size: int = 12) -> None:
        super().__init__()
        self.books = nn.ParameterList([nn.Parameter(torch.randn(size, dim) * 0.5**level) for level in range(levels)])

    def forward(self, x: Tensor) -> Any:
        rest, total = x, torch.zeros_like(x)
        codes, losses = [], []
        for book in self.books:
            ids = torch.cdist(rest, book[None] if rest.ndim == 3 else book).argmin(-1)
            hard = book[ids]
            losses.append(F.mse_loss(rest, hard.detach()) + F.mse_loss(hard, rest.detach()))
            total = total + hard
            rest = rest - hard.detach()
            codes.append(ids)
        return codes, x + (total - x).detach(), losses


class LevelsFirst(nn.Module):
    """A residual EMA stack in (B, D, T), codes (Q, B, T), codebooks taken from the first batch (encodec)."""

    def __init__(self, dimension: int = 6, n_q: int = 2, bins: int = 16, decay: float = 0.9) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("inited", torch.zeros(n_q))
        self.register_buffer("counts", torch.zeros(n_q, bins))
        self.register_buffer("books", torch.zeros(n_q, bins, dimension))
        self.register_buffer("sums", torch.zeros(n_q, bins, dimension))

    def forward(self, x: Tensor) -> Any:
        rows = x.transpose(1, 2)
        flat = rows.reshape(-1, rows.shape[-1])
        total, ids, losses = torch.zeros_like(flat), [], []
        for q in range(len(self.books)):
            rest = flat - total.detach()
            if not self.inited[q]:
                picks = torch.randint(len(rest), (self.books.shape[1],))
                self.books[q] = rest.detach()[picks]
                self.sums[q] = self.books[q]
                self.counts[q] = 1.0
                self.inited[q] = 1.0
            found = torch.cdist(rest, self.books[q].clone()).argmin(-1)
            hard = self.books[q].clone()[found]
            if self.training:
                hot = F.one_hot(found, self.books.shape[1]).to(flat)
                self.counts[q].lerp_(hot.sum(0), 1 - self.decay)
                self.sums[q].lerp_(hot.t() @ rest.detach(), 1 - self.decay)
                n = self.counts[q].sum()
                size = (self.counts[q] + 1e-5) / (n + self.counts.shape[1] * 1e-5) * n
                self.books[q] = self.sums[q] / size[:, None]
            losses.append(F.mse_loss(hard, rest))
            total = total + hard
            ids.append(found.view(rows.shape[:-1]))
        out = flat + (total - flat).detach()
        return out.view(rows.shape).transpose(1, 2), torch.stack(ids), torch.stack(losses)

    def decode(self, codes: Tensor) -> Tensor:
        return sum(self.books[q][ids] for q, ids in enumerate(codes)).transpose(1, 2)


class Grouped(nn.Module):
    """Product quantization: codebooks stacked as (G, K, D / G), codes between batch and tokens (B, G, N)."""

    def __init__(self, dim: int = 8, groups: int = 2, size: int = 10) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(groups, size, dim // groups))

    def forward(self, x: Tensor) -> Any:
        parts = x.view(*x.shape[:2], self.w.shape[0], -1)
        ids = (parts[..., None, :] - self.w).pow(2).sum(-1).argmin(-1)
        hard = torch.stack([self.w[g][ids[..., g]] for g in range(len(self.w))], dim=2).reshape(x.shape)
        return (
            x + (hard - x).detach(),
            ids.transpose(1, 2),
            F.mse_loss(hard, x.detach()) + F.mse_loss(hard.detach(), x),
        )


class NoCodes(nn.Module):
    """Returns z_q and a loss, nothing else."""

    def __init__(self, d: int = 5, k: int = 9) -> None:
        super().__init__()
        self.book = nn.Parameter(torch.randn(k, d))

    def forward(self, x: Tensor) -> Any:
        hard = self.book[torch.cdist(x.reshape(-1, x.shape[-1]), self.book).argmin(-1)].view_as(x)
        return x + (hard - x).detach(), F.mse_loss(hard, x.detach()) + 0.25 * F.mse_loss(hard.detach(), x)


class Bare(nn.Module):
    """Returns z_q alone; the codebook is a plain tensor attribute."""

    def __init__(self, d: int = 4, k: int = 9) -> None:
        super().__init__()
        self.book = torch.randn(k, d)

    def forward(self, x: Tensor) -> Tensor:
        hard = self.book[torch.cdist(x.reshape(-1, x.shape[-1]), self.book).argmin(-1)].view_as(x)
        return x + (hard - x).detach()


class Bits:
    def __init__(self, tokens: Tensor, values: Tensor) -> None:
        self.tokens, self.values = tokens, values


class Levels(nn.Module):
    """Finite scalar quantization without any stored codebook; an object of its own out."""

    def __init__(self, levels: list[int]) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, z: Tensor) -> Bits:
        if z.shape[-1] != len(self.levels):
            raise ValueError("wrong number of channels")
        half = torch.tensor(self.levels, dtype=z.dtype).sub(1) / 2
        steps = torch.tanh(z) * half
        hard = steps + (steps.round() - steps).detach()
        basis = torch.cumprod(torch.tensor([1, *self.levels[:-1]]), 0)
        tokens = ((steps + half).round().long() * basis).sum(-1)
        return Bits(tokens, hard / half)


class Logits(nn.Module):
    """Gumbel-softmax over the logits of a 1x1 convolution, codes inside a tuple of Nones (DALL-E style)."""

    def __init__(self, channels: int = 7, n_embed: int = 12, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.proj = nn.Conv2d(channels, n_embed, 1)
        self.embed = nn.Embedding(n_embed, channels)

    def forward(self, z: Tensor) -> Any:
        logits = self.proj(z)
        soft = F.gumbel_softmax(logits, tau=self.temperature, dim=1, hard=True)
        z_q = torch.einsum("bnhw,nd->bdhw", soft, self.embed.weight)
        probs = F.softmax(logits, dim=1)
        diff = 5e-4 * (probs * torch.log(probs * logits.shape[1] + 1e-10)).sum(1).mean()
        return z_q, diff, (None, None, soft.argmax(1))


class Named(nn.Module):
    """No forward: the pass has another name."""

    def __init__(self, dim: int = 6, size: int = 14) -> None:
        super().__init__()
        self.book = nn.Parameter(torch.randn(size, dim))

    def quantize(self, x: Tensor) -> Any:
        ids = torch.cdist(x, self.book[None]).argmin(-1)
        hard = self.book[ids]
        return x + (hard - x).detach(), ids, F.mse_loss(x, hard.detach()) + F.mse_loss(hard, x.detach())


class Sphere(nn.Module):
    """Codes kept at norm 1 in a buffer; rows first, nothing batched; codes as floats."""

    def __init__(self, dim: int = 6, size: int = 14) -> None:
        super().__init__()
        self.register_buffer("book", F.normalize(torch.randn(size, dim), dim=-1))

    def forward(self, x: Tensor) -> Any:
        if x.ndim != 2:
            raise ValueError("expected rows")
        unit = F.normalize(x, dim=-1)
        ids = (unit @ self.book.t()).argmax(-1)
        hard = self.book[ids]
        return unit + (hard - unit).detach(), F.mse_loss(unit, hard.detach()), ids.float()


class TwoFaced(nn.Module):
    """In train mode (loss, codes, z_q), in eval mode (z_q, codes): two outputs with two orders."""

    def __init__(self, dim: int = 6, size: int = 14) -> None:
        super().__init__()
        self.book = nn.Parameter(torch.randn(size, dim))

    def forward(self, x: Tensor) -> Any:
        ids = torch.cdist(x, self.book[None]).argmin(-1)
        hard = self.book[ids]
        if self.training:
            loss = F.mse_loss(x, hard.detach()) + F.mse_loss(hard, x.detach())
            return loss, ids, x + (hard - x).detach()
        return hard, ids


class Signs(nn.Module):
    """(B, D, T), one bit a coordinate: z_q is right under any layout, the packed code under one alone (MAGVIT-v2)."""

    def __init__(self, bits: int = 4, commitment_cost: float = 0.25, entropy_weight: float = 0.1) -> None:
        super().__init__()
        self.cost, self.entropy = commitment_cost, entropy_weight
        self.register_buffer("powers", 2 ** torch.arange(bits))

    def forward(self, x: Tensor) -> Any:
        flat = x.permute(0, 2, 1).contiguous().view(-1, len(self.powers))
        hard = torch.where(flat < 0, -1.0, 1.0).to(flat)
        ids = ((hard > 0).long() * self.powers).sum(1, keepdim=True)
        each = torch.sigmoid(2 * flat).clamp(1e-6, 1 - 1e-6)
        loss = (
            self.cost * (flat - hard).pow(2).mean() + self.entropy * (_bits(each).mean(0) - _bits(each.mean(0))).sum()
        )
        out = (flat + (hard - flat).detach()).view(len(x), x.shape[2], x.shape[1])
        return loss, out.permute(0, 2, 1), ids


def _bits(p: Tensor) -> Tensor:
    return -(p * p.log() + (1 - p) * (1 - p).log())


class Watched(nn.Module):
    """An EMA codebook beside an average of its use that rules nothing in a step (NICHEVERSE)."""

    def __init__(self, dim: int = 6, size: int = 16, decay: float = 0.9) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("a_use", torch.ones(size))
        self.register_buffer("book", torch.randn(size, dim))
        self.register_buffer("counts", torch.ones(size))
        self.register_buffer("sums", self.book.clone())

    def forward(self, x: Tensor) -> Any:
        flat = x.reshape(-1, x.shape[-1])
        ids = torch.cdist(flat, self.book).argmin(-1)
        hard = self.book[ids].view_as(x)
        if self.training:
            hot = F.one_hot(ids, len(self.book)).to(flat)
            self.counts.lerp_(hot.sum(0), 1 - self.decay)
            self.a_use.lerp_(hot.sum(0), 1 - self.decay)
            self.sums.lerp_(hot.t() @ flat.detach(), 1 - self.decay)
            self.book = self.sums / self.counts.clamp_min(1e-5)[:, None]
        return x + (hard - x).detach(), ids.view(x.shape[:-1]), F.mse_loss(x, hard.detach())


class Coder(nn.Module):
    """No pass of its own: one method codes (L, B, N), another decodes (B, L, N) (transformers' Mimi)."""

    def __init__(self, levels: int = 2, dim: int = 6, size: int = 14) -> None:
        super().__init__()
        self.books = nn.ParameterList([nn.Parameter(torch.randn(size, dim) * 0.5**level) for level in range(levels)])

    def encode(self, x: Tensor) -> Tensor:
        rest, codes = x.transpose(1, 2), []
        for book in self.books:
            codes.append(torch.cdist(rest, book[None]).argmin(-1))
            rest = rest - book[codes[-1]]
        return torch.stack(codes)

    def decode(self, codes: Tensor) -> Tensor:
        return sum(book[ids] for book, ids in zip(self.books, codes.transpose(0, 1), strict=True)).transpose(1, 2)


class Padded(nn.Module):
    """An EMA codebook in an embedding with one more row, which torch keeps for padding (rq-vae-transformer)."""

    def __init__(self, n_embed: int = 12, width: int = 6, decay: float = 0.9) -> None:
        super().__init__()
        self.decay, self.count = decay, n_embed
        self.table = nn.Embedding(n_embed + 1, width, padding_idx=n_embed)
        self.table.weight.requires_grad_(False)
        self.register_buffer("used", torch.ones(n_embed))
        self.register_buffer("sums", self.table.weight[:-1].detach().clone())

    def forward(self, x: Tensor) -> Any:
        flat = x.reshape(-1, x.shape[-1])
        ids = torch.cdist(flat, self.table.weight[:-1]).argmin(-1)
        hard = self.table(ids).view_as(x)
        if self.training:
            hot = F.one_hot(ids, self.count).to(flat)
            self.used.lerp_(hot.sum(0), 1 - self.decay)
            self.sums.lerp_(hot.t() @ flat.detach(), 1 - self.decay)
            self.table.weight.data[:-1] = self.sums / self.used.clamp_min(1e-5)[:, None]
        return x + (hard - x).detach(), F.mse_loss(x, hard.detach()), ids.view(x.shape[:-1])


class Lazy(nn.Module):
    """The first batch becomes the codebook, whatever its width: the empty codebook alone says what D is (Jukebox)."""

    def __init__(self, k_bins: int = 16, emb_width: int = 6) -> None:
        super().__init__()
        self.bins, self.started = k_bins, False
        self.register_buffer("k", torch.zeros(k_bins, emb_width))

    def forward(self, x: Tensor) -> Any:
        flat = x.transpose(1, 2).reshape(-1, x.shape[1])
        if self.training and not self.started:
            self.k = flat.detach()[torch.randperm(len(flat))[: self.bins]].clone()
            self.started = True
        ids = torch.cdist(flat, self.k).argmin(-1)
        hard = self.k[ids].view(len(x), x.shape[2], x.shape[1]).transpose(1, 2)
        return ids.view(len(x), -1), x + (hard - x).detach(), F.mse_loss(x, hard.detach())


class Told(nn.Module):
    """A total beside its terms, of which one is subtracted, and mean probabilities that have a graph (Open-MAGVIT2)."""

    def __init__(self, dim: int = 4) -> None:
        super().__init__()
        self.register_buffer("signs", 2.0 * ((torch.arange(2**dim)[:, None] >> torch.arange(dim)) & 1) - 1)

    def forward(self, x: Tensor) -> Any:
        hard = torch.where(x > 0, 1.0, -1.0).to(x)
        ids = torch.einsum("bdn,kd->bkn", hard, self.signs).argmax(1)
        p = (2 * torch.einsum("bdn,kd->bnk", x, self.signs)).softmax(-1).flatten(0, 1)
        each, mean = -(p * (p + 1e-6).log()).sum(-1).mean(), p.mean(0)
        spread, commit = -(mean * (mean + 1e-6).log()).sum(), F.mse_loss(x, hard)
        return (x + (hard - x).detach(), ids), 0.1 * (each - spread) + 0.25 * commit, (each, spread, commit, mean)
