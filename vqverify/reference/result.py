"""What every layer returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Quantized(NamedTuple):
    """What a layer returns.

    Attributes:
        z_q: quantized latents, with the shape and dtype of z; masked latents give 0.
        codes: int64 indices, the shape of z without its channels; -1 where masked. A stack of levels has a
            last axis of levels.
        loss: a scalar in at least float32, to be added to the task loss; 0 if nothing is weighted.
    """

    z_q: Tensor
    codes: Tensor
    loss: Tensor
