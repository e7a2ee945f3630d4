"""What is watched during a training, and which way is worse."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vqverify.reference import metrics
from vqverify.training.layers import Adapted
from vqverify.training.models import Model


@dataclass(frozen=True)
class Watch:
    """A watched number.

    Attributes:
        about: what it is, with its unit.
        worse: +1 if more is worse, -1 if less is, 0 if neither.
    """

    about: str
    worse: int = 0


WATCHED: dict[str, Watch] = {
    "reconstruction": Watch("mean square error of held-out examples", +1),
    "training_loss": Watch("reconstruction and commitment, mean over the steps since the last measurement", +1),
    "quantization_error": Watch("mean |z - z_q|² of held-out latents", +1),
    "relative_error": Watch("quantization error over the variance of the latents", +1),
    "usage": Watch("share of the codes that held-out latents use", -1),
    "perplexity": Watch("exp of the entropy of the codes of held-out latents, in codes", -1),
    "dead": Watch("share of the codes that no training latent used since the last measurement", +1),
    "gradient_gap": Watch("mean |g(z) - gradient that the encoder gets| over mean |g(z)|", +1),
    "divergence": Watch("mean squared distance of held-out latents to the codebook (001 eq. 13)", +1),
    "latent_norm": Watch("mean |z| of held-out latents"),
    "code_norm": Watch("mean |c| of the codes"),
}
"""Reconstruction is the worst watchman: several wrong gradients lower it."""


@torch.no_grad()
def held_out(model: Model, layer: Adapted, x: Tensor, *, cosine: bool) -> dict[str, float]:
    """Measure a model on examples, in eval mode.

    Args:
        model: the network.
        layer: the quantizer.
        x: examples.
        cosine: whether latents are compared by their directions.
    """
    training = layer.training
    layer.eval()
    z = latents(model, x, cosine=cosine)
    out = layer(z)
    x_hat = model.decode(out.z_q)
    layer.train(training)
    rows, q = z.reshape(-1, z.shape[-1]), out.z_q.reshape(-1, z.shape[-1])
    error = metrics.quantization_error(rows, q)
    spread = (rows.double() - rows.double().mean(0)).square().sum(1).mean()
    counts = used(out.codes, layer.size)
    codes = layer.codebook(z, out.z_q)
    finite = bool(rows.isfinite().all()) and bool(codes.isfinite().all())
    return {
        "reconstruction": float((x_hat - x).square().mean()),
        "quantization_error": float(error),
        "relative_error": float(error / spread),
        "usage": metrics.usage(counts),
        "perplexity": float(metrics.perplexity(counts)) if int(counts.sum()) else 0.0,
        "divergence": float(metrics.divergence(rows, codes)) if finite else float("nan"),
        "latent_norm": float(torch.linalg.vector_norm(rows, dim=1).mean()),
        "code_norm": float(torch.linalg.vector_norm(codes, dim=1).mean()),
    }


def latents(model: Model, x: Tensor, *, cosine: bool) -> Tensor:
    """Return the latents (B, N, D) that the layer is given: directions for cosine."""
    from vqverify.reference import directions

    z = model.encode(x)
    return directions(z) if cosine else z


def used(codes: Tensor, size: int) -> Tensor:
    """Return how often each code occurs (K,); what is no code of the codebook does not count."""
    shifted = codes.flatten().clamp(-1, size) + 1
    return torch.bincount(shifted, minlength=size + 2)[1:-1]
