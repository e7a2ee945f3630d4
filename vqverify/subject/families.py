"""Estimators as families of Jacobians, the known mistakes among them.

Nearest family is no verdict: a transposed rotation lies closer to straight-through than to rotation. So each
known mistake is a family of its own, reported as the correct family with that mistake.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vqverify.symbolic import oracles

Array = np.ndarray
Vjp = Callable[[Array, Array, Array], Array]


@dataclass(frozen=True)
class Family:
    """A surrogate Jacobian J(z, q), given by rows of Jᵀg, float64 (N, D) each.

    Attributes:
        name: value of the trait `estimator`.
        mistake: None for the estimator itself.
        vjp: (z, q, g) -> Jᵀg.
        law: theorem of `theory.md` that defines it.
    """

    name: str
    mistake: str | None
    vjp: Vjp
    law: str


@dataclass(frozen=True)
class Fit:
    """How well a family explains measured gradients: residual relative to their norm, and the fitted gain."""

    family: Family
    residual: float
    gain: float


def _unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _scale(z: Array, q: Array) -> Array:
    return np.linalg.norm(q, axis=-1, keepdims=True) / np.linalg.norm(z, axis=-1, keepdims=True)


def _dot(a: Array, b: Array) -> Array:
    return (a * b).sum(-1, keepdims=True)


def _rotation(z: Array, q: Array, g: Array) -> Array:
    return oracles.rotation_vjp(z, q, g)


def _reflection(z: Array, q: Array, g: Array) -> Array:
    w = _unit(_unit(z) - _unit(q))
    return _scale(z, q) * (g - 2 * _dot(w, g) * w)


def _half_turn(z: Array, q: Array, g: Array) -> Array:
    s = _unit(_unit(z) + _unit(q))
    return _scale(z, q) * (2 * _dot(s, g) * s - g)


def _tangent(z: Array, x: Array) -> Array:
    u = _unit(z)
    return x - _dot(u, x) * u


def _attached_scale(z: Array, q: Array, g: Array) -> Array:
    r = _rotation(z, q, g)
    return _tangent(z, r)


def _attached_rotation(z: Array, q: Array, g: Array) -> Array:
    return _scale(z, q) * _dot(_unit(q), g) * _unit(z)


STRAIGHT_THROUGH = Family("straight-through", None, lambda _z, _q, g: g, "T9")
ROTATION = Family("rotation", None, _rotation, "T1")
FAMILIES: tuple[Family, ...] = (
    STRAIGHT_THROUGH,
    ROTATION,
    Family("rotation", "transposed", oracles.rotation_jvp, "T2"),
    Family("rotation", "scale lost", lambda z, q, g: _rotation(z, q, g) / _scale(z, q), "T2"),
    Family("rotation", "scale inverted", lambda z, q, g: _rotation(z, q, g) / _scale(z, q) ** 2, "T2"),
    Family("rotation", "scale squared", lambda z, q, g: _rotation(z, q, g) * _scale(z, q), "T2"),
    Family("rotation", "reflection", _reflection, "T1"),
    Family("rotation", "half-turn", _half_turn, "T1"),
    Family("rotation", "scale differentiated", _attached_scale, "T4"),
    Family("rotation", "rotation differentiated", _attached_rotation, "T4"),
    Family("straight-through", "scaled", lambda z, q, g: _scale(z, q) * g, "T9"),
    Family("straight-through", "tangent only", lambda z, _q, g: _tangent(z, g), "T13"),
)
CORRECT = tuple(family for family in FAMILIES if family.mistake is None)


def fits(z: Tensor, q: Tensor, g: Tensor, got: Tensor) -> list[Fit]:
    """Every family's residual on measured gradients, best first.

    Args:
        z: latents in code space, (N, D).
        q: codes, (N, D).
        g: cotangents at q, (N, D).
        got: measured Jᵀg, (N, D).

    Returns:
        For each family the residual at gain 1, and at the fitted gain as a second `Fit` with that gain.
        Rows that are degenerate for the rotation (zero or antiparallel) are left out.
    """
    a, b, c, d = (x.detach().to("cpu", torch.float64).numpy() for x in (z, q, g, got))
    size = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    with np.errstate(all="ignore"):
        cosine = (a * b).sum(-1) / size
    fine = (size > 0) & (cosine > -0.99) & (cosine < 1 - 1e-6) & np.isfinite(d).all(-1)
    a, b, c, d = (x[fine] for x in (a, b, c, d))
    norm = float(np.linalg.norm(d))
    if not norm:
        return []
    out: list[Fit] = []
    for family in FAMILIES:
        want = family.vjp(a, b, c)
        gain = float((want * d).sum() / max((want * want).sum(), np.finfo(float).tiny))
        out.append(Fit(family, float(np.linalg.norm(d - want)) / norm, 1.0))
        out.append(Fit(family, float(np.linalg.norm(d - gain * want)) / norm, gain))
    return sorted(
        out,
        key=lambda fit: (
            (fit.residual > 1e-3, fit.gain != 1.0, fit.family.mistake is not None, fit.residual)
            if fit.residual <= 1e-3
            else (True, False, False, fit.residual)
        ),
    )


def recognised(z: Tensor, q: Tensor, g: Tensor, got: Tensor) -> bool:
    """Whether measured gradients are those of a correct estimator, to single precision."""
    return any(fit.residual < 1e-4 and fit.gain == 1.0 and fit.family in CORRECT for fit in fits(z, q, g, got))
