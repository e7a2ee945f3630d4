"""What every part says about a bad argument: its name, what it was, and what it must be."""

from __future__ import annotations

from numbers import Integral, Real
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

_T = TypeVar("_T")


def positive_int(name: str, value: object, at_least: int = 1) -> int:
    """Return ``value`` if it is an int of at least ``at_least``.

    Raises:
        ValueError: if it is not; a bool is no int here.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < at_least:
        raise ValueError(f"{name} must be an int of at least {at_least}; it was {value!r}")
    return int(value)


def number(name: str, value: object, low: float = 0.0, high: float = float("inf")) -> float:
    """Return ``value`` as a float if it lies in [low, high].

    Raises:
        ValueError: if it is no number, NaN, infinite, or outside.
    """
    try:
        found = float(value) if isinstance(value, Real) and value is not True and value is not False else float("nan")
    except OverflowError:  # an int that no float holds
        found = float("inf")
    if not low <= found < float("inf") or found > high:
        raise ValueError(f"{name} must be a number in [{low:g}, {high:g}]; it was {value!r}")
    return found


def directed(name: str, dim: int) -> None:
    """Check that there are directions in ``dim`` dimensions.

    Raises:
        ValueError: if there is one dimension.
    """
    if dim == 1:
        raise ValueError(
            f"{name} must be at least 2 with metric='cosine': the direction of one number is its sign; it was 1"
        )


def positive_number(name: str, value: object) -> float:
    """Return ``value`` as a float if it is finite and greater than 0.

    Raises:
        ValueError: if it is not.
    """
    if number(name, value) == 0:
        raise ValueError(f"{name} must be greater than 0; it was {value!r}")
    return float(value)  # pyright: ignore[reportArgumentType]


def choice(name: str, value: object, table: Mapping[str, _T]) -> _T:
    """Return ``table[value]``.

    Raises:
        ValueError: if ``value`` is not one of the keys; the message lists them.
    """
    if not isinstance(value, str) or value not in table:
        known = ", ".join(repr(key) for key in sorted(table))
        raise ValueError(f"{name} must be one of {known}; it was {value!r}")
    return table[value]


def latents(name: str, value: object, dim: int | None, axis: int = -1) -> None:
    """Check that ``value`` is a floating-point tensor with ``dim`` entries along ``axis``.

    Raises:
        TypeError: if it is no dense tensor, or not of a real floating-point dtype of at least 16 bits.
        ValueError: if its shape does not fit.
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a tensor; it was a {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor; its layout was {value.layout}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must have a floating-point dtype; it was {value.dtype}")
    if value.itemsize < 2:
        raise TypeError(f"{name} must have a floating-point dtype of at least 16 bits; it was {value.dtype}")
    if dim is not None and (value.ndim < (axis if axis >= 0 else -axis) + (axis >= 0) or value.shape[axis] != dim):
        where = "the last axis" if axis == -1 else f"axis {axis}"
        raise ValueError(f"{name} must have {dim} entries along {where}; its shape was {tuple(value.shape)}")


def same_shape(name: str, value: object, other: str, like: Tensor) -> None:
    """Check that ``value`` is a floating-point tensor with the shape of ``like``, the argument called ``other``.

    Raises:
        TypeError: if it is no tensor of a floating-point dtype.
        ValueError: if the shapes differ.
    """
    latents(other, like, None)
    latents(name, value, None)
    assert isinstance(value, torch.Tensor)
    if value.shape != like.shape:
        raise ValueError(f"{name} must have the shape of {other}, {tuple(like.shape)}; it was {tuple(value.shape)}")


def counts(name: str, value: object, size: int) -> None:
    """Check that ``value`` is a tensor with a number a code.

    Raises:
        TypeError: if it is no tensor.
        ValueError: if its shape is not (K,).
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a tensor; it was a {type(value).__name__}")
    if value.shape != (size,):
        raise ValueError(f"{name} must have one entry a code, shape ({size},); its shape was {tuple(value.shape)}")


def all_finite(value: Tensor) -> bool:
    """Whether no entry is NaN or infinite; a finite sum shows it at a fraction of the cost of a test of each entry."""
    return bool(value.detach().sum().isfinite()) or bool(value.isfinite().all())


def finite(name: str, value: Tensor, *, infinity: bool = False, learnt: bool = False) -> None:
    """Check that no entry is NaN or, unless that has a meaning, infinite.

    A look breaks a compiler's graph: under one, only what a state would take in for good (``learnt``) is looked at.

    Raises:
        ValueError: if one is.
    """
    if torch.compiler.is_compiling() and not learnt:
        return
    if all_finite(value):
        return
    bad = value.isnan() if infinity else ~value.isfinite()
    if bool(bad.any()):
        raise ValueError(
            f"{name} must {'not hold NaN' if infinity else 'be finite'}; {int(bad.sum())} of its entries were not"
        )


def matrix_pair(z: Tensor, codebook: Tensor) -> None:
    """Check latents (..., D) against a codebook (K, D) on the same device.

    Raises:
        TypeError: on a dtype that is not floating-point.
        ValueError: on shapes or devices that do not fit, or an empty codebook.
    """
    latents("codebook", codebook, None)
    if codebook.ndim != 2 or 0 in codebook.shape:
        raise ValueError(f"codebook must have shape (K, D), K and D at least 1; it was {tuple(codebook.shape)}")
    latents("z", z, codebook.shape[1])
    if z.device != codebook.device:
        raise ValueError(f"z and codebook must be on one device; they were on {z.device} and {codebook.device}")


def code_indices(codes: object, size: int) -> Tensor:
    """Return ``codes`` as int64 if it is an integer tensor with entries in [-1, size).

    Raises:
        TypeError: if it is no integer tensor.
        ValueError: if an entry is out of range (-1 means dropped).
    """
    integer = isinstance(codes, torch.Tensor) and not (
        codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool
    )
    if not isinstance(codes, torch.Tensor) or not integer:
        what = codes.dtype if isinstance(codes, torch.Tensor) else type(codes).__name__
        raise TypeError(f"codes must be a tensor of an integer dtype; it was {what}")
    wide = codes.long()
    if torch.compiler.is_compiling():  # a look at the values would break the graph
        return wide
    if wide.numel() and not (int(wide.min()) >= -1 and int(wide.max()) < size):
        raise ValueError(
            f"codes must lie in [0, {size}) (or be -1: dropped); they were in [{wide.min()}, {wide.max()}]"
        )
    return wide


def parts(codes: object, least: int, most: int, called: str) -> None:
    """Check that ``codes`` is a tensor with so many levels, or groups, along its last axis.

    Raises:
        TypeError: if it is no tensor.
        ValueError: if its last axis does not fit.
    """
    if not isinstance(codes, torch.Tensor):
        raise TypeError(f"codes must be a tensor of an integer dtype; it was {type(codes).__name__}")
    if codes.ndim == 0 or not least <= codes.shape[-1] <= most:
        count = f"{least} to {most}" if least < most else most
        raise ValueError(f"codes must have {count} {called} along the last axis; its shape was {tuple(codes.shape)}")


def mask(value: object, shape: tuple[int, ...], name: str = "mask") -> None:
    """Check that a mask is a bool tensor with the shape of the codes.

    Raises:
        TypeError: if it is no bool tensor.
        ValueError: if its shape does not fit.
    """
    if not isinstance(value, torch.Tensor) or value.dtype != torch.bool:
        what = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a bool tensor (True: kept); it was {what}")
    if value.shape != shape:
        raise ValueError(f"{name} must have the shape of the codes, {tuple(shape)}; it was {tuple(value.shape)}")
