"""Gradients that are not the declared estimator's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqverify.mutant import Mutant
from vqverify.mutants.base import DictLayer, EmaLayer, ImageLayer, RotationLayer


class Bypass(EmaLayer):
    """A little of the latent is added back: gradient around the quantizer, value unchanged."""

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        """Straight-through, then a leak."""
        y = z + (q - z).detach()
        return y + 0.02 * (z - z.detach())


class Scaled(DictLayer):
    """Straight-through with half of the gradient."""

    def patch(self, z: Tensor, q: Tensor) -> Tensor:
        """Value of the code, Jacobian I/2."""
        return q.detach() + 0.5 * (z - z.detach())


class Centred(ImageLayer):
    """The mean over the batch is subtracted from the gradient."""

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        """Value of the code, Jacobian I − mean."""
        moved = z - z.mean(0, keepdim=True)
        return q.detach() + (moved - moved.detach())


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, q: Tensor) -> Tensor:
        del ctx, z
        return q.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        del ctx
        return grads[0].clamp(-1, 1), None


class Clipped(EmaLayer):
    """The gradient is clipped inside the layer."""

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        """Value of the code, clipped gradient."""
        return _Clip.apply(z, q)  # type: ignore[no-any-return]


class OtherInEval(RotationLayer):
    """Rotation in train, half of a straight-through in eval."""

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        """Another estimator in each mode."""
        return super().estimate(z, q) if self.training else q + 0.5 * (z - z.detach())


class NoGradient(ImageLayer):
    """The estimator was forgotten: the encoder learns from the commitment loss alone."""

    def estimate(self, z: Tensor, q: Tensor) -> Tensor:
        """The code, detached."""
        del z
        return q.detach()


HERE = "vqverify.mutants.estimator"
SIZES = {"dim": 4, "codebook_size": 8}
IMAGE = {"embedding_dim": 4, "num_embeddings": 8}
MUTANTS = (
    Mutant(
        "gradient_bypass",
        f"{HERE}:Bypass",
        ("estimator.no_bypass",),
        "2% of the latent added back",
        SIZES,
        "residual added back",
    ),
    Mutant(
        "straight_through_scaled",
        f"{HERE}:Scaled",
        ("estimator.jacobian",),
        "half of the gradient",
        SIZES,
        "systematic: factor",
    ),
    Mutant(
        "gradient_centred",
        f"{HERE}:Centred",
        ("estimator.local",),
        "batch mean subtracted in backward",
        IMAGE,
        "systematic: wrong axis",
    ),
    Mutant(
        "gradient_clipped",
        f"{HERE}:Clipped",
        ("estimator.linear",),
        "gradient clipped inside the layer",
        SIZES,
        "systematic",
    ),
    Mutant(
        "estimator_other_in_eval",
        f"{HERE}:OtherInEval",
        ("estimator.same_in_eval",),
        "another estimator in eval",
        SIZES,
        "systematic",
    ),
)
