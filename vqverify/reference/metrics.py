"""Measures of a codebook, of its use, and of reconstructions (theory T9, T30-T33).

Those of reconstructions are torchmetrics's, on features that the caller's network computed (the extra ``metrics``).
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from vqverify.reference import _checks
from vqverify.reference.codebooks import all_reduce_sum
from vqverify.reference.gradients import gradient_gap, layer_gaps
from vqverify.reference.lookup import nearest_codes

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

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
    "layer_gaps",
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

    Raises:
        TypeError: if ``counts`` is no tensor of real numbers.
        ValueError: if it is not (K,), or holds what is no count.
    """
    n = _counted(counts)
    p = n / n.sum()
    return torch.exp(-torch.special.xlogy(p, p).sum())


def active_codes(counts: Tensor) -> int:
    """Return the number of codes in use; errors are those of :func:`perplexity`."""
    return int((_counted(counts) > 0).sum())


def usage(counts: Tensor) -> float:
    """Return the share of the codes in use, in [0, 1]; errors are those of :func:`perplexity`."""
    return active_codes(counts) / len(counts)


def _counted(counts: object) -> Tensor:
    _real("counts", counts)
    assert isinstance(counts, torch.Tensor)
    if counts.ndim != 1 or not len(counts):
        raise ValueError(f"counts must have shape (K,), K at least 1; it was {tuple(counts.shape)}")
    n = counts.double()
    if not bool((n.isfinite() & (n >= 0)).all()):
        raise ValueError(f"counts must be finite and at least 0; they were in [{n.min()}, {n.max()}]")
    return n


def quantization_error(z: Tensor, q: Tensor) -> Tensor:
    """Return mean |z - q|² over latents (squared norm, summed over channels), float64 (000, section 5).

    NaN where there are none.

    Raises:
        ValueError: if the shapes differ.
    """
    _checks.same_shape("q", q, "z", z)
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
    _checks.matrix_pair(z, codebook)
    rows = z.double().reshape(-1, z.shape[-1])
    centre = rows.mean(0)
    spread = (rows - centre).square().sum(1).mean()
    return 0.5 * (spread + (codebook.double() - centre).square().sum(1).min())


def psnr(x: Tensor, y: Tensor, peak: float = 1.0) -> Tensor:
    """Return 10 log₁₀(peak²/MSE) in decibels, float64, over all elements; infinite for equal inputs.

    Raises:
        ModuleNotFoundError: without the extra ``metrics``.
        TypeError: if an input is no tensor of real numbers.
        ValueError: if the shapes differ.
    """
    _same_images(x, y)
    _checks.positive_number("peak", peak)
    with _torchmetrics():
        from torchmetrics.functional.image import peak_signal_noise_ratio

        return peak_signal_noise_ratio(x.double(), y.double(), data_range=float(peak))


def ssim(x: Tensor, y: Tensor, peak: float = 1.0) -> Tensor:
    """Return the structural similarity of images (B, C, H, W), one a batch entry (B,), float64.

    Gaussian window of 11 with σ = 1.5, K₁ = 0.01, K₂ = 0.03, no padding (Wang et al. 2004); mean over channels
    and positions.

    Raises:
        ModuleNotFoundError: without the extra ``metrics``.
        TypeError: if an input is no tensor of real numbers.
        ValueError: if the shapes differ, there is no image, or the images are smaller than the window.
    """
    _same_images(x, y)
    _checks.positive_number("peak", peak)
    if x.ndim != 4 or 0 in x.shape[:2] or min(x.shape[-2:]) < 11:
        raise ValueError(
            f"x and y must be (B, C, H, W), none of them 0, H and W at least 11; their shape was {tuple(x.shape)}"
        )
    with _torchmetrics():
        from torchmetrics.functional.image import structural_similarity_index_measure

        found = structural_similarity_index_measure(x.double(), y.double(), data_range=float(peak), reduction="none")
    assert isinstance(found, torch.Tensor)
    return found.reshape(len(x))


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Return |μ_x - μ_y|² + tr(Σ_x + Σ_y - 2(Σ_xΣ_y)^½) of two sets of features (N, F), in float64.

    With the features of Inception-v3 this is the FID, with those of I3D on clips the FVD (Heusel et al. 2017;
    Unterthiner et al. 2018); the network is the caller's.

    Raises:
        ModuleNotFoundError: without the extra ``metrics``.
        TypeError: if a set is no tensor of real numbers.
        ValueError: if a set has fewer than 2 rows, the widths differ, or a feature is not finite.
    """
    for name, features in (("x", x), ("y", y)):
        _real(name, features)
        _checks.finite(name, features)
    if x.ndim != 2 or x.shape[1:] != y.shape[1:] or min(len(x), len(y)) < 2 or not x.shape[1]:
        raise ValueError(f"x and y must be (N, F), N at least 2; they were {tuple(x.shape)}, {tuple(y.shape)}")
    # LAPACK ends the process at a covariance that is not finite
    _checks.finite("the squares of x times those of y", x.double().square().sum() * y.double().square().sum())
    with _torchmetrics():
        from torchmetrics.image.fid import FrechetInceptionDistance

        metric = FrechetInceptionDistance(feature=_Given(x.shape[1])).to(x.device).set_dtype(torch.float64)
        metric.update(x.double(), real=True)
        metric.update(y.double(), real=False)
        return max(0.0, float(metric.compute()))


def inception_score(logits: Tensor) -> float:
    """Return exp E_x KL(p(y|x) || p(y)) of class logits (N, classes), in float64 (Salimans et al. 2016).

    Between 1 and the number of classes; the classifier is the caller's (Inception-v3 for the published
    number).

    Raises:
        ModuleNotFoundError: without the extra ``metrics``.
        TypeError: if ``logits`` is no tensor of real numbers.
        ValueError: if there are no logits, or one is not finite.
    """
    _real("logits", logits)
    _checks.finite("logits", logits)
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"logits must be (N, classes), both at least 1; their shape was {tuple(logits.shape)}")
    # the library shuffles before it splits: with one split that changes nothing, but it draws
    with _torchmetrics(), torch.random.fork_rng(devices=[]):
        from torchmetrics.image.inception import InceptionScore

        metric = InceptionScore(feature=_Given(logits.shape[1]), splits=1)
        metric.update(logits.double())
        return float(metric.compute()[0])


class _Given(torch.nn.Module):
    """A feature network whose work is done: it returns the features that it gets."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, x: Tensor) -> Tensor:
        return x


@contextmanager
def _torchmetrics() -> Generator[None]:
    """Say which extra is missing; silence the library's advice about memory and splits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in {"torchmetrics", "lightning_utilities"}:
                raise
            what = "measures of images come from torchmetrics, which is not installed: pip install 'vqverify[metrics]'"
            raise ModuleNotFoundError(what, name=error.name) from error


def _real(name: str, value: object) -> None:
    if not isinstance(value, torch.Tensor) or value.is_complex():
        what = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a tensor of real numbers; it was {what}")


def _same_images(x: Tensor, y: Tensor) -> None:
    _real("x", x)
    _real("y", y)
    if x.shape != y.shape:
        raise ValueError(f"x and y must have one shape; they were {tuple(x.shape)} and {tuple(y.shape)}")


def _maps(found: object, images: int) -> list[Tensor]:
    # one tensor would be read as a list of its images
    maps = list(found) if isinstance(found, list | tuple) else []
    if not maps or not all(isinstance(a, torch.Tensor) and a.ndim > 2 and len(a) == images for a in maps):
        shapes = [tuple(getattr(a, "shape", ())) for a in maps] or type(found).__name__
        raise ValueError(f"network must return a list of feature maps (B, C, H, W), B = {images}; it returned {shapes}")
    return maps


def feature_distance(x: Tensor, y: Tensor, network: Callable[[Tensor], list[Tensor]]) -> Tensor:
    """Return an LPIPS-style distance of images (B, C, H, W), one a batch entry (B,) (Zhang et al. 2018).

    At each layer the features are normalised along channels, and the squared difference is summed over
    channels, averaged over positions; the layers add up. The published LPIPS also weighs channels: let the
    network return its features times the square roots of those weights, normalised. (torchmetrics's takes
    networks by name only.)

    Args:
        x: images.
        y: images, the same shape.
        network: images -> list of feature maps (B, C_l, H_l, W_l).

    Raises:
        TypeError: if an input is no tensor of real numbers.
        ValueError: if the shapes differ, or the network returns anything else.
    """
    _same_images(x, y)
    total = torch.zeros(len(x), device=x.device)
    for a, b in zip(_maps(network(x), len(x)), _maps(network(y), len(x)), strict=True):
        a, b = (torch.nn.functional.normalize(t, dim=1, eps=1e-10) for t in (a, b))  # noqa: PLW2901
        total = total + (a - b).square().sum(1).flatten(1).mean(1)
    return total
