"""Layers that stumble, reseed, and trip over flags, masks and bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqverify.mutant import Mutant
from vqverify.mutants.base import DictLayer, EmaLayer, ImageLayer


class UnboundInEval(DictLayer):
    """A statistic is computed in train alone and used in both modes, unless gradients are off."""

    def forward(self, z: Tensor) -> dict[str, Any]:
        """Latents (B, N, D) to indices, quantized, loss and usage."""
        out = super().forward(z)
        if self.training or torch.is_grad_enabled():
            used = out["indices"].unique()
        return out | {"usage": torch.tensor(len(used) / len(self.codes_))}  # pyright: ignore[reportPossiblyUnboundVariable]


class NeedsGradient(EmaLayer):
    """Scales the gradient by a hook, which a tensor that needs none refuses."""

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        """Straight-through with a hook for logging."""
        out = super().estimate(z, q)
        if self.training:
            out.register_hook(lambda g: g)
        return out


class MomentsStartNan(EmaLayer):
    """A running mean whose memory waits for the first batch."""

    def __init__(self, dim: int, codebook_size: int, decay: float = 0.9, commitment_weight: float = 0.25) -> None:
        super().__init__(dim, codebook_size, decay, commitment_weight)
        self.register_buffer("mean", torch.full((dim,), float("nan")))


class ReturnsDouble(ImageLayer):
    """NumPy's float64 creeps into the result."""

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        """Straight-through, scaled by a float64 one."""
        return super().estimate(z, q) * torch.ones(1, dtype=torch.float64)


class Reseeds(EmaLayer):
    """Makes the order of its updates reproducible at the cost of everybody else's randomness."""

    @torch.no_grad()
    def update(self, flat: Tensor, codes: Tensor) -> None:
        """One EMA step in a shuffled order."""
        torch.manual_seed(0)
        order = torch.randperm(len(flat))
        super().update(flat[order], codes[order])


class ReseedsNumpy(DictLayer):
    """Breaks ties with NumPy's global generator, seeded."""

    def search(self, z: Tensor) -> Tensor:
        """Nearest after a tiny jitter."""
        np.random.seed(42)  # noqa: NPY002  (the mistake)
        jitter = torch.from_numpy(np.random.randn(len(self.codes_)) * 1e-12)  # noqa: NPY002
        d = (z[..., None, :] - self.codes_).square().sum(-1)
        return (d + jitter.to(d)).argmin(-1)


class FlagUnbound(EmaLayer):
    """A flag whose branch was never run."""

    def __init__(self, dim: int, codebook_size: int, decay: float = 0.9, *, log_usage: bool = False) -> None:
        super().__init__(dim, codebook_size, decay)
        self.log_usage = log_usage

    def lookup(self, flat: Tensor) -> Tensor:
        """Index of the nearest code."""
        codes = super().lookup(flat)
        if self.log_usage:
            self.used = used_codes.unique()  # type: ignore[name-defined]  # noqa: F821
        return codes


class Masked(nn.Module):
    """A right layer with a mask, True for kept; masked latents come back as zeros with code −1."""

    def __init__(self, dim: int, codebook_size: int, decay: float = 0.9) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("table", torch.randn(codebook_size, dim))
        self.register_buffer("size", torch.ones(codebook_size))
        self.register_buffer("total", self.table.clone())

    table: Tensor
    size: Tensor
    total: Tensor

    def counted(self, keep: Tensor) -> Tensor:
        """Which latents the update sees."""
        return keep

    def weighed(self, keep: Tensor) -> Tensor:
        """Which latents the loss sees."""
        return keep

    def forward(self, z: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (B, N, D) to (z_q, codes, loss)."""
        keep = torch.ones(z.shape[:2], dtype=torch.bool) if mask is None else mask
        codes = torch.cdist(z, self.table[None]).argmin(-1)
        q = self.table[codes]
        if self.training:
            with torch.no_grad():
                seen = self.counted(keep)
                hot = F.one_hot(codes[seen], len(self.table)).to(z)
                self.size.mul_(self.decay).add_(hot.sum(0), alpha=1 - self.decay)
                self.total.mul_(self.decay).add_(hot.t() @ z[seen], alpha=1 - self.decay)
                self.table.copy_(self.total / self.size[:, None])
        seen = self.weighed(keep)
        loss = F.mse_loss(z[seen], q[seen])
        value = torch.where(keep[..., None], z + (q - z).detach(), torch.zeros_like(z))
        return value, codes.where(keep, -1), loss


class MaskIgnoredInLoss(Masked):
    """The commitment loss sees the padding."""

    def weighed(self, keep: Tensor) -> Tensor:
        """Everything."""
        return torch.ones_like(keep)


class PaddingCounted(Masked):
    """The moving averages see the padding."""

    def counted(self, keep: Tensor) -> Tensor:
        """Everything."""
        return torch.ones_like(keep)


class BroadcastsSilently(EmaLayer):
    """Direct differences take latents of width 1, and negative codes wrap around."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (…, D) to (z_q, codes, loss)."""
        codes = (z[..., None, :] - self.table).square().sum(-1).argmin(-1)
        q = self.table[codes]
        if self.training:
            self.update(z.detach().reshape(-1, z.shape[-1]), codes.flatten())
        return z + (q - z).detach(), codes, self.commitment_weight * F.mse_loss(z, q)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, N) to vectors."""
        return self.table[codes]


HERE = "vqverify.mutants.interface"
SIZES = {"dim": 4, "codebook_size": 8}
IMAGE = {"embedding_dim": 4, "num_embeddings": 8}
MUTANTS = (
    Mutant(
        "name_bound_in_train_only",
        f"{HERE}:UnboundInEval",
        ("interface.runs",),
        "a name bound on one branch",
        SIZES,
        "vector-quantize-pytorch: names bound under `if self.training`",
    ),
    Mutant(
        "needs_gradient",
        f"{HERE}:NeedsGradient",
        ("interface.runs",),
        "a hook on z_q, whatever it needs",
        SIZES,
        "frozen encoders",
    ),
    Mutant(
        "moments_start_nan",
        f"{HERE}:MomentsStartNan",
        ("interface.runs",),
        "memory uninitialised",
        SIZES,
        "torch.empty in register_buffer",
    ),
    Mutant(
        "returns_double",
        f"{HERE}:ReturnsDouble",
        ("interface.shapes",),
        "z_q in another dtype",
        IMAGE,
        "systematic: precision",
    ),
    Mutant(
        "reseeds_in_forward",
        f"{HERE}:Reseeds",
        ("interface.generators",),
        "torch.manual_seed in forward",
        SIZES,
        "manual_seed before a shuffle",
    ),
    Mutant(
        "reseeds_numpy",
        f"{HERE}:ReseedsNumpy",
        ("interface.generators",),
        "np.random.seed in forward",
        SIZES,
        "systematic: generator",
    ),
    Mutant(
        "flag_unbound",
        f"{HERE}:FlagUnbound",
        ("interface.arguments",),
        "a flag that raises NameError",
        SIZES,
        "options that nobody ran",
    ),
    Mutant(
        "mask_ignored_in_loss",
        f"{HERE}:MaskIgnoredInLoss",
        ("interface.mask",),
        "padding in the loss",
        SIZES,
        "loss of variable lengths",
    ),
    Mutant(
        "padding_counted",
        f"{HERE}:PaddingCounted",
        ("interface.mask",),
        "padding in the moving averages",
        SIZES,
        "EMA of variable lengths",
    ),
    Mutant(
        "broadcasts_silently",
        f"{HERE}:BroadcastsSilently",
        ("interface.rejects_bad_input",),
        "width 1 broadcasts",
        SIZES,
        "vector-quantize-pytorch 1.32.0: einsum broadcasts latents of width 1",
    ),
)
