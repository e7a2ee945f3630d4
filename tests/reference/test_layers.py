"""The layers: values, losses, updates, layouts, masks, precision, life cycle, bad input."""

import copy
import math

import pytest
import torch

from vqverify.reference import FSQ, GumbelVQ, ProjectedCosineVQ, ResidualVQ, VectorQuantizer, rotation_vjp

LAYERS = [
    lambda **kw: VectorQuantizer(6, 16, **kw),
    lambda **kw: VectorQuantizer(6, 16, estimator="straight-through", learning="gradient", **kw),
    lambda **kw: VectorQuantizer(6, 16, metric="cosine", **kw),
    lambda **kw: VectorQuantizer(6, 16, metric="cosine", learning="gradient", **kw),
    lambda **kw: ResidualVQ(6, 16, num_quantizers=3, **kw),
    lambda **kw: ProjectedCosineVQ(6, 16, codebook_dim=3, **kw),
]
UNMASKED = [lambda **kw: GumbelVQ(6, 16, **kw), lambda **kw: FSQ([3, 4, 5, 2, 3, 4], **kw)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("build", LAYERS + UNMASKED)
def test_pass_has_the_promised_shapes(build):
    layer = build()
    z = torch.randn(4, 5, 6, requires_grad=True)
    out = layer(z)
    assert out._fields == ("z_q", "codes", "loss")
    assert out.z_q.shape == z.shape
    assert out.codes.shape[:2] == (4, 5)
    assert out.codes.dtype == torch.int64
    assert out.loss.shape == ()
    (out.z_q.square().sum() + out.loss).backward()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("build", LAYERS + UNMASKED)
def test_decode_returns_the_value(build):
    layer = build().eval()
    out = layer(torch.randn(4, 5, 6))
    assert torch.equal(layer.decode(out.codes), out.z_q)
    assert (layer.decode(torch.full_like(out.codes, -1)) == 0).all()


@pytest.mark.parametrize("build", LAYERS + UNMASKED)
def test_image_layout_is_the_same_quantizer(build):
    plain, image = build(), build(channel_first=True)
    image.load_state_dict(plain.state_dict())
    z = torch.randn(2, 3, 4, 6)
    for layer in (plain, image):
        layer.eval()
    a, b = plain(z), image(z.movedim(-1, 1))
    assert torch.equal(a.z_q.movedim(-1, 1), b.z_q)
    assert torch.equal(a.codes, b.codes)
    assert torch.equal(image.decode(b.codes), b.z_q)


@pytest.mark.parametrize("build", LAYERS + UNMASKED)
def test_eval_changes_nothing_and_draws_nothing(build):
    layer = build().eval()
    before = copy.deepcopy(layer.state_dict())
    generator = torch.get_rng_state()
    z = torch.randn(3, 6)
    torch.set_rng_state(generator)
    first, second = layer(z), layer(z)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("build", LAYERS)
def test_training_draws_nothing(build):
    layer = build()
    z = torch.randn(3, 6)
    generator = torch.get_rng_state()
    layer(z)
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("build", LAYERS)
def test_mask_is_the_kept_latents_alone(build):
    layer = build()
    other = copy.deepcopy(layer)
    z = torch.randn(30, 6)
    keep = torch.rand(30) > 0.4
    padded = torch.where(keep[:, None], z, float("nan")).requires_grad_()
    alone = z[keep].requires_grad_()
    masked, plain = layer(padded, mask=keep), other(alone)
    assert torch.equal(masked.codes[keep], plain.codes)
    assert (masked.codes[~keep] == -1).all()
    assert torch.equal(masked.z_q[keep], plain.z_q)
    assert (masked.z_q[~keep] == 0).all()
    assert masked.loss.item() == pytest.approx(plain.loss.item(), rel=1e-6)
    (masked.z_q.sum() + masked.loss).backward()
    (plain.z_q.sum() + plain.loss).backward()
    assert torch.allclose(padded.grad[keep], alone.grad, atol=1e-6)
    assert (padded.grad[~keep] == 0).all()
    for a, b in zip(layer.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert not layer(torch.randn(3, 6), mask=torch.zeros(3, dtype=torch.bool)).loss.isnan()


@pytest.mark.parametrize("build", LAYERS + UNMASKED)
def test_empty_and_single_batches(build):
    layer = build()
    for n in (0, 1):
        out = layer(torch.randn(n, 6))
        assert out.z_q.shape == (n, 6)
        assert out.loss.isfinite()
    assert all(value.isfinite().all() for value in layer.state_dict().values())


@pytest.mark.parametrize("build", LAYERS)
def test_nonfinite_latents_raise_and_leave_the_state(build):
    layer = build()
    before = copy.deepcopy(layer.state_dict())
    z = torch.randn(3, 6)
    z[1, 2] = float("nan")
    with pytest.raises(ValueError, match="z must be finite"):
        layer(z)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("build", LAYERS + UNMASKED)
def test_copies_and_state_round_trip(build):
    layer = build()
    layer(torch.randn(50, 6))
    z = torch.randn(7, 6)
    again = build()
    again.load_state_dict(layer.state_dict())
    clone = copy.deepcopy(layer)
    for other in (again, clone):
        for mode in (False, True):
            torch.manual_seed(1)
            a = layer.train(mode)(z) if other is clone or not mode else None
            torch.manual_seed(1)
            b = other.train(mode)(z)
            assert a is None or torch.equal(a.z_q, b.z_q)


def test_uses_the_codebook_before_the_update():
    layer = VectorQuantizer(4, 8, decay=0.0)
    before = layer.codebook.clone()
    out = layer(torch.randn(20, 4))
    assert torch.equal(out.z_q, before[out.codes])
    assert not torch.equal(layer.codebook, before)
    used = out.codes.unique()
    assert torch.allclose(layer.codebook[used], (layer.sums / layer.counts[:, None])[used])


def test_loss_is_the_weighted_mean_square():
    layer = VectorQuantizer(4, 8, commitment_weight=0.5, learning="gradient", codebook_weight=2.0)
    z = torch.randn(20, 4, requires_grad=True)
    out = layer(z)
    mean = (z - layer.codebook[out.codes]).square().mean()
    assert out.loss.item() == pytest.approx(2.5 * mean.item())
    out.loss.backward()
    difference = (z - out.z_q).detach()
    assert torch.allclose(z.grad, 0.5 * 2 * difference / 80)
    expected = torch.zeros(8, 4).index_add_(0, out.codes, -2.0 * 2 * difference / 80)
    assert torch.allclose(layer.codebook.grad, expected, atol=1e-6)


def test_rotation_gradient_and_no_leak_into_the_codes():
    layer = VectorQuantizer(4, 8, learning="gradient").eval()
    z = torch.randn(20, 4, requires_grad=True)
    g = torch.randn(20, 4)
    out = layer(z)
    received, codes = torch.autograd.grad(out.z_q, (z, layer.codebook), g, allow_unused=True)
    assert codes is None
    assert torch.allclose(received, rotation_vjp(z, out.z_q, g))


def test_cosine_codes_stay_on_the_sphere_and_see_directions():
    layer = VectorQuantizer(4, 8, metric="cosine", decay=0.5)
    other = copy.deepcopy(layer)
    for _ in range(20):
        z = torch.randn(30, 4)
        a, b = layer(z), other(z * torch.rand(30, 1).mul(8).exp2())
        assert torch.equal(a.codes, b.codes)
        assert a.loss.item() == pytest.approx(b.loss.item(), rel=1e-4)
    assert torch.allclose(layer.codebook.norm(dim=1), torch.ones(8))
    assert torch.allclose(layer.codebook, other.codebook, atol=1e-5)


def test_opposite_directions_leave_a_code_where_it_is():
    layer = VectorQuantizer(2, 1, metric="cosine", decay=0.0)
    layer.set_codebook(torch.tensor([[1.0, 0.0]]))
    layer(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    assert torch.equal(layer.codebook, torch.tensor([[1.0, 0.0]]))


def test_residual_stack_has_jacobian_identity():
    layer = ResidualVQ(4, 8, num_quantizers=4).eval()
    z = torch.randn(20, 4, requires_grad=True)
    g = torch.randn(20, 4)
    out = layer(z)
    (received,) = torch.autograd.grad(out.z_q, z, g)
    assert torch.allclose(received, g, atol=1e-6)
    parts = [level.decode(out.codes[..., i]) for i, level in enumerate(layer.levels)]
    assert torch.equal(out.z_q, parts[0] + parts[1] + parts[2] + parts[3])
    assert torch.equal(layer.decode(out.codes[..., :2]), parts[0] + parts[1])


def test_every_level_of_a_stack_commits_the_latents():
    layer = ResidualVQ(4, 8, num_quantizers=3, learning="gradient").eval()
    z = torch.randn(20, 4, requires_grad=True)
    (received,) = torch.autograd.grad(layer(z).loss, z, retain_graph=True)
    rest, expected = z.detach(), torch.zeros(20, 4)
    for level in layer.levels:
        rest = rest - level(rest).z_q.detach()
        expected += 0.25 * 2 * rest / 80
    assert torch.allclose(received, expected, atol=1e-7)


@pytest.mark.parametrize("levels", [[2], [3], [8], [255], [256], [1000], [2, 3, 4, 5]])
def test_fsq_is_a_bijection_onto_its_levels(levels):
    layer = FSQ(levels)
    size = math.prod(levels)
    codes = torch.arange(size)
    z_q = layer.decode(codes)
    assert len(z_q.unique(dim=0)) == size
    assert z_q.abs().max() <= 1
    assert torch.equal(layer.pack((z_q * (layer.levels // 2)).round()), codes)
    line = torch.linspace(-12, 12, 100_001)[:, None].expand(-1, len(levels))
    reached = layer(line).z_q
    for i, L in enumerate(levels):
        assert len(reached[:, i].unique()) == L


def test_fsq_gradient_is_that_of_the_bound():
    layer = FSQ([5, 4])
    z = torch.randn(10, 2, dtype=torch.float64, requires_grad=True)
    (received,) = torch.autograd.grad(layer(z).z_q.sum(), z)
    (expected,) = torch.autograd.grad((layer.bound(z) / torch.tensor([2, 2])).sum(), z)
    assert torch.allclose(received, expected)


def test_gumbel_value_is_one_code_and_its_law_is_softmax():
    layer = GumbelVQ(3, 4, temperature=0.3)
    z = torch.randn(1, 3).expand(20_000, 3)
    out = layer(z)
    assert torch.equal(out.z_q, layer.codebook[out.codes])
    expected = torch.softmax(layer.logits(z[0]), -1) * 20_000
    observed = torch.bincount(out.codes, minlength=4)
    # chi-square with 3 degrees of freedom: 21.1 is exceeded with probability 1e-4
    assert ((observed - expected) ** 2 / expected).sum() < 21.1
    layer.eval()
    assert torch.equal(layer(z).codes, layer.logits(z).argmax(-1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    layer = VectorQuantizer(6, 16).to(dtype)
    out = layer(torch.randn(2000, 6).to(dtype))
    assert out.z_q.dtype == dtype
    assert layer.codebook.dtype == dtype
    wide = torch.promote_types(dtype, torch.float32)
    assert layer.counts.dtype == layer.sums.dtype == out.loss.dtype == wide
    assert layer.counts.sum().item() == pytest.approx(0.99 * 16 + 0.01 * 2000)


def test_bfloat16_latents_meet_a_float32_codebook():
    layer = VectorQuantizer(6, 16).eval()
    z = torch.randn(20, 6, dtype=torch.bfloat16)
    out = layer(z)
    assert torch.equal(out.z_q, layer.codebook[out.codes].bfloat16())
    assert torch.equal(out.codes, layer(z.float()).codes)


def test_bad_input_is_named():
    layer = VectorQuantizer(4, 8)
    with pytest.raises(ValueError, match="z must have 4 entries along the last axis; its shape was"):
        layer(torch.zeros(3, 5))
    with pytest.raises(TypeError, match=r"z must have a floating-point dtype; it was torch\.int64"):
        layer(torch.zeros(3, 4, dtype=torch.int64))
    with pytest.raises(TypeError, match="z must be a tensor; it was a list"):
        layer([1.0])
    with pytest.raises(ValueError, match=r"codes must lie in \[0, 8\)"):
        layer.decode(torch.tensor([8]))
    with pytest.raises(TypeError, match="codes must be a tensor of an integer dtype"):
        layer.decode(torch.tensor([0.0]))
    with pytest.raises(ValueError, match="mask must have the shape of the codes"):
        layer(torch.zeros(3, 4), mask=torch.ones(4, dtype=torch.bool))
    with pytest.raises(TypeError, match="mask must be a bool tensor"):
        layer(torch.zeros(3, 4), mask=torch.ones(3))
    with pytest.raises(ValueError, match="1 to 2 levels"):
        ResidualVQ(4, 8, num_quantizers=2).decode(torch.zeros(3, 3, dtype=torch.int64))
