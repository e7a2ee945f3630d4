"""Gradient estimators: the value is the code, bit for bit; only the backward pass differs.

An estimator is a function ``(z, q) -> z_q`` with latents ``z`` (..., D) and their codes ``q`` (..., D).
Its value is ``q`` and its surrogate Jacobian A sends a cotangent ``g`` to ``A^T g`` at ``z``. No gradient
reaches ``q``, and the factors of A are constants: a second differentiation sees a function linear in ``g``
alone (theory T4).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import Function

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Estimator = Callable[[Tensor, Tensor], Tensor]

_CHUNK = 1 << 18
"""Elements of one row chunk of the rotation: 1 MiB in float32, so that the passes over it stay in
cache."""


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


ESTIMATORS: dict[str, Estimator] = {"rotation": rotate, "straight-through": straight_through}
"""Estimators by name."""


def synchronize(z_q: Tensor, q: Tensor, weight: float) -> Tensor:
    """Return z_q + ν(q - sg q): the value of z_q, with ν times the task gradient at the codes (001 eq. 20; T23).

    With plain SGD at one rate η = ν the codes move as q' = (1-η)q + ηz - η²g, besides the codebook loss.

    Args:
        z_q: what an estimator returned (..., D).
        q: the codes, with gradient, the same shape.
        weight: ν.
    """
    return _Synchronize.apply(z_q, q.to(z_q.dtype), weight)


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
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        step = max(1, _CHUNK // max(1, dim))
        rows = [t.reshape(-1, dim).split(step) for t in (x, z, q)]
        work = z.new_empty(3, min(step, max(1, out.numel() // max(1, dim))), dim, dtype=wide)
        for x_part, z_part, q_part, out_part in zip(*rows, out.view(-1, dim).split(step), strict=True):
            v, s, product = work[:, : len(out_part)]
            target = out_part if out.dtype == wide else product
            x_wide, z_wide, q_wide = (t.to(wide) for t in (x_part, z_part, q_part))
            _turn_rows(x_wide, z_wide, q_wide, target, (v, s, product), transpose=transpose)
            if target is product:
                out_part.copy_(product)
        return out

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


def _turn_rows(
    x: Tensor, z: Tensor, q: Tensor, out: Tensor, work: tuple[Tensor, Tensor, Tensor], *, transpose: bool
) -> None:
    """Write J x or J^T x, as λx + α s + β v̂, for one chunk of rows; ``out`` may be ``work[2]``."""
    v, s, product = work
    norms = _norms(z, q)
    ratio: Tensor | float = 1.0
    if not torch.compiler.is_compiling() and not _squares_fit(norms):
        (z, scale_z), (q, scale_q) = _rescale(z), _rescale(q)
        norms = _norms(z, q)
        ratio = (scale_z.double() / scale_q).to(z.dtype)
    norm_z, norm_q = norms
    # 0 in place of 1/0: degenerate rows stay finite
    inverse_z, inverse_q = torch.where(norms > 0, norms.reciprocal(), 0).unsqueeze(2)
    torch.mul(q, inverse_q, out=v)
    torch.addcmul(v, z, inverse_z, out=s)
    sigma = torch.linalg.vector_norm(s, dim=1)
    ones = s.new_ones(s.shape[1])
    # row sums as a matrix-vector product are the fastest on short rows
    s_x = torch.mul(s, x, out=product).mv(ones)
    v_x = torch.mul(v, x, out=product).mv(ones)
    lam = norm_q / norm_z * ratio
    t = 2 * s_x / sigma.square()
    # û = s - v̂: both forms in terms of s and v̂ alone
    alpha, beta = (lam * (2 * v_x - t), -2 * lam * v_x) if transpose else (-lam * t, 2 * lam * (s_x - v_x))
    identity = (norm_z == 0) | ((norm_q > 0) & (sigma < antiparallel_threshold(z.shape[1], z.dtype)))
    degenerate = identity | (norm_q == 0)
    lam = torch.where(degenerate, identity.to(lam.dtype), lam)
    alpha, beta = (torch.where(degenerate, 0, a).unsqueeze(1) for a in (alpha, beta))
    torch.mul(x, lam.unsqueeze(1), out=out).addcmul_(s, alpha).addcmul_(v, beta)


def _norms(z: Tensor, q: Tensor) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(t, dim=1) for t in (z, q)])


def _squares_fit(norms: Tensor) -> bool:
    """Return whether squares and products of numbers of these norms are normal numbers."""
    limit = torch.finfo(norms.dtype).max ** 0.45
    low, high = norms.aminmax() if norms.numel() else (1, 1)
    return 1 / limit < float(low) and float(high) < limit


def _rescale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows times a power of two that brings their largest entry near 1, and that power (N,)."""
    exponent = torch.frexp(x.abs().amax(1)).exponent.to(x.dtype)
    limit = math.log2(torch.finfo(x.dtype).max) // 1 - 1
    scale = torch.exp2(-exponent.clamp(-limit, limit))
    return x * scale.unsqueeze(1), scale
