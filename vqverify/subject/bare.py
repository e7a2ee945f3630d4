"""Bare functions as layers, with the rest of the layer around them.

An estimator is a function `(z, q) -> z_q`, or, where it needs the decoder, `(f, z, q) -> loss` for a task f; a
nearest-code lookup over a fixed codebook goes before it. A lookup is `(z, codebook) -> codes`.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vqverify.subject.plan import Call, Output, Plan, Slot

if TYPE_CHECKING:
    from collections.abc import Callable


class BareEstimator(nn.Module):
    """The layer that a bare estimator is checked in.

    Attributes:
        codebook: K codes (K, D), a buffer; standard normal, from the construction seed.
        of_task: whether the estimator takes the task first, and returns a loss.
    """

    codebook: Tensor

    def __init__(self, estimator: Callable[..., Tensor], dim: int = 4, codebook_size: int = 8) -> None:
        """Build the layer.

        Args:
            estimator: takes latents z (N, D) and their codes q (N, D), returns z_q (N, D); or takes a task f, which
                sends rows (N, D) to a scalar, then z and q, and returns the loss f(q) with its gradient at z.
            dim: D.
            codebook_size: K.
        """
        super().__init__()
        self.estimator = estimator
        self.of_task = takes_task(estimator)
        self.register_buffer("codebook", torch.randn(codebook_size, dim))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize latents (N, D): z_q from the estimator, and codes (N,); without a task z_q is the code alone."""
        codes = self._search(z)
        q = self.codebook[codes]
        return (q if self.of_task else self.estimator(z, q)), codes

    def loss(self, f: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        """The loss of a task f at the codes of latents (N, D), whose gradient at z is the estimator's."""
        return self.estimator(f, z, self.codebook[self._search(z)])

    @torch.no_grad()
    def _search(self, z: Tensor) -> Tensor:
        if z.shape[-1] != self.codebook.shape[1]:
            raise ValueError(f"latents must have {self.codebook.shape[1]} entries; they had {z.shape[-1]}")
        gaps = z[:, None].double() - self.codebook[None].double()
        return gaps.square().sum(-1).argmin(-1)


def takes_task(estimator: Callable[..., Any]) -> bool:
    """Whether a function has three arguments without a default: the task, the latents and the codes."""
    try:
        parameters = inspect.signature(estimator).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters) == 3


class BareLookup(nn.Module):
    """The layer that a bare lookup is checked in.

    Attributes:
        codebook: K codes (K, D), a buffer; standard normal, from the construction seed.
    """

    codebook: Tensor

    def __init__(self, lookup: Callable[[Tensor, Tensor], Tensor], dim: int = 4, codebook_size: int = 8) -> None:
        """Build the layer.

        Args:
            lookup: takes latents z (N, D) and a codebook (K, D), returns codes (N,), integers.
            dim: D.
            codebook_size: K.
        """
        super().__init__()
        self.lookup = lookup
        self.register_buffer("codebook", torch.randn(codebook_size, dim))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize latents (N, D) straight-through: z_q, and codes (N,) from the lookup."""
        if z.shape[-1] != self.codebook.shape[1]:
            raise ValueError(f"latents must have {self.codebook.shape[1]} entries; they had {z.shape[-1]}")
        with torch.no_grad():
            codes = self.lookup(z, self.codebook)
        return z + (self.codebook[codes] - z).detach(), codes


def bare_plan(dim: int) -> Plan:
    """How to call a bare function's layer: nothing needs discovering."""
    call = Call("ND", z_q=Output((0,), "ND"), codes=(Output((1,), "N"),))
    evidence = "a bare function; the rest of the layer is the harness's"
    return Plan(
        dim,
        (call,),
        slots=(Slot("codebook"),),
        evidence=dict.fromkeys(("layout", "z_q", "codes", "codebook"), evidence),
    )
