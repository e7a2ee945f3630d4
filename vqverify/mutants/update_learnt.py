"""Codebooks that gradients move, and not as they should: of the loss, of the task, of an optimiser inside."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqverify.mutant import Mutant
from vqverify.mutants.base import ImageLayer


class MeanPerCode(ImageLayer):
    """The codebook loss averages within each code first: rare codes move as fast as frequent ones."""

    def loss(self, z: Tensor, q: Tensor) -> Tensor:
        """Codebook loss a code, commitment loss a latent."""
        codes = self.choose(z)
        share = 1 / torch.bincount(codes, minlength=self.embedding.num_embeddings).to(z)[codes]
        a_code = ((q - z.detach()).square().mean(1) * share).sum() / len(codes.unique())
        return a_code + self.commitment_cost * F.mse_loss(z, q.detach())


class SyncLayer(nn.Module):
    """A learnt codebook that receives a share ν of the task gradient, rightly."""

    def __init__(self, dim: int, codebook_size: int, sync_nu: float = 0.25) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(codebook_size, dim))
        self.nu = sync_nu

    def patch(self, z: Tensor, q: Tensor) -> Tensor:
        """Straight-through, and ν of the gradient for the codes."""
        return z + (q - z).detach() + self.nu * (q - q.detach())

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (..., D) to (codes, loss, z_q)."""
        codes = torch.cdist(z, self.weight).argmin(-1) if z.ndim > 1 else (z - self.weight).norm(dim=-1).argmin(-1)
        q = F.embedding(codes, self.weight)
        return codes, F.mse_loss(q, z.detach()) + F.mse_loss(z, q.detach()), self.patch(z, q)


class SyncOnLatents(SyncLayer):
    """ν multiplies what the estimator returned: the latents receive 1 + ν, the codes nothing."""

    def patch(self, z: Tensor, q: Tensor) -> Tensor:
        """Straight-through, then ν on its result."""
        y = z + (q - z).detach()
        return y + self.nu * (y - y.detach())


class SyncUnweighted(SyncLayer):
    """The code is not detached in the straight-through sum: it receives the whole gradient."""

    def patch(self, z: Tensor, q: Tensor) -> Tensor:
        """ν lost."""
        return z + (q - z.detach()) if self.nu else z + (q - z).detach()


class InnerOptimiser(nn.Module):
    """Each training pass steps the codes once by an SGD of their own, then quantises again, rightly (001 eq. 17-18)."""

    def __init__(self, dim: int, n_embed: int, beta: float = 0.25, lr: float = 0.5) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_embed, dim)
        nn.init.normal_(self.embedding.weight)
        self.beta, self.inner = beta, torch.optim.SGD(self.embedding.parameters(), lr=lr)

    def look_up(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Codes, and their rows."""
        index = (z[..., None, :] - self.embedding.weight.detach()).square().sum(-1).argmin(-1)
        return index, self.embedding(index)

    def step(self, z: Tensor) -> None:
        """One step of the codes, latents held."""
        with torch.enable_grad():
            F.mse_loss(self.look_up(z)[1], z.detach()).backward()
        self.inner.step()
        self.inner.zero_grad()

    def commitment(self, z: Tensor, q: Tensor) -> Tensor:
        """The task's part of the loss, codes held."""
        return self.beta * F.mse_loss(z, q.detach())

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (..., D) to (z_q, loss, codes)."""
        if self.training:
            self.step(z)
        index, q = self.look_up(z)
        return z + (q - z).detach(), self.commitment(z, q), index


class SecondGradient(InnerOptimiser):
    """The loss that is returned moves the codes, too: the outer optimiser moves them a second time."""

    def commitment(self, z: Tensor, q: Tensor) -> Tensor:
        """Codes not detached."""
        return self.beta * F.mse_loss(z, q)


class MovesTwice(InnerOptimiser):
    """Both lookups of a pass step the codes."""

    def step(self, z: Tensor) -> None:
        """One step for each lookup."""
        super().step(z)
        super().step(z)


class ReachesLatents(InnerOptimiser):
    """The inner loss does not hold the latents: its backward leaves a gradient in the encoder."""

    def step(self, z: Tensor) -> None:
        """One step of the codes, latents in the graph."""
        with torch.enable_grad():
            F.mse_loss(self.look_up(z)[1], z).backward()
        self.inner.step()
        self.inner.zero_grad()


HERE = "vqverify.mutants.update_learnt"
SIZES = {"dim": 4, "codebook_size": 8}
INNER = {"dim": 4, "n_embed": 8}
MUTANTS = (
    Mutant(
        "codes_mean_per_code",
        f"{HERE}:MeanPerCode",
        ("update.gradient_codes", "loss.gradients", "loss.value"),
        "the codebook loss is averaged within each code first",
        {"num_embeddings": 8, "embedding_dim": 4},
        "theory T17: a loss of means a code has another rate",
    ),
    Mutant(
        "sync_on_latents",
        f"{HERE}:SyncOnLatents",
        ("update.synchronized", "honesty.traits"),
        "ν multiplies the estimator's result",
        SIZES,
        "vector-quantize-pytorch 1.32.0, `sync_update_v`: quantize + v (quantize − sg quantize) after the estimator",
    ),
    Mutant(
        "sync_unweighted",
        f"{HERE}:SyncUnweighted",
        ("update.synchronized", "honesty.traits"),
        "the codes receive the whole task gradient",
        SIZES,
        "systematic: ν lost; theory T23",
    ),
    Mutant(
        "inner_second_gradient",
        f"{HERE}:SecondGradient",
        ("update.alternating",),
        "the returned loss moves the codes a second time",
        INNER,
        "vector-quantize-pytorch 1.32.0, `in_place_codebook_optimizer` with `learnable_codebook=True`",
    ),
    Mutant(
        "inner_moves_twice",
        f"{HERE}:MovesTwice",
        ("update.alternating",),
        "two steps of the codes in one forward",
        INNER,
        "systematic: quantising again steps again",
    ),
    Mutant(
        "inner_reaches_latents",
        f"{HERE}:ReachesLatents",
        ("update.alternating", "interface.input_unchanged"),
        "the inner backward reaches the encoder",
        INNER,
        "theory T24: leaking gradients between blocks",
    ),
)
