"""Grouped, sign, reparametrized and stochastic quantizers, against their definitions."""

import copy
import itertools
import math

import pytest
import torch

from vqverify.reference import (
    FSQ,
    LFQ,
    SQVAE,
    GroupedVQ,
    GumbelVQ,
    ProjectedCosineVQ,
    ResidualVQ,
    SimVQ,
    VectorQuantizer,
    kmeans,
    nearest_codes,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_groups_are_one_quantizer_with_the_cartesian_codebook():
    layer = GroupedVQ(4, 3, num_groups=2).eval()
    a, b = (group.codebook for group in layer.groups)
    product = torch.cat([a.repeat_interleave(3, 0), b.repeat(3, 1)], 1)
    z = torch.randn(50, 4)
    out = layer(z)
    index = nearest_codes(z, product)
    assert torch.equal(out.z_q, product[index])
    assert torch.equal(out.codes[:, 0] * 3 + out.codes[:, 1], index)
    assert torch.equal(layer.decode(out.codes), out.z_q)
    assert out.loss.item() == pytest.approx(0.25 * (z - out.z_q).square().mean().item())
    with pytest.raises(ValueError, match="num_groups must divide dim, 4; it was 3"):
        GroupedVQ(4, 3, num_groups=3)
    with pytest.raises(ValueError, match="codes must have 2 groups"):
        layer.decode(torch.zeros(3, 3, dtype=torch.int64))


def test_grouped_mask_and_images():
    layer = GroupedVQ(4, 3, channel_first=True)
    z = torch.randn(2, 4, 5, 5)
    keep = torch.rand(2, 5, 5) > 0.5
    out = layer(z, mask=keep)
    assert out.codes.shape == (2, 5, 5, 2)
    assert (out.codes[~keep] == -1).all()
    assert (out.z_q.movedim(1, -1)[~keep] == 0).all()
    before = layer.eval()(z, mask=keep)
    assert torch.equal(layer.decode(before.codes), before.z_q)


def test_lfq_is_the_nearest_sign_and_its_index_the_bits():
    layer = LFQ(5)
    z = torch.randn(40, 5)
    z[0] = 0
    out = layer(z)
    corners = layer.decode(torch.arange(32))
    assert torch.equal(out.codes, nearest_codes(z, corners))
    assert torch.equal(out.z_q, corners[out.codes])
    assert set(corners.flatten().tolist()) == {-1.0, 1.0}
    wide = LFQ(40)
    out = wide(torch.randn(20, 40))
    assert torch.equal(wide.decode(out.codes), out.z_q)
    with pytest.raises(ValueError, match="dim must be at most 62"):
        LFQ(63)


def test_lfq_entropy_is_that_of_the_soft_assignment():
    layer = LFQ(3, commitment_weight=0.0, entropy_weight=1.0, diversity=0.7, temperature=2.0)
    z = torch.randn(20, 3, dtype=torch.float64)
    corners = layer.decode(torch.arange(8)).double()
    p = torch.softmax(-(z[:, None] - corners).square().sum(2) / 2.0, 1)
    each = -(p * p.log()).sum(1).mean()
    bits = torch.stack([p[:, corners[:, i] > 0].sum(1).mean() for i in range(3)])
    mean = -(bits * bits.log() + (1 - bits) * (1 - bits).log()).sum()
    assert layer(z).loss.item() == pytest.approx((each - 0.7 * mean).item())
    extreme = torch.tensor([[0.0, 1e30, -1e30], [1e-40, 50.0, -50.0]], requires_grad=True)
    LFQ(3)(extreme).loss.backward()
    assert extreme.grad.isfinite().all()
    sharp = LFQ(3, commitment_weight=0.0, entropy_weight=1.0, temperature=1e-3)
    uniform = sharp.decode(torch.arange(8))
    assert sharp(uniform).loss.item() == pytest.approx(-3 * math.log(2), rel=1e-5)


def test_simvq_learns_its_transform_alone():
    layer = SimVQ(4, 8)
    z = torch.randn(30, 4, requires_grad=True)
    out = layer(z)
    assert torch.equal(out.z_q, layer.basis[out.codes])
    assert [name for name, _ in layer.named_parameters()] == ["transform.weight"]
    out.loss.backward()
    assert layer.transform.weight.grad.abs().sum() > 0
    (leak,) = torch.autograd.grad(layer(z).z_q.sum(), layer.transform.weight, allow_unused=True)
    assert leak is None


def test_sqvae_law_value_and_loss():
    layer = SQVAE(2, 4, variance=0.5, temperature=0.2)
    z = torch.randn(1, 2).expand(20_000, 2)
    out = layer(z)
    assert torch.equal(out.z_q, layer.codebook[out.codes])
    p = torch.softmax(-(z[0] - layer.codebook).square().sum(1) / (2 * 0.5), 0)
    observed = torch.bincount(out.codes, minlength=4)
    expected = p * 20_000
    # chi-square with 3 degrees of freedom: 21.1 is exceeded with probability 1e-4
    assert ((observed - expected) ** 2 / expected).sum() < 21.1
    energy = (z[0] - layer.codebook).square().sum(1) / (2 * 0.5)
    assert out.loss.item() == pytest.approx((p * (energy + p.log())).sum().item(), rel=1e-5)
    (out.z_q.sum() + out.loss).backward()
    assert layer.log_variance.grad.isfinite()
    layer.eval()
    assert torch.equal(layer(z[:1]).codes, nearest_codes(z[:1], layer.codebook))
    assert torch.equal(layer.decode(layer(z[:3]).codes), layer(z[:3]).z_q)


def test_levels_of_any_kind_share_one_interface():
    z = torch.randn(3, 5, 6)
    for layer in (GroupedVQ(6, 4), LFQ(6), SimVQ(6, 4), SQVAE(6, 4), VectorQuantizer(6, 4)):
        out = layer.eval()(z)
        assert out.z_q.shape == z.shape
        assert out.codes.shape[:2] == (3, 5)
        assert out.loss.shape == ()
        assert torch.equal(layer.decode(out.codes), out.z_q)
        for n in (0, 1):
            assert layer(torch.randn(n, 6)).loss.isfinite()


LAYERS = {
    "grouped": lambda: GroupedVQ(6, 4),
    "lfq": lambda: LFQ(6),
    "simvq": lambda: SimVQ(6, 4),
    "sqvae": lambda: SQVAE(6, 4).eval(),
    "gumbel": lambda: GumbelVQ(6, 4).eval(),
    "fsq": lambda: FSQ([3, 4, 5, 2, 3, 4]),
}


@pytest.mark.parametrize("name", LAYERS)
def test_mask_is_the_kept_latents_alone(name):
    layer = LAYERS[name]()
    other = copy.deepcopy(layer)
    z, keep = torch.randn(30, 6), torch.rand(30) > 0.4
    padded = torch.where(keep[:, None], z, float("nan")).requires_grad_()
    alone = z[keep].requires_grad_()
    masked, plain = layer(padded, mask=keep), other(alone)
    assert torch.equal(masked.codes[keep], plain.codes)
    assert (masked.codes[~keep] == -1).all()
    assert torch.allclose(masked.z_q[keep], plain.z_q, atol=1e-6)
    assert (masked.z_q[~keep] == 0).all()
    assert masked.loss.item() == pytest.approx(plain.loss.item(), rel=1e-5)
    (masked.z_q.sum() + masked.loss).backward()
    (plain.z_q.sum() + plain.loss).backward()
    assert torch.allclose(padded.grad[keep], alone.grad, atol=1e-6)
    assert (padded.grad[~keep] == 0).all()
    assert layer(torch.randn(3, 6), mask=torch.zeros(3, dtype=torch.bool)).loss.isfinite()


def test_sqvae_in_eval_mode_finds_the_nearest_code_where_its_probabilities_tie():
    layer = SQVAE(2, 3, variance=1e6).eval()
    with torch.no_grad():
        layer.codebook.copy_(torch.tensor([[1.001, 0.0], [1.0, 0.0], [-1.0, 0.0]]))
    z = torch.tensor([[0.5, 0.0], [-0.1, 0.0], [1.1, 0.0]])
    assert layer(z).codes.tolist() == [1, 2, 0]


SEVERAL = {
    "stack": lambda **options: ResidualVQ(4, 6, **options),
    "groups": lambda **options: GroupedVQ(4, 6, **options),
    "projected": lambda **options: ProjectedCosineVQ(4, 6, codebook_dim=3, **options),
}


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("learning", ["ema", "memoryless", "gradient"])
def test_parts_of_a_layer_start_draw_and_replace_as_one_layer_does(name, learning):
    for start, replacement, temperature in itertools.product(("normal", "kmeans"), (None, 2), (0.0, 0.5)):
        layer = SEVERAL[name](learning=learning, initialisation=start, replacement=replacement, temperature=temperature)
        parts = [part for part in layer.modules() if isinstance(part, VectorQuantizer)]
        old = [part.codebook.detach().clone() for part in parts]
        z = torch.randn(3, 20, 4, requires_grad=True)
        for _ in range(5):
            out = layer(z * 0.01 if replacement else z)  # all near one place: most codes are unused
            (out.z_q.square().sum() + out.loss).backward()
        assert z.grad.isfinite().all()
        for part, before in zip(parts, old, strict=True):
            moved = (part.codebook.detach() != before).any(1)
            if start == "kmeans":
                assert moved.all()
            elif learning == "gradient" and not temperature:  # nothing but replacement writes these
                assert moved.any() == bool(replacement)
        layer.eval()
        assert torch.allclose(layer.decode(layer(z).codes), layer(z).z_q, atol=1e-6)


def test_a_level_starts_from_what_the_one_before_it_left_over():
    layer = ResidualVQ(2, 3, initialisation="kmeans", learning="none")
    z = torch.randn(40, 2)
    layer(z)
    left = z - layer.levels[0](z).z_q
    error = torch.cdist(left, layer.levels[1].codebook).amin(1).square().mean()
    assert error < 0.9 * left.square().mean()
    again = kmeans(left, 3, iterations=20).objective[-1] / len(left)
    assert error < 3 * again


def test_what_does_not_fit_a_part_is_refused():
    for build in SEVERAL.values():
        with pytest.raises(ValueError, match="initialisation must be"):
            build(initialisation="kmean")
        with pytest.raises(ValueError, match="replacement must be None with learning='none'"):
            build(replacement=2, learning="none")
