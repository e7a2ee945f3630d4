"""Gradient estimators that need the decoder: exact, double forward, Hessian (Fifty et al. 2024, section 3).

Here ``f`` is the task loss as a function of the decoder's input: f(x) returns a scalar that is a sum over the
rows of x (N, D), or any scalar if the rows interact. g(x) is its gradient. The straight-through estimator
hands g(q) to the encoder where g(z) is meant; the difference is the gradient gap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vqverify.reference import _checks
from vqverify.reference.estimators import straight_through

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    Task = Callable[[Tensor], Tensor]


def exact_gradient(f: Task, z: Tensor) -> Tensor:
    """Return g(z) (N, D): the gradient of the unquantized model. Its gap is 0 by definition.

    Raises:
        TypeError: if ``z`` has no floating-point dtype, or ``f`` returns no tensor.
        ValueError: if what ``f`` returns is no scalar.
    """
    _checks.latents("z", z, None)
    with torch.enable_grad():
        point = z.detach().requires_grad_()
        value = _scalar(f(point))
        if not value.requires_grad:  # f is constant
            return torch.zeros_like(z)
        (gradient,) = torch.autograd.grad(value, point, materialize_grads=True)
    return gradient


def hessian_gradient(f: Task, z: Tensor, q: Tensor) -> Tensor:
    """Return g(q) + H(q)(z - q) (N, D), by one Hessian-vector product (000 section 3; theory T11).

    The gap is at most ½M|z - q|² if H is M-Lipschitz, and 0 for a quadratic f.
    """
    _checks.same_shape("q", q, "z", z)
    with torch.enable_grad():
        point = q.detach().requires_grad_()
        value = _scalar(f(point))
        if not value.requires_grad:  # f is constant
            return torch.zeros_like(z)
        (gradient,) = torch.autograd.grad(value, point, create_graph=True, materialize_grads=True)
        if not gradient.requires_grad:  # f is linear
            return gradient.detach()
        (product,) = torch.autograd.grad(gradient, point, grad_outputs=(z - q).detach(), materialize_grads=True)
    return gradient.detach() + product


def attach_gradient(loss: Tensor, z: Tensor, gradient: Tensor) -> Tensor:
    """Return ``loss`` in value, with ``gradient`` added to what reaches ``z``.

    The term is ⟨gradient, z - sg z⟩, which is 0 for finite z.
    """
    _checks.same_shape("gradient", gradient, "z", z)
    return loss + (gradient.detach() * (z - z.detach())).sum()


def hessian_loss(f: Task, z: Tensor, q: Tensor) -> Tensor:
    """Return f(q) whose gradient at ``z`` is :func:`hessian_gradient`; the decoder sees f(q) alone."""
    loss = f(straight_through(z, q))
    correction = hessian_gradient(f, z, q) - exact_gradient(f, q)
    return attach_gradient(loss, z, correction)


def exact_loss(f: Task, z: Tensor, q: Tensor) -> Tensor:
    """Return f(q) whose gradient at ``z`` is g(z) exactly; the decoder sees f(q) alone."""
    return attach_gradient(f(q.detach()), z, exact_gradient(f, z))


def double_forward(f: Task, z: Tensor, q: Tensor, scale: float = 1000.0) -> Tensor:
    """Return f(q) + f(z)/N with the second term's gradient at ``z`` times N (000 section 3; T15).

    The encoder receives g(z) exactly, the decoder ∂f(q) + ∂f(z)/N: a relative contamination of
    |∂f(z)|/(N|∂f(q)|), unbounded at an optimum of the decoder. Only the branch through ``z`` is scaled; f
    runs on both inputs, which a normalisation layer in it will notice.

    Args:
        f: the task loss.
        z: latents (N, D), with gradient.
        q: codes, the same shape.
        scale: N > 0; a power of two makes the scaling exact.

    Raises:
        ValueError: if ``scale`` is out of range.
    """
    scale = _checks.positive_number("scale", scale)
    # value z, gradient times N: z + (N - 1)(z - sg z), whose second term is 0
    amplified = z.detach() + scale * (z - z.detach())
    return f(q.detach()) + f(amplified) / scale


def gradient_gap(f: Task, z: Tensor, estimate: Tensor) -> Tensor:
    """Return |g(z) - estimate| a latent (N,) (Huh et al. 2023, eq. 14: the unsquared norm)."""
    _checks.same_shape("estimate", estimate, "z", z)
    return torch.linalg.vector_norm(exact_gradient(f, z) - estimate, dim=-1)


def layer_gaps(plain: Tensor, quantized: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """Return |g⁽ˡ⁾ - ĝ⁽ˡ⁾| for each parameter l of the encoder (L,): the gap as the encoder's weights see it.

    g is the gradient of the task loss without quantization, ĝ that with it. Huh et al. 2023, A.3, report
    ``gaps.square().sum()`` over the layers; their eq. 14 has the norm unsquared.

    Args:
        plain: L(G(z)), a scalar whose graph reaches the parameters.
        quantized: L(G(z_q)), likewise, z_q from an estimator.
        parameters: weights of the encoder; one that a loss does not reach has gradient 0. The graphs are kept.

    Raises:
        ValueError: if a loss is no scalar, or there is no parameter.
    """
    weights = list(parameters)
    if not weights:
        raise ValueError("parameters must hold at least one tensor; there was none")
    losses = _scalar(plain, "plain"), _scalar(quantized, "quantized")
    exact, received = (torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True) for loss in losses)
    return torch.stack([torch.linalg.vector_norm(a - b) for a, b in zip(exact, received, strict=True)])


def _scalar(value: object, name: str = "f") -> Tensor:
    must = "return" if name == "f" else "be"
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must {must} a scalar tensor, the task loss; it was a {type(value).__name__}")
    if value.numel() != 1:
        raise ValueError(f"{name} must {must} a scalar tensor, the task loss; its shape was {tuple(value.shape)}")
    return value
