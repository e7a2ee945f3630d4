"""Factorised, normalised codes: a lookup on the sphere of a low-dimensional projection (Yu et al. 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from vqverify.reference import _checks
from vqverify.reference._layout import decoded, enter, leave
from vqverify.reference.layers import VectorQuantizer

if TYPE_CHECKING:
    from vqverify.reference.estimators import Estimator
    from vqverify.reference.replacement import Replacement
    from vqverify.reference.result import Quantized


class ProjectedCosineVQ(nn.Module):
    """Project, quantize by cosine, project back (ViT-VQGAN; Fifty et al. 2024, section 5.3).

    Loss, estimator and codebook live in the projected space, on its unit sphere.

    Attributes:
        project_in: linear map D -> ``codebook_dim``.
        quantizer: the cosine :class:`VectorQuantizer`.
        project_out: linear map ``codebook_dim`` -> D.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        codebook_dim: int = 8,
        estimator: str | Estimator = "rotation",
        decay: float = 0.99,
        commitment_weight: float = 0.25,
        learning: str = "ema",
        codebook_weight: float | None = None,
        channel_first: bool = False,
        temperature: float = 0.0,
        replacement: Replacement | int | None = None,
        initialisation: str = "normal",
    ) -> None:
        """Build a layer; ``codebook_dim`` is the projection's width, the rest as in :class:`VectorQuantizer`.

        Raises:
            ValueError: if an argument is out of range.
        """
        super().__init__()
        self.dim = _checks.positive_int("dim", dim)
        self.channel_first = channel_first
        width = _checks.positive_int("codebook_dim", codebook_dim)
        _checks.directed("codebook_dim", width)
        self.project_in = nn.Linear(dim, width)
        self.quantizer = VectorQuantizer(
            width,
            codebook_size,
            estimator=estimator,
            metric="cosine",
            decay=decay,
            commitment_weight=commitment_weight,
            learning=learning,
            codebook_weight=codebook_weight,
            temperature=temperature,
            replacement=replacement,
            initialisation=initialisation,
        )
        self.project_out = nn.Linear(width, dim)

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantize latents (..., D), or (B, D, ...) with ``channel_first``.

        Arguments and errors are those of :meth:`VectorQuantizer.forward`. A masked latent gives 0: the biases
        do not reach it.
        """
        rows = enter(z, self.dim, mask, channel_first=self.channel_first)
        _checks.finite("z", rows)
        projected = self.project_in(rows.to(self.project_in.weight.dtype))
        _checks.finite("z, projected,", projected)
        inner = self.quantizer(projected, mask)
        z_q = self.project_out(inner.z_q.to(self.project_out.weight.dtype)).to(z.dtype)
        return leave(z_q, inner.codes, inner.loss, mask, channel_first=self.channel_first)

    def decode(self, codes: Tensor) -> Tensor:
        """Return z_q of codes (...): the code's vector, projected back; -1 (dropped) gives 0."""
        index = _checks.code_indices(codes, self.quantizer.codebook_size)
        return decoded(self.project_out(self.quantizer.decode(index)), index, channel_first=self.channel_first)
