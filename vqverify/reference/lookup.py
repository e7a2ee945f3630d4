"""Nearest-code lookup: the exact index of the given numbers, at little more than a matrix product.

Matrix products find the nearest codes and prove most of them (:mod:`vqverify.reference._products`), or a tree
does where there are many codes in few dimensions (:mod:`vqverify.reference._tree`); the
rows left open are decided without rounding (:mod:`vqverify.reference._exact`). Ties go to the lowest
index: a tie is never proved by the products, hence always decided exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vqverify.reference import _checks, _tree
from vqverify.reference._exact import settle
from vqverify.reference._products import Table, certified, gap_error, prepare, ranked

_SMALL = 1 << 15
"""Up to so many differences in all, computing them costs less than setting up the products."""
_HALVES = 1 << 14
"""Latents that are rounded at a time."""


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

    Raises:
        TypeError: on a dtype that is not floating-point.
        ValueError: if ``x`` has no axis.
    """
    _checks.latents("x", x, None)
    if not x.ndim:
        raise ValueError("x must be (..., D); it had no axis")
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    peak = wide.detach().abs().amax(-1, keepdim=True) if x.shape[-1] else wide
    scaled = wide / torch.where(peak > 0, peak, 1)
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return (scaled / torch.where(peak > 0, norm, 1)).to(x.dtype)


def _search(z: Tensor, codebook: Tensor) -> Tensor:
    """Return exact indices (N,) for latents (N, D) and codes (K, D)."""
    # the products need float32 at least; float64 data need float64
    wide = torch.promote_types(torch.promote_types(z.dtype, codebook.dtype), torch.float32)
    # autocast would lower the precision of the products under the certificate's feet
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        table = None
        if len(z) * codebook.numel() <= _SMALL:
            index, certain = _differences(z, codebook)
        elif _tree.suits(z, codebook):
            index, certain = _tree.certified(z, codebook)
        else:
            table = prepare(codebook, wide)
            index, certain = certified(z, table)
        doubtful = (~certain).nonzero().squeeze(1)
        if len(doubtful):
            index[doubtful] = settle(z, codebook, doubtful, table or prepare(codebook, wide))
    return index


def _differences(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best index of each row and whether it is proved, by differences in float64 (T28)."""
    distance = (z.double().unsqueeze(1) - codebook.double()).square_().sum(2)
    if len(codebook) == 1:
        return distance.new_zeros(len(z), dtype=torch.int64), distance.isfinite().squeeze(1)
    two, order = distance.topk(2, largest=False)
    info = torch.finfo(torch.float64)
    slack = 1 + 4 * (z.shape[1] + 4) * info.eps
    certain = two[:, 1] > two[:, 0] * slack + z.shape[1] * info.tiny
    return order[:, 0].contiguous(), certain


@torch.library.custom_op("vqverify::nearest_codes", mutates_args=())
def _search_op(z: Tensor, codebook: Tensor) -> Tensor:
    return _search(z, codebook)


@_search_op.register_fake
def _search_fake(z: Tensor, codebook: Tensor) -> Tensor:  # noqa: ARG001 - the schema has it
    return z.new_empty(z.shape[0], dtype=torch.int64)


def nearest_codes_lower_precision(
    z: Tensor, codebook: Tensor, dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, Tensor]:
    """Return nearest codes found on data rounded to half precision, and which of them that proves.

    Divide and conquer as in Huh et al. 2023, appendix A.1, which claims no imprecision; theory T29 says what
    is certain: with u the roundoff and η half the least subnormal number of ``dtype``, an index is proved
    if the distances to the two best rounded codes differ by more than 2u(|z| + max|c|) + 4η√D (and the
    rounding of the distances). The others are ranked again in full precision, so that every index is exact.

    Args:
        z: latents (..., D).
        codebook: codes (K, D).
        dtype: ``torch.bfloat16`` or ``torch.float16``.

    Returns:
        int64 indices (...), exact, and bool (...): True where half precision sufficed.

    Raises:
        TypeError: on a dtype that is not floating-point.
        ValueError: on a shape or dtype that does not fit, or latents that are not finite.
    """
    _checks.matrix_pair(z, codebook)
    if dtype not in {torch.bfloat16, torch.float16}:
        raise ValueError(f"dtype must be torch.bfloat16 or torch.float16; it was {dtype}")
    rows, codes = z.detach().reshape(-1, z.shape[-1]), codebook.detach()
    index = torch.empty(len(rows), dtype=torch.int64, device=z.device)
    proved = torch.empty(len(rows), dtype=torch.bool, device=z.device)
    largest = torch.linalg.vector_norm(codes.double(), dim=1).max()
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        table = prepare(codes.to(dtype), torch.float32)
        for part, found, sure in zip(rows.split(_HALVES), index.split(_HALVES), proved.split(_HALVES), strict=True):
            for at, norm, *scores in ranked(part.to(dtype), table, found):
                size = torch.linalg.vector_norm(part[at].double(), dim=1) + largest
                sure[at] = _half_certificate(norm, (scores[0], scores[1]), size, table, dtype)
    if len(codes) == 1:
        proved = rows.isfinite().all(1)
    open_rows = (~proved).nonzero().squeeze(1)
    index[open_rows] = nearest_codes(rows[open_rows], codes)
    return index.reshape(z.shape[:-1]), proved.reshape(z.shape[:-1])


def _half_certificate(
    norm: Tensor, scores: tuple[Tensor, Tensor], size: Tensor, table: Table, dtype: torch.dtype
) -> Tensor:
    """Return whether two rounded distances differ by more than rounding may have moved them (T29).

    Args:
        norm: |z - centre| of the rounded rows (N,).
        scores: the two least |c|² - 2 z·c, of centred numbers, (N,) each.
        size: |z| + max|c| of the numbers as given (N,), float64.
        table: the rounded codebook.
        dtype: what was rounded to.
    """
    info, dim = torch.finfo(dtype), table.dim
    square = norm.double().square()
    best, second = (score.double() for score in scores)
    slack = gap_error(norm, table).double()
    # |z|² was computed as well
    above = square + slack + 4 * (dim + 4) * torch.finfo(norm.dtype).eps * square
    total = (best + above).clamp(min=0).sqrt() + (second + above).clamp(min=0).sqrt()
    least = info.smallest_normal * info.eps
    # 1e-9: what float64 rounds here
    moved = (1 + 1e-9) * (info.eps * size + 2 * least * dim**0.5)
    return second - best - slack > moved * total
