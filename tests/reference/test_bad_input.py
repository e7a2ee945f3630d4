"""Bad arguments: an error that names the argument, before anything has changed."""

import copy
from fractions import Fraction

import numpy as np
import pytest
import torch

from vqverify import reference as R
from vqverify.reference import metrics

Z, Q, CODES = torch.randn(10, 4), torch.randn(10, 4), torch.randn(6, 4)
SHORT, WHOLE = Q[:1], torch.zeros(10, 4, dtype=torch.int64)
NAN = torch.where(torch.arange(40).reshape(10, 4) == 5, torch.nan, Z)
STATE, BATCH = R.EmaState(CODES, torch.ones(6), CODES), R.Statistics(torch.ones(6), CODES)
FEWER = R.Statistics(torch.ones(5), CODES[:5])


def square(x):
    return x.square().sum()


def _far_logits():
    layer = R.GumbelVQ(4, 6)
    torch.nn.init.ones_(layer.logits.weight)
    return layer(torch.full((3, 4), 3e38))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        pytest.param(*case, id=of)
        for of, case in {
            "straight_through": ("q", lambda: R.straight_through(Z, SHORT)),
            "straight_through, whole numbers": ("z", lambda: R.straight_through(WHOLE, WHOLE)),
            "rotate": ("q", lambda: R.rotate(Z, SHORT)),
            "rotation_vjp": ("g", lambda: R.rotation_vjp(Z, Q, SHORT)),
            "rotation_jvp": ("q", lambda: R.rotation_jvp(Z, SHORT, Q)),
            "synchronize": ("q", lambda: R.synchronize(Z, SHORT, 0.1)),
            "synchronize, weight": ("weight", lambda: R.synchronize(Z, Q, float("nan"))),
            "commitment_loss": ("q", lambda: R.commitment_loss(Z, SHORT)),
            "commitment_loss, keep": ("keep", lambda: R.commitment_loss(Z, Q, torch.ones(3, dtype=torch.bool))),
            "codebook_loss, keep": ("keep", lambda: R.codebook_loss(Z, Q, torch.ones(10))),
            "sample_codes": ("z", lambda: R.sample_codes(NAN, CODES, 1.0)),
            "kmeans, no axis": ("z", lambda: R.kmeans(torch.tensor(1.0), 2)),
            "kmeans, NaN": ("z", lambda: R.kmeans(NAN, 2)),
            "code_statistics, code": ("codes", lambda: R.code_statistics(Z, torch.full((10,), 6), 6)),
            "code_statistics, dropped": ("codes", lambda: R.code_statistics(Z, torch.full((10,), -1), 6)),
            "code_statistics, lengths": ("codes", lambda: R.code_statistics(Z, torch.zeros(9, dtype=torch.int64), 6)),
            "code_statistics, dtype": ("codes", lambda: R.code_statistics(Z, torch.zeros(10), 6)),
            "ema_update": ("batch.sums", lambda: R.ema_update(STATE, FEWER, 0.9)),
            "ema_update, smoothing": ("smoothing", lambda: R.ema_update(STATE, BATCH, 0.9, -1.0)),
            "memoryless_update": ("batch.sums", lambda: R.memoryless_update(CODES, FEWER, 0.1)),
            "laplace_counts": ("smoothing", lambda: R.laplace_counts(torch.ones(3), -1.0)),
            "hessian_gradient": ("q", lambda: R.hessian_gradient(square, Z, SHORT)),
            "exact_gradient": ("f", lambda: R.exact_gradient(lambda x: x, Z)),
            "attach_gradient": ("gradient", lambda: R.attach_gradient(square(Z), Z, SHORT)),
            "gradient_gap": ("estimate", lambda: R.gradient_gap(square, Z, SHORT)),
            "MomentAffine": ("z", lambda: R.MomentAffine(4).observe(NAN)),
            "LearnableAffine": ("dim", lambda: R.LearnableAffine(0)),
            "replacement": ("replacement", lambda: R.VectorQuantizer(4, 6, replacement="often")),
            "cosine on a line": ("dim", lambda: R.VectorQuantizer(1, 6, metric="cosine")),
            "quantization_error": ("q", lambda: metrics.quantization_error(Z, SHORT)),
            "usage": ("counts", lambda: metrics.usage(torch.zeros(0))),
            "commitment_bound": ("z", lambda: metrics.commitment_bound(Z, CODES[:, :3])),
            "feature_distance": ("x and y", lambda: metrics.feature_distance(Z, SHORT, lambda x: [x])),
            "usage, no tensor": ("counts", lambda: metrics.usage([1, 2])),
            "perplexity": ("counts", lambda: metrics.perplexity(torch.tensor([-1.0, 2.0]))),
            "perplexity, NaN": ("counts", lambda: metrics.perplexity(torch.tensor([torch.nan, 2.0]))),
            "affine of another dim": (
                "affine",
                lambda: R.VectorQuantizer(4, 6, learning="gradient", affine=R.MomentAffine(3)),
            ),
            "affine of groups that do not fit": (
                "affine",
                lambda: R.VectorQuantizer(4, 6, learning="gradient", affine=R.LearnableAffine(4, groups=4)),
            ),
            "affine, a number": ("affine", lambda: R.VectorQuantizer(4, 6, learning="gradient", affine=5)),
            "estimator, its result": ("estimator", lambda: R.VectorQuantizer(4, 6, estimator=lambda z, q: q.sum())(Z)),
            "estimator, nothing": ("estimator", lambda: R.VectorQuantizer(4, 6, estimator=lambda z, q: None)(Z)),
            "decode, a list": ("codes", lambda: R.ResidualVQ(4, 6).decode([1, 2])),
            "decode, groups": ("codes", lambda: R.GroupedVQ(4, 6).decode(torch.zeros(3, 3, dtype=torch.int64))),
            "codebook_dim": ("codebook_dim", lambda: R.ProjectedCosineVQ(4, 6, codebook_dim=1)),
            "cosine groups on a line": ("num_groups", lambda: R.GroupedVQ(4, 6, num_groups=4, metric="cosine")),
            "levels, a number": ("levels", lambda: R.FSQ(5)),
            "code_statistics, a list": ("z", lambda: R.code_statistics([1.0], torch.zeros(1, dtype=torch.int64), 2)),
            "sparse latents": ("z", lambda: R.VectorQuantizer(4, 6)(Z.to_sparse())),
            "ema_update, counts": ("counts", lambda: R.ema_update(STATE, BATCH._replace(counts=torch.ones(5)), 0.9)),
            "ema_update, sums": ("sums", lambda: R.ema_update(STATE._replace(sums=CODES[:5]), BATCH, 0.9)),
            "memoryless_update, counts": (
                "counts",
                lambda: R.memoryless_update(CODES, BATCH._replace(counts=torch.ones(6, 1)), 0.9),
            ),
            "directions, a list": ("x", lambda: R.directions([1.0])),
            "directions, whole numbers": ("x", lambda: R.directions(WHOLE)),
            "directions, no axis": ("x", lambda: R.directions(torch.tensor(1.0))),
            "code_step, a list": ("z", lambda: R.code_step(CODES, [1.0])),
            "code_step, no axis": ("z", lambda: R.code_step(CODES, torch.tensor(1.0))),
            "exact_gradient, a list": ("z", lambda: R.exact_gradient(square, [1.0])),
            "sqvae, far": ("z", lambda: R.SQVAE(4, 6)(Z * 1e30)),
            "gumbel, logits": ("z", _far_logits),
            "8 bits": ("z", lambda: R.nearest_codes(Z.to(torch.float8_e5m2), CODES)),
            "sample_codes, far": ("z", lambda: R.sample_codes(Z * 1e30, CODES, 1.0)),
            "a number beyond all floats": ("beta", lambda: R.interpolated_loss(Z, Q, 10**400)),
            "psnr": ("peak", lambda: metrics.psnr(Z, Q, 0.0)),
            "psnr, a list": ("x", lambda: metrics.psnr([1.0], Q)),
            "ssim, no image": ("x", lambda: metrics.ssim(torch.zeros(0, 3, 12, 12), torch.zeros(0, 3, 12, 12))),
            "ssim, peak": ("peak", lambda: metrics.ssim(torch.zeros(1, 3, 12, 12), torch.zeros(1, 3, 12, 12), -1.0)),
            "frechet_distance, NaN": ("y", lambda: metrics.frechet_distance(Z, NAN)),
            "frechet_distance, overflow": (
                "x",
                lambda: metrics.frechet_distance(Z.double() * 1e200, Z.double() * 1e200),
            ),
            "frechet_distance, no feature": ("x", lambda: metrics.frechet_distance(Z[:, :0], Z[:, :0])),
            "inception_score, NaN": ("logits", lambda: metrics.inception_score(NAN)),
            "inception_score, complex": ("logits", lambda: metrics.inception_score(Z + 0j)),
            "feature_distance, no list": (
                "network",
                lambda: metrics.feature_distance(Z.reshape(1, 1, 10, 4), Z.reshape(1, 1, 10, 4), lambda x: x),
            ),
            "perplexity, complex": ("counts", lambda: metrics.perplexity(torch.ones(3) + 0j)),
            "gradient_gap, a float": ("f", lambda: R.gradient_gap(lambda _: 1.0, Z, Q)),
        }.items()
    ],
)
def test_the_argument_is_named(name, call):
    with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b.* must "):
        call()


LAYERS = {
    "ema": lambda: R.VectorQuantizer(4, 6),
    "residual": lambda: R.ResidualVQ(4, 6),
    "grouped": lambda: R.GroupedVQ(4, 6),
    "projected": lambda: R.ProjectedCosineVQ(4, 6, codebook_dim=3),
    "sampled": lambda: R.VectorQuantizer(4, 6, temperature=1.0),
    "moments": lambda: R.VectorQuantizer(4, 6, learning="gradient", affine="moments"),
    "kmeans": lambda: R.VectorQuantizer(4, 6, initialisation="kmeans", replacement=1),
    "gumbel": lambda: R.GumbelVQ(4, 6),
    "sqvae": lambda: R.SQVAE(4, 6),
    "lfq": lambda: R.LFQ(4),
    "fsq": lambda: R.FSQ([3, 3, 3, 3]),
    "simvq": lambda: R.SimVQ(4, 6),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_nan_raises_and_leaves_the_state_unless_masked(name, training):
    layer = LAYERS[name]().train(training)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match=r"\bz\b.* must "):
        layer(NAN)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), layer.state_dict().values(), strict=True))
    out = layer(NAN, mask=NAN.isfinite().all(1))
    assert out.z_q.isfinite().all()
    assert out.loss.isfinite()
    assert all(value.isfinite().all() for value in layer.state_dict().values())


MOST = torch.finfo(torch.float32).max
LARGE = {
    "moving averages": (lambda: R.VectorQuantizer(4, 2), torch.float32, MOST),
    "without memory": (lambda: R.VectorQuantizer(4, 2, learning="memoryless"), torch.float32, MOST),
    "nothing moves": (lambda: R.VectorQuantizer(4, 2, decay=1.0), torch.float32, MOST),
    "k-means": (lambda: R.VectorQuantizer(4, 2, initialisation="kmeans"), torch.float32, MOST),
    "k-means in half": (lambda: R.VectorQuantizer(4, 2, initialisation="kmeans").half(), torch.float32, 1e6),
    "replacement in half": (
        lambda: R.VectorQuantizer(4, 20, learning="gradient", replacement=1).half(),
        torch.float32,
        1e6,
    ),
    "moments": (lambda: R.VectorQuantizer(4, 2, learning="gradient", affine="moments"), torch.float32, 1e30),
    "half": (lambda: R.VectorQuantizer(4, 2).half(), torch.float32, 1e8),
    "the second level": (lambda: R.ResidualVQ(4, 2), torch.float32, MOST),
    "the second group": (lambda: R.GroupedVQ(4, 2), torch.float32, torch.tensor([1, 1, MOST, MOST])),
    "projected": (lambda: R.ProjectedCosineVQ(4, 2).half(), torch.float32, 1e30),
}


@pytest.mark.parametrize("name", LARGE)
def test_what_overflows_raises_and_leaves_the_state(name):
    build, dtype, scale = LARGE[name]
    layer = build()
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match=r"\bz\b.* must be finite"):
        layer(Z.sign().to(dtype) * scale)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), layer.state_dict().values(), strict=True))


def test_codes_that_were_broken_on_purpose_may_stay():
    layer = R.VectorQuantizer(4, 6)
    layer.set_codebook(torch.cat([CODES[:5], torch.full((1, 4), torch.inf)]))
    assert layer(Z).codes.max() < 5
    assert layer.codebook[:5].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", LAYERS)
def test_latents_of_another_dtype_than_the_module(name, dtype):
    layer, z = LAYERS[name](), Z.to(dtype).requires_grad_()
    out = layer(z)
    assert out.z_q.dtype == dtype
    (out.z_q.sum() + out.loss).backward()
    assert z.grad.dtype == dtype
    assert z.grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("decay", {"decay": 1.5}),
        ("decay", {"decay": -0.1}),
        ("dim", {"dim": 0}),
        ("codebook_size", {"codebook_size": 0}),
        ("codebook_size", {"codebook_size": 2.0}),
        ("replacement", {"replacement": 0}),
        ("temperature", {"temperature": -1.0}),
        ("reduction", {"reduction": "none"}),
        ("metric", {"metric": "dot"}),
        ("estimator", {"estimator": "ste"}),
        ("learning", {"learning": "sgd"}),
        ("initialisation", {"initialisation": "zeros"}),
        ("affine", {"affine": "both"}),
        ("commitment_weight", {"commitment_weight": -1}),
        ("smoothing", {"smoothing": float("inf")}),
        ("smoothing", {"smoothing": 1e-5, "metric": "cosine"}),
    ],
)
def test_arguments_of_the_layer_are_named(name, kwargs):
    with pytest.raises(ValueError, match=rf"^{name} must "):
        R.VectorQuantizer(**({"dim": 4, "codebook_size": 6} | kwargs))


def test_a_lifespan_of_nothing():
    with pytest.raises(ValueError, match=r"^lifespan must be at least 1"):
        R.Replacement(lifespan=0)


@pytest.mark.parametrize("name", LAYERS)
def test_shapes_and_dtypes_of_latents_are_named(name):
    layer = LAYERS[name]()
    with pytest.raises(ValueError, match=r"^z must have 4 entries along the last axis; its shape was \(10, 3\)"):
        layer(Z[:, :3])
    with pytest.raises(TypeError, match=r"^z must have a floating-point dtype"):
        layer(WHOLE)
    with pytest.raises(TypeError, match=r"^mask must be a bool tensor"):
        layer(Z, mask=torch.ones(10))
    with pytest.raises(ValueError, match=r"^mask must have the shape of the codes"):
        layer(Z, mask=torch.ones(9, dtype=torch.bool))


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4), (4,)])
@pytest.mark.parametrize("name", LAYERS)
def test_no_latents_or_no_batch_axis_are_fine(name, shape):
    layer = LAYERS[name]()
    z = torch.randn(shape, requires_grad=True)
    out = layer(z)
    assert out.z_q.shape == z.shape
    assert out.loss.isfinite()
    (out.z_q.sum() + out.loss).backward()
    assert z.grad.isfinite().all()
    assert all(value.isfinite().all() for value in layer.state_dict().values())


SIZES = {
    "K = 1": lambda: R.VectorQuantizer(4, 1),
    "K = 1, k-means": lambda: R.VectorQuantizer(4, 1, initialisation="kmeans"),
    "D = 1": lambda: R.VectorQuantizer(1, 5),
    "both 1": lambda: R.VectorQuantizer(1, 1, replacement=1),
    "more codes than latents": lambda: R.VectorQuantizer(4, 50, initialisation="kmeans", replacement=1),
    "residual of K = 1": lambda: R.ResidualVQ(4, 1, num_quantizers=3),
    "groups of D = 1": lambda: R.GroupedVQ(4, 5, num_groups=4),
    "one bit": lambda: R.LFQ(1),
    "one channel": lambda: R.FSQ([5]),
}


@pytest.mark.parametrize("name", SIZES)
def test_smallest_sizes(name):
    layer = SIZES[name]()
    for _ in range(3):
        z = torch.randn(7, layer.dim, requires_grad=True)
        out = layer(z)
        (out.z_q.sum() + out.loss).backward()
        assert z.grad.isfinite().all()
        assert all(value.isfinite().all() for value in layer.state_dict().values())
    out = layer.eval()(z)
    assert torch.allclose(layer.decode(out.codes), out.z_q)


def test_a_constant_task_has_no_gradient():
    for estimate in (
        R.exact_gradient(lambda _: torch.tensor(1.0), Z),
        R.hessian_gradient(lambda _: torch.ones(1), Z, Q),
    ):
        assert torch.equal(estimate, torch.zeros_like(Z))


def _fails(z, _q):
    raise ValueError(f"z must not be {tuple(z.shape)}")


@pytest.mark.parametrize(
    "layer",
    [
        R.VectorQuantizer(4, 6, initialisation="kmeans", estimator=_fails),
        R.VectorQuantizer(4, 6, initialisation="kmeans", estimator=lambda z, _q: z[:1]),
        R.VectorQuantizer(4, 6, initialisation="kmeans", learning="gradient", affine="moments"),
    ],
    ids=["estimator raises", "estimator of another shape", "variance overflows"],
)
def test_a_pass_that_fails_does_not_start_k_means(layer):
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match=" must "):
        layer(Z * 1e25)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), layer.state_dict().values(), strict=True))


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), Fraction(1, 2)])
def test_a_number_is_a_number_whatever_its_type(number):
    layer, other = (R.VectorQuantizer(4, 6, decay=decay) for decay in (number, 0.5))
    other.load_state_dict(layer.state_dict())
    layer(Z)
    other(Z)
    assert torch.equal(layer.codebook, other.codebook)
    assert torch.equal(R.code_step(CODES, Z, number), R.code_step(CODES, Z, 0.5))
