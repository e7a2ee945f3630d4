"""EMA codebooks whose codes and accumulators part, at once or in the long run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqverify.mutant import Mutant
from vqverify.mutants.base import EmaLayer


class SetterForgets(EmaLayer):
    """A setter that writes the codes and leaves their sums as they were."""

    @property
    def codebook(self) -> Tensor:
        """The codes, (K, D)."""
        return self.table

    @codebook.setter
    def codebook(self, codes: Tensor) -> None:
        self.table.copy_(codes)


class SumsNotSaved(nn.Module):
    """Rows of an nn.Embedding by EMA; the averages are buffers that a state_dict leaves out."""

    def __init__(self, num_embeddings: int, embedding_dim: int, decay: float = 0.95) -> None:
        super().__init__()
        self.decay = decay
        self.embedding = nn.Embedding(num_embeddings, embedding_dim)
        self.embedding.weight.requires_grad_(False)
        self.register_buffer("ema_n", torch.ones(num_embeddings), persistent=False)
        self.register_buffer("ema_w", self.embedding.weight.data.clone(), persistent=False)

    ema_n: Tensor
    ema_w: Tensor

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, N, D) to (codes, z_q)."""
        e = self.embedding.weight
        index = (x[..., None, :] - e).square().sum(-1).argmin(-1)
        q = self.embedding(index)
        if self.training:
            with torch.no_grad():
                flat, picked = x.reshape(-1, x.shape[-1]), index.flatten()
                n = torch.bincount(picked, minlength=len(e)).to(flat)
                s = torch.zeros_like(e).index_add_(0, picked, flat)
                self.ema_n.lerp_(n, 1 - self.decay)
                self.ema_w.lerp_(s, 1 - self.decay)
                self.embedding.weight.copy_(self.ema_w / self.ema_n[:, None])
        return index, x + (q - x).detach()


class Stalls(EmaLayer):
    """The recursion as the paper has it: N and m of an unused code decay for ever."""

    @torch.no_grad()
    def update(self, flat: Tensor, codes: Tensor) -> None:
        """Unused codes are 0/0 in the end, or (1, …, 1)."""
        hot = F.one_hot(codes, len(self.table)).to(flat)
        self.size = self.decay * self.size + (1 - self.decay) * hot.sum(0)
        self.total = self.decay * self.total + (1 - self.decay) * (hot.t() @ flat)
        self.table = self.total / self.size.unsqueeze(1)


class SmoothedShares(EmaLayer):
    """Laplace smoothing gives shares, and nothing makes them counts again: the codes grow by the total."""

    @torch.no_grad()
    def update(self, flat: Tensor, codes: Tensor) -> None:
        """One EMA step whose sums are divided by (N + ε)/(T + Kε)."""
        hot = F.one_hot(codes, len(self.table)).to(flat)
        self.size.mul_(self.decay).add_(hot.sum(0), alpha=1 - self.decay)
        self.total.mul_(self.decay).add_(hot.t() @ flat, alpha=1 - self.decay)
        shares = (self.size + 1e-5) / (self.size.sum() + len(self.table) * 1e-5)
        self.table.copy_(self.total / shares[:, None])


HERE = "vqverify.mutants.update_state"
SIZES = {"dim": 4, "codebook_size": 8}
MUTANTS = (
    Mutant(
        "ema_setter_forgets",
        f"{HERE}:SetterForgets",
        ("update.consistent_state",),
        "the setter writes codes and not their sums",
        SIZES,
        "vector-quantize-pytorch 1.32.0, `VectorQuantize.codebook`; theory T18",
    ),
    Mutant(
        "ema_sums_not_saved",
        f"{HERE}:SumsNotSaved",
        ("update.consistent_state", "interface.state_round_trip"),
        "averages are no part of the state_dict",
        {"num_embeddings": 8, "embedding_dim": 4},
        "systematic: persistent=False on the averages",
    ),
    Mutant(
        "ema_smoothed_shares",
        f"{HERE}:SmoothedShares",
        ("update.empty_code_still", "update.ema_law", "update.consistent_state"),
        "smoothed shares are not multiplied by the total",
        SIZES,
        "van den Oord's (N + ε)/(n + Kε) without its factor n; theory T21",
    ),
    Mutant(
        "ema_stalls",
        f"{HERE}:Stalls",
        ("update.long_run",),
        "unused counts decay to subnormal numbers, and their codes drift",
        SIZES,
        "van den Oord 2017, appendix A.1 without smoothing; theory T20",
    ),
)
