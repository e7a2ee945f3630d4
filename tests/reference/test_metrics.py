"""Measures against their definitions, closed forms and published corrections."""

import math
import sys

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from vqverify.reference import kmeans, metrics


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_perplexity_and_usage():
    codes = torch.tensor([[0, 0, 1], [1, -1, 3]])
    counts = metrics.code_counts(codes, 6)
    assert counts.tolist() == [2, 2, 0, 1, 0, 0]
    p = np.array([0.4, 0.4, 0.2])
    assert metrics.perplexity(counts).item() == pytest.approx(math.exp(-(p * np.log(p)).sum()))
    assert metrics.active_codes(counts) == 3
    assert metrics.usage(counts) == 0.5
    assert metrics.perplexity(torch.full((16,), 7)).item() == pytest.approx(16)
    assert metrics.perplexity(torch.tensor([5, 0])).item() == 1
    assert metrics.perplexity(torch.zeros(4)).isnan()
    with pytest.raises(ValueError, match=r"codes must lie in \[0, 2\)"):
        metrics.code_counts(torch.tensor([2]), 2)


def test_quantization_error_and_divergence():
    z, codes = torch.randn(100, 3), torch.randn(7, 3)
    truth = torch.cdist(z.double(), codes.double()).min(1).values.square().mean()
    assert metrics.divergence(z, codes).item() == pytest.approx(truth.item())
    assert metrics.divergence(codes, torch.cat([codes, codes + 100])) == 0


def test_activation_probability_uses_four_to_the_n():
    """T32: b = 2, 32 x 32, three poolings, K = 64 gives M = 32 and P = 0.396, not 0.982."""
    assert metrics.activation_probability(2 * 32 * 32 // 4**3, 64) == pytest.approx(0.396, abs=5e-4)
    assert metrics.activation_probability(2 * 32 * 32 // 2**3, 64) == pytest.approx(0.982, abs=5e-4)
    assert metrics.expected_active_codes(32, 64) == pytest.approx(64 * (1 - (63 / 64) ** 32))
    assert metrics.activation_probability(10, 1, at_least=10) == 1
    assert metrics.activation_probability(0, 4) == 0


def test_commitment_bound_holds_and_the_printed_one_does_not():
    z, codes = torch.randn(200, 3), torch.randn(5, 3) + 4
    bound = metrics.commitment_bound(z, codes)
    assert metrics.divergence(z, codes) / 2 <= bound
    assert metrics.divergence(z, codes) / 2 > 0.5 * z.var(0, correction=0).sum()
    best = kmeans(z, 5, iterations=50).codebook
    assert metrics.divergence(z, best) / 2 <= 0.5 * z.double().var(0, correction=0).sum()


def test_psnr_and_ssim():
    x = torch.rand(2, 3, 16, 16)
    assert metrics.psnr(x, x + 0.1).item() == pytest.approx(20, abs=1e-4)
    assert metrics.ssim(x, x).tolist() == pytest.approx([1, 1])
    assert (metrics.ssim(x, torch.rand(2, 3, 16, 16)) < 0.5).all()
    shift = metrics.ssim(torch.full((1, 1, 11, 11), 0.2), torch.full((1, 1, 11, 11), 0.4)).item()
    assert shift == pytest.approx((2 * 0.08 + 1e-4) / (0.04 + 0.16 + 1e-4), rel=1e-5)
    with pytest.raises(ValueError, match="at least 11"):
        metrics.ssim(x[..., :5], x[..., :5])


def test_frechet_distance_is_the_textbook_formula():
    x, y = torch.randn(300, 4), torch.randn(200, 4) @ torch.randn(4, 4) + 1
    a, b = np.cov(x.double().numpy().T), np.cov(y.double().numpy().T)
    root = np.real(sqrtm(a @ b))
    mean = (x.double().mean(0) - y.double().mean(0)).square().sum().item()
    assert metrics.frechet_distance(x, y) == pytest.approx(mean + np.trace(a + b - 2 * root), rel=1e-6)
    assert metrics.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert metrics.frechet_distance(x[:, :1], x[:, :1] + 3) == pytest.approx(9, rel=1e-6)
    with pytest.raises(ValueError, match="N at least 2"):
        metrics.frechet_distance(x[:1], y)


def test_inception_score_lies_between_one_and_the_number_of_classes():
    assert metrics.inception_score(torch.zeros(10, 5)) == pytest.approx(1)
    assert metrics.inception_score(100 * torch.eye(5)) == pytest.approx(5)


def test_measures_of_images_draw_nothing_and_name_their_extra(monkeypatch):
    before = torch.get_rng_state()
    metrics.inception_score(torch.randn(10, 5, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'vqverify\[metrics\]'"):
        metrics.psnr(torch.zeros(2), torch.ones(2))


def test_feature_distance_with_a_small_network():
    net = torch.nn.Conv2d(3, 8, 3)

    def network(x):
        return [net(x), net(x)[..., ::2, ::2]]

    x = torch.rand(2, 3, 9, 9)
    assert metrics.feature_distance(x, x, network).tolist() == [0, 0]
    assert (metrics.feature_distance(x, torch.rand(2, 3, 9, 9), network) > 0).all()
