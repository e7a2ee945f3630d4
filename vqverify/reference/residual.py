"""A stack of quantizers, each on what the one before left over (Zeghidour et al. 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from vqverify.reference import _checks
from vqverify.reference._layout import enter, leave
from vqverify.reference.layers import VectorQuantizer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vqverify.reference.estimators import Estimator
    from vqverify.reference.layers import Step
    from vqverify.reference.replacement import Replacement
    from vqverify.reference.result import Quantized


class ResidualVQ(nn.Module):
    """r₁ = z, r_{i+1} = r_i - q_i, z_q = Σ q_i (theory T34).

    The estimator of a level sees the residual with the *attached* codes subtracted, so that the stack's
    Jacobian is J₁ + J₂(I - J₁) + ...: exactly I for straight-through, and not the number of levels times
    I. The commitment loss of a level sees the residual with detached codes, so that each of them reaches z.

    Attributes:
        levels: one :class:`VectorQuantizer` a level.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        num_quantizers: int = 2,
        estimator: str | Estimator = "straight-through",
        decay: float = 0.99,
        commitment_weight: float = 0.25,
        learning: str = "ema",
        codebook_weight: float | None = None,
        smoothing: float = 0.0,
        channel_first: bool = False,
        temperature: float = 0.0,
        replacement: Replacement | int | None = None,
        initialisation: str = "normal",
    ) -> None:
        """Build ``num_quantizers`` levels; the other arguments are those of :class:`VectorQuantizer`, a level.

        A level starts from, and replaces its codes by, what the levels before it left over.

        Raises:
            ValueError: if an argument is out of range.
        """
        super().__init__()
        self.num_quantizers = _checks.positive_int("num_quantizers", num_quantizers)
        self.channel_first = channel_first
        self.levels = nn.ModuleList(
            VectorQuantizer(
                dim,
                codebook_size,
                estimator=estimator,
                decay=decay,
                commitment_weight=commitment_weight,
                learning=learning,
                codebook_weight=codebook_weight,
                smoothing=smoothing,
                temperature=temperature,
                replacement=replacement,
                initialisation=initialisation,
            )
            for _ in range(num_quantizers)
        )
        self.dim, self.codebook_size = dim, codebook_size

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantize latents (..., D), or (B, D, ...) with ``channel_first``.

        Arguments and errors are those of :meth:`VectorQuantizer.forward`.

        Returns:
            z_q = Σ q_i, summed from the first level on; codes (..., L); loss, the sum of the levels' losses.
        """
        rows = enter(z, self.dim, mask, channel_first=self.channel_first)
        attached = anchor = rows
        z_q = loss = None
        codes: list[Tensor] = []
        steps: list[Step | None] = []
        levels = cast("Iterable[VectorQuantizer]", self.levels)
        for level in levels:
            out, step = level.quantize(attached, anchor, mask)
            steps.append(step)
            attached = attached - out.z_q
            anchor = anchor - out.z_q.detach()
            z_q = out.z_q if z_q is None else z_q + out.z_q
            loss = out.loss if loss is None else loss + out.loss
            codes.append(out.codes)
        for level, step in zip(levels, steps, strict=True):
            level.learn(step)
        assert z_q is not None
        assert loss is not None
        return leave(z_q, torch.stack(codes, -1), loss, None, channel_first=self.channel_first)

    def decode(self, codes: Tensor) -> Tensor:
        """Return Σ q_i for codes (..., h), h ≤ L: the first h levels. A level with code -1 adds nothing.

        Raises:
            TypeError: if ``codes`` has no integer dtype.
            ValueError: if there are more levels than the stack has, or a code is out of range.
        """
        _checks.parts(codes, 1, self.num_quantizers, "levels")
        levels = cast("Iterable[VectorQuantizer]", self.levels)
        parts = [level.decode(c) for level, c in zip(levels, codes.unbind(-1), strict=False)]
        z_q = parts[0]
        for part in parts[1:]:
            z_q = z_q + part
        return z_q.movedim(-1, 1) if self.channel_first else z_q
