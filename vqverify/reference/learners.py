"""How a codebook learns from a batch: a value with two methods, state in and state out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vqverify.reference import _checks
from vqverify.reference.codebooks import (
    EmaState,
    all_reduce,
    code_statistics,
    ema_update,
    memoryless_update,
)
from vqverify.reference.lookup import directions
from vqverify.reference.replacement import Replacement, ages, draw_replacements

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    State = dict[str, Tensor]

RULES = ("ema", "memoryless", "gradient", "none")
"""``"ema"``: moving averages with accumulators N and m (T17). ``"memoryless"``: without them (001 eq. 11).
``"gradient"``: the codes are a parameter. ``"none"``: they stay."""


@dataclass(frozen=True)
class Learner:
    """A rule, its rates, and what it does about unused codes.

    Attributes:
        rule: one of :data:`RULES`.
        decay: γ in [0, 1] of the moving averages (η = 1 - γ without memory).
        smoothing: ε ≥ 0 of Laplace smoothing; ``"ema"`` only.
        cosine: whether codes are put back on the unit sphere.
        replacement: which codes are replaced by current latents, or None.

    Raises:
        ValueError: if an attribute is out of range, or they do not make sense together.
    """

    rule: str = "ema"
    decay: float = 0.99
    smoothing: float = 0.0
    cosine: bool = False
    replacement: Replacement | None = None

    def __post_init__(self) -> None:
        _checks.choice("learning", self.rule, dict.fromkeys(RULES))
        for name, most in (("decay", 1.0), ("smoothing", float("inf"))):
            # as a float: a scalar of numpy is a number too, but rounds otherwise
            object.__setattr__(self, name, _checks.number(name, getattr(self, name), 0, most))
        if self.smoothing and self.cosine:
            raise ValueError("smoothing must be 0 with metric='cosine': codes are put back on the sphere")
        if self.smoothing and self.rule != "ema":
            raise ValueError(f"smoothing must be 0 with learning={self.rule!r}: it has no counts to smooth")
        if self.replacement and self.rule == "none":
            raise ValueError("replacement must be None with learning='none': the codes stay")
        if self.replacement and self.replacement.threshold and self.rule != "ema":
            raise ValueError(f"threshold must be 0 with learning={self.rule!r}: it has no moving counts")

    def initial(self, codebook: Tensor) -> State:
        """Return the state that goes with codes (K, D): ``counts``, ``sums`` and ``age``, where they apply.

        N = 1 and m = N e, a fixed point of the recursion (T18), in at least float32.
        """
        state: State = {}
        if self.rule == "ema":
            wide = torch.promote_types(codebook.dtype, torch.float32)
            state["sums"] = codebook.detach().to(wide, copy=True)
            state["counts"] = state["sums"].new_ones(len(codebook))
        if self.replacement:
            state["age"] = torch.zeros(len(codebook), dtype=torch.int64, device=codebook.device)
        return state

    @torch.no_grad()
    def step(
        self,
        state: State,
        z: Tensor,
        codes: Tensor,
        *,
        masked: bool = False,
        draw: Callable[[Tensor, int], Tensor | None] = draw_replacements,
    ) -> State:
        """Return the state after a batch; statistics are summed over processes.

        **Stochastic** if codes are replaced: the global generator draws which latents take their place.

        Args:
            state: ``codebook`` and what :meth:`initial` returned.
            z: latents (N, D); directions for cosine.
            codes: their codes (N,); -1 where masked.
            masked: whether some are -1.
            draw: where codes are replaced: from latents (N, D) and a number to that many of them, or None.

        Raises:
            ValueError: if the sum of the latents of a code overflows, or a code in the codebook's dtype.
        """
        if self.rule == "none" or (self.rule == "gradient" and not self.replacement):
            return state
        batch = all_reduce(code_statistics(z, codes, len(state["codebook"]), masked=masked))
        new = dict(state)
        if self.rule == "ema":
            old = EmaState(state["codebook"], state["counts"], state["sums"])
            new |= ema_update(old, batch, self.decay, self.smoothing)._asdict()
        elif self.rule == "memoryless":
            new["codebook"] = memoryless_update(state["codebook"], batch, 1 - self.decay)
        if self.cosine and self.rule != "gradient":
            # a mean of opposite directions has none: such a code stays
            lost = (new["codebook"] == 0).all(1, keepdim=True)
            new["codebook"] = torch.where(lost, state["codebook"], directions(new["codebook"]))
        if self.replacement:
            self._replace(new, batch.counts, z[codes >= 0] if masked else z, draw)
        if not _checks.all_finite(new["codebook"]):
            # codes that somebody set to NaN or infinity, never to be chosen, may stay
            _checks.finite(
                "a code that z leads to", torch.where(state["codebook"].isfinite(), new["codebook"], 0), learnt=True
            )
        return new

    def _replace(self, state: State, used: Tensor, z: Tensor, draw: Callable[[Tensor, int], Tensor | None]) -> None:
        assert self.replacement is not None
        state["age"] = ages(state["age"], used)
        dead = self.replacement.dead(state["age"], state.get("counts")).nonzero().squeeze(1)
        fresh = draw(z, len(dead)) if len(dead) else None
        if fresh is None:
            return
        state["age"][dead] = 0
        for name, value in (self.initial(fresh) | {"codebook": fresh}).items():
            kept = state[name].detach()
            state[name] = kept.index_copy(0, dead, value.to(kept.dtype))
