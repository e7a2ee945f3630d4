"""EMA codebooks in several processes: what is summed over them, and what is not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, distributed

from vqverify.mutant import Mutant
from vqverify.mutants.base import EmaLayer


class SummedLayer(EmaLayer):
    """Counts and sums are added up over the processes, rightly."""

    def summed(self, x: Tensor) -> Tensor:
        """The sum over all processes."""
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(x)
        return x

    def counted(self, n: Tensor) -> Tensor:
        """Counts of all processes."""
        return self.summed(n)

    @torch.no_grad()
    def update(self, flat: Tensor, codes: Tensor) -> None:
        """One EMA step."""
        hot = F.one_hot(codes, len(self.table)).to(flat)
        n, s = self.counted(hot.sum(0)), self.summed(hot.t() @ flat)
        self.size.mul_(self.decay).add_(n, alpha=1 - self.decay)
        self.total.mul_(self.decay).add_(s, alpha=1 - self.decay)
        self.table.copy_(self.total / self.size[:, None])


class CountsLocal(SummedLayer):
    """Sums are added up over the processes, counts are not."""

    def counted(self, n: Tensor) -> Tensor:
        """Counts of this process."""
        return n


class CodesAveraged(EmaLayer):
    """Each process steps by itself, and the codebooks are averaged."""

    @torch.no_grad()
    def update(self, flat: Tensor, codes: Tensor) -> None:
        """One EMA step, then the mean of the codes."""
        super().update(flat, codes)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(self.table)
            self.table.div_(distributed.get_world_size())


HERE = "vqverify.mutants.update_distributed"
SIZES = {"dim": 4, "codebook_size": 8}
MUTANTS = (
    Mutant("distributed_counts_local", f"{HERE}:CountsLocal", ("update.distributed",), "counts not reduced", SIZES,
           "systematic; theory T22", "merge"),
    Mutant("distributed_codes_averaged", f"{HERE}:CodesAveraged", ("update.distributed",), "codebooks averaged", SIZES,
           "theory T22: averaging codebooks is not the whole batch's step", "merge"),
)  # fmt: skip
