"""The vector-quantization layer: a lookup, an estimator, a loss and a learner, composed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from vqverify.reference import _checks
from vqverify.reference.codebooks import EmaState, all_reduce, code_statistics, ema_update
from vqverify.reference.estimators import rotate, straight_through
from vqverify.reference.lookup import directions, nearest_codes
from vqverify.reference.losses import codebook_loss, commitment_loss

if TYPE_CHECKING:
    from collections.abc import Callable

    from vqverify.reference.estimators import Estimator

ESTIMATORS: dict[str, Estimator] = {"rotation": rotate, "straight-through": straight_through}
"""Estimators by name."""


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


class VectorQuantizer(nn.Module):
    """Quantize latents to the nearest code of one codebook (van den Oord et al. 2017; Fifty et al. 2024).

    In train mode a forward pass also moves the codebook (``learning="ema"``), after everything it returns was
    computed from the codebook before the step. Eval mode changes nothing. Construction draws the codes from
    the global generator, N(0, 1) (or uniform on the sphere for cosine); a pass draws nothing.

    Attributes:
        codebook: the codes (K, D): a buffer, or a parameter with ``learning="gradient"``.
        counts: N (K,), 1 at the start, in at least float32 whatever the module is cast to.
        sums: m (K, D), N times the codes at the start (T18), likewise.
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        estimator: str = "rotation",
        metric: str = "euclidean",
        decay: float = 0.99,
        commitment_weight: float = 0.25,
        learning: str = "ema",
        codebook_weight: float = 1.0,
        smoothing: float = 0.0,
        channel_first: bool = False,
    ) -> None:
        """Build a layer.

        Args:
            dim: D, entries of a latent.
            codebook_size: K, number of codes.
            estimator: ``"rotation"`` (J = λR) or ``"straight-through"`` (J = I).
            metric: ``"euclidean"``, or ``"cosine"``: codes on the unit sphere; lookup, estimator, loss and
                update see the directions of the latents only.
            decay: γ in [0, 1] of the moving averages.
            commitment_weight: weight of mean |z - sg q|².
            learning: ``"ema"``, ``"gradient"`` (codes are a parameter, moved by the codebook loss) or
                ``"none"``.
            codebook_weight: weight of mean |sg z - q|²; used by ``learning="gradient"`` alone.
            smoothing: ε of Laplace smoothing in the moving average; 0 for none (codes shrink with it, T21).
            channel_first: latents are (B, D, ...) (images, for one) and not (..., D).

        Raises:
            ValueError: if an argument is out of range, or a combination makes no sense.
        """
        super().__init__()
        self.dim = _checks.positive_int("dim", dim)
        self.codebook_size = _checks.positive_int("codebook_size", codebook_size)
        self.estimator = _checks.choice("estimator", estimator, ESTIMATORS)
        self.cosine = _checks.choice("metric", metric, {"euclidean": False, "cosine": True})
        self.decay = _checks.number("decay", decay, 0, 1)
        self.commitment_weight = _checks.number("commitment_weight", commitment_weight)
        self.codebook_weight = _checks.number("codebook_weight", codebook_weight)
        self.smoothing = _checks.number("smoothing", smoothing)
        self.learning = _checks.choice(
            "learning", learning, {name: name for name in ("ema", "gradient", "none")}
        )
        self.channel_first = channel_first
        if self.cosine and self.smoothing:
            raise ValueError("smoothing must be 0 with metric='cosine': codes are put back on the sphere")
        codes = torch.randn(codebook_size, dim)
        codes = directions(codes) if self.cosine else codes
        if self.learning == "gradient":
            self.codebook = nn.Parameter(codes)
        else:
            self.register_buffer("codebook", codes)
        if self.learning == "ema":
            self.register_buffer("counts", torch.ones(codebook_size))
            self.register_buffer("sums", codes.clone())

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantize latents.

        Args:
            z: latents (..., D), or (B, D, ...) with ``channel_first``; any floating-point dtype; finite,
                except where masked.
            mask: bool, the shape of the codes; False drops a latent from everything: its z_q is 0, its
                code -1, its gradient 0, and no loss or state sees it.

        Returns:
            z_q, codes and loss. z_q is exactly a row of the codebook (rounded to the dtype of z).

        Raises:
            TypeError: on a dtype that is not floating-point.
            ValueError: on a shape that does not fit, or latents that are not finite; the state is untouched.
        """
        _checks.latents("z", z, self.dim, axis=1 if self.channel_first else -1)
        rows = z.movedim(1, -1) if self.channel_first else z
        if mask is not None:
            _checks.mask(mask, rows.shape[:-1])
            rows = torch.where(mask.unsqueeze(-1), rows, 0)
        z_q, codes, loss = self.quantize(rows, rows, mask)
        return Quantized(z_q.movedim(-1, 1) if self.channel_first else z_q, codes, loss)

    def quantize(self, z: Tensor, anchor: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantize checked latents (..., D): the pass itself, for layers that are built of this one.

        Args:
            z: where the estimator starts.
            anchor: where the loss starts: the values of ``z`` with another graph (a stack needs it, T34).
            mask: as in :meth:`forward`; masked rows of ``z`` are 0 already.
        """
        latents = directions(z) if self.cosine else z
        anchor = latents if anchor is z else directions(anchor) if self.cosine else anchor
        codebook = self.effective_codebook()
        codes = nearest_codes(latents, codebook)
        q = nn.functional.embedding(codes, codebook)
        loss = self._loss(anchor, q, mask)
        z_q = self.estimator(latents, q)
        if mask is not None:
            codes = torch.where(mask, codes, -1)
            z_q = torch.where(mask.unsqueeze(-1), z_q, 0)
        if self.training and self.learning == "ema":
            self._learn(latents.detach(), codes, masked=mask is not None)
        return Quantized(z_q, codes, loss)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the codes' vectors (..., D), or (B, D, ...) with ``channel_first``; -1 (dropped) gives 0.

        Raises:
            TypeError: if ``codes`` has no integer dtype.
            ValueError: if a code is outside [-1, K).
        """
        index = _checks.code_indices(codes, self.codebook_size)
        q = nn.functional.embedding(index.clamp(min=0), self.effective_codebook())
        q = torch.where((index >= 0).unsqueeze(-1), q, 0)
        return q.movedim(-1, 1) if self.channel_first else q

    def effective_codebook(self) -> Tensor:
        """Return the codes (K, D) that latents are compared with, differentiable where they are learnt so."""
        learnt = self.cosine and self.learning == "gradient"
        return directions(self.codebook) if learnt else self.codebook

    @torch.no_grad()
    def set_codebook(self, codes: Tensor) -> None:
        """Overwrite the codes (K, D), with accumulators that agree: N = 1, m = the codes (T18).

        Raises:
            ValueError: if the shape does not fit.
        """
        _checks.latents("codes", codes, self.dim)
        if codes.shape != self.codebook.shape:
            raise ValueError(
                f"codes must have shape {tuple(self.codebook.shape)}; it was {tuple(codes.shape)}"
            )
        self.codebook.copy_(directions(codes) if self.cosine else codes)
        if self.learning == "ema":
            self.counts.fill_(1)
            self.sums.copy_(self.codebook)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VectorQuantizer:
        """Move or cast the module, but keep the accumulators in at least float32."""
        before = {name: getattr(self, name) for name in ("counts", "sums") if self.learning == "ema"}
        super()._apply(fn, recurse)
        for name, value in before.items():
            moved = getattr(self, name)
            if moved.dtype != torch.promote_types(moved.dtype, torch.float32):
                setattr(self, name, value.to(moved.device))
        return self

    def extra_repr(self) -> str:
        """Return the sizes for ``print``."""
        return f"dim={self.dim}, codebook_size={self.codebook_size}, learning={self.learning!r}"

    def _loss(self, z: Tensor, q: Tensor, mask: Tensor | None) -> Tensor:
        loss = self.commitment_weight * commitment_loss(z, q, mask)
        if self.learning == "gradient":
            loss = loss + self.codebook_weight * codebook_loss(z, q, mask)
        return loss

    @torch.no_grad()
    def _learn(self, z: Tensor, codes: Tensor, *, masked: bool) -> None:
        batch = code_statistics(z.reshape(-1, self.dim), codes.reshape(-1), self.codebook_size, masked=masked)
        old = EmaState(self.codebook, self.counts, self.sums)
        new = ema_update(old, all_reduce(batch), self.decay, self.smoothing)
        if self.cosine:
            # a mean of opposite directions has none: such a code stays
            lost = (new.codebook == 0).all(1, keepdim=True)
            new = new._replace(codebook=torch.where(lost, self.codebook, directions(new.codebook)))
        for buffer, value in zip(old, new, strict=True):
            buffer.copy_(value)
