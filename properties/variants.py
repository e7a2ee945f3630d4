"""Reference layers that arguments in TOML cannot describe."""

import torch

from vqverify.reference import Replacement, VectorQuantizer


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
