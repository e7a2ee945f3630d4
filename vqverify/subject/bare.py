"""A bare estimator `(z, q) -> z_q` as a layer: a nearest-code lookup over a fixed codebook goes before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vqverify.subject.plan import Call, Output, Plan, Slot

if TYPE_CHECKING:
    from collections.abc import Callable


class BareEstimator(nn.Module):
    """The layer that a bare estimator is checked in.

    Attributes:
        codebook: K codes (K, D), a buffer; standard normal, from the construction seed.
    """

    codebook: Tensor

    def __init__(self, estimator: Callable[[Tensor, Tensor], Tensor], dim: int = 4, codebook_size: int = 8) -> None:
        """Build the layer.

        Args:
            estimator: takes latents z (N, D) and their codes q (N, D), returns z_q (N, D).
            dim: D.
            codebook_size: K.
        """
        super().__init__()
        self.estimator = estimator
        self.register_buffer("codebook", torch.randn(codebook_size, dim))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize latents (N, D): z_q from the estimator, and codes (N,)."""
        with torch.no_grad():
            gaps = z[:, None].double() - self.codebook[None].double()
            codes = gaps.square().sum(-1).argmin(-1)
        return self.estimator(z, self.codebook[codes]), codes


def bare_plan(dim: int) -> Plan:
    """How to call a `BareEstimator`: nothing needs discovering."""
    call = Call("ND", z_q=Output((0,), "ND"), codes=(Output((1,), "N"),))
    evidence = "a bare estimator behind an exact lookup of the harness"
    return Plan(
        dim,
        (call,),
        slots=(Slot("codebook"),),
        evidence=dict.fromkeys(("layout", "z_q", "codes", "codebook"), evidence),
    )
