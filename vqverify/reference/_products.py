"""Nearest codes by matrix products, each row with a certificate (theory T28).

The scores |c|² - 2 z·c of centred data are computed block by block in a buffer that stays in cache. The gap
of the two best scores of a row, when it exceeds the rounding error of their difference, proves the winner.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, backends

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

BUFFER_BYTES = 1 << 20
"""Scores at hand at a time: 1 MiB stays in the cache of a core; 64 MiB is 2.4-4.1 times slower."""
_COLUMNS = 1 << 10
"""Codes in one block of scores, at most: a wider block pushes the codes themselves out of the cache."""
_LEFT = 1 << 19
"""Numbers of the left operand at hand at a time."""
_SQUARES = 1 << 14
"""Squares at hand at a time: larger tensors are given back to the system, and come with page faults each time."""
KEPT_BYTES = 4 << 20
"""Memory that a thread keeps from call to call: the page faults of fresh memory are a tenth of a small lookup."""
_ALIGN = 64
"""Bytes of a cache line, on which the rows of scores begin."""
_kept = threading.local()


class Table(NamedTuple):
    """A codebook made ready: the right operand of the products, transposed.

    Attributes:
        codebook: the codes as given (K, D).
        rows: [-2(c - centre), |c - centre|²] (K, D + 1), or None: computed anew whenever needed.
        centre: the mean code (D,), subtracted from codes and latents: a common offset costs no precision.
        largest: the largest |c - centre|, a scalar.
    """

    codebook: Tensor
    rows: Tensor | None
    centre: Tensor
    largest: Tensor

    @property
    def dim(self) -> int:
        """Entries of a latent."""
        return len(self.centre)

    def blocks(self, columns: int) -> Generator[Tensor]:
        """Yield the right operand (D + 1, <= columns) block by block."""
        for i in range(0, len(self.codebook), columns):
            codes = self.codebook[i : i + columns]
            rows = _rows(codes, self.centre) if self.rows is None else self.rows[i : i + columns]
            yield rows.t()

    def left(self, z: Tensor, out: Tensor | None = None) -> Tensor:
        """Return [z - centre, 1] (N, D + 1), the left operand; ``out`` has its ones already."""
        if out is None:
            out = self.centre.new_ones(len(z), self.dim + 1)
        torch.sub(z, self.centre, out=out[:, :-1])
        return out


def prepare(codebook: Tensor, dtype: torch.dtype, *, store: bool = True) -> Table:
    """Return the table of a codebook (K, D) in ``dtype``, with no second copy of it on the way."""
    # any common vector would do: its rounding cancels
    centre = codebook.new_zeros(codebook.shape[1], dtype=dtype)
    for block in codebook.split(_COLUMNS):
        centre += block.sum(0, dtype=dtype) / len(codebook)
    rows = centre.new_empty(len(codebook), len(centre) + 1) if store else None
    largest = centre.new_zeros(())
    for i in range(0, len(codebook), _COLUMNS):
        part = slice(i, i + _COLUMNS)
        block = _rows(codebook[part], centre, None if rows is None else rows[part])
        largest = torch.maximum(largest, block[:, -1].max())  # NaN stays NaN
    return Table(codebook, rows, centre, largest.sqrt())


def _rows(codes: Tensor, centre: Tensor, out: Tensor | None = None) -> Tensor:
    dim = len(centre)
    out = centre.new_empty(len(codes), dim + 1) if out is None else out
    left, square = out[:, :dim], out[:, dim]
    # rounds as -2 (c - centre) does
    torch.sub(2 * centre, codes, alpha=2, out=left)
    step = max(1, _SQUARES // dim)
    for part, norm in zip(left.split(step), square.split(step), strict=True):
        # a sum of squares and no norm: whole numbers stay exact
        torch.sum(part.square(), 1, out=norm)
    square.mul_(0.25)
    return out


def certified(z: Tensor, table: Table) -> tuple[Tensor, Tensor]:
    """Return the best index of each row of z (N, D) and whether it is proved to be the nearest."""
    index = torch.empty(len(z), dtype=torch.int64, device=z.device)
    certain = torch.empty(len(z), dtype=torch.bool, device=z.device)
    for rows, norm, best, second in ranked(z, table, index):
        torch.gt(second.sub_(best), gap_error(norm, table), out=certain[rows])
    return index, certain


def ranked(z: Tensor, table: Table, index: Tensor) -> Generator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Write the code of the best score of each row of z (N, D) to ``index`` (N,), the lowest of equal ones.

    Yields:
        Part by part: the rows, their |z - centre|, best and second best score, valid until the next part.
    """
    step = max(1, _LEFT // (table.dim + 1))
    work = _Workspace(table, min(step, len(z)))
    with full_precision():
        for i in range(0, len(z), step):
            rows = slice(i, min(i + step, len(z)))
            left = table.left(z[rows], work.left[: rows.stop - i])
            best, second = _two_best(left, work, index[rows])
            yield rows, torch.linalg.vector_norm(left[:, :-1], dim=1), best, second


def gap_error(norm: Tensor, table: Table) -> Tensor:
    """Bound the error of a difference of two computed scores (theory T28, after centring).

    With r = |z - centre| and f the largest |c - centre|: 4(D + 5)u(r + f)f is the rounding of products and norms, in
    whatever order they are added up (|c|² takes (D + 1)u as a norm and again as the last term of the product),
    4u(r + f)² that of the centring, and the last term is what underflow may lose.

    Args:
        norm: r of the rows (N,), in the dtype of the table; overwritten.
        table: the codebook.
    """
    info, dim = torch.finfo(norm.dtype), table.dim
    # 1.01: first order in u
    size, u = norm.add_(table.largest), 1.01 * info.eps / 2
    return torch.add(4 * (dim + 5) * u * table.largest, size, alpha=4 * u).mul_(size).add_(4 * (dim + 4) * info.tiny)


@contextmanager
def full_precision() -> Generator[None]:
    """Forbid TF32 and bfloat16 inside float32 products: the certificate assumes float32 arithmetic.

    torch's setting is one for all threads: the first that needs another one sets it, the last gives back the user's.
    """
    with _precision.lock:
        lowered = _precision.holders > 0 or _precision.is_lowered()
        if lowered:
            if not _precision.holders:
                _precision.raise_()
            _precision.holders += 1
    try:
        yield
    finally:
        if lowered:
            with _precision.lock:
                _precision.holders -= 1
                if not _precision.holders:
                    _precision.restore()


class _Precision:
    """The user's precision of float32 products, set by torch's older interface or, after that one refuses, the newer."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.holders = 0
        self.legacy: str | None = "highest"
        self.newer: Sequence[tuple[Any, Any]] = ()

    def is_lowered(self) -> bool:
        try:
            self.legacy = torch.get_float32_matmul_precision()
        except RuntimeError:  # the newer interface was used, and says something else
            self.legacy = None
        return self.legacy != "highest"

    def raise_(self) -> None:
        if self.legacy is not None:
            torch.set_float32_matmul_precision("highest")
            return
        places: Sequence[Any] = (backends.mkldnn.matmul, backends.cuda.matmul)  # pyright: ignore[reportAttributeAccessIssue]
        self.newer = [(place, place.fp32_precision) for place in places]
        for place, _ in self.newer:
            place.fp32_precision = "ieee"

    def restore(self) -> None:
        if self.legacy is not None:
            torch.set_float32_matmul_precision(self.legacy)
            return
        for place, before in self.newer:
            # what is inherited from a wider setting is left to it again
            place.fp32_precision = "none"
            if place.fp32_precision != before:
                place.fp32_precision = before


_precision = _Precision()


class _Workspace:
    """Memory that all blocks of scores share."""

    def __init__(self, table: Table, rows: int) -> None:
        k, width = len(table.codebook), table.dim + 1
        self.table = table
        self.columns = -(-k // -(-k // _COLUMNS))  # blocks of nearly equal size
        self.rows = min(rows, max(16, BUFFER_BYTES // (table.centre.element_size() * self.columns)))
        sizes = [self.rows * self.columns, rows * width, *[rows] * 4]
        self.scores, left, *self.values = scratch(sizes, table.centre)
        self.left = left.view(rows, width)
        self.left[:, -1] = 1
        self.found = torch.empty(rows, dtype=torch.int64, device=left.device)


def scratch(sizes: list[int], like: Tensor) -> Sequence[Tensor]:
    """Return vectors of any value, on a CPU in memory that the thread keeps if they are not too long."""
    count, width = sum(sizes), like.element_size()
    if like.device.type != "cpu" or count * width > KEPT_BYTES:
        return like.new_empty(count).split(sizes)
    if not hasattr(_kept, "memory"):
        # of numpy: a tensor that inference mode makes could not be written to outside of it
        memory = np.empty(KEPT_BYTES + _ALIGN, np.uint8)
        skip = -memory.ctypes.data % _ALIGN
        _kept.memory = memory[skip : skip + KEPT_BYTES]
    return torch.from_numpy(_kept.memory).view(like.dtype)[:count].split(sizes)


def _two_best(left: Tensor, work: _Workspace, index: Tensor) -> tuple[Tensor, Tensor]:
    """Write the code of the best score of each row to ``index``; return the best and the second best score."""
    best, second, first, runner_up = (t[: len(left)] for t in work.values)
    reduce = _reduce_numpy if left.device.type == "cpu" else _reduce_topk
    blocks = work.table.blocks(work.columns)
    reduce(left, next(blocks), work, index, best, second)
    for j, codes in enumerate(blocks, start=1):
        found = work.found[: len(left)]
        reduce(left, codes, work, found, first, runner_up)
        # the loser of the two firsts may be the second; an earlier block wins ties
        torch.minimum(second, runner_up, out=second)
        torch.minimum(second, torch.maximum(best, first), out=second)
        torch.where(first < best, found.add_(j * work.columns), index, out=index)
        torch.minimum(best, first, out=best)
    return best, second


def _reduce_numpy(left: Tensor, codes: Tensor, work: _Workspace, index: Tensor, best: Tensor, second: Tensor) -> None:
    """Write the rows' arg-minima, minima and second minima over one block of codes.

    numpy's argmin is vectorised, torch's is not: 20 times faster on a buffer in cache. torch's amin is.
    """
    n, k = len(left), codes.shape[1]
    size = min(work.rows, n)
    scores = work.scores[: size * k].view(size, k)
    at, least, array, starts = index.numpy(), best.numpy(), scores.numpy(), np.arange(0, size * k, k)
    flat = array.reshape(-1)
    for i in range(0, n, size):
        part = slice(i, i + size)
        if i + size > n:
            scores, array, starts = scores[: n - i], array[: n - i], starts[: n - i]
        torch.mm(left[part], codes, out=scores)
        places = array.argmin(1, out=at[part]) + starts
        least[part] = flat[places]
        flat[places] = np.inf
        torch.amin(scores, 1, out=second[part])


def _reduce_topk(left: Tensor, codes: Tensor, work: _Workspace, index: Tensor, best: Tensor, second: Tensor) -> None:
    """Do the same on any device."""
    for i in range(0, len(left), work.rows):
        part = slice(i, i + work.rows)
        least, order = (left[part] @ codes).topk(min(2, codes.shape[1]), largest=False)
        index[part], best[part] = order[:, 0], least[:, 0]
        second[part] = least[:, 1] if codes.shape[1] > 1 else torch.inf
