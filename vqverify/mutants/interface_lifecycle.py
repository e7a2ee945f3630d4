"""Layers that do not survive a second instance, a copy, a save, a cast or a compiler."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqverify.mutant import Mutant
from vqverify.mutants.base import DictLayer, EmaLayer
from vqverify.mutants.structure import SignLayer

_START = nn.Embedding(8, 4)


class MutableDefault(nn.Module):
    """The codebook is a default argument: every instance trains the same one."""

    def __init__(self, embedding: nn.Embedding = _START, beta: float = 0.25) -> None:
        super().__init__()
        self.embedding, self.beta = embedding, beta

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (B, N, D) to (z_q, codes, loss)."""
        codes = torch.cdist(z, self.embedding.weight[None]).argmin(-1)
        q = self.embedding(codes)
        loss = F.mse_loss(q, z.detach()) + self.beta * F.mse_loss(z, q.detach())
        return z + (q - z).detach(), codes, loss


class StateOnClass(EmaLayer):
    """Counts of recent use live on the class, and hold back codes in every instance."""

    recent: dict[int, int] = {}  # noqa: RUF012  (the mistake)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (…, D) to (z_q, codes, loss)."""
        z_q, codes, loss = super().forward(z)
        if self.training:
            self.recent[0] = self.recent.get(0, 0) + 1
        return z_q * (1 + 1e-3 * self.recent.get(0, 0)), codes, loss


class CachesNorms(DictLayer):
    """|c|² is computed once and kept, whatever becomes of the codes."""

    def search(self, z: Tensor) -> Tensor:
        """Index of the nearest code by expanded distances."""
        norms = self.__dict__.get("norms")
        if norms is None or self.training:
            self.__dict__["norms"] = norms = self.codes_.detach().square().sum(-1)
        return (norms.to(z) - 2 * z @ self.codes_.detach().t()).argmin(-1)


class ClosureOverSelf(EmaLayer):
    """The distance is a lambda made in the constructor: a copy still asks the original."""

    def __init__(self, dim: int, codebook_size: int, decay: float = 0.9, commitment_weight: float = 0.25) -> None:
        super().__init__(dim, codebook_size, decay, commitment_weight)
        self.distance = lambda flat: torch.cdist(flat, self.table)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (…, D) to (z_q, codes, loss), codes and vectors through the closure."""
        flat = z.reshape(-1, z.shape[-1])
        codes = self.distance(flat).argmin(1)
        table = self.distance.__closure__[0].cell_contents.table  # type: ignore[index]
        q = table[codes].detach()
        if self.training:
            self.update(flat.detach(), codes)
        loss = self.commitment_weight * F.mse_loss(flat, q)
        return self.estimate(flat, q).reshape(z.shape), codes.reshape(z.shape[:-1]), loss


class ProjectionNotSaved(nn.Module):
    """A frozen random projection that is no buffer (random-projection quantizer, BEST-RQ)."""

    def __init__(self, dim: int, codebook_size: int) -> None:
        super().__init__()
        self.projection = torch.randn(dim, dim) / dim**0.5
        self.register_buffer("table", torch.randn(codebook_size, dim))

    table: Tensor

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (…, D) to (z_q, codes)."""
        codes = torch.cdist((z @ self.projection).reshape(-1, z.shape[-1]), self.table).argmin(1)
        q = self.table[codes].reshape(z.shape)
        return z + (q - z).detach(), codes.reshape(z.shape[:-1])


class InitFlagLost(EmaLayer):
    """Whether the codebook was started from data is a Python flag: after loading it starts again."""

    def __init__(self, dim: int, codebook_size: int, decay: float = 0.9, commitment_weight: float = 0.25) -> None:
        super().__init__(dim, codebook_size, decay, commitment_weight)
        self.started = False

    def lookup(self, flat: Tensor) -> Tensor:
        """Index of the nearest code, after the start."""
        if self.training and not self.started and len(flat):
            rows = flat.detach()[torch.arange(len(self.table)) % len(flat)]
            self.table.copy_(rows)
            self.total.copy_(rows * self.size[:, None])
            self.started = True
        return super().lookup(flat)


class ScaleKeptInSelf(DictLayer):
    """A backward hook reads the scale of the last pass from self, not of its own."""

    def patch(self, z: Tensor, q: Tensor) -> Tensor:
        """Straight-through whose gradient is scaled by a factor near 1."""
        self.scale = 1 + 0.1 * torch.tanh(z.detach().abs().mean())
        out = z + (q - z).detach()
        if out.requires_grad:
            out.register_hook(lambda g: g * self.scale)
        return out


class UpdatesTwice(EmaLayer):
    """The update is part of forward, and forward runs again under checkpointing."""


class LeftBehind(DictLayer):
    """The codes' numbers are a plain tensor, which does not move with the module."""

    def __init__(self, dim: int, codebook_size: int, beta: float = 0.25) -> None:
        super().__init__(dim, codebook_size, beta)
        self.numbers = torch.arange(codebook_size)

    def forward(self, z: Tensor) -> dict[str, Any]:
        """Latents (B, N, D) to indices, quantized and loss."""
        out = super().forward(z)
        return out | {"indices": self.numbers[out["indices"].to(self.numbers.device)]}


class PowersLeftBehind(SignLayer):
    """The powers of two of the code are a plain tensor."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.powers = 2 ** torch.arange(dim)

    def index(self, q: Tensor) -> Tensor:
        """Σ 2ⁱ[qᵢ > 0]."""
        return ((q > 0) * self.powers).sum(-1)


class TableLeftBehind(DictLayer):
    """A frozen random codebook in a plain tensor."""

    def __init__(self, dim: int, codebook_size: int, beta: float = 0.25) -> None:
        super().__init__(dim, codebook_size, beta)
        table = self.codes_.detach()
        del self.codes_
        self.codes_ = table


HERE = "vqverify.mutants.interface_lifecycle"
SIZES = {"dim": 4, "codebook_size": 8}
MUTANTS = (
    Mutant(
        "powers_left_behind",
        f"{HERE}:PowersLeftBehind",
        ("interface.device_moves",),
        "the basis of the codes is a plain tensor",
        {"dim": 4},
        "vector-quantize-pytorch registers the LFQ mask and the FSQ basis as buffers for this; ports leave them out",
    ),
    Mutant(
        "table_left_behind",
        f"{HERE}:TableLeftBehind",
        ("interface.device_moves",),
        "a frozen codebook is a plain tensor",
        SIZES,
        "random projection quantizers whose codebook is no buffer",
    ),
    Mutant(
        "mutable_default",
        f"{HERE}:MutableDefault",
        ("interface.instances_independent",),
        "a module as default argument",
        {},
        "Python FAQ",
    ),
    Mutant(
        "state_on_class",
        f"{HERE}:StateOnClass",
        ("interface.instances_independent",),
        "a dict on the class",
        SIZES,
        "Python FAQ",
    ),
    Mutant(
        "caches_norms",
        f"{HERE}:CachesNorms",
        ("interface.caches_coherent",),
        "norms never refreshed",
        SIZES,
        "a cache that is never invalidated",
    ),
    Mutant(
        "closure_over_self",
        f"{HERE}:ClosureOverSelf",
        ("interface.copies",),
        "a lambda over self",
        SIZES,
        "deepcopy does not copy closures",
    ),
    Mutant(
        "projection_not_saved",
        f"{HERE}:ProjectionNotSaved",
        ("interface.state_round_trip",),
        "a projection outside the state_dict",
        SIZES,
        "BEST-RQ",
    ),
    Mutant(
        "init_flag_lost",
        f"{HERE}:InitFlagLost",
        ("interface.state_round_trip",),
        "the start flag is not saved",
        SIZES,
        "self.initialized = True",
    ),
    Mutant(
        "scale_kept_in_self",
        f"{HERE}:ScaleKeptInSelf",
        ("interface.accumulates",),
        "a hook reads self",
        SIZES,
        "gradient accumulation",
    ),
    Mutant(
        "updates_twice",
        f"{HERE}:UpdatesTwice",
        ("interface.checkpointed",),
        "update in the recomputed forward",
        SIZES,
        "torch.utils.checkpoint",
        "merge",
    ),
)
