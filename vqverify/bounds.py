"""The one numeric gate, and the rounding model that its bounds are made of.

A check yields `Clause` values; it never decides on its own what a failure is. A bound is derived from
inputs, oracle and sizes, never from the result of the layer under test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


class Violation(Exception):  # noqa: N818  (a violation is a finding about a layer, not an error of the harness)
    """A layer did what no correct layer does, in a way that leaves nothing to measure.

    Attributes:
        label: which clause failed, stable across versions (`raised`, `nonfinite`, `shape`, ...).
        message: one sentence for the reader.
    """

    def __init__(self, label: str, message: str) -> None:
        super().__init__(f"{label}: {message}")
        self.label = label
        self.message = message


class Ended(Violation):
    """A layer ended its process, or asked for more memory than there is: an error of the row that called it."""


@dataclass(frozen=True)
class Clause:
    """One measured statement of a check.

    Attributes:
        label: which statement, stable across versions.
        margin: error / bound, ≤ 1 when the statement holds; None for a statement that is exact.
        holds: the verdict.
        message: what was found, for the reader of a failure.
    """

    label: str
    margin: float | None
    holds: bool
    message: str = ""


def _array(value: ArrayLike | torch.Tensor) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().to(device="cpu", dtype=torch.float64).numpy()
    return np.asarray(value, dtype=np.float64)


def within(error: ArrayLike | torch.Tensor, bound: ArrayLike | torch.Tensor, label: str, message: str = "") -> Clause:
    """Compare an error with its derived bound, element by element.

    Args:
        error: absolute errors, any shape that broadcasts against `bound`.
        bound: what theory allows, finite and ≥ 0, derived without the layer's result.
        label: which statement this is.
        message: what to tell the reader when it fails; the largest error and its bound are appended.

    Returns:
        A clause with the largest error / bound. A NaN or infinite error gives the label `nonfinite`.

    Raises:
        ValueError: if the bound is negative, NaN or infinite: a fault of the check, not of the layer.
    """
    errors, bounds = np.broadcast_arrays(np.abs(_array(error)), _array(bound))
    if errors.size and not np.all(np.isfinite(errors)):
        return Clause("nonfinite", math.inf, holds=False, message=f"{message} (the result is not finite)".strip())
    if not np.all(np.isfinite(bounds)) or np.any(bounds < 0):
        raise ValueError(f"bound of {label!r} must be finite and not negative, got {bounds.min()}..{bounds.max()}")
    if errors.size == 0:
        return Clause(label, 0.0, holds=True)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        margins = np.where(errors == 0, 0.0, errors / bounds)
    worst = int(margins.argmax())
    margin = float(margins.flat[worst])
    detail = f"error {errors.flat[worst]:.4g}, allowed {bounds.flat[worst]:.4g}"
    return Clause(label, margin, holds=margin <= 1.0, message=f"{message}: {detail}" if message else detail)


def holds(condition: object, label: str, message: str) -> Clause:
    """State an exact fact; `message` is what to tell the reader when it is false."""
    return Clause(label, None, holds=bool(condition), message=message)


def unit_roundoff(dtype: torch.dtype) -> float:
    """Largest relative rounding error of one operation: 2⁻⁵³, 2⁻²⁴, 2⁻¹¹, 2⁻⁸ (theory, Rounding)."""
    return torch.finfo(dtype).eps / 2
