"""Layers as others publish them, rewritten from memory of their code: what identification meets in the wild."""

import torch
import torch.nn.functional as F
from torch import nn


class ZalandoEMA(nn.Module):
    def __init__(self, num_embeddings, embedding_dim, commitment_cost=0.25, decay=0.99, epsilon=1e-5):
        super().__init__()
        self._embedding_dim = embedding_dim
        self._num_embeddings = num_embeddings
        self._embedding = nn.Embedding(num_embeddings, embedding_dim)
        self._embedding.weight.data.normal_()
        self._commitment_cost = commitment_cost
        self.register_buffer("_ema_cluster_size", torch.zeros(num_embeddings))
        self._ema_w = nn.Parameter(torch.Tensor(num_embeddings, embedding_dim))
        self._ema_w.data.normal_()
        self._decay = decay
        self._epsilon = epsilon

    def forward(self, inputs):
        inputs = inputs.permute(0, 2, 3, 1).contiguous()
        input_shape = inputs.shape
        flat_input = inputs.view(-1, self._embedding_dim)
        distances = (
            torch.sum(flat_input**2, dim=1, keepdim=True)
            + torch.sum(self._embedding.weight**2, dim=1)
            - 2 * torch.matmul(flat_input, self._embedding.weight.t())
        )
        encoding_indices = torch.argmin(distances, dim=1).unsqueeze(1)
        encodings = torch.zeros(encoding_indices.shape[0], self._num_embeddings, device=inputs.device)
        encodings.scatter_(1, encoding_indices, 1)
        quantized = torch.matmul(encodings, self._embedding.weight).view(input_shape)
        if self.training:
            self._ema_cluster_size = self._ema_cluster_size * self._decay + (1 - self._decay) * torch.sum(encodings, 0)
            n = torch.sum(self._ema_cluster_size.data)
            self._ema_cluster_size = (
                (self._ema_cluster_size + self._epsilon) / (n + self._num_embeddings * self._epsilon) * n
            )
            dw = torch.matmul(encodings.t(), flat_input)
            self._ema_w = nn.Parameter(self._ema_w * self._decay + (1 - self._decay) * dw)
            self._embedding.weight = nn.Parameter(self._ema_w / self._ema_cluster_size.unsqueeze(1))
        e_latent_loss = F.mse_loss(quantized.detach(), inputs)
        loss = self._commitment_cost * e_latent_loss
        quantized = inputs + (quantized - inputs).detach()
        avg_probs = torch.mean(encodings, dim=0)
        perplexity = torch.exp(-torch.sum(avg_probs * torch.log(avg_probs + 1e-10)))
        return loss, quantized.permute(0, 3, 1, 2).contiguous(), perplexity, encodings


class Taming2(nn.Module):
    def __init__(self, n_e, e_dim, beta=0.25, legacy=True):
        super().__init__()
        self.n_e = n_e
        self.e_dim = e_dim
        self.beta = beta
        self.legacy = legacy
        self.embedding = nn.Embedding(n_e, e_dim)
        self.embedding.weight.data.uniform_(-1.0 / n_e, 1.0 / n_e)

    def forward(self, z):
        z = z.permute(0, 2, 3, 1).contiguous()
        zf = z.view(-1, self.e_dim)
        d = (
            torch.sum(zf**2, dim=1, keepdim=True)
            + torch.sum(self.embedding.weight**2, dim=1)
            - 2 * torch.einsum("bd,dn->bn", zf, self.embedding.weight.t())
        )
        idx = torch.argmin(d, dim=1)
        zq = self.embedding(idx).view(z.shape)
        if not self.legacy:
            loss = self.beta * torch.mean((zq.detach() - z) ** 2) + torch.mean((zq - z.detach()) ** 2)
        else:
            loss = torch.mean((zq.detach() - z) ** 2) + self.beta * torch.mean((zq - z.detach()) ** 2)
        zq = z + (zq - z).detach()
        return zq.permute(0, 3, 1, 2).contiguous(), loss, (None, None, idx)

    def get_codebook_entry(self, indices, shape):
        zq = self.embedding(indices)
        if shape is not None:
            zq = zq.view(shape).permute(0, 3, 1, 2).contiguous()
        return zq


class DAC(nn.Module):
    def __init__(self, input_dim, codebook_size, codebook_dim):
        super().__init__()
        self.codebook_size = codebook_size
        self.codebook_dim = codebook_dim
        self.in_proj = nn.Conv1d(input_dim, codebook_dim, 1)
        self.out_proj = nn.Conv1d(codebook_dim, input_dim, 1)
        self.codebook = nn.Embedding(codebook_size, codebook_dim)

    def forward(self, z):
        z_e = self.in_proj(z)
        z_q, indices = self.decode_latents(z_e)
        commitment_loss = F.mse_loss(z_e, z_q.detach(), reduction="none").mean([1, 2])
        codebook_loss = F.mse_loss(z_q, z_e.detach(), reduction="none").mean([1, 2])
        z_q = z_e + (z_q - z_e).detach()
        z_q = self.out_proj(z_q)
        return z_q, commitment_loss, codebook_loss, indices, z_e

    def embed_code(self, embed_id):
        return F.embedding(embed_id, self.codebook.weight)

    def decode_code(self, embed_id):
        return self.embed_code(embed_id).transpose(1, 2)

    def decode_latents(self, latents):
        b, d, t = latents.shape
        enc = latents.permute(0, 2, 1).reshape(b * t, d)
        cb = self.codebook.weight
        enc = F.normalize(enc)
        cb = F.normalize(cb)
        dist = enc.pow(2).sum(1, keepdim=True) - 2 * enc @ cb.t() + cb.pow(2).sum(1, keepdim=True).t()
        indices = (-dist).max(1)[1].reshape(b, t)
        return self.decode_code(indices), indices


class EncodecLike(nn.Module):
    def __init__(self, dim, codebook_size, decay=0.99, epsilon=1e-5):
        super().__init__()
        self.decay = decay
        self.eps = epsilon
        embed = torch.empty(codebook_size, dim)
        nn.init.kaiming_uniform_(embed)
        self.register_buffer("cluster_size", torch.zeros(codebook_size))
        self.register_buffer("embed", embed)
        self.register_buffer("embed_avg", embed.clone())

    def forward(self, x):
        shape = x.shape
        flat = x.reshape(-1, shape[-1])
        embed = self.embed.t()
        dist = -(flat.pow(2).sum(1, keepdim=True) - 2 * flat @ embed + embed.pow(2).sum(0, keepdim=True))
        ind = dist.max(-1).indices
        onehot = F.one_hot(ind, self.embed.shape[0]).type(x.dtype)
        ind = ind.view(*shape[:-1])
        quantize = F.embedding(ind, self.embed)
        if self.training:
            with torch.no_grad():
                self.cluster_size.data.mul_(self.decay).add_(onehot.sum(0), alpha=1 - self.decay)
                self.embed_avg.data.mul_(self.decay).add_((flat.t() @ onehot).t(), alpha=1 - self.decay)
                n = self.cluster_size.sum()
                cs = (self.cluster_size + self.eps) / (n + self.embed.shape[0] * self.eps) * n
                self.embed.data.copy_(self.embed_avg / cs.unsqueeze(1))
        if self.training:
            quantize = x + (quantize - x).detach()
        return quantize, ind, F.mse_loss(quantize.detach(), x) if self.training else torch.tensor(0.0)


class ViT(nn.Module):
    def __init__(self, embed_dim, n_embed, beta=0.25, use_norm=True):
        super().__init__()
        self.norm = (lambda x: F.normalize(x, dim=-1)) if use_norm else (lambda x: x)
        self.beta = beta
        self.embedding = nn.Embedding(n_embed, embed_dim)
        self.embedding.weight.data.normal_()

    def forward(self, z):
        zr = z.view(-1, z.shape[-1])
        zn = self.norm(zr)
        en = self.norm(self.embedding.weight)
        d = torch.sum(zn**2, dim=1, keepdim=True) + torch.sum(en**2, dim=1) - 2 * torch.einsum("bd,nd->bn", zn, en)
        idx = torch.argmin(d, dim=1).unsqueeze(-1).view(*z.shape[:-1])
        zq = self.embedding(idx).view(z.shape)
        zqn, zn = self.norm(zq), self.norm(z)
        loss = self.beta * torch.mean((zqn.detach() - zn) ** 2) + torch.mean((zqn - zn.detach()) ** 2)
        zqn = zn + (zqn - zn).detach()
        return zqn, loss, idx


class Rosinality(nn.Module):
    def __init__(self, dim, n_embed, decay=0.99, eps=1e-5):
        super().__init__()
        self.dim = dim
        self.n_embed = n_embed
        self.decay = decay
        self.eps = eps
        embed = torch.randn(dim, n_embed)
        self.register_buffer("embed", embed)
        self.register_buffer("cluster_size", torch.zeros(n_embed))
        self.register_buffer("embed_avg", embed.clone())

    def forward(self, inputs):
        flatten = inputs.reshape(-1, self.dim)
        dist = flatten.pow(2).sum(1, keepdim=True) - 2 * flatten @ self.embed + self.embed.pow(2).sum(0, keepdim=True)
        _, embed_ind = (-dist).max(1)
        onehot = F.one_hot(embed_ind, self.n_embed).type(flatten.dtype)
        embed_ind = embed_ind.view(*inputs.shape[:-1])
        quantize = self.embed_code(embed_ind)
        if self.training:
            s = onehot.sum(0)
            es = flatten.transpose(0, 1) @ onehot
            self.cluster_size.data.mul_(self.decay).add_(s, alpha=1 - self.decay)
            self.embed_avg.data.mul_(self.decay).add_(es, alpha=1 - self.decay)
            n = self.cluster_size.sum()
            cs = (self.cluster_size + self.eps) / (n + self.n_embed * self.eps) * n
            self.embed.data.copy_(self.embed_avg / cs.unsqueeze(0))
        diff = (quantize.detach() - inputs).pow(2).mean()
        quantize = inputs + (quantize - inputs).detach()
        return quantize, diff, embed_ind

    def embed_code(self, i):
        return F.embedding(i, self.embed.transpose(0, 1))


class RVQ(nn.Module):
    """correct stack: per-level straight-through with attached subtraction"""

    def __init__(self, dim, codebook_size, num_quantizers):
        super().__init__()
        self.books = nn.ParameterList(
            [nn.Parameter(torch.randn(codebook_size, dim) * 0.5**i) for i in range(num_quantizers)]
        )

    def forward(self, x):
        r = x
        out = 0
        idxs = []
        loss = 0
        for b in self.books:
            i = (
                torch.cdist(r.detach(), b).argmin(-1)
                if r.ndim == 3
                else torch.cdist(r.detach()[None], b[None])[0].argmin(-1)
            )
            q = b[i]
            loss = loss + F.mse_loss(r, q.detach()) * 0.25 + F.mse_loss(q, r.detach())
            out = out + q
            r = r - q.detach()
            idxs.append(i)
        z_q = x + (out - x).detach()
        return z_q, torch.stack(idxs, 0), loss


class Gumbel(nn.Module):
    def __init__(self, num_hiddens, embedding_dim, n_embed, temperature=1.0, kl_weight=5e-4):
        super().__init__()
        self.temperature = temperature
        self.kl_weight = kl_weight
        self.n_embed = n_embed
        self.proj = nn.Conv2d(num_hiddens, n_embed, 1)
        self.embed = nn.Embedding(n_embed, embedding_dim)

    def forward(self, z):
        hard = not self.training
        logits = self.proj(z)
        one = (
            F.gumbel_softmax(logits, tau=self.temperature, dim=1, hard=hard)
            if self.training
            else F.one_hot(logits.argmax(1), self.n_embed).permute(0, 3, 1, 2).to(logits)
        )
        zq = torch.einsum("bnhw,nd->bdhw", one, self.embed.weight)
        qy = F.softmax(logits, dim=1)
        diff = self.kl_weight * torch.sum(qy * torch.log(qy * self.n_embed + 1e-10), dim=1).mean()
        return zq, diff, one.argmax(1)


class Detached(nn.Module):
    """A stack whose loss reaches no latent: every term is detached from z."""

    def __init__(self, dim, codebook_size, num_quantizers, commitment_weight=0.25):
        super().__init__()
        self.inner = RVQ(dim, codebook_size, num_quantizers)
        self.commitment_weight = commitment_weight

    def forward(self, x):
        z_q, codes, _ = self.inner(x)
        _, _, loss = self.inner(x.detach())
        return z_q, codes, loss


class Leaky(nn.Module):
    """Codes that remember no counts: c moves to the mean of its latents by a constant part, or by one that grows."""

    def __init__(self, dim, codebook_size, rate=0.1, grows=False):
        super().__init__()
        self.register_buffer("codes", torch.randn(codebook_size, dim))
        self.rate = rate
        self.grows = grows

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        k = torch.cdist(flat, self.codes).argmin(1)
        q = self.codes[k].reshape(x.shape)
        if self.training:
            with torch.no_grad():
                hot = F.one_hot(k, len(self.codes)).to(flat)
                n = hot.sum(0)[:, None]
                mean = hot.t() @ flat / n.clamp_min(1)
                rate = self.rate * n / (1 - self.rate + self.rate * n) if self.grows else self.rate * (n > 0)
                self.codes += rate * (mean - self.codes)
        return x + (q - x).detach(), k.reshape(x.shape[:-1]), 0.25 * F.mse_loss(x, q)


class WholeLoss(nn.Module):
    """SimVQ's two weights: one on the commitment, one on the whole loss."""

    def __init__(self, dim, codebook_size, commitment_weight=1.0, inner_commit_weight=0.25, factor=1.0):
        super().__init__()
        self.codes = nn.Embedding(codebook_size, dim)
        self.weight, self.inner = factor * commitment_weight, inner_commit_weight

    def forward(self, x):
        k = torch.cdist(x.reshape(-1, x.shape[-1]), self.codes.weight).argmin(1).reshape(x.shape[:-1])
        q = self.codes(k)
        loss = self.weight * (F.mse_loss(q, x.detach()) + self.inner * F.mse_loss(x, q.detach()))
        return x + (q - x).detach(), k, loss


class DACs(nn.Module):
    """A residual stack of levels with maps of their own (descript-audio-codec).

    split: each level sees z (moshi); falls: the loss of a level weighs less than that of the one before.
    """

    def __init__(self, input_dim=6, codebook_size=12, codebook_dim=4, levels=3, split=False, falls=False):
        super().__init__()
        self.split, self.falls = split, falls
        self.levels = nn.ModuleList([DAC(input_dim, codebook_size, codebook_dim) for _ in range(levels)])

    def forward(self, z):
        total, residual, codes, losses = torch.zeros_like(z), z, [], 0.0
        for place, level in enumerate(self.levels):
            q, commitment, codebook, indices, _ = level(z if self.split else residual)
            total, residual = total + q, residual - q
            losses = losses + (commitment + codebook).mean() / (1 + place * self.falls)
            codes.append(indices)
        return total, torch.stack(codes, 1), losses


class Spherical(nn.Module):
    """Binary spherical quantization: signs of the normalised latent, at norm 1."""

    def __init__(self, dim=5):
        super().__init__()
        self.register_buffer("powers", 2 ** torch.arange(dim))

    def forward(self, z):
        unit = F.normalize(z, dim=-1)
        hard = torch.where(unit > 0, 1.0, -1.0) / z.shape[-1] ** 0.5
        return unit + (hard - unit).detach(), ((hard > 0).long() * self.powers).sum(-1)
