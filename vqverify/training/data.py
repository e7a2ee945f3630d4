"""What the miniatures are trained on: data that ships inside scikit-learn, or is generated. Nothing is downloaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor


class MissingPackageError(ValueError):
    """A package of the extra ``train`` is not installed."""

    def __init__(self, package: str, what: str) -> None:
        super().__init__(f"{what} needs {package}, which is not installed: install the extra, vqverify[train]")


@dataclass(frozen=True)
class Data:
    """Examples to train on, and examples that training never sees.

    Attributes:
        train: (N, C, H, W) images in [0, 1], or (N, 1, 2) points; float32.
        held_out: the same for (M, ...).
    """

    train: Tensor
    held_out: Tensor


@cache
def photographs() -> Data:
    """Patches of 16 × 16 pixels in colour, of the two photographs in scikit-learn; the right quarters are held out."""
    try:
        from sklearn.datasets import load_sample_images

        images = load_sample_images().images
    except ImportError as error:
        package = "scikit-learn" if (error.name or "").startswith("sklearn") else "Pillow"
        raise MissingPackageError(package, "the task 'photographs'") from None
    generator = torch.Generator().manual_seed(0)
    train, held_out = [], []
    for image in images:
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255
        border = pixels.shape[2] * 3 // 4
        train.append(_patches(pixels[:, :, :border], 2048, generator))
        held_out.append(_patches(pixels[:, :, border:], 128, generator))
    return Data(torch.cat(train), torch.cat(held_out))


@cache
def digits() -> Data:
    """The 1,797 handwritten digits of 8 × 8 pixels in scikit-learn; the last 256 are held out."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingPackageError("scikit-learn", "the task 'digits'") from None
    pixels, _ = load_digits(return_X_y=True)
    images = torch.from_numpy(np.asarray(pixels)).float().reshape(-1, 1, 8, 8) / 16
    return Data(images[:-256], images[-256:])


@cache
def texture() -> Data:
    """Gratings of 8 × 8 pixels: any direction and phase, wavelengths of 3 to 8 pixels, and 2% of noise."""
    generator = torch.Generator().manual_seed(0)
    count = 4096 + 256
    angle, phase = (2 * math.pi * torch.rand(count, 1, 1, generator=generator) for _ in range(2))
    wavelength = 3 + 5 * torch.rand(count, 1, 1, generator=generator)
    axis = torch.arange(8.0)
    way = angle.cos() * axis + angle.sin() * axis.unsqueeze(1)
    images = 0.5 + 0.5 * torch.sin(2 * math.pi * way / wavelength + phase)
    images = (images + 0.02 * torch.randn(count, 8, 8, generator=generator)).unsqueeze(1)
    return Data(images[:4096], images[4096:])


@cache
def mixture() -> Data:
    """Points of 16 normal distributions in the plane, of unequal weights and widths, on a 4 × 4 grid."""
    generator = torch.Generator().manual_seed(0)
    count = 8192 + 1024
    which = torch.multinomial(torch.arange(1.0, 17), count, replacement=True, generator=generator)
    centres = torch.stack([which // 4, which % 4], 1) - 1.5
    width = 0.05 + 0.01 * which.unsqueeze(1)
    points = (centres + width * torch.randn(count, 2, generator=generator)).unsqueeze(1)
    return Data(points[:8192], points[8192:])


@cache
def spiral() -> Data:
    """Points along a spiral of two turns, off centre, with noise: what a codebook has to cover by itself."""
    generator = torch.Generator().manual_seed(0)
    count = 8192 + 1024
    turn = torch.rand(count, generator=generator).sqrt() * 4 * math.pi
    arm = torch.stack([turn.cos(), turn.sin()], 1) * turn.unsqueeze(1) / (2 * math.pi)
    points = (2 + arm + 0.05 * torch.randn(count, 2, generator=generator)).unsqueeze(1)
    return Data(points[:8192], points[8192:])


def _patches(image: Tensor, count: int, generator: torch.Generator, size: int = 16) -> Tensor:
    rows = torch.randint(image.shape[1] - size + 1, (count,), generator=generator).tolist()
    columns = torch.randint(image.shape[2] - size + 1, (count,), generator=generator).tolist()
    return torch.stack([image[:, i : i + size, j : j + size] for i, j in zip(rows, columns, strict=True)])
