"""Stochastic quantization with a learnt noise level (Takida et al. 2022)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vqverify.reference import _checks
from vqverify.reference._layout import decoded, enter, kept, leave
from vqverify.reference.estimators import relaxed
from vqverify.reference.lookup import nearest_codes
from vqverify.reference.sampling import gumbel_like

if TYPE_CHECKING:
    from vqverify.reference.result import Quantized


class SQVAE(nn.Module):
    """Gaussian SQ-VAE with one variance σ² for all channels: p_j ∝ exp(-|z - c_j|²/(2σ²)).

    **Stochastic in train mode**: the code is argmax_j(log p_j + Gumbel noise), one draw a latent from the
    global generator; the value is that code, and the gradient that of the relaxation softmax((log p +
    noise)/τ), which reaches latents, codes and σ². Deterministic in eval mode: the most probable (nearest)
    code.

    The loss is that of the paper's ELBO, a mean over latents: E_p|z - c|²/(2σ²) + Σ p log p, in nats. As
    σ² → 0 the first term alone remains.

    Distances are sums of squared differences, accurate wherever the latents lie: a pass holds N·K·D numbers at once.

    Attributes:
        codebook: the codes (K, D), a parameter.
        log_variance: log σ², a scalar parameter.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        temperature: float = 1.0,
        variance: float = 1.0,
        loss_weight: float = 1.0,
        channel_first: bool = False,
    ) -> None:
        """Build a layer.

        Args:
            dim: D, entries of a latent.
            codebook_size: K, number of codes.
            temperature: τ > 0 of the relaxation; the paper anneals it. It does not change the law of the
                codes.
            variance: σ² > 0 at the start, in units of squared distance.
            loss_weight: weight of the loss.
            channel_first: latents are (B, D, ...) and not (..., D).

        Raises:
            ValueError: if an argument is out of range.
        """
        super().__init__()
        self.dim = _checks.positive_int("dim", dim)
        self.codebook_size = _checks.positive_int("codebook_size", codebook_size)
        self.temperature = _checks.positive_number("temperature", temperature)
        self.loss_weight = _checks.number("loss_weight", loss_weight)
        self.channel_first = channel_first
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))
        start = math.log(_checks.positive_number("variance", variance))
        self.log_variance = nn.Parameter(torch.tensor(start))

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantize latents (..., D), or (B, D, ...) with ``channel_first``.

        Args:
            z: the latents.
            mask: bool, the shape of the codes; False drops a latent: z_q 0, code -1, out of the loss.

        Raises:
            TypeError: on a dtype that is not floating-point.
            ValueError: on a shape that does not fit, or latents that are not finite, or so far from a code, by σ, that
                |z - c|²/(2σ²) overflows.
        """
        rows = enter(z, self.dim, mask, channel_first=self.channel_first)
        _checks.finite("z", rows)
        wide = torch.promote_types(torch.promote_types(z.dtype, self.codebook.dtype), torch.float32)
        codebook = self.codebook.to(wide)
        # differences, not the expanded square: the latents may lie anywhere
        distance = (rows.to(wide).unsqueeze(-2) - codebook).square().sum(-1)
        energy = 0.5 * distance * torch.exp(-self.log_variance)
        _checks.finite("|z - c|²/(2σ²)", energy)
        log_p = torch.log_softmax(-energy, -1)
        noisy = log_p + gumbel_like(log_p) if self.training else log_p
        # p may round to a tie where one code is nearer
        codes = noisy.argmax(-1) if self.training else nearest_codes(rows, codebook)
        weights = torch.softmax(noisy / self.temperature, -1)
        z_q = relaxed(weights, codes, codebook).to(z.dtype)
        loss = self._loss(kept(energy, mask), kept(log_p, mask))
        return leave(z_q, codes, loss, mask, channel_first=self.channel_first)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the codes' vectors; -1 (dropped) gives 0."""
        index = _checks.code_indices(codes, self.codebook_size)
        z_q = nn.functional.embedding(index.clamp(min=0), self.codebook)
        return decoded(z_q, index, channel_first=self.channel_first)

    def _loss(self, energy: Tensor, log_p: Tensor) -> Tensor:
        each = (log_p.exp() * (energy + log_p)).sum(-1)
        return self.loss_weight * each.sum() / max(1, each.numel())
