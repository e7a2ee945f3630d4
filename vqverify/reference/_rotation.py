"""The rotation trick applied to vectors: in closed form, chunk by chunk (theory T1, T5, T6)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from vqverify.reference._products import full_precision, scratch
from vqverify.reference._signature import signed

_CHUNK = 1 << 16
"""Elements of one row chunk of the rotation: 256 KiB in float32, so that its many passes stay in a core's cache."""


def antiparallel_threshold(dim: int, dtype: torch.dtype = torch.float32) -> float:
    """Return σ₀ = (4D + 16) u: below it B₁ exceeds 1 and :func:`rotate` is the identity (T6)."""
    return (4 * dim + 16) * torch.finfo(_wide(dtype)).eps / 2


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that the arithmetic is done in: at least float32."""
    return torch.promote_types(dtype, torch.float32)


# The signatures below are those of torch.autograd.Function, used or not.
# ruff: noqa: ARG004


@signed
class Turn(Function):
    """x -> J x or J^T x: linear in x, hence its own derivative with the transpose flipped, to every order."""

    @staticmethod
    def forward(x: Tensor, z: Tensor, q: Tensor, transpose: bool) -> Tensor:
        dim = z.shape[-1]
        wide = _wide(z.dtype)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        step = max(1, _CHUNK // max(1, dim))
        rows = [t.reshape(-1, dim).split(step) for t in (x, z, q)]
        room = (3, min(step, max(1, out.numel() // max(1, dim))), dim)
        work = scratch([math.prod(room)], z.new_empty(0, dtype=wide))[0].view(room)
        # backward inside autocast, or TF32, would lower the precision of the dot products
        with torch.autocast(z.device.type, enabled=False), full_precision():
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
        return Turn.apply(grad_outputs[0], z, q, not ctx.transpose), None, None, None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Tensor) -> Tensor:
        z, q = ctx.saved_tensors
        return Turn.apply(grad_inputs[0], z, q, ctx.transpose)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        *tensors, transpose = args
        front = [
            t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
            for t, d in zip(tensors, in_dims, strict=False)
        ]
        return Turn.apply(*front, transpose), 0


def _turn_rows(
    x: Tensor, z: Tensor, q: Tensor, out: Tensor, work: tuple[Tensor, Tensor, Tensor], *, transpose: bool
) -> None:
    """Write J x or J^T x, as λx + α s + β v̂, for one chunk of rows; ``out`` may be ``work[2]``."""
    v, s, product = work
    norms = _norms(z, q)
    power = None
    # what a graph cannot look at is taken not to be regular
    regular = not torch.compiler.is_compiling() and _squares_fit(norms)
    if not regular:
        (z, power_z), (q, power_q) = _rescale(z), _rescale(q)
        norms, power = _norms(z, q), power_q - power_z
    inverse_z, inverse_q = norms.reciprocal().unsqueeze(2) if regular else _inverse(norms)
    torch.mul(q, inverse_q, out=v)
    torch.addcmul(v, z, inverse_z, out=s)
    sigma = torch.linalg.vector_norm(s, dim=1)
    regular = regular and bool((sigma >= antiparallel_threshold(z.shape[1], z.dtype)).all())
    ones = s.new_ones(s.shape[1])
    # row sums as a matrix-vector product are the fastest on short rows
    s_x = torch.mul(s, x, out=product).mv(ones)
    v_x = torch.mul(v, x, out=product).mv(ones)
    degenerate = None if regular else _degenerate(norms, sigma, z.shape[1])
    lam, alpha, beta = _coefficients(norms, sigma, (s_x, v_x), degenerate, transpose=transpose)
    torch.mul(x, lam, out=out).addcmul_(s, alpha).addcmul_(v, beta)
    if power is not None and degenerate is not None:
        for factor in _powers(power, degenerate):
            out.mul_(factor)


def turn_zero(z: Tensor, q: Tensor) -> Tensor:
    """Return J (z - sg z): zero, with J as Jacobian, in plain operations that a compiler can fuse."""
    wide = _wide(z.dtype)
    x, z, q = (z - z.detach()).to(wide), z.detach().to(wide), q.detach().to(wide)
    flat_x, flat_z, flat_q = (t.reshape(-1, t.shape[-1]) for t in (x, z, q))
    (flat_z, root_z), (flat_q, root_q) = _tame(flat_z), _tame(flat_q)
    norms = _norms(flat_z, flat_q)
    inverse_z, inverse_q = _inverse(norms)
    v = flat_q * inverse_q
    s = v + flat_z * inverse_z
    sigma = torch.linalg.vector_norm(s, dim=1)
    dots = (s * flat_x).sum(1), (v * flat_x).sum(1)
    degenerate = _degenerate(norms, sigma, z.shape[-1])
    lam, alpha, beta = _coefficients(norms, sigma, dots, degenerate, transpose=False)
    root = torch.where(degenerate[0], 1, root_q / root_z).unsqueeze(1)
    return ((lam * flat_x + alpha * s + beta * v) * root * root).reshape(z.shape)


def _degenerate(norms: Tensor, sigma: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the rows (N,) without a rotation, and those of them whose Jacobian is the identity, not zero (T6)."""
    norm_z, norm_q = norms
    identity = (norm_z == 0) | ((norm_q > 0) & (sigma < antiparallel_threshold(dim, norms.dtype)))
    return identity | (norm_q == 0), identity


def _coefficients(
    norms: Tensor,
    sigma: Tensor,
    dots: tuple[Tensor, Tensor],
    degenerate: tuple[Tensor, Tensor] | None,
    *,
    transpose: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return λ, α, β (N, 1) of λx + α s + β v̂, the conventions for degenerate rows included.

    û = s - v̂, hence both J x = λ(x - t s + 2(û·x) v̂) and J^T x = λ(x - t s + 2(v̂·x) û) are of this form.
    """
    (norm_z, norm_q), (s_x, v_x) = norms, dots
    if degenerate:
        # harmless stand-ins for what degenerate rows would divide by: 0/0 has no place in a graph either
        norm_z, sigma = (torch.where(degenerate[0], 1, a) for a in (norm_z, sigma))
    lam = norm_q / norm_z
    half_t, twice = s_x / sigma.square(), 2 * lam
    alpha, beta = (twice * (v_x - half_t), -twice * v_x) if transpose else (-twice * half_t, twice * (s_x - v_x))
    if degenerate:
        lam = torch.where(degenerate[0], degenerate[1].to(lam.dtype), lam)
        alpha, beta = (torch.where(degenerate[0], 0, a) for a in (alpha, beta))
    return lam.unsqueeze(1), alpha.unsqueeze(1), beta.unsqueeze(1)


def _inverse(norms: Tensor) -> Tensor:
    """Return 1/norm, and 0 for 0, so that degenerate rows stay finite, with a last axis of 1."""
    return torch.where(norms > 0, norms.reciprocal(), 0).unsqueeze(-1)


def _norms(z: Tensor, q: Tensor) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(t, dim=1) for t in (z, q)])


def _squares_fit(norms: Tensor) -> bool:
    """Return whether squares and products of numbers of these norms are normal numbers."""
    limit = torch.finfo(norms.dtype).max ** 0.45
    low, high = norms.aminmax() if norms.numel() else (1, 1)
    return 1 / limit < float(low) and float(high) < limit


def _rescale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows divided by a power of two that brings their largest entry near 1, and its exponent (N,)."""
    exponent = torch.frexp(x.abs().amax(1)).exponent.to(x.dtype)
    limit = math.log2(torch.finfo(x.dtype).max) // 1 - 1
    power = exponent.clamp(-limit, limit)
    return x * torch.exp2(-power).unsqueeze(1), power


def _tame(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows whose squares fit, x over a power of two, and its root (N,): :func:`_rescale` as a compiler fuses it."""
    peak, most = x.abs().amax(1), math.log2(torch.finfo(x.dtype).max) // 1 + 1
    # float32: beyond 2^±40, by 2^100 or 2^-88; what is left lies within 2^±61
    bound, down, up = 2.0 ** (5 * most // 16), 2.0 ** (25 * most // 64), 2.0 ** -(11 * most // 32)
    root = torch.where(peak > bound, down, torch.where(peak < 1 / bound, up, 1.0)).to(x.dtype)
    return x * root.reciprocal().square().unsqueeze(1), root


def _powers(power: Tensor, degenerate: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return two factors (N, 1) of 2^power, 1 for degenerate rows: their product may overflow where λx does not."""
    power = torch.where(degenerate[0], 0, power)
    half = (power / 2).trunc()
    return torch.exp2(half).unsqueeze(1), torch.exp2(power - half).unsqueeze(1)
