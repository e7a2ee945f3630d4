"""Seeded passes: the global generators are forked, seeded with a drawn seed, and given back as they were."""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def forked(seed: int) -> Generator[None]:
    """Run a block with every global generator (torch on all devices, NumPy, random) seeded, then restore them.

    Args:
        seed: any non-negative integer; reduced to 32 bits for NumPy.
    """
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  (strangers' layers draw from it)
    cpu = torch.default_generator.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    torch.default_generator.manual_seed(seed)
    if cuda:
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        torch.default_generator.set_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
