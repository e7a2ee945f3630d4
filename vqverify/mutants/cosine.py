"""Cosine lookups that see the lengths of latents, or whose codes leave the sphere."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqverify.mutant import Mutant


class CosineLayer(nn.Module):
    """(B, N, D) latents, unit codes in a buffer moved by EMA on the sphere; (z_q, codes, loss). The control."""

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        decay: float = 0.9,
        commitment_weight: float = 0.25,
        use_cosine_sim: bool = True,
    ) -> None:
        super().__init__()
        self.decay, self.commitment_weight, self.use_cosine_sim = decay, commitment_weight, use_cosine_sim
        self.register_buffer("table", F.normalize(torch.randn(codebook_size, dim), dim=-1))

    table: Tensor

    def enter(self, z: Tensor) -> Tensor:
        """Directions of the latents."""
        return F.normalize(z, dim=-1)

    def choose(self, raw: Tensor, unit: Tensor) -> Tensor:
        """Index of the code with the largest cosine."""
        del raw
        return (unit @ self.table.t()).argmax(-1)

    def cost(self, raw: Tensor, unit: Tensor, q: Tensor) -> Tensor:
        """Commitment on the sphere."""
        del raw
        return self.commitment_weight * F.mse_loss(unit, q)

    @torch.no_grad()
    def update(self, raw: Tensor, unit: Tensor, codes: Tensor) -> None:
        """Move used codes towards the mean of their directions, and back to the sphere."""
        del raw
        self.table.copy_(F.normalize(self.moved(unit, codes), dim=-1))

    def moved(self, rows: Tensor, codes: Tensor) -> Tensor:
        """γe + (1 − γ) mean, for used codes."""
        hot = F.one_hot(codes.flatten(), len(self.table)).to(rows)
        counts = hot.sum(0)[:, None]
        mean = hot.t() @ rows.flatten(0, -2) / counts.clamp_min(1)
        return torch.where(counts > 0, self.decay * self.table + (1 - self.decay) * mean, self.table)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From z (B, N, D) to (z_q, codes, loss)."""
        unit = self.enter(z)
        codes = self.choose(z, unit)
        q = self.table[codes]
        loss = self.cost(z, unit, q)
        if self.training:
            self.update(z.detach(), unit.detach(), codes)
        return unit + (q - unit).detach(), codes, loss


class WrongAxis(CosineLayer):
    """Normalised over the tokens, the axis of the channels in another layout."""

    def enter(self, z: Tensor) -> Tensor:
        """Latents divided by norms over the tokens."""
        return F.normalize(z, dim=-2)


class ByDistance(CosineLayer):
    """use_cosine_sim is asked for, and latents are compared as they are, feature by feature."""

    def choose(self, raw: Tensor, unit: Tensor) -> Tensor:
        """Nearest in ℓ1 to the latent itself."""
        del unit
        return (raw[..., None, :] - self.table).abs().sum(-1).argmin(-1)


class CodesDrift(CosineLayer):
    """The average of unit vectors is written back as it is: shorter than 1."""

    @torch.no_grad()
    def update(self, raw: Tensor, unit: Tensor, codes: Tensor) -> None:
        """Without the way back to the sphere."""
        del raw
        self.table.copy_(self.moved(unit, codes))


class RawLoss(CosineLayer):
    """The commitment is taken in the space of the raw latents: it pulls lengths to 1."""

    def cost(self, raw: Tensor, unit: Tensor, q: Tensor) -> Tensor:
        """Commitment off the sphere."""
        del unit
        return self.commitment_weight * F.mse_loss(raw, q)


class RawUpdate(CosineLayer):
    """Raw latents go into the average: long ones count more."""

    @torch.no_grad()
    def update(self, raw: Tensor, unit: Tensor, codes: Tensor) -> None:
        """Means of raw latents, back to the sphere."""
        del unit
        self.table.copy_(F.normalize(self.moved(raw, codes), dim=-1))


class LearntDirections(nn.Module):
    """Directions of a learnt table, whose own norms are free; (B, N, D) to (codes, loss, z_q), right."""

    def __init__(self, width: int, vocab: int, beta: float = 0.5) -> None:
        super().__init__()
        self.beta = beta
        self.table = nn.Parameter(F.normalize(torch.randn(vocab, width), dim=-1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (B, N, D) to (codes, loss, z_q)."""
        x = F.normalize(x, dim=-1)
        table = F.normalize(self.table, dim=-1)
        tokens = (x @ table.t()).argmax(-1)
        q = table[tokens]
        loss = F.mse_loss(q, x.detach()) + self.beta * F.mse_loss(x, q.detach())
        return tokens, loss, x + (q - x).detach()

    def decode(self, tokens: Tensor) -> Tensor:
        """Directions of codes."""
        return F.normalize(self.table, dim=-1)[tokens]


class DecodesRows(LearntDirections):
    """Rows as they are stored: of norm 1 at the start, and of any norm once the table was trained."""

    def decode(self, tokens: Tensor) -> Tensor:
        """Not normalised."""
        return self.table[tokens]


HERE = "vqverify.mutants.cosine"
SIZES = {"dim": 4, "codebook_size": 8}
SPHERE = ("lookup.cosine_sphere",)
MUTANTS = (
    Mutant(
        "cosine_wrong_axis",
        f"{HERE}:WrongAxis",
        ("lookup.cosine_scale_free",),
        "normalised over the tokens",
        SIZES,
        "F.normalize's default dim=1 on (B, N, D), where it should be −1",
    ),
    Mutant(
        "cosine_by_distance_unprojected",
        f"{HERE}:ByDistance",
        ("lookup.cosine_scale_free", "lookup.nearest"),
        "latents compared before they are normalised",
        SIZES,
        "normalised on one side only",
    ),
    Mutant(
        "cosine_codes_drift",
        f"{HERE}:CodesDrift",
        SPHERE,
        "codes are not normalised after the update",
        SIZES,
        "systematic: step left out; vector-quantize-pytorch normalises in CosineSimCodebook.update_ema",
    ),
    Mutant(
        "cosine_raw_loss",
        f"{HERE}:RawLoss",
        SPHERE,
        "commitment of raw latents to unit codes",
        SIZES,
        "vector-quantize-pytorch's masked commitment loss with use_cosine_sim",
    ),
    Mutant(
        "cosine_raw_update",
        f"{HERE}:RawUpdate",
        SPHERE,
        "averages of raw latents",
        SIZES,
        "systematic: order of operations",
    ),
    Mutant(
        "decode_unnormalised",
        f"{HERE}:DecodesRows",
        ("lookup.decode",),
        "decode leaves out that codes are directions",
        {"width": 4, "vocab": 8},
        "systematic: step left out; unseen until the table is trained",
    ),
)
