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

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Estimator = Callable[[Tensor, Tensor], Tensor]

_CHUNK = 1 << 17
"""Elements of one row chunk of the rotation: 0.5 MiB in float32, so that the passes over it stay in cache."""


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
        ValueError: if the shapes differ.
    """
    _same_shape(z, q)
    return _StraightThrough.apply(z, q.detach().to(z.dtype))


def rotate(z: Tensor, q: Tensor) -> Tensor:
    """Return ``q`` in value with J = λR as Jacobian: the rotation trick (Fifty et al. 2024, section 4).

    With û = z/|z|, v̂ = q/|q|, s = û + v̂, λ = |q|/|z| the backward pass is, in closed form (theory T1, T5),

        J^T g = λ (g + 2 (v̂·g) û - t s),   t = 2 (s·g) / (s·s),

    so that R is never formed and only ``z`` and ``q`` are kept. Its relative error is within
    B₁ = (9D + 41 + (4D + 16)/|s|) u; the form with 1 + cos θ as denominator loses a further factor 1/|s|.

    Degenerate rows (theory T6): J = I where z = 0 or |s| < :func:`antiparallel_threshold` (no rotation is
    determined there; D = 1 with opposite signs is such a case); J = 0 where q = 0 (the continuous value).
    Half-precision inputs are computed in float32 and rounded once.

    Args:
        z: latents (..., D), any floating-point dtype.
        q: codes, the same shape; cast to the dtype of ``z``.

    Returns:
        A new tensor with the shape and dtype of ``z``.

    Raises:
        ValueError: if the shapes differ.
    """
    _same_shape(z, q)
    return _Rotate.apply(z, q.detach().to(z.dtype))


def rotation_jvp(z: Tensor, q: Tensor, x: Tensor) -> Tensor:
    """Return J x = λR x for rows of ``x``, with the conventions of :func:`rotate`; all three (..., D)."""
    return _Turn.apply(x, z.detach(), q.detach(), False)


def rotation_vjp(z: Tensor, q: Tensor, g: Tensor) -> Tensor:
    """Return J^T g for rows of ``g``, with the conventions of :func:`rotate`; all three (..., D)."""
    return _Turn.apply(g, z.detach(), q.detach(), True)


def antiparallel_threshold(dim: int, dtype: torch.dtype = torch.float32) -> float:
    """Return σ₀ = (4D + 16) u: below it B₁ exceeds 1 and :func:`rotate` is the identity (T6)."""
    return (4 * dim + 16) * torch.finfo(_wide(dtype)).eps / 2


def _same_shape(z: Tensor, q: Tensor) -> None:
    if z.shape != q.shape:
        raise ValueError(f"q must have the shape of z, {tuple(z.shape)}; it was {tuple(q.shape)}")


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that the arithmetic is done in: at least float32."""
    return torch.promote_types(dtype, torch.float32)


# The signatures below are those of torch.autograd.Function, used or not.
# ruff: noqa: ARG004


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
        return rotation_vjp(z, q, grad_outputs[0]), None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Tensor) -> Tensor:
        z, q = ctx.saved_tensors
        return rotation_jvp(z, q, grad_inputs[0])


class _Turn(Function):
    """x -> J x or J^T x: linear in x, hence its own derivative with the transpose flipped, to every order."""

    @staticmethod
    def forward(x: Tensor, z: Tensor, q: Tensor, transpose: bool) -> Tensor:
        dim = z.shape[-1]
        wide = _wide(z.dtype)
        x_rows, z_rows, q_rows = (t.to(wide).reshape(-1, dim) for t in (x, z, q))
        out = torch.empty_like(x_rows)
        step = max(1, _CHUNK // max(1, dim))
        scratch = x_rows.new_empty(3, min(step, len(out)), dim)
        for i in range(0, len(out), step):
            part = slice(i, i + step)
            _turn_rows(x_rows[part], z_rows[part], q_rows[part], out[part], scratch, transpose=transpose)
        return out.reshape(x.shape).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:3])
        ctx.save_for_forward(*inputs[1:3])
        ctx.transpose = inputs[3]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        z, q = ctx.saved_tensors
        return _Turn.apply(grad_outputs[0], z, q, not ctx.transpose), None, None, None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Tensor) -> Tensor:
        z, q = ctx.saved_tensors
        return _Turn.apply(grad_inputs[0], z, q, ctx.transpose)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        *tensors, transpose = args
        front = [
            t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
            for t, d in zip(tensors, in_dims, strict=False)
        ]
        return _Turn.apply(*front, transpose), 0


def _turn_rows(x: Tensor, z: Tensor, q: Tensor, out: Tensor, scratch: Tensor, *, transpose: bool) -> None:
    """Write λ(x - t s + 2 w (p·x)) into ``out``; (p, w) is (û, v̂) for J and (v̂, û) for J^T."""
    n, dim = x.shape
    u, v, s = scratch[:, :n]
    norm_z, scale_z = _normalise(z, u)
    norm_q, scale_q = _normalise(q, v)
    torch.add(u, v, out=s)
    sigma = torch.linalg.vector_norm(s, dim=-1, keepdim=True)
    t = 2 * (s * x).sum(-1, keepdim=True) / sigma.square()
    p, w = (v, u) if transpose else (u, v)
    torch.addcmul(x, w, 2 * (p * x).sum(-1, keepdim=True), out=out)
    lam = (norm_q / norm_z * (scale_z.double() / scale_q)).to(x.dtype)
    out.addcmul_(s, t, value=-1).mul_(lam)
    identity = (norm_z == 0) | ((norm_q > 0) & (sigma < antiparallel_threshold(dim, x.dtype)))
    out.copy_(torch.where(identity, x, torch.where(norm_q > 0, out, 0.0)))


def _normalise(x: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Write x/|x| into ``out`` and return (norm, scale) with |x| = norm/scale.

    The scale is a power of two, so that squares neither overflow nor underflow, whatever the row's magnitude.
    """
    peak = torch.linalg.vector_norm(x, ord=torch.inf, dim=-1, keepdim=True)
    scale = torch.exp2(-torch.frexp(peak).exponent.to(x.dtype).clamp(-126, 126))
    torch.mul(x, scale, out=out)
    norm = torch.linalg.vector_norm(out, dim=-1, keepdim=True)
    out.div_(norm)
    return norm, scale
