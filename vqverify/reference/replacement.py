"""Replacement of unused codes by current latents (Zeghidour et al. 2021; Huh et al. 2023, section 2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vqverify.reference import _checks
from vqverify.reference.codebooks import broadcast, first_with


@dataclass(frozen=True)
class Replacement:
    """Which codes are dead.

    Attributes:
        lifespan: a code unused for so many training steps in a row is dead; 0 for no such rule.
        threshold: a code whose moving count N falls below is dead; 0 for no such rule.

    Raises:
        ValueError: if both are 0, or one is out of range.
    """

    lifespan: int = 20
    threshold: float = 0.0

    def __post_init__(self) -> None:
        _checks.positive_int("lifespan", self.lifespan, at_least=0)
        object.__setattr__(self, "threshold", _checks.number("threshold", self.threshold))
        if not self.lifespan and not self.threshold:
            raise ValueError("lifespan must be at least 1 (or threshold greater than 0); both were 0")

    def dead(self, age: Tensor, counts: Tensor | None) -> Tensor:
        """Return which codes (K,) are dead, by steps since their last use and moving counts."""
        by_age = age >= self.lifespan if self.lifespan else torch.zeros_like(age, dtype=torch.bool)
        by_use = counts < self.threshold if self.threshold and counts is not None else False
        return by_age | by_use


def ages(age: Tensor, batch_counts: Tensor) -> Tensor:
    """Return the steps since each code was used (K,), int64, after a batch with these counts (K,)."""
    return torch.where(batch_counts > 0, 0, age + 1)


def draw_replacements(z: Tensor, number: int) -> Tensor | None:
    """Return ``number`` rows of ``z`` (N, D), all different if N suffices. **Stochastic**: global generator.

    With several processes all of them return the rows that one drew, the first that has any (T22). None without rows.
    """
    source = first_with(z)
    if source is None:
        return None
    if not len(z):
        return broadcast(z.new_empty(number, z.shape[1]), source)
    order = torch.randperm(len(z), device=z.device)
    return broadcast(z[order[torch.arange(number, device=z.device) % len(z)]], source)


def as_replacement(value: Replacement | int | None) -> Replacement | None:
    """Return the rule that was given; an int is a lifespan in steps.

    Raises:
        ValueError: if the int is below 1.
    """
    if value is None or isinstance(value, Replacement):
        return value
    return Replacement(lifespan=_checks.positive_int("replacement", value))
