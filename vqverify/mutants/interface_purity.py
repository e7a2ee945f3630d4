"""Layers that touch what is not theirs to touch: state in eval, the input, memory that was handed out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqverify.mutant import Mutant
from vqverify.mutants.base import DictLayer, EmaLayer, ImageLayer, RotationLayer


class CountsInEval(DictLayer):
    """A usage counter that also runs in eval."""

    def __init__(self, dim: int, codebook_size: int, beta: float = 0.25) -> None:
        super().__init__(dim, codebook_size, beta)
        self.register_buffer("seen", torch.zeros(codebook_size))

    seen: Tensor

    def search(self, z: Tensor) -> Tensor:
        """Index of the nearest code, counted."""
        index = super().search(z)
        self.seen += torch.bincount(index.flatten(), minlength=len(self.seen))
        return index


class StartsInEval(EmaLayer):
    """The codebook starts from the first batch, whichever mode it comes in."""

    def __init__(self, dim: int, codebook_size: int, decay: float = 0.9, commitment_weight: float = 0.25) -> None:
        super().__init__(dim, codebook_size, decay, commitment_weight)
        self.register_buffer("started", torch.tensor(data=False))

    started: Tensor

    def lookup(self, flat: Tensor) -> Tensor:
        """Index of the nearest code, after the start."""
        if not self.started and len(flat):
            rows = flat.detach()[torch.arange(len(self.table)) % len(flat)]
            self.table.copy_(rows)
            self.total.copy_(rows)
            self.started.fill_(value=True)
        return super().lookup(flat)


class DropoutInEval(DictLayer):
    """F.dropout without training=: it is on for ever."""

    def patch(self, z: Tensor, q: Tensor) -> Tensor:
        """Straight-through with dropout."""
        return z + (F.dropout(q, 0.1) - z).detach()


class ClampsInPlace(EmaLayer):
    """Outliers are clamped in the encoder's own memory."""

    def lookup(self, flat: Tensor) -> Tensor:
        """Index of the nearest code of the clamped latents."""
        flat.data.clamp_(-2.0, 2.0)
        return super().lookup(flat)


class ResidualInPlace(nn.Module):
    """Two levels; the residual starts as z.detach(), which shares memory with z."""

    def __init__(self, dim: int, codebook_size: int) -> None:
        super().__init__()
        self.books = nn.ParameterList([nn.Parameter(torch.randn(codebook_size, dim)) for _ in range(2)])

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, N, D) to z_q and codes (B, N, 2)."""
        left, total, codes = z.detach(), torch.zeros_like(z), list[Tensor]()
        for book in self.books:
            codes.append(torch.cdist(left, book.detach()[None]).argmin(-1))
            q = book.detach()[codes[-1]]
            total = total + q
            left -= q
        z = left + total
        return z + (total - z).detach(), torch.stack(codes, -1)


class ReturnsBuffer(EmaLayer):
    """In eval the loss is a buffer of zeros that is handed out itself."""

    def __init__(self, dim: int, codebook_size: int, decay: float = 0.9, commitment_weight: float = 0.25) -> None:
        super().__init__(dim, codebook_size, decay, commitment_weight)
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    zero: Tensor

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (…, D) to (z_q, codes, loss)."""
        z_q, codes, loss = super().forward(z)
        return z_q, codes, loss if self.training else self.zero


class ReusesOutput(DictLayer):
    """An output buffer is kept from call to call to save allocations."""

    def forward(self, z: Tensor) -> dict[str, Any]:
        """Latents (B, N, D) to indices, quantized and loss."""
        out = super().forward(z)
        if torch.is_grad_enabled():
            return out
        kept = self.__dict__.get("kept")
        if kept is None or kept.shape != z.shape:
            self.__dict__["kept"] = kept = torch.empty_like(z)
        return out | {"quantized": kept.copy_(out["quantized"])}


class MomentsWithGraph(EmaLayer):
    """A running mean of the latents keeps the graph of every batch."""

    def __init__(self, dim: int, codebook_size: int, decay: float = 0.9, commitment_weight: float = 0.25) -> None:
        super().__init__(dim, codebook_size, decay, commitment_weight)
        self.register_buffer("mean", torch.zeros(dim))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (…, D) to (z_q, codes, loss)."""
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * z.reshape(-1, z.shape[-1]).mean(0)
        return super().forward(z)


class KeepsLoss(ImageLayer):
    """The loss is kept for the logger, graph and all: the layer cannot be copied any more."""

    def loss(self, z: Tensor, q: Tensor) -> Tensor:
        """Codebook and commitment loss."""
        self.last_loss = super().loss(z, q)
        return self.last_loss


class RotatesValueWithGrad(RotationLayer):
    """The rotation reaches the value, without its scale, wherever gradients are on."""

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        """The code, or a rotated latent of the latent's norm."""
        if not torch.is_grad_enabled():
            return q
        u, v = F.normalize(z, dim=-1).detach(), F.normalize(q, dim=-1).detach()
        return self.turn(z, u, v, F.normalize(u + v, dim=-1))


HERE = "vqverify.mutants.interface_purity"
SIZES = {"dim": 4, "codebook_size": 8}
IMAGE = {"embedding_dim": 4, "num_embeddings": 8}
MUTANTS = (
    Mutant(
        "eval_counts",
        f"{HERE}:CountsInEval",
        ("interface.eval_pure",),
        "a counter runs in eval",
        SIZES,
        "usage statistics",
    ),
    Mutant(
        "starts_in_eval",
        f"{HERE}:StartsInEval",
        ("interface.eval_pure",),
        "data-dependent start in eval",
        SIZES,
        "vector-quantize-pytorch 1.32.0: kmeans_init at the first call, in eval too",
    ),
    Mutant(
        "dropout_in_eval",
        f"{HERE}:DropoutInEval",
        ("interface.eval_deterministic",),
        "dropout left on",
        SIZES,
        "F.dropout defaults to training=True",
    ),
    Mutant(
        "clamps_in_place",
        f"{HERE}:ClampsInPlace",
        ("interface.input_unchanged",),
        ".data.clamp_ on the input",
        SIZES,
        "systematic: in place",
    ),
    Mutant(
        "residual_in_place",
        f"{HERE}:ResidualInPlace",
        ("interface.input_unchanged",),
        "detach() shares memory",
        SIZES,
        "residual -= q after z.detach()",
    ),
    Mutant(
        "returns_buffer",
        f"{HERE}:ReturnsBuffer",
        ("interface.no_alias",),
        "a buffer is handed out",
        SIZES,
        "vector-quantize-pytorch 1.32.0: self.zero",
    ),
    Mutant(
        "reuses_output",
        f"{HERE}:ReusesOutput",
        ("interface.no_alias",),
        "one output buffer for all calls",
        SIZES,
        "saved allocations",
    ),
    Mutant(
        "moments_with_graph",
        f"{HERE}:MomentsWithGraph",
        ("interface.graph_free",),
        "a mean with its graph",
        SIZES,
        "a missing detach",
    ),
    Mutant(
        "keeps_loss",
        f"{HERE}:KeepsLoss",
        ("interface.graph_free", "interface.copies"),
        "the loss is kept with its graph",
        IMAGE,
        "self.loss = loss",
    ),
    Mutant(
        "rotates_value_with_grad",
        f"{HERE}:RotatesValueWithGrad",
        ("interface.no_grad_same",),
        "the value depends on grad mode",
        SIZES,
        "theory T14",
    ),
)
