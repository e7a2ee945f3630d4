"""Reference layers that arguments in TOML cannot describe, and layers of parts that no layer of the reference uses."""

import torch
from torch import Tensor, nn

from vqverify.reference import (
    Replacement,
    VectorQuantizer,
    code_step,
    codebook_loss,
    commitment_loss,
    nearest_codes,
    nearest_codes_lower_precision,
    straight_through,
)


class Float64Quantizer(VectorQuantizer):
    def __init__(self, dim: int, codebook_size: int) -> None:
        super().__init__(dim, codebook_size)
        self.to(torch.float64)


class Bfloat16Quantizer(VectorQuantizer):
    def __init__(self, dim: int, codebook_size: int) -> None:
        super().__init__(dim, codebook_size)
        self.to(torch.bfloat16)


class Float16Quantizer(VectorQuantizer):
    def __init__(self, dim: int, codebook_size: int) -> None:
        super().__init__(dim, codebook_size, estimator="straight-through")
        self.to(torch.float16)


class ThresholdQuantizer(VectorQuantizer):
    """Codes used for less than this, on average, are replaced."""

    def __init__(self, dim: int, codebook_size: int) -> None:
        super().__init__(dim, codebook_size, decay=0.8, replacement=Replacement(lifespan=0, threshold=0.3))


class MomentsQuantizer(VectorQuantizer):
    """Codes that take the moments of the latents: those in use are stored nowhere."""

    def __init__(self, dim: int, codebook_size: int) -> None:
        super().__init__(dim, codebook_size, learning="gradient", affine="moments")


class HuhQuantizer(VectorQuantizer):
    """Every remedy of Huh et al. 2023 at once."""

    def __init__(self, dim: int, codebook_size: int) -> None:
        super().__init__(
            dim,
            codebook_size,
            estimator="straight-through",
            learning="gradient",
            affine="moments",
            synchronized=0.2,
            replacement=20,
            initialisation="kmeans",
        )


class _Plain(nn.Module):
    """Straight-through codes that are a parameter."""

    def __init__(self, dim: int, codebook_size: int) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))

    def look_up(self, z: Tensor) -> Tensor:
        return nearest_codes(z, self.codebook)

    def loss(self, z: Tensor, q: Tensor) -> Tensor:
        return 0.25 * commitment_loss(z, q)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes = self.look_up(z)
        q = self.codebook[codes]
        return straight_through(z, q), codes, self.loss(z, q)


class AlternatingQuantizer(_Plain):
    """The codes step on the latents of each training pass; the task sees the new ones, as constants (001 eq. 17-18)."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.training:
            with torch.no_grad():
                self.codebook.copy_(code_step(self.codebook, z, 0.5))
        return super().forward(z)


class LowerPrecisionQuantizer(_Plain):
    """Codes are looked for in half precision first (001 A.1)."""

    def __init__(self, dim: int, codebook_size: int, *, divide_and_conquer: bool = True) -> None:
        super().__init__(dim, codebook_size)
        self.divide_and_conquer = divide_and_conquer

    def look_up(self, z: Tensor) -> Tensor:
        return nearest_codes_lower_precision(z, self.codebook)[0] if self.divide_and_conquer else super().look_up(z)

    def loss(self, z: Tensor, q: Tensor) -> Tensor:
        return super().loss(z, q) + codebook_loss(z, q)
