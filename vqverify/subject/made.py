"""Codes that a layer computes in each pass, from a frozen codebook, say, or from sums over counts.

They are nowhere stored as they are used, but a pass makes a tensor (K, Dc) of them and takes rows from it:
the tensor whose rows, taken by the returned codes, appear in the same pass.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from vqverify.subject import capture

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def holds(record: Sequence[Tensor], want: Tensor, level: int, levels: int, tolerance: float) -> bool:
    """Whether some recorded tensor holds the rows `want` (N, Dc) of a level, up to `tolerance`."""
    n, dim = want.shape
    return any(
        bool((reading.rows(tensor.detach().to(want.dtype), dim, levels) - want).norm() <= tolerance)
        for tensor in record
        for reading in capture.readings(tensor, n, dim, levels)
        if reading.part in {None, level}
    )


def find(record: Sequence[Tensor], codes: Tensor, level: int, rows: int, dim: int | None = None) -> Tensor | None:
    """The codes (K, Dc) of a level among the recorded tensors; None if there are none.

    Args:
        record: floating tensors of a pass, in order.
        codes: what the pass returned, (N, L).
        level: column of `codes`.
        rows: K.
        dim: Dc, where it is known.
    """
    picks = codes[:, level].clamp(0, rows - 1)
    for tensor in record:
        if tensor.ndim < 2 or tensor.shape[-2] != rows or dim not in {None, tensor.shape[-1]}:
            continue
        if tensor.shape[:-2].numel() > 64:
            continue
        for index in product(*(range(size) for size in tensor.shape[:-2])):
            want = tensor[index].detach()[picks]
            if holds(record, want, level, codes.shape[1], 1e-3 * float(want.norm())):
                return tensor[index].detach().clone()
    return None
