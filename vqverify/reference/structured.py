"""Quantizers with structure: groups of channels (T35), signs (T37), a reparametrized codebook (SimVQ)."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from vqverify.reference import _checks
from vqverify.reference._layout import decoded, enter, kept, leave
from vqverify.reference.estimators import as_estimator, straight_through
from vqverify.reference.layers import VectorQuantizer
from vqverify.reference.lookup import nearest_codes
from vqverify.reference.losses import codebook_loss, commitment_loss

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vqverify.reference.estimators import Estimator
    from vqverify.reference.replacement import Replacement
    from vqverify.reference.result import Quantized


class GroupedVQ(nn.Module):
    """Split the channels into G contiguous groups, each with its own :class:`VectorQuantizer` (theory T35).

    Equal to one quantizer with the Cartesian codebook of K^G codes.

    Attributes:
        groups: one quantizer a group.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        num_groups: int = 2,
        estimator: str | Estimator = "rotation",
        metric: str = "euclidean",
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
        """Build G quantizers of D/G channels; the other arguments are those of :class:`VectorQuantizer`.

        Raises:
            ValueError: if an argument is out of range, or G does not divide D.
        """
        super().__init__()
        self.dim = _checks.positive_int("dim", dim)
        self.num_groups = _checks.positive_int("num_groups", num_groups)
        if dim % num_groups:
            raise ValueError(f"num_groups must divide dim, {dim}; it was {num_groups}")
        if metric == "cosine":
            _checks.directed("dim / num_groups", dim // num_groups)
        self.codebook_size = codebook_size
        self.channel_first = channel_first
        self.groups = nn.ModuleList(
            VectorQuantizer(
                dim // num_groups,
                codebook_size,
                estimator=estimator,
                metric=metric,
                decay=decay,
                commitment_weight=commitment_weight,
                learning=learning,
                codebook_weight=codebook_weight,
                smoothing=smoothing,
                temperature=temperature,
                replacement=replacement,
                initialisation=initialisation,
            )
            for _ in range(num_groups)
        )

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantize latents (..., D), or (B, D, ...) with ``channel_first``.

        Arguments and errors are those of :meth:`VectorQuantizer.forward`.

        Returns:
            z_q; codes (..., G); loss, the mean of the groups' losses: that of one quantizer of D channels.
        """
        rows = enter(z, self.dim, mask, channel_first=self.channel_first)
        groups = cast("Iterable[VectorQuantizer]", self.groups)
        parts = rows.chunk(self.num_groups, -1)
        passes = [group.quantize(part, part, mask) for group, part in zip(groups, parts, strict=True)]
        for group, (_, step) in zip(groups, passes, strict=True):
            group.learn(step)
        outs = [out for out, _ in passes]
        z_q = torch.cat([out.z_q for out in outs], -1)
        loss = torch.stack([out.loss for out in outs]).mean()
        codes = torch.stack([out.codes for out in outs], -1)
        return leave(z_q, codes, loss, None, channel_first=self.channel_first)

    def decode(self, codes: Tensor) -> Tensor:
        """Return z_q of codes (..., G); -1 (dropped) gives 0 in its group.

        Raises:
            TypeError: if ``codes`` has no integer dtype.
            ValueError: if the last axis is not G, or a code is out of range.
        """
        _checks.parts(codes, self.num_groups, self.num_groups, "groups")
        groups = cast("Iterable[VectorQuantizer]", self.groups)
        z_q = torch.cat([group.decode(c) for group, c in zip(groups, codes.unbind(-1), strict=True)], -1)
        return z_q.movedim(-1, 1) if self.channel_first else z_q


class LFQ(nn.Module):
    """Lookup-free quantization: the sign of each channel (Yu et al. 2023; theory T37).

    The code Σ 2^i [z_i > 0] is the nearest of {-1, 1}^D; sign(0) is -1, the lower index. The loss is the
    commitment loss, plus ``entropy_weight`` times E[H(p(z))] - ``diversity`` · H(E[p(z)]) with
    p(z) = Π σ(±4 z_i/T), the entropies summed over bits, in nats.

    Attributes:
        powers: 2^i (D,), int64.
    """

    powers: Tensor

    def __init__(
        self,
        dim: int,
        *,
        commitment_weight: float = 0.25,
        entropy_weight: float = 0.1,
        diversity: float = 1.0,
        temperature: float = 1.0,
        channel_first: bool = False,
    ) -> None:
        """Build a layer.

        Args:
            dim: D, at most 62: the code is an int64.
            commitment_weight: weight of mean |z - sg q|².
            entropy_weight: weight of the entropy term.
            diversity: weight, within it, of the entropy of the mean use.
            temperature: T > 0, in units of squared distance.
            channel_first: latents are (B, D, ...) and not (..., D).

        Raises:
            ValueError: if an argument is out of range.
        """
        super().__init__()
        self.dim = _checks.positive_int("dim", dim)
        if dim > 62:
            raise ValueError(f"dim must be at most 62, for the code to be an int64; it was {dim}")
        self.codebook_size = 2**dim
        self.commitment_weight = _checks.number("commitment_weight", commitment_weight)
        self.entropy_weight = _checks.number("entropy_weight", entropy_weight)
        self.diversity = _checks.number("diversity", diversity)
        self.temperature = _checks.positive_number("temperature", temperature)
        self.channel_first = channel_first
        self.register_buffer("powers", 2 ** torch.arange(dim), persistent=False)

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantize latents (..., D), or (B, D, ...) with ``channel_first``; straight-through.

        Args:
            z: the latents.
            mask: bool, the shape of the codes; False drops a latent: z_q 0, code -1, out of the loss.

        Raises:
            TypeError: on a dtype that is not floating-point.
            ValueError: on a shape that does not fit, or NaN in the latents (an infinite one has a sign).
        """
        rows = enter(z, self.dim, mask, channel_first=self.channel_first)
        _checks.finite("z", rows, infinity=True)
        positive = rows.detach() > 0
        q = torch.where(positive, 1.0, -1.0).to(rows.dtype)
        z_q = straight_through(rows, q)
        loss = self.commitment_weight * commitment_loss(rows, q, mask)
        if self.entropy_weight:
            loss = loss + self.entropy_weight * self._entropy(kept(rows, mask))
        codes = (positive * self.powers).sum(-1)
        return leave(z_q, codes, loss, mask, channel_first=self.channel_first)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the signs of codes (...); -1 (dropped) gives 0."""
        index = _checks.code_indices(codes, self.codebook_size).unsqueeze(-1)
        z_q = torch.where((index & self.powers) > 0, 1.0, -1.0)
        return decoded(z_q, index.squeeze(-1), channel_first=self.channel_first)

    def _entropy(self, z: Tensor) -> Tensor:
        wide = z.to(torch.promote_types(z.dtype, torch.float32))
        # beyond this both entropy and its gradient are 0
        logit = (4 * wide / self.temperature).clamp(-1e4, 1e4)
        p = torch.sigmoid(logit)
        each = (nn.functional.softplus(logit) - logit * p).sum() / max(1, len(p))
        info = torch.finfo(p.dtype)
        # without latents ½, of no entropy lost; no branch, which a graph with a mask could not take
        used = torch.ones_like(p).sum(0)
        mean = torch.where(used > 0, p.sum(0) / used.clamp(min=1), 0.5).clamp(info.tiny, 1 - info.eps)
        return each + self.diversity * (mean * mean.log() + (1 - mean) * torch.log1p(-mean)).sum()


class SimVQ(nn.Module):
    """One linear layer over a frozen random codebook: c = W x, only W learns (Zhu et al. 2024).

    Attributes:
        basis: x (K, D), fixed, N(0, 1/D).
        transform: W (D, D), the identity at the start.
    """

    basis: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        estimator: str | Estimator = "rotation",
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        channel_first: bool = False,
    ) -> None:
        """Build a layer; the arguments are those of :class:`VectorQuantizer`.

        Raises:
            ValueError: if an argument is out of range.
        """
        super().__init__()
        self.dim = _checks.positive_int("dim", dim)
        self.codebook_size = _checks.positive_int("codebook_size", codebook_size)
        self.estimator = as_estimator(estimator)
        self.commitment_weight = _checks.number("commitment_weight", commitment_weight)
        self.codebook_weight = _checks.number("codebook_weight", codebook_weight)
        self.channel_first = channel_first
        self.register_buffer("basis", torch.randn(codebook_size, dim) / dim**0.5)
        self.transform = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.transform.weight)

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantize latents (..., D), or (B, D, ...) with ``channel_first``.

        Args:
            z: the latents.
            mask: bool, the shape of the codes; False drops a latent: z_q 0, code -1, out of the loss.

        Raises:
            TypeError: on a dtype that is not floating-point.
            ValueError: on a shape that does not fit, or latents that are not finite.
        """
        rows = enter(z, self.dim, mask, channel_first=self.channel_first)
        codebook = self.effective_codebook()
        codes = nearest_codes(rows, codebook)
        q = nn.functional.embedding(codes, codebook)
        loss = self.commitment_weight * commitment_loss(rows, q, mask)
        loss = loss + self.codebook_weight * codebook_loss(rows, q, mask)
        z_q = self.estimator(rows, q)
        _checks.same_shape("the result of estimator", z_q, "z", rows)
        return leave(z_q, codes, loss, mask, channel_first=self.channel_first)

    def effective_codebook(self) -> Tensor:
        """Return the codes (K, D), the same inside autocast: decode is to know what forward returned."""
        with torch.autocast(self.basis.device.type, enabled=False):
            return self.transform(self.basis)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the codes' vectors; -1 (dropped) gives 0."""
        index = _checks.code_indices(codes, self.codebook_size)
        z_q = nn.functional.embedding(index.clamp(min=0), self.effective_codebook())
        return decoded(z_q, index, channel_first=self.channel_first)
