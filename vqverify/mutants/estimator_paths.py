"""Gradients that run from z_q into the codebook, and losses that weigh something where the weight is 0."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from vqverify.mutant import Mutant
from vqverify.mutants.base import DictLayer, ImageLayer


class Leak(DictLayer):
    """q + (z − sg z) with q in the graph: the task moves the codes too."""

    def patch(self, z: Tensor, q: Tensor) -> Tensor:
        """Straight-through without a detach of the code."""
        return q + (z - z.detach())


class LeakWhenFrozen(ImageLayer):
    """No estimator where the latents need no gradient: the code is returned as it is, attached to the codebook."""

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        """Straight-through only where it seems to be needed."""
        return super().estimate(z, q) if z.requires_grad else q


class TimesZero(DictLayer):
    """The codes with 0·z added, "to keep the graph"."""

    def patch(self, z: Tensor, q: Tensor) -> Tensor:
        """A path that carries nothing."""
        return q.detach() + 0 * z


class NoEstimator(ImageLayer):
    """The codes as they are: the codebook's loss trains them, and the task trains no encoder."""

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        """No estimator at all."""
        del z
        return q


class ZeroIsDefault(DictLayer):
    """`beta or 0.25`: 0 is taken for absent."""

    def __init__(self, dim: int, codebook_size: int, commitment_weight: float = 0.25) -> None:
        super().__init__(dim, codebook_size, commitment_weight or 0.25)


class WeightFloor(ImageLayer):
    """The weight is kept above a hundredth, "for stability"."""

    def loss(self, z: Tensor, q: Tensor) -> Tensor:
        """Both terms, with a floor under the weight."""
        return F.mse_loss(q, z.detach()) + max(self.commitment_cost, 0.01) * F.mse_loss(z, q.detach())


HERE = "vqverify.mutants.estimator_paths"
SIZES: dict[str, Any] = {"dim": 4, "codebook_size": 8}
IMAGE: dict[str, Any] = {"embedding_dim": 4, "num_embeddings": 8}
LEAK, WEIGHT = ("estimator.no_codebook_leak",), ("estimator.zero_loss_weight",)
MUTANTS = (
    Mutant("codebook_leak", f"{HERE}:Leak", LEAK, "the code is not detached", SIZES, "systematic: missing detach"),
    Mutant(
        "codebook_leak_when_frozen",
        f"{HERE}:LeakWhenFrozen",
        LEAK,
        "the code is not detached where the encoder is frozen",
        IMAGE,
        "vector-quantize-pytorch 1.32.0 with learnable_codebook=True: no estimator where the input needs no gradient",
    ),
    Mutant(
        "gradient_times_zero",
        f"{HERE}:TimesZero",
        ("estimator.alive",),
        "the gradient is multiplied by 0",
        SIZES,
        "systematic: multiplied by 0",
    ),
    Mutant(
        "codes_without_estimator",
        f"{HERE}:NoEstimator",
        ("estimator.reaches", "estimator.no_codebook_leak"),
        "no estimator",
        IMAGE,
        "systematic: the estimator left out",
    ),
    Mutant(
        "zero_weight_is_default",
        f"{HERE}:ZeroIsDefault",
        WEIGHT,
        "weight or default",
        SIZES,
        "Python: `or` on a number that may be 0",
    ),
    Mutant("weight_floor", f"{HERE}:WeightFloor", WEIGHT, "a floor under the weight", IMAGE, "systematic: clamped"),
)
