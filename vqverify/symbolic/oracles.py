"""Oracles generated from the derivations: NumPy float64, and mpmath where accuracy itself is the statement.

Every function is lambdified from a *stated* formula of a derivation, which its steps prove; change the formula
and the oracle changes. SymPy is imported on the first call only. The rotation is evaluated from scalar coefficients
over û, v̂, s = û + v̂ and the argument (``householder.coefficients``), never as a D x D matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vqverify.symbolic.generated import formula, rotation

if TYPE_CHECKING:
    from collections.abc import Callable

Array = NDArray[np.float64]


def _rows(*arrays: ArrayLike) -> tuple[Array, ...]:
    """The arrays in float64, all of one shape (N, D).

    Raises:
        ValueError: they are not two-dimensional or of different shapes.
    """
    rows = tuple(np.asarray(array, dtype=np.float64) for array in arrays)
    if any(array.ndim != 2 or array.shape != rows[0].shape for array in rows):
        raise ValueError(f"expected arrays of one shape (N, D), got {[array.shape for array in rows]}")
    return rows


def _dot(left: Array, right: Array) -> Array:
    return np.einsum("nd,nd->n", left, right)[:, None]


def _apply(coefficients: Callable[..., tuple[Any, Any, Any, Any]], z: ArrayLike, q: ArrayLike, x: ArrayLike) -> Array:
    z, q, x = _rows(z, q, x)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        z_norm, q_norm = (np.linalg.norm(array, axis=1, keepdims=True) for array in (z, q))
        u, v = z / z_norm, q / q_norm
        s = u + v
        sigma = np.linalg.norm(s, axis=1, keepdims=True)
        on_u, on_v, on_s, on_x = coefficients(_dot(u, x), _dot(v, x), _dot(s, x), sigma)
        return q_norm / z_norm * (on_x * x + on_s * s + on_u * u + on_v * v)


def rotation_vjp(z: ArrayLike, q: ArrayLike, g: ArrayLike) -> Array:
    """What the rotation estimator returns at the latent: Jᵀg with J = lambda R (T1), row by row.

    Args:
        z: latents, (N, D), computed in float64.
        q: their codes, (N, D).
        g: cotangents, (N, D).

    Returns:
        (N, D) float64, within the bound B1 of T5 relative to lambda |g|. Rows outside the hypotheses of T1
        (z = 0, q = 0, q = -az) are NaN: T6 leaves them to a documented convention.

    Raises:
        ValueError: the arrays are not of one shape (N, D).
    """
    return _apply(rotation().vjp, z, q, g)


def rotation_jvp(z: ArrayLike, q: ArrayLike, x: ArrayLike) -> Array:
    """The forward product J x with J = lambda R; arguments and errors as in ``rotation_vjp``."""
    return _apply(rotation().jvp, z, q, x)


def rotation_vjp_exact(z: ArrayLike, q: ArrayLike, g: ArrayLike, digits: int = 50) -> Array:
    """``rotation_vjp`` in ``digits`` decimal digits, rounded to float64 at the end.

    Args:
        z: latents, (N, D), taken as exact float64 numbers.
        q: their codes, (N, D).
        g: cotangents, (N, D).
        digits: decimal digits of the computation.

    Returns:
        (N, D) float64, correctly rounded but for ties within 10^-digits; undefined rows are NaN.

    Raises:
        ValueError: the arrays are not of one shape (N, D).
    """
    import mpmath

    z, q, g = _rows(z, q, g)
    coefficients = rotation("mpmath").vjp
    result = np.empty_like(z)
    with mpmath.workdps(digits):
        for index, arrays in enumerate(zip(z, q, g, strict=True)):
            e, code, x = ([mpmath.mpf(float(entry)) for entry in array] for array in arrays)
            e_norm, q_norm = (mpmath.sqrt(mpmath.fdot(array, array)) for array in (e, code))
            if e_norm == 0 or q_norm == 0:
                result[index] = np.nan
                continue
            u, v = [entry / e_norm for entry in e], [entry / q_norm for entry in code]
            s = [first + second for first, second in zip(u, v, strict=True)]
            sigma = mpmath.sqrt(mpmath.fdot(s, s))
            if sigma < mpmath.mpf(10) ** (-digits // 2):
                result[index] = np.nan
                continue
            on_u, on_v, on_s, on_x = coefficients(*(mpmath.fdot(array, x) for array in (u, v, s)), sigma)
            scale = q_norm / e_norm
            result[index] = [
                float(scale * (on_x * parts[0] + on_s * parts[1] + on_u * parts[2] + on_v * parts[3]))
                for parts in zip(x, s, u, v, strict=True)
            ]
    return result


def bound_b1(dim: int, sigma: ArrayLike, u: float) -> Array:
    """B1 of T5: rounding of the rotation's forward and VJP, relative to lambda |x|, to first order in u.

    Args:
        dim: D.
        sigma: |û + v̂|, any shape.
        u: unit roundoff, 2^-53 for float64, 2^-24 for float32.

    Returns:
        The bound, of sigma's shape.
    """
    return np.asarray(formula("b1")(dim, np.asarray(sigma, dtype=np.float64), u), dtype=np.float64)


class EmaState(NamedTuple):
    """Counts (K,), sums (K, D) and codes (K, D) after a step."""

    N: Array
    m: Array
    e: Array


def ema_step(N: ArrayLike, m: ArrayLike, n: ArrayLike, S: ArrayLike, decay: float) -> EmaState:
    """One unsmoothed EMA step with accumulators (T17).

    Args:
        N: accumulated counts, (K,).
        m: accumulated sums, (K, D).
        n: counts of the batch, (K,).
        S: sums of the batch, (K, D).
        decay: gamma, the weight of the past.

    Returns:
        ``(N', m', e')`` with e' = m'/N'; NaN or infinite where N' = 0.
    """
    arrays = [np.asarray(array, dtype=np.float64) for array in (N, m, n, S)]
    counts = np.asarray(formula("ema count")(arrays[0], arrays[2], decay), dtype=np.float64)
    sums = np.asarray(formula("ema sum")(arrays[1], arrays[3], decay), dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return EmaState(counts, sums, sums / counts[:, None])


def laplace(N: ArrayLike, eps: float) -> Array:
    """Laplace-smoothed counts (T21), which sum to the same total.

    Args:
        N: counts, (K,).
        eps: the smoothing constant.

    Returns:
        (N + eps) T / (T + K eps) with T = sum N, (K,).
    """
    counts = np.asarray(N, dtype=np.float64)
    return np.asarray(formula("laplace")(counts, counts.sum(), counts.size, eps), dtype=np.float64)


class Commitment(NamedTuple):
    """Gradients (N, D) with respect to latents and codes, and values (N,), before any mean."""

    dz: Array
    dq: Array
    value: Array


def commitment_gradients(z: ArrayLike, q: ArrayLike, convention: Literal["A", "V"], beta: float) -> Commitment:
    """The commitment loss in either convention of T16, row by row: summed over D, no mean over N.

    Args:
        z: latents, (N, D).
        q: codes, (N, D).
        convention: ``"A"``: (1 - beta)/2 |z - sg q|² + beta/2 |sg z - q|² (001); ``"V"``:
            |sg z - q|² + beta |z - sg q|² (VQ-VAE, 002).
        beta: the weight.

    Returns:
        ``(dz, dq, value)``.

    Raises:
        ValueError: an unknown convention, or arrays that are not of one shape (N, D).
    """
    if convention not in ("A", "V"):
        raise ValueError(f"convention must be 'A' or 'V', got {convention!r}")
    z, q = _rows(z, q)
    parts = (
        np.asarray(formula(f"{convention} {part}")(z, q, beta), dtype=np.float64) for part in ("∂z", "∂q", "value")
    )
    dz, dq, value = parts
    return Commitment(dz, dq, value.sum(axis=1))


def _bound(name: str, *arguments: ArrayLike) -> Array:
    return np.asarray(formula(name)(*(np.asarray(a, dtype=np.float64) for a in arguments)), dtype=np.float64)


def gap_bound_ste(kappa: ArrayLike, h: ArrayLike) -> Array:
    """T9: |g(e) - g(q)| ≤ kappa h for a kappa-smooth L∘G, h = |q - e|; arrays broadcast."""
    return _bound("gap ste", kappa, h)


def gap_bound_rotation(kappa: ArrayLike, g_norm: ArrayLike, e_norm: ArrayLike, h: ArrayLike) -> Array:
    """T10: |g(e) - Jᵀg(q)| ≤ (kappa + |g(q)|/|e|) h; arrays broadcast."""
    return _bound("gap rotation", kappa, g_norm, e_norm, h)


def gap_bound_hessian(M: ArrayLike, h: ArrayLike) -> Array:
    """T11: |g(e) - g(q) - H(q)(e - q)| ≤ M h²/2 for an M-Lipschitz Hessian; arrays broadcast."""
    return _bound("gap hessian", M, h)
