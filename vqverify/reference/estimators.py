"""Gradient estimators: the value is the code, bit for bit; only the backward pass differs.

An estimator is a function ``(z, q) -> z_q`` with latents ``z`` (..., D) and their codes ``q`` (..., D).
Its value is ``q`` and its surrogate Jacobian A sends a cotangent ``g`` to ``A^T g`` at ``z``. No gradient
reaches ``q``, and the factors of A are constants: a second differentiation sees a function linear in ``g``
alone (theory T4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import Function
from torch.nn import functional

from vqverify.reference import _checks
from vqverify.reference._rotation import Turn, turn_zero
from vqverify.reference._signature import signed

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Estimator = Callable[[Tensor, Tensor], Tensor]


def straight_through(z: Tensor, q: Tensor) -> Tensor:
    """Return ``q`` in value with the identity as Jacobian (van den Oord et al. 2017; theory T14).

    Unlike ``z + (q - z).detach()``, which rounds twice, the value is exactly ``q``: this is the residual form
    ``q + (z - sg z)``, whose second term is 0.

    Args:
        z: latents (..., D), any floating-point dtype.
        q: codes, the same shape; cast to the dtype of ``z``.

    Returns:
        A new tensor with the shape and dtype of ``z``.

    Raises:
        TypeError: on a dtype that is not floating-point.
        ValueError: if the shapes differ.
    """
    _checks.same_shape("q", q, "z", z)
    q = q.detach().to(z.dtype)
    if torch.compiler.is_compiling():
        return q + (z - z.detach())
    return _StraightThrough.apply(z, q)


def rotate(z: Tensor, q: Tensor) -> Tensor:
    """Return ``q`` in value with J = λR as Jacobian: the rotation trick (Fifty et al. 2024, section 4).

    With û = z/|z|, v̂ = q/|q|, s = û + v̂, λ = |q|/|z| the backward pass is, in closed form (theory T1, T5),

        J^T g = λ (g + 2 (v̂·g) û - t s),   t = 2 (s·g) / (s·s),

    so that R is never formed and only ``z`` and ``q`` are kept. Its relative error is within
    B₁ = (9D + 41 + (4D + 16)/|s|) u; the form with 1 + cos θ as denominator loses a further factor 1/|s|.

    Degenerate rows (theory T6): J = I where z = 0 or |s| < :func:`antiparallel_threshold` (no rotation is
    determined there; D = 1 with opposite signs is such a case); J = 0 where q = 0 (the continuous value).
    Half-precision inputs are computed in float32 and rounded once. Norms may have any magnitude, and λ may overflow:
    an entry of J^T g is infinite only if it does itself (compiled, it may be NaN then).

    Args:
        z: latents (..., D), any floating-point dtype.
        q: codes, the same shape; cast to the dtype of ``z``.

    Returns:
        A new tensor with the shape and dtype of ``z``.

    Raises:
        TypeError: on a dtype that is not floating-point.
        ValueError: if the shapes differ.
    """
    _checks.same_shape("q", q, "z", z)
    q = q.detach().to(z.dtype)
    if torch.compiler.is_compiling():
        return q + turn_zero(z, q).to(z.dtype)
    return _Rotate.apply(z, q)


ESTIMATORS: dict[str, Estimator] = {"rotation": rotate, "straight-through": straight_through}
"""Estimators by name."""


def as_estimator(value: str | Estimator) -> Estimator:
    """Return the estimator of a name, or the function that was given.

    Raises:
        ValueError: if the name is unknown.
    """
    return value if callable(value) else _checks.choice("estimator", value, ESTIMATORS)


def synchronize(z_q: Tensor, q: Tensor, weight: float) -> Tensor:
    """Return z_q + ν(q - sg q): the value of z_q, with ν times its gradient at the codes (001 eq. 20; T23).

    With plain SGD at one rate η = ν the codes move as q' = (1-η)q + ηz - η²g, besides the codebook loss.

    Args:
        z_q: what an estimator returned (..., D).
        q: the codes, with gradient, the same shape.
        weight: ν ≥ 0.

    Raises:
        ValueError: if the shapes differ, or ν is out of range.
    """
    _checks.same_shape("q", q, "z_q", z_q)
    weight = _checks.number("weight", weight)
    q = q.to(z_q.dtype)
    if torch.compiler.is_compiling():
        return z_q + weight * (q - q.detach())
    return _Synchronize.apply(z_q, q, weight)


def rotation_jvp(z: Tensor, q: Tensor, x: Tensor) -> Tensor:
    """Return J x = λR x for rows of ``x``, with the conventions of :func:`rotate`; all three (..., D)."""
    _checks.same_shape("q", q, "z", z)
    _checks.same_shape("x", x, "z", z)
    return Turn.apply(x, z.detach(), q.detach(), False)


def rotation_vjp(z: Tensor, q: Tensor, g: Tensor) -> Tensor:
    """Return J^T g for rows of ``g``, with the conventions of :func:`rotate`; all three (..., D)."""
    _checks.same_shape("q", q, "z", z)
    _checks.same_shape("g", g, "z", z)
    return Turn.apply(g, z.detach(), q.detach(), True)


def relaxed(weights: Tensor, codes: Tensor, codebook: Tensor) -> Tensor:
    """Return the chosen codes (..., D), bit for bit, with the gradient of a mixture at the weights.

    The codes receive the gradient as chosen, the weights (..., K) as if z_q were their mixture: 0 is added whatever
    precision products are in.
    """
    return functional.embedding(codes, codebook) + (weights - weights.detach()) @ codebook


# The signatures below are those of torch.autograd.Function, used or not.
# ruff: noqa: ARG004


@signed
class _StraightThrough(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(_z: Tensor, q: Tensor) -> Tensor:
        return q.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Keep nothing: the Jacobian is constant."""

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0], None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Tensor) -> Tensor:
        return grad_inputs[0].clone()


@signed
class _Synchronize(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(z_q: Tensor, _q: Tensor, _weight: float) -> Tensor:
        return z_q.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        ctx.weight = inputs[2]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad_outputs[0], ctx.weight * grad_outputs[0], None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Tensor) -> Tensor:
        return grad_inputs[0] + ctx.weight * grad_inputs[1]


@signed
class _Rotate(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(_z: Tensor, q: Tensor) -> Tensor:
        return q.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        z, q = ctx.saved_tensors
        return Turn.apply(grad_outputs[0], z.detach(), q.detach(), True), None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Tensor) -> Tensor:
        z, q = ctx.saved_tensors
        return Turn.apply(grad_inputs[0], z.detach(), q.detach(), False)
