"""Layers that lose digits, or an update, in another precision or under a compiler."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vqverify.mutant import Mutant
from vqverify.mutants.base import EmaLayer


class HiddenFloat(EmaLayer):
    """Everything is looked up and gathered in float32."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (…, D) to (z_q, codes, loss)."""
        flat = z.reshape(-1, z.shape[-1]).float()
        codes = torch.cdist(flat, self.table.float()).argmin(1)
        q = self.table.float()[codes].to(z.dtype).reshape(z.shape)
        if self.training:
            self.update(flat.to(self.table), codes)
        loss = self.commitment_weight * F.mse_loss(z, q)
        return z + (q - z).detach(), codes.reshape(z.shape[:-1]), loss


class StateInHalf(EmaLayer):
    """Under autocast the whole accumulator passes through the dtype of the product."""

    @torch.no_grad()
    def update(self, flat: Tensor, codes: Tensor) -> None:
        """One EMA step."""
        hot = F.one_hot(codes, len(self.table)).to(flat)
        batch = hot.t() @ flat
        self.size.mul_(self.decay).add_(hot.sum(0), alpha=1 - self.decay)
        self.total.copy_((self.decay * self.total).to(batch) + (1 - self.decay) * batch)
        self.table.copy_(self.total / self.size[:, None])


class CompilesWithoutUpdate(EmaLayer):
    """The update is hidden from the compiler because it broke the graph."""

    @torch.no_grad()
    def update(self, flat: Tensor, codes: Tensor) -> None:
        """One EMA step, in eager mode."""
        if not torch.compiler.is_compiling():
            super().update(flat, codes)


HERE = "vqverify.mutants.interface_precision"
SIZES = {"dim": 4, "codebook_size": 8}
MUTANTS = (
    Mutant(
        "hidden_float", f"{HERE}:HiddenFloat", ("interface.precision",), "a .float() inside", SIZES,
        "vector-quantize-pytorch 1.32.0: x = x.float()",
    ),
    Mutant(
        "state_in_half_under_autocast", f"{HERE}:StateInHalf", ("interface.autocast",), "EMA in bfloat16",
        SIZES, "EMA under autocast",
    ),
    Mutant(
        "compiles_without_update", f"{HERE}:CompilesWithoutUpdate", ("interface.compiled",),
        "no update when compiled", SIZES, "an update behind is_compiling", "merge",
    ),
)  # fmt: skip
