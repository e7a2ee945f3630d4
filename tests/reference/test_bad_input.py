"""Bad arguments: an error that names the argument, before anything has changed."""

import copy

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
            "psnr": ("peak", lambda: metrics.psnr(Z, Q, 0.0)),
        }.items()
    ],
)
def test_the_argument_is_named(name, call):
    with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b.* must "):
        call()


LAYERS = {
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
    with pytest.raises(ValueError, match=r"\bz must "):
        layer(NAN)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), layer.state_dict().values(), strict=True))
    out = layer(NAN, mask=NAN.isfinite().all(1))
    assert out.z_q.isfinite().all()
    assert out.loss.isfinite()
    assert all(value.isfinite().all() for value in layer.state_dict().values())


def test_a_constant_task_has_no_gradient():
    for estimate in (
        R.exact_gradient(lambda _: torch.tensor(1.0), Z),
        R.hessian_gradient(lambda _: torch.ones(1), Z, Q),
    ):
        assert torch.equal(estimate, torch.zeros_like(Z))
