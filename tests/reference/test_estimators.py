"""Estimators: exact values, closed-form backward, degenerate rows, higher derivatives."""

import math

import pytest
import torch
from torch.func import jacfwd, jacrev, vmap

from vqverify.reference import (
    antiparallel_threshold,
    rotate,
    rotation_jvp,
    rotation_vjp,
    straight_through,
)


def matrix(z, q):
    """λR by the formula of the paper, in float64."""
    u, v = z / z.norm(), q / q.norm()
    s = (u + v) / (u + v).norm()
    eye = torch.eye(len(z), dtype=z.dtype)
    return q.norm() / z.norm() * (eye - 2 * torch.outer(s, s) + 2 * torch.outer(v, u))


def bound(z, q):
    """B₁ of theory T5 with the unit roundoff of float32."""
    z, q = z.double(), q.double()
    sigma = (z / z.norm(dim=-1, keepdim=True) + q / q.norm(dim=-1, keepdim=True)).norm(dim=-1)
    dim = z.shape[-1]
    return (9 * dim + 41 + (4 * dim + 16) / sigma) * 2.0**-24


@pytest.mark.parametrize("estimator", [rotate, straight_through])
def test_value_is_the_code_bit_for_bit(estimator):
    z = torch.tensor([[2.0**26, 1e-30, -3.0]], requires_grad=True)
    q = torch.tensor([[1.0, 0.1, 1e-20]])
    out = estimator(z, q)
    assert torch.equal(out, q)
    assert out.data_ptr() != q.data_ptr()


@pytest.mark.parametrize("dim", [1, 2, 3, 8, 65])
def test_rotation_is_the_papers_matrix(dim):
    generator = torch.Generator().manual_seed(dim)
    z, q, g = (torch.randn(6, dim, dtype=torch.float64, generator=generator) for _ in range(3))
    if dim == 1:
        q = q.abs() * z.sign()
    J = torch.stack([matrix(a, b) for a, b in zip(z, q, strict=True)])
    assert torch.allclose(rotation_jvp(z, q, g), (J @ g[..., None])[..., 0], rtol=0, atol=1e-12)
    assert torch.allclose(rotation_vjp(z, q, g), (J.mT @ g[..., None])[..., 0], rtol=0, atol=1e-12)
    z.requires_grad_()
    (received,) = torch.autograd.grad(rotate(z, q), z, g)
    assert torch.allclose(received, (J.mT @ g[..., None])[..., 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("angle", [0.0, 1e-6, 1e-3, 0.5, 2.0, 3.0, math.pi - 1e-3, math.pi - 3e-5])
@pytest.mark.parametrize("dim", [2, 8, 64])
def test_backward_is_within_b1_at_every_angle(angle, dim):
    generator = torch.Generator().manual_seed(dim)
    z, side, g = (torch.randn(50, dim, dtype=torch.float64, generator=generator) for _ in range(3))
    u = z / z.norm(dim=1, keepdim=True)
    side = side - (side * u).sum(1, keepdim=True) * u
    q = 3 * (math.cos(angle) * u + math.sin(angle) * side / side.norm(dim=1, keepdim=True))
    z, q, g = z.float(), q.float(), g.float()
    # the oracle: the same rows in float64, whose own error is 2^-29 of the bound
    truth = rotation_vjp(z.double(), q.double(), g.double())
    lam = q.double().norm(dim=1) / z.double().norm(dim=1)
    error = (rotation_vjp(z, q, g).double() - truth).norm(dim=1) / (lam * g.double().norm(dim=1))
    assert (error <= 1.01 * bound(z, q)).all()


def test_degenerate_rows_follow_the_convention():
    z = torch.tensor([[0.0, 0.0], [1.0, 2.0], [1.0, 2.0], [1.0, 0.0]])
    q = torch.tensor([[3.0, 4.0], [0.0, 0.0], [-2.0, -4.0], [-1.0, 1e-8]])
    g = torch.tensor([[1.0, -1.0]] * 4)
    assert torch.equal(rotation_vjp(z, q, g), torch.tensor([[1.0, -1.0], [0.0, 0.0], [1.0, -1.0], [1.0, -1.0]]))
    one = torch.ones(1, 1)
    assert rotation_vjp(one, -2 * one, one).item() == 1
    assert rotation_vjp(one, 2 * one, one).item() == 2
    assert antiparallel_threshold(2) == 24 * 2.0**-24


SCALES = [(z, q) for z in (1e-42, 1e-30, 1.0, 1e30) for q in (1e-30, 1.0, 1e30) if q / z < 1e37]


@pytest.mark.parametrize(("scale_z", "scale_q"), SCALES)
def test_magnitudes_only_scale(scale_z, scale_q):
    z = torch.tensor([[3.0, 4.0, 1.0]]) * scale_z
    q = torch.tensor([[1.0, -2.0, 2.0]]) * scale_q
    lam = (q.double().norm() / z.double().norm()).item()
    g = torch.tensor([[1.0, 2.0, -1.0]])
    assert rotation_vjp(z, q, g).double().norm().item() == pytest.approx(lam * 6**0.5, rel=1e-5)


def test_chunks_do_not_change_the_rows(monkeypatch):
    z, q, g = torch.randn(3, 100, 4, dtype=torch.float64)
    whole = rotation_vjp(z, q, g)
    monkeypatch.setattr("vqverify.reference._rotation._CHUNK", 12)
    assert torch.allclose(rotation_vjp(z, q, g), whole, rtol=1e-9, atol=1e-9)
    assert rotation_vjp(z[:0], q[:0], g[:0]).shape == (0, 4)


def test_second_derivative_sees_a_linear_function():
    z, q, g = torch.randn(3, 5, 4, dtype=torch.float64)
    z.requires_grad_()
    g.requires_grad_()
    (received,) = torch.autograd.grad(rotate(z, q), z, g, create_graph=True)
    by_g, by_z = torch.autograd.grad(received.sum(), (g, z), allow_unused=True)
    assert by_z is None
    assert torch.allclose(by_g, rotation_jvp(z, q, torch.ones_like(g)))
    assert torch.autograd.gradcheck(lambda x: rotation_vjp(z.detach(), q, x), g)


# torch itself calls its deprecated torch.jit.script when jacfwd is first used
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_function_transforms():
    z, q = torch.randn(2, 5, 4, dtype=torch.float64)
    J = torch.stack([matrix(a, b) for a, b in zip(z, q, strict=True)])
    assert torch.allclose(vmap(jacrev(rotate))(z, q), J)
    assert torch.allclose(vmap(jacfwd(rotate))(z, q), J)
    assert torch.allclose(vmap(jacrev(straight_through))(z, q), torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_once(dtype):
    z, q, g = torch.randn(3, 64, 16).to(dtype)
    wide = rotation_vjp(z.float(), q.float(), g.float())
    assert torch.equal(rotation_vjp(z, q, g), wide.to(dtype))


def test_nothing_is_saved_beyond_z_and_q():
    z = torch.randn(64, 16, requires_grad=True)
    q = torch.randn(64, 16)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        rotate(z, q)
    assert sorted(saved) == sorted([z.data_ptr(), q.data_ptr()])


def test_no_gradient_reaches_the_code():
    z, q = torch.randn(2, 3, 4)
    q.requires_grad_()
    for estimator in (rotate, straight_through):
        assert not estimator(z, q).requires_grad


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"q must have the shape of z, \(2, 3\); it was \(3,\)"):
        rotate(torch.zeros(2, 3), torch.zeros(3))


@pytest.mark.parametrize("dim", [8, 64])
def test_autocast_does_not_lower_the_precision(dim):
    z, q, g = torch.randn(3, 40, dim).unbind()
    plain = rotation_vjp(z, q, g)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rotation_vjp(z, q, g), plain)


@pytest.mark.parametrize(("scale_z", "scale_q"), [(1e-30, 1e30), (1e-45, 1.0)])
def test_a_ratio_of_norms_that_overflows_leaves_what_fits(scale_z, scale_q):
    """λ is no float32 number, but λg may be, and 0 is."""
    z = torch.tensor([[1.0, 0.0, 0.0]]) * scale_z
    q = torch.tensor([[0.0, 1.0, 0.0]]) * scale_q
    assert torch.equal(rotation_vjp(z, q, torch.zeros(1, 3)), torch.zeros(1, 3))
    g = torch.tensor([[1.0, 2.0, 3.0]]) * 2.0**-30
    exact = torch.tensor([[2.0, -1.0, 3.0]], dtype=torch.float64) * 2.0**-30 * (q.double().norm() / z.double().norm())
    most = torch.finfo(torch.float32).max
    received = rotation_vjp(z, q, g).double().clamp(-most, most)
    assert torch.allclose(received, exact.clamp(-most, most), rtol=1e-5)
