"""First codes by k-means, and codes replaced by latents: right in the two base layers, wrong below."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqverify.mutant import Mutant
from vqverify.mutants.base import EmaLayer


class KMeansLayer(EmaLayer):
    """Starts from k-means on the first training batch, rightly."""

    def __init__(self, dim: int, codebook_size: int, kmeans_init: bool = True, kmeans_iters: int = 10) -> None:
        super().__init__(dim, codebook_size)
        self.iterations = kmeans_iters
        self.register_buffer("started", torch.tensor(not kmeans_init))

    started: Tensor

    def quotient(self, sums: Tensor, n: Tensor) -> Tensor:
        """Centres from sums and counts."""
        return sums / n.clamp_min(1)[:, None]

    @torch.no_grad()
    def start(self, flat: Tensor) -> None:
        """Lloyd's algorithm from rows of the batch."""
        size = len(self.table)
        picks = torch.randperm(len(flat))[torch.arange(size) % len(flat)]
        centres = flat[picks].clone()
        for _ in range(self.iterations):
            hot = F.one_hot(torch.cdist(flat, centres).argmin(1), size).to(flat)
            n = hot.sum(0)
            centres = torch.where((n > 0)[:, None], self.quotient(hot.t() @ flat, n), centres)
        self.table.copy_(centres)
        self.total.copy_(centres * self.size[:, None])
        self.started.fill_(True)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Z (…, D) to (z_q, codes, loss)."""
        if self.training and not self.started:
            self.start(z.detach().reshape(-1, z.shape[-1]))
        return super().forward(z)


class WrongCounts(KMeansLayer):
    """Sums over counts plus one, so that nothing is divided by zero."""

    def quotient(self, sums: Tensor, n: Tensor) -> Tensor:
        """An average that is drawn to 0."""
        return sums / (n + 1)[:, None]


class Overshoots(KMeansLayer):
    """Centres step past the mean."""

    def quotient(self, sums: Tensor, n: Tensor) -> Tensor:
        """5 % further from 0."""
        return 1.05 * super().quotient(sums, n)


class ReplacingLayer(EmaLayer):
    """Replaces codes whose count is small by latents of the batch, rightly."""

    def __init__(self, dim: int, codebook_size: int, decay: float = 0.9, dead_below: float = 0.1) -> None:
        super().__init__(dim, codebook_size, decay)
        self.dead_below = dead_below

    def dead(self) -> Tensor:
        """Codes to replace."""
        return self.size < self.dead_below

    def draw(self, flat: Tensor, number: int) -> Tensor:
        """Latents that take their place, no one twice."""
        return flat[torch.randperm(len(flat))[:number]]

    def put(self, dead: Tensor, fresh: Tensor) -> None:
        """Write codes, sums and counts."""
        self.table[dead] = fresh
        self.size[dead] = 1.0
        self.total[dead] = fresh

    @torch.no_grad()
    def update(self, flat: Tensor, codes: Tensor) -> None:
        """One EMA step, then replacement."""
        super().update(flat, codes)
        dead = self.dead().nonzero().flatten()[: len(flat)]
        if len(dead):
            self.put(dead, self.draw(flat, len(dead)))


class ForgetsSums(ReplacingLayer):
    """The code is replaced, its sums are not: the next step takes it back."""

    def put(self, dead: Tensor, fresh: Tensor) -> None:
        """Codes and counts."""
        self.table[dead] = fresh
        self.size[dead] = 1.0


class Duplicates(ReplacingLayer):
    """Latents are drawn with replacement."""

    def draw(self, flat: Tensor, number: int) -> Tensor:
        """Some of them twice."""
        return flat[torch.randint(len(flat), (number,))]


class OfFrequent(ReplacingLayer):
    """The comparison is the wrong way round."""

    def dead(self) -> Tensor:
        """The codes that are used most."""
        return self.size > 1 / self.dead_below


class OffSphere(nn.Module):
    """Cosine codes by EMA, on the sphere but for those that are replaced: the latents as they came in."""

    def __init__(self, dim: int, codebook_size: int, decay: float = 0.9, use_cosine_sim: bool = True) -> None:
        super().__init__()
        self.decay, self.cosine, self.dead_below = decay, use_cosine_sim, 0.1
        rows = F.normalize(torch.randn(codebook_size, dim), dim=-1)
        self.register_buffer("embed", rows)
        self.register_buffer("cluster_size", torch.ones(codebook_size))
        self.register_buffer("embed_avg", rows.clone())

    embed: Tensor
    cluster_size: Tensor
    embed_avg: Tensor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, N, D) to (z_q, codes)."""
        raw = x.reshape(-1, x.shape[-1])
        flat = F.normalize(raw, dim=-1)
        codes = (flat @ self.embed.t()).argmax(-1)
        q = self.embed[codes]
        if self.training:
            self.learn(flat.detach(), raw.detach(), codes)
        return (flat + (q - flat).detach()).reshape(x.shape), codes.reshape(x.shape[:-1])

    @torch.no_grad()
    def learn(self, flat: Tensor, raw: Tensor, codes: Tensor) -> None:
        """One EMA step, then replacement."""
        hot = F.one_hot(codes, len(self.embed)).to(flat)
        self.cluster_size.lerp_(hot.sum(0), 1 - self.decay)
        self.embed_avg.lerp_(hot.t() @ flat, 1 - self.decay)
        self.embed.copy_(F.normalize(self.embed_avg, dim=-1))
        dead = (self.cluster_size < self.dead_below).nonzero().flatten()[: len(raw)]
        if len(dead):
            fresh = raw[torch.randperm(len(raw))[: len(dead)]]
            self.embed[dead] = fresh
            self.embed_avg[dead] = fresh
            self.cluster_size[dead] = 1.0


class AgingLayer(EmaLayer):
    """Replaces codes that were unused for some steps in a row, rightly."""

    def __init__(self, dim: int, codebook_size: int, decay: float = 0.9, lifespan: int = 4) -> None:
        super().__init__(dim, codebook_size, decay)
        self.lifespan = lifespan
        self.register_buffer("age", torch.zeros(codebook_size, dtype=torch.long))

    age: Tensor

    def grown(self, used: Tensor) -> Tensor:
        """Steps since the last use."""
        return torch.where(used, 0, self.age + 1)

    @torch.no_grad()
    def update(self, flat: Tensor, codes: Tensor) -> None:
        """One EMA step, then replacement."""
        super().update(flat, codes)
        self.age.copy_(self.grown(torch.bincount(codes, minlength=len(self.age)) > 0))
        dead = (self.age >= self.lifespan).nonzero().flatten()[: len(flat)]
        fresh = flat[torch.randperm(len(flat))[: len(dead)]]
        self.table[dead], self.total[dead], self.size[dead], self.age[dead] = fresh, fresh, 1.0, 0


class TooEarly(AgingLayer):
    """Ages never start anew: a code that is used now is replaced all the same."""

    def grown(self, used: Tensor) -> Tensor:
        """Steps since the start."""
        return torch.where(used, self.age + 1, self.age + 1)


HERE = "vqverify.mutants.update_start"
SIZES = {"dim": 4, "codebook_size": 8}
EXPIRY = ("update.expiry",)
MUTANTS = (
    Mutant("kmeans_wrong_counts", f"{HERE}:WrongCounts", ("update.kmeans_init",), "sums over n + 1", SIZES,
           "systematic: a guard against empty clusters"),
    Mutant("kmeans_sign", f"{HERE}:Overshoots", ("update.kmeans_init",), "centres past the mean", SIZES,
           "systematic: factor"),
    Mutant("expiry_forgets_sums", f"{HERE}:ForgetsSums", (*EXPIRY, "update.consistent_state"),
           "replaced codes keep their old sums", SIZES,
           "vector-quantize-pytorch 1.2.2, mended in 1.2.3; theory T18"),
    Mutant("expiry_duplicates", f"{HERE}:Duplicates", EXPIRY, "one latent for several codes", SIZES,
           "systematic: sampling with replacement where latents suffice"),
    Mutant("expiry_of_frequent", f"{HERE}:OfFrequent", (*EXPIRY, "honesty.traits"), "frequent codes go", SIZES,
           "systematic: comparison reversed"),
    Mutant("expiry_off_sphere", f"{HERE}:OffSphere", EXPIRY, "raw latents among unit codes", SIZES,
           "vector-quantize-pytorch 1.4.1, codes off the sphere, mended in 1.5.0"),
    Mutant("expiry_too_early", f"{HERE}:TooEarly", (*EXPIRY, "honesty.traits"), "used codes go", SIZES,
           "systematic: the age of a used code is not reset"),
)  # fmt: skip
