"""Nearest-code lookup: the exact index of the given numbers, at the price of a matrix product.

The scores |c|² - 2 z·c of centred data are computed in row chunks. The two best scores of a row certify the
winner when their gap exceeds the rounding error (theory T28); the rows that it does not certify are
settled by :func:`vqverify.reference._exact.settle`. Ties go to the lowest index: a tie is never certified.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vqverify.reference import _checks
from vqverify.reference._exact import settle, working_dtype

_BUFFER_BYTES = 1 << 20
"""Size of the score buffer: 1 MiB stays in the cache of one core; 64 MiB is 2.4-4.1 times slower."""


def nearest_codes(z: Tensor, codebook: Tensor, metric: str = "euclidean") -> Tensor:
    """Return the index of the nearest code for each latent, exactly, ties to the lowest index.

    "Nearest" means among the numbers as given, without rounding: float16, bfloat16, float32 and float64
    data are compared as real numbers, wherever they lie. With ``metric="cosine"`` these numbers are the
    rounded directions z/|z| and c/|c| (:func:`directions`), whose nearest code has the largest cosine
    (theory T27).

    Args:
        z: latents (..., D).
        codebook: codes (K, D), on the same device.
        metric: ``"euclidean"`` or ``"cosine"``.

    Returns:
        int64 indices (...), in [0, K). No gradient is attached.

    Raises:
        TypeError: on a dtype that is not floating-point.
        ValueError: on a shape, device or metric that does not fit, or if ``z`` holds NaN or infinity.
    """
    _checks.matrix_pair(z, codebook)
    normalise = _checks.choice("metric", metric, {"euclidean": False, "cosine": True})
    z, codebook = z.detach(), codebook.detach()
    if normalise:
        z, codebook = directions(z), directions(codebook)
    rows = z.reshape(-1, z.shape[-1])
    search = _search_op if torch.compiler.is_compiling() else _search
    return search(rows, codebook).reshape(z.shape[:-1])


def directions(x: Tensor) -> Tensor:
    """Return x/|x| along the last axis, differentiable, for rows of any magnitude; a zero row stays zero.

    A row is first divided by its largest entry, so that no square overflows or underflows. The Jacobian of a
    zero row is the identity, so that gradients stay finite.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    peak = wide.detach().abs().amax(-1, keepdim=True) if x.shape[-1] else wide
    scaled = wide / torch.where(peak > 0, peak, 1)
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return (scaled / torch.where(peak > 0, norm, 1)).to(x.dtype)


def _search(z: Tensor, codebook: Tensor) -> Tensor:
    """Return exact indices (N,) for latents (N, D) and codes (K, D)."""
    work = working_dtype(z, codebook)
    # autocast would lower the precision of the products under the certificate's feet
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        centre = codebook.to(work).mean(0)
        codes = codebook.to(work) - centre
        index, certain = _certified(z, codes, centre)
        doubtful = (~certain).nonzero().squeeze(1)
        if len(doubtful):
            index[doubtful] = settle(z, codebook, doubtful)
    return index


@torch.library.custom_op("vqverify::nearest_codes", mutates_args=())
def _search_op(z: Tensor, codebook: Tensor) -> Tensor:
    return _search(z, codebook)


@_search_op.register_fake
def _search_fake(z: Tensor, codebook: Tensor) -> Tensor:  # noqa: ARG001 - the schema has it
    return z.new_empty(z.shape[0], dtype=torch.int64)


def _certified(z: Tensor, codes: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best index of each row and whether the certificate proves it.

    Args:
        z: latents (N, D) as given.
        codes: centred codes (K, D) in the working dtype.
        centre: what was subtracted (D,).
    """
    n, (k, dim) = len(z), codes.shape
    rows = max(16, _BUFFER_BYTES // (codes.element_size() * k))
    # the score |c|² - 2 z·c is one matrix product of [z, 1] and [-2c, |c|²]
    table = torch.cat([-2 * codes, codes.square().sum(1, keepdim=True)], 1).t().contiguous()
    scores = codes.new_empty(min(rows, n), k)
    left = codes.new_ones(min(rows, n), dim + 1)
    index = torch.empty(n, dtype=torch.int64, device=z.device)
    certain = torch.empty(n, dtype=torch.bool, device=z.device)
    largest = codes.square().sum(1).max().sqrt()
    for i in range(0, n, rows):
        part = slice(i, min(i + rows, n))
        m = part.stop - i
        torch.sub(z[part], centre, out=left[:m, :dim])
        block = torch.mm(left[:m], table, out=scores[:m])
        best, second = _two_smallest(block, index[part])
        norm = torch.linalg.vector_norm(left[:m, :dim], dim=1)
        certain[part] = second - best > gap_error(norm, largest, dim)
    return index, certain


def _two_smallest(scores: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Write the rows' arg-minima to ``index``; return minima and second minima; overwrites ``scores``."""
    if scores.device.type == "cpu":
        # numpy's argmin is vectorised, torch's is not: 20 times faster on a buffer in cache
        scores.numpy().argmin(1, out=index.numpy())
    else:
        torch.argmin(scores, 1, out=index)
    at = index.unsqueeze(1)
    best = scores.gather(1, at).squeeze(1)
    scores.scatter_(1, at, torch.inf)
    return best, scores.amin(1)


def gap_error(norm: Tensor, largest: Tensor, dim: int) -> Tensor:
    """Bound the error of a difference of two computed scores (theory T28, after centring).

    The first term is the rounding of the products and norms, the second that of the centring subtraction, the
    third what underflow may lose.

    Args:
        norm: |z - centre| of the rows (N,), in the working dtype.
        largest: the largest |c - centre|, a scalar tensor.
        dim: D.
    """
    info = torch.finfo(norm.dtype)
    u = info.eps / 2
    products = 2 * (dim + 5) * u * (2 * norm + largest) * largest
    return 1.01 * (products + 4 * u * (norm + largest).square()) + 4 * (dim + 4) * info.tiny
