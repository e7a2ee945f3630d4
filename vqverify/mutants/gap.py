"""Estimators that see the decoder, (f, z, q) -> loss, with one mistake each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vqverify.mutant import Mutant

Task = Callable[[Tensor], Tensor]


def _hessian(f: Task, z: Tensor, q: Tensor, step: Tensor) -> Tensor:
    """f(q) whose gradient at z is g(q) + H(q) step."""
    point = q.detach().requires_grad_()
    (slope,) = torch.autograd.grad(f(point), point, create_graph=True)
    (product,) = torch.autograd.grad(slope, point, grad_outputs=step.detach(), materialize_grads=True)
    return f(q.detach()) + ((slope + product).detach() * (z - z.detach())).sum()


def hessian(f: Task, z: Tensor, q: Tensor) -> Tensor:
    """The Hessian estimate. The control."""
    return _hessian(f, z, q, z - q)


def step_reversed(f: Task, z: Tensor, q: Tensor) -> Tensor:
    """H(q)(q − z) for H(q)(z − q)."""
    return _hessian(f, z, q, q - z)


def double_forward(f: Task, z: Tensor, q: Tensor) -> Tensor:
    """f(q) + f(z)/N, whose gradient at z is forgotten to be multiplied by N."""
    return f(q.detach()) + f(z) / 1000


HERE = "vqverify.mutants.gap"
BOTH = ("gap.order", "gap.exact")
FIFTY = "000 (2410.06424) §3; theory T11, T15"
MUTANTS = (
    Mutant("hessian_step_reversed", f"{HERE}:step_reversed", BOTH, "q − z for z − q", {}, FIFTY, role="estimator"),
    Mutant(
        "double_forward_unscaled",
        f"{HERE}:double_forward",
        ("gap.exact",),
        "the second branch's gradient stays divided by N",
        {},
        FIFTY,
        role="estimator",
    ),
)
