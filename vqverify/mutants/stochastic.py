"""Draws that follow another law than the one that is said, and samples that are no codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqverify.mutant import Mutant
from vqverify.mutants.base import EmaLayer


class SamplingLayer(nn.Module):
    """(B, N, D), Parameter codebook; codes drawn from softmax(−d²/T) in training. The control of its mutants."""

    def __init__(self, dim: int, codebook_size: int, temperature: float = 0.5, commitment_weight: float = 0.25) -> None:
        super().__init__()
        self.codes = nn.Parameter(0.5 * torch.randn(codebook_size, dim))
        self.temperature, self.commitment_weight = temperature, commitment_weight

    def logits(self, d: Tensor) -> Tensor:
        """From squared distances, divided by the temperature."""
        return -d / self.temperature

    def noise(self, logits: Tensor) -> Tensor:
        """Standard Gumbel."""
        return -torch.empty_like(logits).exponential_().clamp_min(1e-30).log()

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From z (B, N, D) to (z_q, codes, loss)."""
        d = (z.unsqueeze(-2) - self.codes).square().sum(-1)
        index = d.argmin(-1)
        if self.training:
            logits = self.logits(d.detach())
            index = (logits + self.noise(logits)).argmax(-1)
        q = F.embedding(index, self.codes)
        loss = F.mse_loss(q, z.detach()) + self.commitment_weight * F.mse_loss(z, q.detach())
        return z + (q - z).detach(), index, loss


class Inverted(SamplingLayer):
    """The temperature multiplies."""

    def logits(self, d: Tensor) -> Tensor:
        """−d²·T."""
        return -d * self.temperature


class RootedTwice(SamplingLayer):
    """√d where d is a distance already: far codes are drawn too often."""

    def logits(self, d: Tensor) -> Tensor:
        """−√d/T."""
        return -d.clamp_min(1e-12).sqrt().sqrt() / self.temperature


class SharedNoise(SamplingLayer):
    """One draw of the noise for the whole batch."""

    def noise(self, logits: Tensor) -> Tensor:
        """The noise of one latent, expanded."""
        return super().noise(logits[:1, :1]).expand_as(logits)


class NormalNoise(SamplingLayer):
    """randn for Gumbel noise."""

    def noise(self, logits: Tensor) -> Tensor:
        """Standard normal."""
        return torch.randn_like(logits)


class OwnGenerator(SamplingLayer):
    """Noise from a generator of its own that no snapshot holds and no seed reaches."""

    def __init__(self, dim: int, codebook_size: int, temperature: float = 0.5, commitment_weight: float = 0.25) -> None:
        super().__init__(dim, codebook_size, temperature, commitment_weight)
        self._source = torch.Generator().manual_seed(0)

    def noise(self, logits: Tensor) -> Tensor:
        """Gumbel noise that differs between two passes with one seed."""
        u = torch.rand(logits.shape, generator=self._source).clamp(1e-20, 1 - 1e-7)
        return -(-u.log()).log()


class MixtureInEval(EmaLayer):
    """Hard in training, and a softmax-weighted mean of the codes in eval."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From z (…, D) to (z_q, codes, loss)."""
        if self.training:
            return super().forward(z)
        flat = z.reshape(-1, z.shape[-1])
        d = torch.cdist(flat, self.table)
        q = (-d).softmax(-1) @ self.table
        return q.reshape(z.shape), d.argmin(1).reshape(z.shape[:-1]), self.commitment_weight * F.mse_loss(flat, q)


class GumbelLayer(nn.Module):
    """(B, D, H, W), logits by a 1×1 convolution, F.gumbel_softmax, as in DALL-E's and taming-transformers' layers."""

    hard = True

    def __init__(self, num_hiddens: int, n_embed: int, temperature: float = 1.0, kl_weight: float = 5e-4) -> None:
        super().__init__()
        self.proj = nn.Conv2d(num_hiddens, n_embed, 1)
        self.embed = nn.Embedding(n_embed, num_hiddens)
        self.temperature, self.kl_weight = temperature, kl_weight

    def weights(self, logits: Tensor) -> Tensor:
        """One-hot, with the gradient of the relaxation."""
        return F.gumbel_softmax(logits, tau=self.temperature, dim=1, hard=self.hard or not self.training)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From z (B, D, H, W) to (z_q, loss, codes)."""
        logits = self.proj(z)
        one_hot = (
            self.weights(logits) if self.training else F.one_hot(logits.argmax(1), logits.shape[1]).movedim(-1, 1).to(z)
        )
        z_q = torch.einsum("bnhw,nd->bdhw", one_hot, self.embed.weight)
        p = logits.softmax(1)
        loss = self.kl_weight * (p * (p * self.embed.num_embeddings + 1e-10).log()).sum(1).mean()
        return z_q, loss, one_hot.argmax(1)


class LeftSoft(GumbelLayer):
    """hard=False while codes are returned: the decoder trains on mixtures."""

    hard = False


class GradientSign(GumbelLayer):
    """The other soft term is detached: the gradient is that of the relaxation, negated."""

    def weights(self, logits: Tensor) -> Tensor:
        """Hard + sg soft − soft."""
        soft = F.gumbel_softmax(logits, tau=self.temperature, dim=1)
        hard = F.one_hot(soft.argmax(1), soft.shape[1]).movedim(-1, 1).to(soft)
        return hard + soft.detach() - soft


class GradientScaled(GumbelLayer):
    """The relaxation is added twice: its gradient doubles."""

    def weights(self, logits: Tensor) -> Tensor:
        """Hard + 2(soft − sg soft)."""
        soft = F.gumbel_softmax(logits, tau=self.temperature, dim=1)
        hard = F.one_hot(soft.argmax(1), soft.shape[1]).movedim(-1, 1).to(soft)
        return hard + 2 * (soft - soft.detach())


HERE = "vqverify.mutants.stochastic"
SIZES = {"dim": 8, "codebook_size": 16, "temperature": 0.5}
IMAGE = {"num_hiddens": 8, "n_embed": 16}
LAW = ("stochastic.distribution",)

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "temperature_inverted",
        f"{HERE}:Inverted",
        (*LAW, "stochastic.limits"),
        "T multiplies",
        SIZES,
        "systematic: inverse; theory T30",
    ),
    Mutant(
        "distance_rooted_twice",
        f"{HERE}:RootedTwice",
        LAW,
        "√ of a distance",
        SIZES,
        "theory T30: √D where D is claimed",
    ),
    Mutant("noise_shared", f"{HERE}:SharedNoise", LAW, "one draw for the batch", SIZES, "theory T30: shared noise"),
    Mutant("noise_normal", f"{HERE}:NormalNoise", LAW, "normal for Gumbel noise", SIZES, "systematic: another law"),
    Mutant(
        "own_generator",
        f"{HERE}:OwnGenerator",
        ("stochastic.limits",),
        "a generator that no seed reaches",
        SIZES,
        "systematic: hidden state",
    ),
    Mutant(
        "mixture_in_eval",
        f"{HERE}:MixtureInEval",
        ("stochastic.hard", "lookup.forward_is_code"),
        "a mixture of codes in eval",
        {"dim": 8, "codebook_size": 16},
        "soft-to-hard VQ left soft",
    ),
    Mutant(
        "gumbel_left_soft",
        f"{HERE}:LeftSoft",
        ("stochastic.hard", "lookup.code_determines"),
        "hard=False beside codes",
        IMAGE,
        "F.gumbel_softmax's default",
    ),
    Mutant(
        "gumbel_gradient_sign",
        f"{HERE}:GradientSign",
        ("stochastic.st_value",),
        "the wrong soft term detached",
        IMAGE,
        "systematic: sign",
    ),
    Mutant(
        "gumbel_gradient_scaled",
        f"{HERE}:GradientScaled",
        ("stochastic.st_value",),
        "soft gradient twice",
        IMAGE,
        "systematic: factor",
    ),
)
