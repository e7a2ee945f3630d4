"""Layers of old releases whose arguments JSON cannot name."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def in_place_optimiser(lr: float = 0.1, **kwargs: Any) -> nn.Module:
    """VectorQuantize that takes a step of SGD on its codebook inside forward."""
    from vector_quantize_pytorch import VectorQuantize

    return VectorQuantize(**kwargs, in_place_codebook_optimizer=lambda codes: torch.optim.SGD(codes, lr=lr))
