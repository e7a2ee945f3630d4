"""Codebooks whose averages nobody can read, and that overshoot."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqverify.mutant import Mutant
from vqverify.mutants.base import EmaLayer


class OfMeans(EmaLayer):
    """The mean of a code's latents is averaged where their sum is meant: it is divided by the count twice."""

    @torch.no_grad()
    def update(self, flat: Tensor, codes: Tensor) -> None:
        """One EMA step of counts and means."""
        hot = F.one_hot(codes, len(self.table)).to(flat)
        self.size.mul_(self.decay).add_(hot.sum(0), alpha=1 - self.decay)
        self.total.mul_(self.decay).add_(hot.t() @ flat / hot.sum(0).clamp_min(1)[:, None], alpha=1 - self.decay)
        self.table.copy_(self.total / self.size[:, None])


class OnlineKMeans(nn.Module):
    """Mini-batch k-means, right: a code moves by 1/count towards each of its latents; (B, T, D) to (z_q, codes)."""

    def __init__(self, n_features: int, n_clusters: int) -> None:
        super().__init__()
        self.register_buffer("centroids", torch.randn(n_clusters, n_features))
        self.register_buffer("seen", torch.ones(n_clusters))

    centroids: Tensor
    seen: Tensor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, T, D) to (z_q, codes)."""
        units = (x[..., None, :] - self.centroids).square().sum(-1).argmin(-1)
        features = self.centroids[units]
        if self.training:
            flat, u = x.detach().flatten(0, -2), units.flatten()
            n = torch.bincount(u, minlength=len(self.seen)).to(x)
            s = torch.zeros_like(self.centroids).index_add_(0, u, flat)
            self.learn(n, s - n[:, None] * self.centroids)
        return features, units

    @torch.no_grad()
    def learn(self, n: Tensor, way: Tensor) -> None:
        """Counts first, then the step."""
        self.seen.add_(n)
        self.centroids.add_(way / self.seen[:, None])


class OldCount(OnlineKMeans):
    """The step is divided by the count before it: many latents carry a young code past their mean."""

    @torch.no_grad()
    def learn(self, n: Tensor, way: Tensor) -> None:
        """The step first, then the counts."""
        self.centroids.add_(way / self.seen[:, None])
        self.seen.add_(n)


class OnSphere(nn.Module):
    """Unit codes that turn to the mean of their latents by a constant part, right; (N, D) to (z_q, codes)."""

    def __init__(self, hidden: int, num_tokens: int, ema_decay: float = 0.8) -> None:
        super().__init__()
        self.ema_decay = ema_decay
        self.register_buffer("embed", F.normalize(torch.randn(num_tokens, hidden), dim=-1))

    embed: Tensor

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (N, D) to (z_q, codes)."""
        h = F.normalize(h, dim=-1)
        ind = (h @ self.embed.t()).argmax(-1)
        q = self.embed[ind]
        if self.training:
            with torch.no_grad():
                hot = F.one_hot(ind, len(self.embed)).flatten(0, -2).to(h)
                total = F.normalize(hot.t() @ h.flatten(0, -2), dim=-1)
                target = torch.where(hot.any(0)[:, None], total, self.embed)
                self.embed.copy_(F.normalize(self.turned(target), dim=-1))
        return h + (q - h).detach(), ind

    def turned(self, target: Tensor) -> Tensor:
        """A part 1 − γ of the way."""
        return self.embed.lerp(target, 1 - self.ema_decay)


class OnSphereSwapped(OnSphere):
    """The decay on the wrong side of `lerp`."""

    def turned(self, target: Tensor) -> Tensor:
        """A part γ of the way."""
        return self.embed.lerp(target, self.ema_decay)


HERE = "vqverify.mutants.update_hull"
MUTANTS = (
    Mutant(
        "ema_of_means",
        f"{HERE}:OfMeans",
        ("update.hull",),
        "means are averaged where sums are meant, and divided by the count once more",
        {"dim": 4, "codebook_size": 8},
        "systematic: `scatter_reduce(…, 'mean')` in place of `index_add_`",
    ),
    Mutant(
        "kmeans_old_count",
        f"{HERE}:OldCount",
        ("update.hull",),
        "mini-batch k-means divides by the count before the step",
        {"n_features": 4, "n_clusters": 8},
        "Sculley 2010, algorithm 1, with the per-centre count raised last",
    ),
    Mutant(
        "sphere_decay_swapped",
        f"{HERE}:OnSphereSwapped",
        ("honesty.traits",),
        "γ and 1 − γ exchanged, on the sphere and without counts",
        {"hidden": 4, "num_tokens": 8},
        "systematic: weights of `lerp` exchanged",
    ),
)
