"""The networks around the quantizer. Latents are (B, N, D), whatever the data: N positions of D channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvAutoencoder(nn.Module):
    """Images (B, C, H, W) to latents (B, HW/4ⁿ, D) by n convolutions of stride 2, and back. Smooth (GELU)."""

    def __init__(self, channels: int, dim: int, *, width: int = 16, halvings: int = 1) -> None:
        super().__init__()
        down: list[nn.Module] = []
        up: list[nn.Module] = [nn.Conv2d(dim, width, 3, padding=1), nn.GELU()]
        for i in range(halvings):
            down += [nn.Conv2d(channels if i == 0 else width, width, 4, stride=2, padding=1), nn.GELU()]
            last = i == halvings - 1
            up += [nn.ConvTranspose2d(width, channels if last else width, 4, stride=2, padding=1)]
            up += [] if last else [nn.GELU()]
        self.encoder = nn.Sequential(*down, nn.Conv2d(width, dim, 1))
        self.decoder = nn.Sequential(*up)

    def encode(self, x: Tensor) -> Tensor:
        """Return latents (B, N, D)."""
        return self.encoder(x).flatten(2).transpose(1, 2)

    def decode(self, z: Tensor) -> Tensor:
        """Return images (B, C, H, W); the positions form a square."""
        side = round(z.shape[1] ** 0.5)
        return self.decoder(z.transpose(1, 2).unflatten(2, (side, side)))


class MLPAutoencoder(nn.Module):
    """Points (B, 1, C) to latents (B, 1, D) and back, two hidden layers each way. Smooth (GELU)."""

    def __init__(self, channels: int, dim: int, *, width: int = 32) -> None:
        super().__init__()
        self.encoder = _mlp(channels, width, dim)
        self.decoder = _mlp(dim, width, channels)

    def encode(self, x: Tensor) -> Tensor:
        """Return latents (B, 1, D)."""
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """Return points (B, 1, C)."""
        return self.decoder(z)


class SlotAutoencoder(nn.Module):
    """Small images (B, 1, S, S) to latents (B, slots, D) and back by two dense layers each way. Smooth (GELU)."""

    def __init__(self, side: int, dim: int, *, slots: int = 4, width: int = 64) -> None:
        super().__init__()
        self.side, self.slots = side, slots
        self.encoder = nn.Sequential(nn.Linear(side * side, width), nn.GELU(), nn.Linear(width, slots * dim))
        self.decoder = nn.Sequential(nn.Linear(slots * dim, width), nn.GELU(), nn.Linear(width, side * side))

    def encode(self, x: Tensor) -> Tensor:
        """Return latents (B, slots, D)."""
        return self.encoder(x.flatten(1)).unflatten(1, (self.slots, -1))

    def decode(self, z: Tensor) -> Tensor:
        """Return images (B, 1, S, S)."""
        return self.decoder(z.flatten(1)).unflatten(1, (1, self.side, self.side))


class Bare(nn.Module):
    """No network: the latents are the data. What is trained is the codebook alone, which shows its faults sharply."""

    def encode(self, x: Tensor) -> Tensor:
        """Return a copy of the data: a layer that writes into its latents must not change what others train on."""
        return x.clone()

    def decode(self, z: Tensor) -> Tensor:
        """Return the latents."""
        return z


Model = ConvAutoencoder | SlotAutoencoder | MLPAutoencoder | Bare


def _mlp(before: int, width: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(before, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, after)
    )


def parameters(module: nn.Module) -> list[torch.nn.Parameter]:
    """Return the parameters that take gradients."""
    return [p for p in module.parameters() if p.requires_grad]
