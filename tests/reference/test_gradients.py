"""Decoder-side estimators: exact on the functions for which theory says so."""

import pytest
import torch

from vqverify.reference import (
    double_forward,
    exact_gradient,
    exact_loss,
    gradient_gap,
    hessian_gradient,
    hessian_loss,
    layer_gaps,
    rotation_vjp,
    straight_through,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def quadratic(dim=4):
    H = torch.randn(dim, dim, dtype=torch.float64)
    H = H + H.T
    return lambda x: 0.5 * ((x @ H) * x).sum() + x.sum()


def points():
    return torch.randn(2, 6, 4, dtype=torch.float64)


def test_hessian_is_exact_on_quadratics_and_second_order_on_cubics():
    f = quadratic()
    z, q = points()
    assert gradient_gap(f, z, hessian_gradient(f, z, q)).max() < 1e-12
    steps = torch.logspace(-1, -3, 3, dtype=torch.float64)
    gaps = []
    for h in steps:
        near = z + h * (q - z)
        gaps.append(gradient_gap(lambda x: (x**3).sum(), z, hessian_gradient(lambda x: (x**3).sum(), z, near)))
    slope = (gaps[0] / gaps[2]).log10() / 2
    assert torch.allclose(slope, torch.full_like(slope, 2.0), atol=1e-6)
    linear = lambda x: x.sum()  # noqa: E731
    assert torch.equal(hessian_gradient(linear, z, q), torch.ones_like(z))


def test_rotation_gap_is_zero_for_a_radial_quadratic_at_equal_norms():
    """T12: ½κ|x|² with |q| = |z|."""
    z, q = points()
    q = q / q.norm(dim=1, keepdim=True) * z.norm(dim=1, keepdim=True)
    f = lambda x: 1.5 * x.square().sum()  # noqa: E731
    assert gradient_gap(f, z, rotation_vjp(z, q, exact_gradient(f, q))).max() < 1e-12


def test_layer_gaps_are_those_of_the_encoders_weights():
    f = quadratic()
    x = torch.randn(6, 3, dtype=torch.float64)
    encoder = torch.nn.Linear(3, 4, dtype=torch.float64)
    z = encoder(x)
    _, q = points()
    weights = [*encoder.parameters(), torch.ones(2, requires_grad=True)]
    gaps = layer_gaps(f(z), f(straight_through(z, q)), weights)
    difference = (exact_gradient(f, z) - exact_gradient(f, q)).detach()
    expected = [(difference.T @ x).norm(), difference.sum(0).norm(), torch.zeros(())]
    assert torch.allclose(gaps, torch.stack([e.double() for e in expected]))
    assert layer_gaps(f(z), exact_loss(f, z, q), weights).max() < 1e-12
    with pytest.raises(ValueError, match="plain must be a scalar"):
        layer_gaps(z, f(z), weights)
    with pytest.raises(ValueError, match="parameters must hold"):
        layer_gaps(f(z), f(z), [])


@pytest.mark.parametrize("loss", [hessian_loss, exact_loss])
def test_losses_have_the_value_at_the_code_and_the_estimated_gradient(loss):
    f = quadratic()
    z, q = points()
    z.requires_grad_()
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    value = loss(lambda x: f(weight * x), z, q)
    assert torch.equal(value, f(q))
    received, decoder = torch.autograd.grad(value, (z, weight))
    assert torch.allclose(received, exact_gradient(f, z))
    (expected,) = torch.autograd.grad(f(weight * q), weight)
    assert torch.allclose(decoder, expected)


def test_double_forward_contaminates_the_decoder_by_one_part_in_n():
    z, q = points()
    z.requires_grad_()
    weight = torch.ones(4, dtype=torch.float64, requires_grad=True)

    def f(x):
        return (weight * x**2).sum()

    value = double_forward(f, z, q, scale=1024)
    received, decoder = torch.autograd.grad(value, (z, weight))
    assert torch.equal(received, exact_gradient(f, z))
    assert torch.allclose(decoder, (q**2).sum(0) + (z**2).sum(0) / 1024)
    with pytest.raises(ValueError, match="scale must be greater than 0"):
        double_forward(f, z, q, scale=0)
