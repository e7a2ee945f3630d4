"""Layers in which a latent's company, place, layout or memory format matters."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vqverify.mutant import Mutant
from vqverify.mutants.base import DictLayer, EmaLayer, ImageLayer, RotationLayer


class UnscaledInTrain(RotationLayer):
    """In train the latent is turned and keeps its own norm; eval returns the code."""

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        """Rz in train, q in eval."""
        if not self.training:
            return z + (q - z).detach()
        u, v = F.normalize(z, dim=-1).detach(), F.normalize(q, dim=-1).detach()
        return self.turn(z, u, v, F.normalize(u + v, dim=-1))


class SumsLoseDuplicates(EmaLayer):
    """`sums[codes] += z` writes each code once: of several latents the last one counts."""

    @torch.no_grad()
    def update(self, flat: Tensor, codes: Tensor) -> None:
        """One EMA step with the last latent of each code."""
        sums = torch.zeros_like(self.total)
        for latent, code in zip(flat, codes.tolist(), strict=True):
            sums[code] = latent
        count = F.one_hot(codes, len(self.table)).to(flat).sum(0)
        self.size.mul_(self.decay).add_(count.clamp_max(1), alpha=1 - self.decay)
        self.total.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        self.table.copy_(self.total / self.size[:, None])


class CentresByBatch(EmaLayer):
    """Latents are compared after part of the batch mean was taken away."""

    def lookup(self, flat: Tensor) -> Tensor:
        """Index of the code nearest to the shifted latent."""
        return torch.cdist(flat - 0.3 * flat.mean(0), self.table).argmin(1)


class LossSummedOverBatch(DictLayer):
    """The loss is a mean over latents and a sum over batch entries."""

    def forward(self, z: Tensor) -> dict[str, Any]:
        """Latents (B, N, D) to indices, quantized and loss."""
        out = super().forward(z)
        q = self.codes_[out["indices"]]
        each = (q - z.detach()).square().mean((1, 2)) + self.beta * (z - q.detach()).square().mean((1, 2))
        return out | {"loss": each.sum()}


class LearnsFirstEntry(EmaLayer):
    """The update sees the first batch entry alone."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (B, N, D) to (z_q, codes, loss)."""
        training = self.training
        self.training = False
        z_q, codes, loss = super().forward(z)
        self.training = training
        if training and len(z):
            self.update(z[0].detach().reshape(-1, z.shape[-1]), codes[0].flatten())
        return z_q, codes, loss


class ImagePathDiffers(EmaLayer):
    """A fast path for images leaves |c|² out."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (…, D) to (z_q, codes, loss)."""
        self.image = z.ndim == 4
        return super().forward(z)

    def lookup(self, flat: Tensor) -> Tensor:
        """Index of the nearest code; by inner product for images."""
        return (flat @ self.table.t()).argmax(1) if self.image else super().lookup(flat)


class ImageTransposed(ImageLayer):
    """permute(0, 3, 2, 1) for the way back: height and width change places, unseen on square images."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Z (B, D, H, W) to (loss, z_q (B, D, W, H), perplexity, codes)."""
        loss, out, perplexity, codes = super().forward(z)
        return loss, out.permute(0, 2, 3, 1).permute(0, 3, 2, 1), perplexity, codes


class ViewsStrides(DictLayer):
    """view(-1, D) on whatever memory comes."""

    def search(self, z: Tensor) -> Tensor:
        """Index of the nearest code."""
        flat = z.view(-1, z.shape[-1])
        return torch.cdist(flat, self.codes_).argmin(-1).view(z.shape[:-1])


class ReadsStorage(EmaLayer):
    """Latents are read in the order in which they lie in memory."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (…, D) to (z_q, codes, loss)."""
        shape, width = z.shape, z.shape[-1]
        if z.numel() and not z.is_contiguous() and z.stride(-1) == 1:
            z = z.as_strided((z.numel() // width, width), (width, 1)).reshape(shape)
        elif z.numel() and not z.is_contiguous() and z.untyped_storage().nbytes() >= z.numel() * z.element_size():
            z = torch.as_strided(z, shape, torch.empty(shape).stride())
        return super().forward(z)


class MixesBatchAndTokens(EmaLayer):
    """view(N, B) and a transpose for view(B, N): right for one batch entry, and for entries of one latent."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (B, N, D) to (z_q, codes, loss)."""
        b, n, _ = z.shape
        z_q, codes, loss = super().forward(z)
        return z_q, codes.view(n, b).t(), loss


class ChunkForgetsRest(ImageLayer):
    """The search runs in chunks of 64, and the last chunk is dropped when it is not full."""

    def choose(self, flat: Tensor) -> Tensor:
        """Index of the nearest code, chunk by chunk."""
        n = len(flat)
        if n <= 64:
            return super().choose(flat)
        codes = torch.zeros(n, dtype=torch.long)
        for start in range(0, n - n % 64, 64):
            codes[start : start + 64] = super().choose(flat[start : start + 64])
        return codes


class SqueezesSingle(EmaLayer):
    """squeeze() drops the axis of latents when there is one."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (B, N, D) to (z_q, codes, loss)."""
        z_q, codes, loss = super().forward(z)
        return z_q, codes[..., None].squeeze(), loss


class MeanOverNothing(EmaLayer):
    """A running mean of the latents, with NaN for an empty batch."""

    def __init__(self, dim: int, codebook_size: int, decay: float = 0.9, commitment_weight: float = 0.25) -> None:
        super().__init__(dim, codebook_size, decay, commitment_weight)
        self.register_buffer("mean", torch.zeros(dim))

    mean: Tensor

    @torch.no_grad()
    def update(self, flat: Tensor, codes: Tensor) -> None:
        """One EMA step, and one of the mean."""
        super().update(flat, codes)
        self.mean.lerp_(flat.mean(0), 0.1)


class AbsorbsNan(EmaLayer):
    """Sums by a product with one-hot rows: a NaN times zero is NaN, in every code."""


HERE = "vqverify.mutants.interface_batching"
SIZES = {"dim": 4, "codebook_size": 8}
IMAGE = {"embedding_dim": 4, "num_embeddings": 8}
MUTANTS = (
    Mutant(
        "value_unscaled_in_train",
        f"{HERE}:UnscaledInTrain",
        ("interface.train_eval_agree", "lookup.forward_is_code", "rotation.norm"),
        "λ lost in train",
        SIZES,
        "rotation without rescale",
    ),
    Mutant(
        "sums_lose_duplicates",
        f"{HERE}:SumsLoseDuplicates",
        ("interface.row_permutation",),
        "duplicates lost",
        SIZES,
        "sums[codes] += z",
    ),
    Mutant(
        "centres_by_batch",
        f"{HERE}:CentresByBatch",
        ("interface.batch_independence", "lookup.nearest"),
        "batch statistics in the lookup",
        SIZES,
        "systematic: wrong axis",
    ),
    Mutant(
        "loss_summed_over_batch",
        f"{HERE}:LossSummedOverBatch",
        ("interface.regroup",),
        "mean, then sum",
        SIZES,
        "systematic: reduction",
    ),
    Mutant(
        "learns_first_entry",
        f"{HERE}:LearnsFirstEntry",
        ("interface.regroup",),
        "one batch entry learns",
        SIZES,
        "z[0] for z",
    ),
    Mutant(
        "mixes_batch_and_tokens",
        f"{HERE}:MixesBatchAndTokens",
        ("interface.regroup",),
        "codes of other latents",
        SIZES,
        "view for transpose",
    ),
    Mutant(
        "image_path_differs",
        f"{HERE}:ImagePathDiffers",
        ("interface.layout",),
        "another metric for images",
        SIZES,
        "two code paths",
    ),
    Mutant(
        "image_transposed",
        f"{HERE}:ImageTransposed",
        ("interface.shapes",),
        "height and width change places",
        IMAGE,
        "permute(0, 3, 2, 1) is no inverse of permute(0, 2, 3, 1)",
    ),
    Mutant(
        "views_strides",
        f"{HERE}:ViewsStrides",
        ("interface.noncontiguous",),
        "view on wrong strides",
        SIZES,
        "view for reshape",
    ),
    Mutant(
        "reads_storage",
        f"{HERE}:ReadsStorage",
        ("interface.noncontiguous",),
        "memory read as it lies",
        SIZES,
        "a kernel without strides",
    ),
    Mutant(
        "chunk_forgets_rest",
        f"{HERE}:ChunkForgetsRest",
        ("interface.size_free",),
        "the last chunk is dropped",
        IMAGE,
        "chunked search",
    ),
    Mutant(
        "squeezes_single",
        f"{HERE}:SqueezesSingle",
        ("interface.empty_and_single", "interface.runs"),
        "squeeze() of one latent",
        SIZES,
        "squeeze without an axis",
    ),
    Mutant(
        "mean_over_nothing",
        f"{HERE}:MeanOverNothing",
        ("interface.empty_and_single",),
        "mean over nothing",
        SIZES,
        "an empty last batch",
    ),
    Mutant(
        "absorbs_nan",
        f"{HERE}:AbsorbsNan",
        ("interface.nonfinite_contained",),
        "NaN in the moving averages",
        SIZES,
        "theory T19",
    ),
)
