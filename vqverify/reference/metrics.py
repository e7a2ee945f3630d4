"""Measures of a codebook, of its use, and of reconstructions (theory T9, T30-T33)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from vqverify.reference import _checks
from vqverify.reference.codebooks import all_reduce_sum
from vqverify.reference.gradients import gradient_gap
from vqverify.reference.lookup import nearest_codes

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = [
    "activation_probability",
    "active_codes",
    "code_counts",
    "commitment_bound",
    "divergence",
    "expected_active_codes",
    "feature_distance",
    "frechet_distance",
    "gradient_gap",
    "inception_score",
    "perplexity",
    "psnr",
    "quantization_error",
    "ssim",
    "usage",
]


def code_counts(codes: Tensor, size: int) -> Tensor:
    """Return how often each code occurs (K,), int64, summed over processes; -1 does not count.

    Pool counts over batches first and measure then: perplexities of parts do not average (T31).

    Raises:
        TypeError: if ``codes`` has no integer dtype.
        ValueError: if a code is outside [-1, K).
    """
    index = _checks.code_indices(codes, _checks.positive_int("size", size)).flatten()
    return all_reduce_sum(torch.bincount(index[index >= 0], minlength=size))


def perplexity(counts: Tensor) -> Tensor:
    """Return exp H of the frequencies, H in nats, a float64 scalar; NaN where nothing was counted (T31).

    1 ≤ perplexity ≤ number of active codes, which it reaches for uniform use.
    """
    p = counts.double() / counts.sum()
    return torch.exp(-torch.special.xlogy(p, p).sum())


def active_codes(counts: Tensor) -> int:
    """Return the number of codes in use."""
    return int((counts > 0).sum())


def usage(counts: Tensor) -> float:
    """Return the share of the codes in use, in [0, 1]."""
    return active_codes(counts) / len(counts)


def quantization_error(z: Tensor, q: Tensor) -> Tensor:
    """Return mean |z - q|² over latents (squared norm, summed over channels), float64 (000, section 5)."""
    return (z.double() - q.double()).square().sum(-1).mean()


def divergence(z: Tensor, codebook: Tensor) -> Tensor:
    """Return D(P, C) = mean_i min_j |z_i - c_j|², float64 (001 eq. 13; 0 iff every latent is a code, T33)."""
    return quantization_error(z, codebook[nearest_codes(z, codebook)])


def activation_probability(positions: int, size: int, at_least: int = 1) -> float:
    """Return P(a given code is chosen at least k times) among M uniform, independent positions (001 eq. 29).

    It is 1 - F_{Bin(M, 1/K)}(k - 1); M = b h w / 4^n after n poolings of 2 × 2, and not / 2^n (T32).

    Args:
        positions: M ≥ 0.
        size: K.
        at_least: k ≥ 0.

    Raises:
        ValueError: if an argument is out of range.
    """
    from scipy.stats import binom

    _checks.positive_int("positions", positions, at_least=0)
    _checks.positive_int("at_least", at_least, at_least=0)
    return float(binom.sf(at_least - 1, positions, 1 / _checks.positive_int("size", size)))


def expected_active_codes(positions: int, size: int) -> float:
    """Return K (1 - (1 - 1/K)^M), the expected number of active codes under uniform use (T32)."""
    return size * activation_probability(positions, size)


def commitment_bound(z: Tensor, codebook: Tensor) -> Tensor:
    """Return ½ (tr Cov P + min_j |c_j - μ|²), float64: an upper bound of ½ mean min_j |z - c_j|² (T33).

    The bound of 001 eq. 33 lacks the second term, and holds for an optimal codebook only.
    """
    rows = z.double().reshape(-1, z.shape[-1])
    centre = rows.mean(0)
    spread = (rows - centre).square().sum(1).mean()
    return 0.5 * (spread + (codebook.double() - centre).square().sum(1).min())


def psnr(x: Tensor, y: Tensor, peak: float = 1.0) -> Tensor:
    """Return 10 log₁₀(peak²/MSE) in decibels, float64, over all elements; infinite for equal inputs."""
    error = (x.double() - y.double()).square().mean()
    return 10 * torch.log10(peak**2 / error)


def ssim(x: Tensor, y: Tensor, peak: float = 1.0, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Return the structural similarity of images (B, C, H, W), one a batch entry (B,), float64.

    Gaussian window, K₁ = 0.01, K₂ = 0.03, no padding (Wang et al. 2004); mean over channels and positions.

    Raises:
        ValueError: if the shapes differ or the images are smaller than the window.
    """
    if x.shape != y.shape or x.ndim != 4 or min(x.shape[-2:]) < window:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"x and y must be (B, C, H, W), H and W at least {window}; they were {shapes}")
    line = torch.arange(window, dtype=torch.float64, device=x.device) - (window - 1) / 2
    weights = torch.exp(-line.square() / (2 * sigma**2))
    weights = weights / weights.sum()
    kernel = torch.outer(weights, weights)[None, None]

    def blur(image: Tensor) -> Tensor:
        flat = image.reshape(-1, 1, *image.shape[-2:])
        return torch.nn.functional.conv2d(flat, kernel).reshape(*image.shape[:2], -1)

    x, y = x.double(), y.double()
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    value = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return (value / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean((1, 2))


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Return |μ_x - μ_y|² + tr(Σ_x + Σ_y - 2(Σ_xΣ_y)^½) of two sets of features (N, F), in float64.

    With the features of Inception-v3 this is the FID, with those of I3D on clips the FVD (Heusel et al. 2017;
    Unterthiner et al. 2018); the network is the caller's. The trace of the root is the sum of the roots of
    the eigenvalues of Σ_x^½ Σ_y Σ_x^½, which are real and not negative.

    Raises:
        ValueError: if a set has fewer than 2 rows, or the widths differ.
    """
    if min(len(x), len(y)) < 2 or x.ndim != 2 or x.shape[1:] != y.shape[1:]:
        raise ValueError(f"x and y must be (N, F), N at least 2; they were {tuple(x.shape)}, {tuple(y.shape)}")
    x, y = x.double(), y.double()
    cov_x, cov_y = (torch.atleast_2d(torch.cov(t.T)) for t in (x, y))
    values, vectors = torch.linalg.eigh(cov_x)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_y @ root).clamp(min=0).sqrt().sum()
    mean = (x.mean(0) - y.mean(0)).square().sum()
    return max(0.0, float(mean + cov_x.trace() + cov_y.trace() - 2 * cross))


def inception_score(logits: Tensor) -> float:
    """Return exp E_x KL(p(y|x) || p(y)) of class logits (N, classes), in float64 (Salimans et al. 2016).

    Between 1 and the number of classes; the classifier is the caller's (Inception-v3 for the published
    number).
    """
    log_p = torch.log_softmax(logits.double(), 1)
    log_mean = torch.logsumexp(log_p, 0) - math.log(len(log_p))
    return math.exp(float((log_p.exp() * (log_p - log_mean)).sum(1).mean()))


def feature_distance(x: Tensor, y: Tensor, network: Callable[[Tensor], list[Tensor]]) -> Tensor:
    """Return an LPIPS-style distance of images (B, C, H, W), one a batch entry (B,) (Zhang et al. 2018).

    At each layer the features are normalised along channels, and the squared difference is summed over
    channels, averaged over positions; the layers add up. The published LPIPS also weighs channels: let the
    network return its features times the square roots of those weights, normalised.

    Args:
        x: images.
        y: images, the same shape.
        network: images -> list of feature maps (B, C_l, H_l, W_l).
    """
    total = x.new_zeros(len(x))
    for a, b in zip(network(x), network(y), strict=True):
        a, b = (torch.nn.functional.normalize(t, dim=1, eps=1e-10) for t in (a, b))  # noqa: PLW2901
        total = total + (a - b).square().sum(1).flatten(1).mean(1)
    return total
