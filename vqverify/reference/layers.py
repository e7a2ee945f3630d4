"""The vector-quantization layer: a lookup, an estimator, a loss and a learner, composed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from vqverify.reference import _checks
from vqverify.reference._layout import decoded, enter, kept, leave
from vqverify.reference._life_cycle import keep_wide, recomputing
from vqverify.reference.affine import as_affine
from vqverify.reference.codebooks import broadcast, first_with
from vqverify.reference.estimators import as_estimator, straight_through, synchronize
from vqverify.reference.initialise import initial_codes, kmeans
from vqverify.reference.learners import Learner
from vqverify.reference.lookup import directions, nearest_codes
from vqverify.reference.losses import codebook_loss, commitment_loss
from vqverify.reference.replacement import as_replacement, draw_replacements
from vqverify.reference.sampling import sample_codes

if TYPE_CHECKING:
    from collections.abc import Callable

    from vqverify.reference.affine import LearnableAffine, MomentAffine
    from vqverify.reference.estimators import Estimator
    from vqverify.reference.learners import State
    from vqverify.reference.replacement import Replacement
    from vqverify.reference.result import Quantized


class Step(NamedTuple):
    """What a pass in train mode leads to.

    Attributes:
        before: the codes (K, D) that it used.
        after: the state that follows, by the names of the buffers.
        drawn: how many rows were permuted to start k-means, and to replace codes; 0 where nothing was drawn.
    """

    before: Tensor
    after: State
    drawn: tuple[int, int]


class VectorQuantizer(nn.Module):
    """Quantize latents to the nearest code of one codebook (van den Oord et al. 2017; Fifty et al. 2024).

    In train mode a forward pass also moves the codebook, after everything it returns was computed from the
    codebook before the step; under activation checkpointing the second run of a pass uses that codebook again,
    draws what the first one drew, and moves nothing (one pass between backwards, then). Eval mode changes nothing.

    A pass without latents (N = 0, or all of them masked) has loss 0; in train mode it is the step of a batch in which no
    code was used. K = 1 and D = 1 are sizes as any other, but in one dimension there are no directions: no
    ``metric="cosine"``, and the rotation of opposite signs is the identity (T6).

    Construction draws the codes from the global generator. A pass draws from it only if ``temperature`` >
    0, a code is replaced, or k-means starts: all in train mode.

    Attributes:
        codebook: the codes (K, D): a buffer, or a parameter with ``learning="gradient"``.
        counts: N (K,), 1 at the start, in at least float32 whatever the module is cast to (``"ema"``).
        sums: m (K, D), N times the codes (T18), likewise.
    """

    codebook: Tensor
    started: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        estimator: str | Estimator = "rotation",
        metric: str = "euclidean",
        decay: float = 0.99,
        commitment_weight: float = 0.25,
        learning: str = "ema",
        codebook_weight: float | None = None,
        smoothing: float = 0.0,
        channel_first: bool = False,
        temperature: float = 0.0,
        synchronized: float = 0.0,
        affine: str | LearnableAffine | MomentAffine = "none",
        replacement: Replacement | int | None = None,
        initialisation: str = "normal",
        reduction: str = "mean",
    ) -> None:
        """Build a layer.

        Args:
            dim: D, entries of a latent.
            codebook_size: K, number of codes.
            estimator: ``"rotation"`` (J = λR), ``"straight-through"`` (J = I), or a function (z, q) -> z_q.
            metric: ``"euclidean"``, or ``"cosine"``: codes on the unit sphere; lookup, estimator, loss and
                update see the directions of the latents only.
            decay: γ in [0, 1] of the moving averages.
            commitment_weight: weight of mean |z - sg q|².
            learning: ``"ema"``, ``"memoryless"``, ``"gradient"`` (codes are a parameter, moved by the
                codebook loss) or ``"none"``; see :data:`vqverify.reference.learners.RULES`.
            codebook_weight: weight of mean |sg z - q|²: 1 with ``learning="gradient"``, and None, there is no
                such loss, elsewhere.
            smoothing: ε of Laplace smoothing in ``"ema"``; 0 for none (codes shrink with it, T21).
            channel_first: latents are (B, D, ...) (images, for one) and not (..., D).
            temperature: T of stochastic codes in train mode, p ∝ exp(-|z - c|²/T); 0 for the nearest code.
            synchronized: ν ≥ 0, the share of the task gradient that the codes receive (T23).
            affine: ``"none"``, ``"learnable"``, ``"moments"``, or such a module.
            replacement: which unused codes are replaced; an int is a lifespan in steps.
            initialisation: ``"normal"`` N(0, 1), ``"uniform"`` in ±1/K, or ``"kmeans"`` on the first batch in
                train mode (normal until then).
            reduction: ``"mean"`` of the losses over B·D elements, or their ``"sum"``.

        Raises:
            ValueError: if an argument is out of range, or a combination makes no sense.
        """
        super().__init__()
        self.dim = _checks.positive_int("dim", dim)
        self.codebook_size = _checks.positive_int("codebook_size", codebook_size)
        self.estimator = as_estimator(estimator)
        self.cosine = _checks.choice("metric", metric, {"euclidean": False, "cosine": True})
        self.commitment_weight = _checks.number("commitment_weight", commitment_weight)
        weight = 1.0 if codebook_weight is None else codebook_weight
        self.codebook_weight = _checks.number("codebook_weight", weight)
        self.reduction = _checks.choice("reduction", reduction, {"mean": "mean", "sum": "sum"})
        self.channel_first = channel_first
        self.temperature = _checks.number("temperature", temperature)
        self.synchronized = _checks.number("synchronized", synchronized)
        self.learner = Learner(learning, decay, smoothing, self.cosine, as_replacement(replacement))
        self.affine = as_affine(affine, dim, codebook_size)
        self._require_sense(codebook_weight)
        codes = initial_codes(initialisation, codebook_size, dim)
        codes = directions(codes) if self.cosine else codes
        if learning == "gradient":
            self.codebook = nn.Parameter(codes)
        else:
            self.register_buffer("codebook", codes)
        for name, value in self.learner.initial(codes).items():
            self.register_buffer(name, value)
        if initialisation == "kmeans":
            self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.initialisation = initialisation
        self._before: Tensor | None = None
        self._drawn = (0, 0)

    def forward(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantize latents.

        Args:
            z: latents (..., D), or (B, D, ...) with ``channel_first``; any floating-point dtype; finite,
                except where masked.
            mask: bool, the shape of the codes; False drops a latent from everything: its z_q is 0, its code
                -1, its gradient 0, and no loss or state sees it.

        Returns:
            z_q, codes and loss. z_q is exactly a row of the codebook (rounded to the dtype of z).

        Raises:
            TypeError: on a dtype that is not floating-point.
            ValueError: on a shape that does not fit, or latents that are not finite, or so large that what is learnt
                from them overflows; the state is untouched.
        """
        rows = enter(z, self.dim, mask, channel_first=self.channel_first)
        (z_q, codes, loss), state = self.quantize(rows, rows, mask)
        self.learn(state)
        return leave(z_q, codes, loss, None, channel_first=self.channel_first)

    def quantize(self, z: Tensor, anchor: Tensor, mask: Tensor | None = None) -> tuple[Quantized, Step | None]:
        """Quantize checked latents (..., D): the pass itself, for layers that are built of several of this one.

        Args:
            z: where the estimator starts.
            anchor: where the loss starts: the values of ``z`` with another graph (a stack needs it, T34).
            mask: as in :meth:`forward`; masked rows of ``z`` are 0 already.

        Returns:
            The result, and what :meth:`learn` stores: once all parts of a layer have succeeded.
        """
        latents = directions(z) if self.cosine else z
        anchor = latents if anchor is z else directions(anchor) if self.cosine else anchor
        again = self.training and recomputing()
        start = self._start(latents, mask) if self.training and not again else None
        if again:
            # what the first run drew beside its samples: a dropout that comes after it must see the same noise
            torch.randperm(self._drawn[0], device=z.device)
        codebook = self._codebook_of(self._before if again else start, previous=again)
        if self.training and self.temperature:
            codes = sample_codes(latents, codebook, self.temperature)
        else:
            codes = nearest_codes(latents, codebook)
        q = nn.functional.embedding(codes, codebook)
        loss = self.commitment_weight * commitment_loss(anchor, q, mask, reduction=self.reduction)
        if self.learner.rule == "gradient":
            loss = loss + self.codebook_weight * codebook_loss(anchor, q, mask, reduction=self.reduction)
        z_q = self.estimator(latents, q)
        _checks.same_shape("the result of estimator", z_q, "z", latents)
        if self.synchronized:
            z_q = synchronize(z_q, q, self.synchronized)
        out = leave(z_q, codes, loss, mask, channel_first=False)
        if again:
            torch.randperm(self._drawn[1], device=z.device)
        return out, self._learnt(latents.detach(), out.codes, mask, start) if self.training and not again else None

    def learn(self, step: Step | None) -> None:
        """Store the step that :meth:`quantize` returned; None is none."""
        if step is not None:
            self._before, self._drawn = step.before.clone(), step.drawn
            self._store(step.after)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the codes' vectors (..., D), or (B, D, ...) with ``channel_first``; -1 (dropped) gives 0.

        Raises:
            TypeError: if ``codes`` has no integer dtype.
            ValueError: if a code is outside [-1, K).
        """
        index = _checks.code_indices(codes, self.codebook_size)
        q = nn.functional.embedding(index.clamp(min=0), self.effective_codebook())
        return decoded(q, index, channel_first=self.channel_first)

    def effective_codebook(self, *, previous: bool = False) -> Tensor:
        """Return the codes (K, D) that latents are compared with, differentiable where they are learnt so.

        Args:
            previous: as they were before the last step in train mode.
        """
        return self._codebook_of(self._before if previous else None, previous=previous)

    def _codebook_of(self, values: Tensor | None, *, previous: bool) -> Tensor:
        """Return the effective codes if the codebook had these values; None is its own."""
        codes = self.codebook if values is None else straight_through(self.codebook, values)
        if self.affine is not None:
            # a copy: replacing codes must not change what backward needs
            return self.affine(codes.clone(), previous=previous)
        learnt = self.cosine and self.learner.rule == "gradient"
        return directions(codes.clone()) if learnt else codes

    @torch.no_grad()
    def set_codebook(self, codes: Tensor) -> None:
        """Overwrite the codes (K, D), with a state that agrees: N = 1, m = the codes (T18).

        A k-means start that has not happened yet no longer does: there are codes.

        Raises:
            TypeError: on a dtype that is not floating-point.
            ValueError: if the shape does not fit.
        """
        _checks.latents("codes", codes, self.dim)
        if codes.shape != self.codebook.shape:
            expected, was = tuple(self.codebook.shape), tuple(codes.shape)
            raise ValueError(f"codes must have shape {expected}; it was {was}")
        self.codebook.copy_(directions(codes) if self.cosine else codes)
        self._store(self.learner.initial(self.codebook))
        if self.initialisation == "kmeans":
            self.started.fill_(1)

    def extra_repr(self) -> str:
        """Return the sizes for ``print``."""
        return f"dim={self.dim}, codebook_size={self.codebook_size}, learning={self.learner.rule!r}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VectorQuantizer:
        """Move or cast the module, but keep the accumulators in at least float32."""
        before = {name: value for name, value in self._state().items() if name in ("counts", "sums")}
        super()._apply(fn, recurse)
        keep_wide(self, before)
        return self

    def _require_sense(self, codebook_weight: float | None) -> None:
        rule = self.learner.rule
        if codebook_weight is not None and rule != "gradient":
            raise ValueError(f"codebook_weight must be None with learning={rule!r}: codes take no gradient")
        if self.synchronized and rule != "gradient":
            raise ValueError(f"synchronized must be 0 with learning={rule!r}: the codes take no gradient")
        if self.affine is not None and rule != "gradient":
            raise ValueError(f"affine must be 'none' with learning={rule!r}: the codes take no gradient")
        if self.cosine:
            _checks.directed("dim", self.dim)
        if self.affine is not None and self.cosine:
            raise ValueError("affine must be 'none' with metric='cosine': codes would leave the sphere")

    @torch.no_grad()
    def _start(self, z: Tensor, mask: Tensor | None) -> Tensor | None:
        """Return first codes by k-means, the same in all processes; None once there are some, or without latents."""
        if self.initialisation != "kmeans" or bool(self.started):
            return None
        rows = kept(z, mask).detach()
        source = first_with(rows)
        if source is None:
            return None
        codes = self.codebook.detach()
        if len(rows):
            metric = "cosine" if self.cosine else "euclidean"
            codes = kmeans(rows, self.codebook_size, metric=metric).codebook.to(codes.dtype)
        codes = broadcast(codes, source)
        _checks.finite("the first codes, means of z,", codes, learnt=True)
        return codes

    @torch.no_grad()
    def _learnt(self, z: Tensor, codes: Tensor, mask: Tensor | None, start: Tensor | None) -> Step | None:
        state = {name: value.detach() for name, value in self._state().items()}
        if start is not None:
            state |= self.learner.initial(start) | {"codebook": start}
        drawn: list[int] = []

        def draw(z: Tensor, number: int) -> Tensor | None:
            drawn.append(len(z))
            return draw_replacements(z, number)

        rows, index = z.reshape(-1, self.dim), codes.reshape(-1)
        new = self.learner.step(state, rows, index, masked=mask is not None, draw=draw)
        if self.affine is not None:
            self.affine.observe(z, mask)
            if new is not state:  # codes take gradients, so that only replacement writes any: latents, in use as such
                new["codebook"] = self.affine.placed(state["codebook"], new["codebook"])
        if start is not None:
            new = new | {"started": torch.ones_like(self.started)}
        if new is state:
            return None
        return Step(state["codebook"], new, (0 if start is None else len(kept(z, mask)), sum(drawn)))

    def _state(self) -> State:
        names = ("codebook", "counts", "sums", "age")
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    @torch.no_grad()
    def _store(self, state: State) -> None:
        for name, value in state.items():
            getattr(self, name).copy_(value)
