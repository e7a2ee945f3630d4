"""EMA codebooks that do not follow their law."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vqverify.mutant import Mutant
from vqverify.mutants.base import EmaLayer


class DecaySwapped(EmaLayer):
    """The decay weighs the batch and not the past."""

    @torch.no_grad()
    def update(self, flat: Tensor, codes: Tensor) -> None:
        """One EMA step with 1 − γ for γ."""
        hot = F.one_hot(codes, len(self.table)).to(flat)
        self.size.mul_(1 - self.decay).add_(hot.sum(0), alpha=self.decay)
        self.total.mul_(1 - self.decay).add_(hot.t() @ flat, alpha=self.decay)
        self.table.copy_(self.total / self.size[:, None])


class CountsInHalf(EmaLayer):
    """Counts pass through bfloat16."""

    @torch.no_grad()
    def update(self, flat: Tensor, codes: Tensor) -> None:
        """One EMA step with rounded counts."""
        hot = F.one_hot(codes, len(self.table)).to(flat)
        self.size.copy_((self.decay * self.size + (1 - self.decay) * hot.sum(0)).bfloat16())
        self.total.mul_(self.decay).add_(hot.t() @ flat, alpha=1 - self.decay)
        self.table.copy_(self.total / self.size[:, None])


class SumForMean(EmaLayer):
    """Codes move towards the sum of their latents."""

    @torch.no_grad()
    def update(self, flat: Tensor, codes: Tensor) -> None:
        """Accumulators by the law, codes by the sum."""
        hot = F.one_hot(codes, len(self.table)).to(flat)
        n, s = hot.sum(0), hot.t() @ flat
        self.size.mul_(self.decay).add_(n, alpha=1 - self.decay)
        self.total.mul_(self.decay).add_(s, alpha=1 - self.decay)
        used = n > 0
        self.table[used] = self.decay * self.table[used] + (1 - self.decay) * s[used]


class NotWrittenBack(EmaLayer):
    """Accumulators move and the codebook never does."""

    @torch.no_grad()
    def update(self, flat: Tensor, codes: Tensor) -> None:
        """Accumulators alone."""
        before = self.table.clone()
        super().update(flat, codes)
        used = torch.bincount(codes, minlength=len(before)) > 0
        self.table[used] = 0.5 * self.table[used] + 0.5 * before[used]


class ZeroCounts(EmaLayer):
    """Counts start at 0 beside a copied codebook: one token throws a code away."""

    def __init__(self, dim: int, codebook_size: int, decay: float = 0.9, commitment_weight: float = 0.25) -> None:
        super().__init__(dim, codebook_size, decay, commitment_weight)
        self.size.zero_()

    @torch.no_grad()
    def update(self, flat: Tensor, codes: Tensor) -> None:
        """One EMA step, guarded against division by zero."""
        hot = F.one_hot(codes, len(self.table)).to(flat)
        self.size.mul_(self.decay).add_(hot.sum(0), alpha=1 - self.decay)
        self.total.mul_(self.decay).add_(hot.t() @ flat, alpha=1 - self.decay)
        self.table.copy_(self.total / self.size.clamp_min(1e-5)[:, None])


class MovesEmptyCodes(EmaLayer):
    """m decays and N does not, where a code has no latents: unused codes shrink."""

    @torch.no_grad()
    def update(self, flat: Tensor, codes: Tensor) -> None:
        """One EMA step whose counts ignore unused codes."""
        hot = F.one_hot(codes, len(self.table)).to(flat)
        n = hot.sum(0)
        self.size.copy_(torch.where(n > 0, self.decay * self.size + (1 - self.decay) * n, self.size))
        self.total.mul_(self.decay).add_(hot.t() @ flat, alpha=1 - self.decay)
        self.table.copy_(self.total / self.size[:, None])


class QuantiseAfterUpdate(EmaLayer):
    """The codebook moves first, and z_q is taken from what it became."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Z (…, D) to (z_q, codes, loss)."""
        flat = z.reshape(-1, z.shape[-1])
        codes = self.lookup(flat)
        if self.training:
            self.update(flat.detach(), codes)
        q = self.table[codes].clone()
        loss = self.commitment_weight * F.mse_loss(flat, q)
        return self.estimate(flat, q).reshape(z.shape), codes.reshape(z.shape[:-1]), loss


class LearnsInEval(EmaLayer):
    """The codebook moves in eval, too."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Z (…, D) to (z_q, codes, loss)."""
        flat = z.reshape(-1, z.shape[-1])
        codes = self.lookup(flat)
        q = self.table[codes]
        self.update(flat.detach(), codes)
        loss = self.commitment_weight * F.mse_loss(flat, q)
        return self.estimate(flat, q).reshape(z.shape), codes.reshape(z.shape[:-1]), loss


HERE = "vqverify.mutants.update"
SIZES = {"dim": 4, "codebook_size": 8}


class MeansForSums(EmaLayer):
    """k-means on the first batch, whose means stand where the sums belong."""

    def __init__(self, dim: int, codebook_size: int, decay: float = 0.9, commitment_weight: float = 0.25) -> None:
        super().__init__(dim, codebook_size, decay, commitment_weight)
        self.register_buffer("started", torch.tensor(data=False))

    started: Tensor

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Z (…, D) to (z_q, codes, loss); the first pass in train starts the codebook."""
        if self.training and not self.started:
            self.start(z.detach().reshape(-1, z.shape[-1]))
        return super().forward(z)

    @torch.no_grad()
    def start(self, flat: Tensor) -> None:
        """One step of Lloyd from the first latents; the counts are right, the sums are the means."""
        centres = flat[torch.arange(len(self.table)) % len(flat)]
        hot = F.one_hot(torch.cdist(flat, centres).argmin(1), len(self.table)).to(flat)
        n = hot.sum(0)
        means = torch.where(n[:, None] > 0, hot.t() @ flat / n.clamp_min(1)[:, None], centres)
        self.table.copy_(means)
        self.total.copy_(means)
        self.size.copy_(n.clamp_min(1))
        self.started.fill_(value=True)


MUTANTS = (
    Mutant(
        "means_for_sums",
        f"{HERE}:MeansForSums",
        ("update.first_batch",),
        "sums that are means after k-means",
        SIZES,
        "vector-quantize-pytorch up to 1.6.30, issue 66",
    ),
    Mutant(
        "ema_decay_swapped",
        f"{HERE}:DecaySwapped",
        ("honesty.traits", "update.ema_law"),
        "1 − γ for γ",
        SIZES,
        "theory T17: 001's γ is 002's 1 − γ",
    ),
    Mutant(
        "ema_counts_in_half",
        f"{HERE}:CountsInHalf",
        ("update.ema_law", "update.empty_code_still"),
        "counts in bfloat16",
        SIZES,
        "EMA under autocast",
    ),
    Mutant(
        "ema_sum_for_mean",
        f"{HERE}:SumForMean",
        ("update.ema_law", "update.ema_is_commitment"),
        "sum for mean",
        SIZES,
        "theory T17",
    ),
    Mutant(
        "ema_not_written_back",
        f"{HERE}:NotWrittenBack",
        ("update.ema_law", "update.fixed_point", "update.empty_code_still"),
        "half of the step is written back",
        SIZES,
        "systematic",
    ),
    Mutant(
        "ema_zero_counts",
        f"{HERE}:ZeroCounts",
        ("update.initial_state",),
        "counts start at 0",
        SIZES,
        "vector-quantize-pytorch 1.15.2; theory T18",
    ),
    Mutant(
        "ema_moves_empty_codes",
        f"{HERE}:MovesEmptyCodes",
        ("update.empty_code_still",),
        "unused codes decay",
        SIZES,
        "theory T20",
    ),
    Mutant(
        "quantise_after_update",
        f"{HERE}:QuantiseAfterUpdate",
        ("update.uses_old_codes",),
        "z_q from the moved codebook",
        SIZES,
        "001 §5.4",
    ),
    Mutant(
        "eval_that_learns",
        f"{HERE}:LearnsInEval",
        ("update.frozen", "interface.eval_pure"),
        "EMA runs in eval",
        SIZES,
        "a missing `if self.training`",
    ),
)
