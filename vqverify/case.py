"""One drawn input of a check: everything that a witness has to keep."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vqverify.quantizer import Quantizer


@dataclass(frozen=True)
class Case:
    """Initial state, history and values of one example.

    Attributes:
        z: latents, (N, D).
        g: cotangents at the output, (N, D).
        seed: of the pass under test; step i of the history runs with seed + 1 + i.
        codebook: a (K, Dc) tensor a level to write first; None leaves the layer as built.
        history: batches (n, D) for training passes before the check.
        part: which case of the row (`decode method`, `dtype`, ...); None for a row without cases.
        origin: which corner, mass batch or search block it came from; not part of the witness.
    """

    z: Tensor
    g: Tensor
    seed: int = 0
    codebook: tuple[Tensor, ...] | None = None
    history: tuple[Tensor, ...] = ()
    part: str | None = None
    origin: str = ""

    def with_part(self, part: str | None) -> Case:
        """The same case for another part of the row."""
        return replace(self, part=part)

    def size(self) -> int:
        """Non-zero numbers, for comparing witnesses: smaller is better."""
        tensors = (self.z, self.g, *self.history, *(self.codebook or ()))
        return sum(int(torch.count_nonzero(t)) for t in tensors)


def prepare(subject: Quantizer, case: Case) -> None:
    """Bring a subject to the state in which the check of this case starts.

    Raises:
        Violation: if a pass of the history raises.
    """
    subject.restore()
    if case.codebook is not None:
        subject.set_codebook(case.codebook)
    for step, batch in enumerate(case.history):
        subject.forward(batch, train=True, seed=case.seed + 1 + step, grad=False)
