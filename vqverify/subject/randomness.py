"""Seeded passes: the global generators are forked, seeded with a drawn seed, and given back as they were."""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch

_kept = False


@contextmanager
def kept() -> Generator[None]:
    """Give the global generators back as they were (torch on all devices, NumPy, random) at the end of a block.

    Inside it, :func:`forked` only seeds: saving and restoring cost more than a small layer's pass.
    """
    global _kept  # noqa: PLW0603  (so are the generators)
    if _kept:
        yield
        return
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  (strangers' layers draw from it)
    cpu = torch.default_generator.get_state()
    cuda = torch.cuda.get_rng_state_all() if _cuda() else []
    _kept = True
    try:
        yield
    finally:
        _kept = False
        torch.default_generator.set_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


@contextmanager
def forked(seed: int) -> Generator[None]:
    """Run a block with every global generator seeded, then give them back as they were.

    Args:
        seed: any non-negative integer; reduced to 32 bits for NumPy.
    """
    with kept():
        torch.default_generator.manual_seed(seed)
        if _cuda():
            torch.cuda.manual_seed_all(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        yield


def _cuda() -> bool:
    return torch.cuda.is_initialized()
