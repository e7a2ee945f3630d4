"""Where a run took place: what a reader needs to repeat it (the reproducibility card's hardware and software)."""

from __future__ import annotations

import functools
import os
import platform
from importlib import metadata
from typing import Any


def describe() -> dict[str, Any]:
    """Versions, platform and devices, as plain data."""
    import torch

    packages = ("torch", "numpy", "scipy", "sympy", "hypothesis", "pytest")
    found: dict[str, Any] = {name: version for name in packages if (version := package_version(name))}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        **found,
    }


@functools.cache
def package_version(name: str) -> str | None:
    """Version of an installed distribution, None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
