"""All derivations and errata, and running them."""

from __future__ import annotations

from fnmatch import fnmatch
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vqverify.symbolic.derivation import Derivation
    from vqverify.symbolic.errata import Erratum

MODULES = (
    "householder",
    "extremal",
    "dynamics",
    "rounding",
    "degenerate",
    "gap",
    "consistency",
    "commitment",
    "ema",
    "conservation",
    "sync",
    "affine",
    "voronoi",
    "sampling",
    "perplexity",
    "residual",
    "scalar",
)
