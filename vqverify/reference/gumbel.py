"""A stochastic quantizer: codes sampled from predicted logits, relaxed for the backward pass."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vqverify.reference import _checks
from vqverify.reference._layout import decoded, enter, kept, leave
from vqverify.reference.estimators import relaxed
from vqverify.reference.sampling import gumbel_like

if TYPE_CHECKING:
    from vqverify.reference.result import Quantized


class GumbelVQ(nn.Module):
    """Straight-through Gumbel-softmax quantization (Jang et al. 2017; Karpathy 2021; theory T30).

    Logits are predicted from the latent. **Stochastic in train mode**: the code is argmax(logits + Gumbel
    noise), one draw a latent from the global generator. Deterministic in eval mode: the code is
    argmax(logits), ties to the lowest index. In both the value is one code, exactly, and the gradient that
    of the relaxation softmax((logits + noise)/τ); it reaches the codes and the logits.

    Attributes:
        logits: linear map D -> K.
        codebook: the codes (K, D), a parameter.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        temperature: float = 1.0,
        kl_weight: float = 5e-4,
        channel_first: bool = False,
    ) -> None:
        """Build a layer.

        Args:
            dim: D, entries of a latent.
            codebook_size: K, number of codes.
            temperature: τ > 0 of the relaxation; it does not change the law of the codes.
            kl_weight: weight of mean KL(softmax(logits) || uniform), in nats.
            channel_first: latents are (B, D, ...) and not (..., D).

        Raises:
            ValueError: if an argument is out of range.
        """
        super().__init__()
        self.dim = _checks.positive_int("dim", dim)
        self.codebook_size = _checks.positive_int("codebook_size", codebook_size)
        self.temperature = _checks.positive_number("temperature", temperature)
        self.kl_weight = _checks.number("kl_weight", kl_weight)
        self.channel_first = channel_first
        self.logits = nn.Linear(dim, codebook_size)
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantize latents (..., D), or (B, D, ...) with ``channel_first``.

        Args:
            z: the latents.
            mask: bool, the shape of the codes; False drops a latent: z_q 0, code -1, out of the loss.

        Raises:
            TypeError: on a dtype that is not floating-point.
            ValueError: on a shape that does not fit, or latents or logits that are not finite.
        """
        rows = enter(z, self.dim, mask, channel_first=self.channel_first)
        _checks.finite("z", rows)
        logits = self.logits(rows.to(self.logits.weight.dtype))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        _checks.finite("the logits of z", logits)
        noisy = logits + gumbel_like(logits) if self.training else logits
        codes = noisy.argmax(-1)
        weights = torch.softmax(noisy / self.temperature, -1)
        z_q = relaxed(weights, codes, self.codebook.to(weights.dtype)).to(z.dtype)
        loss = self._loss(kept(logits, mask))
        return leave(z_q, codes, loss, mask, channel_first=self.channel_first)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the codes' vectors; -1 (dropped) gives 0."""
        index = _checks.code_indices(codes, self.codebook_size)
        z_q = nn.functional.embedding(index.clamp(min=0), self.codebook)
        return decoded(z_q, index, channel_first=self.channel_first)

    def _loss(self, logits: Tensor) -> Tensor:
        log_p = torch.log_softmax(logits, -1)
        divergence = (log_p.exp() * (log_p + math.log(self.codebook_size))).sum(-1)
        return self.kl_weight * divergence.sum() / max(1, divergence.numel())
