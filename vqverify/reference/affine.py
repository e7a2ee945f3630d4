"""Affine reparametrization of a codebook: all codes move together (Huh et al. 2023, section 4.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vqverify.reference import _checks
from vqverify.reference._life_cycle import keep_wide
from vqverify.reference.codebooks import all_reduce_sum

if TYPE_CHECKING:
    from collections.abc import Callable


class LearnableAffine(nn.Module):
    """c = (1 + aS) ⊙ x + aB with learnt S and B, shared by the codes of a group (001 eq. 15; T25).

    One step of SGD moves codes that no latent chose, too; the rate of S and B is a²η (T25).

    Attributes:
        scale: S (G, D), zeros at the start.
        bias: B (G, D), zeros at the start: the map begins as the identity.
    """

    def __init__(self, dim: int, *, rate: float = 1.0, groups: int = 1) -> None:
        """Build the map.

        Args:
            dim: D.
            rate: a, which scales the learning rate of the parameters.
            groups: G; the codebook is cut into G runs of K/G codes.

        Raises:
            ValueError: if an argument is out of range.
        """
        super().__init__()
        _checks.positive_int("dim", dim)
        self.rate = _checks.positive_number("rate", rate)
        self.groups = _checks.positive_int("groups", groups)
        self.scale = nn.Parameter(torch.zeros(groups, dim))
        self.bias = nn.Parameter(torch.zeros(groups, dim))

    def forward(self, codebook: Tensor, *, previous: bool = False) -> Tensor:  # noqa: ARG002 - see MomentAffine
        """Return the effective codes (K, D).

        Raises:
            ValueError: if K is no multiple of the groups.
        """
        x = _in_groups(codebook, self.groups)
        scale, bias = self._map()
        return (scale * x + bias).reshape(codebook.shape)

    @torch.no_grad()
    def placed(self, before: Tensor, after: Tensor) -> Tensor:
        """Return codes x (K, D) whose rows that are new in ``after`` map to what they are there (T22).

        Args:
            before: x (K, D).
            after: the same, but latents in the place of some. Where 1 + aS is 0 these leave x as it was.
        """
        scale, bias = self._map()
        return _only_new(before, after, (_in_groups(after, self.groups) - bias) / scale)

    def _map(self) -> tuple[Tensor, Tensor]:
        """1 + aS and aB, both (G, 1, D)."""
        return (1 + self.rate * self.scale).unsqueeze(1), (self.rate * self.bias).unsqueeze(1)

    def observe(self, z: Tensor, keep: Tensor | None = None) -> None:
        """Do nothing: S and B are learnt by gradient."""


class MomentAffine(nn.Module):
    """c = (σ_e/σ_x)(x - μ_x) + μ_e: the codes take the mean and deviation of the latents (001 eq. 43; T26).

    μ_e, σ_e are moving moments of the latents over batches; the variance of the batch means is part of σ_e.
    μ_x, σ_x are the moments of the codes x themselves (their group's), now. A channel in which all codes of a
    group agree is only shifted. The map is the identity until the first batch was seen.

    Attributes:
        mean: μ_e (D,), float32 at least.
        variance: σ_e² (D,), likewise (population variance).
        seen: number of batches observed, int64.
    """

    mean: Tensor
    variance: Tensor
    seen: Tensor

    def __init__(self, dim: int, *, decay: float = 0.99, groups: int = 1) -> None:
        """Build the map; ``decay`` in [0, 1] is that of the moments.

        Raises:
            ValueError: if an argument is out of range.
        """
        super().__init__()
        _checks.positive_int("dim", dim)
        self.decay = _checks.number("decay", decay, 0, 1)
        self.groups = _checks.positive_int("groups", groups)
        wide = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.register_buffer("mean", torch.zeros(dim, dtype=wide))
        self.register_buffer("variance", torch.ones(dim, dtype=wide))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self._before: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, codebook: Tensor, *, previous: bool = False) -> Tensor:
        """Return the effective codes (K, D); the moments count as constants.

        Args:
            codebook: x (K, D).
            previous: by the moments as they were before the last batch.

        Raises:
            ValueError: if K is no multiple of the groups.
        """
        x = _in_groups(codebook, self.groups)
        centre, deviation = _moments(x)
        mean, variance, seen = self.mean, self.variance, self.seen
        if previous and self._before is not None:
            mean, variance, seen = self._before
        scale = torch.where(deviation > 0, variance.sqrt() / deviation, 1)
        c = (scale * (x - centre) + mean).reshape(codebook.shape).to(codebook.dtype)
        return torch.where(seen > 0, c, codebook)

    @torch.no_grad()
    def placed(self, before: Tensor, after: Tensor) -> Tensor:
        """Return codes x (K, D) whose rows that are new in ``after`` map to what they are there, by the moments of now.

        New rows change μ_x and σ_x, so that the codes in use are these latents only up to that.

        Args:
            before: x (K, D).
            after: the same, but latents in the place of some. A channel without variance leaves x as it was.
        """
        x = _in_groups(before, self.groups)
        centre, deviation = _moments(x)
        scale = torch.where(deviation > 0, self.variance.sqrt() / deviation, 1)
        return _only_new(before, after, (_in_groups(after, self.groups) - self.mean) / scale + centre)

    @torch.no_grad()
    def observe(self, z: Tensor, keep: Tensor | None = None) -> None:
        """Update the moments by a batch of latents (..., D); those with ``keep`` False do not count.

        Raises:
            ValueError: if latents that count are not finite, or their variance overflows; the moments are untouched.
        """
        rows = z.reshape(-1, z.shape[-1]) if keep is None else z[keep]
        _checks.finite("z", rows, learnt=True)
        totals = torch.cat([rows.new_full((1,), len(rows), dtype=torch.float64), rows.sum(0, dtype=torch.float64)])
        totals = all_reduce_sum(totals)
        if not bool(totals[0] > 0):
            return
        mean = totals[1:] / totals[0]
        variance = all_reduce_sum((rows - mean).square().sum(0)) / totals[0]
        # the first batch sets the moments; a moving average would remember the arbitrary start
        decay = self.decay if bool(self.seen > 0) else 0.0
        shift = mean - self.mean
        # merging two populations: the variance between their means counts (T26)
        variance = decay * self.variance + (1 - decay) * variance + decay * (1 - decay) * shift.square()
        _checks.finite("the variance of the latents z", variance.to(self.variance.dtype), learnt=True)
        self._before = (self.mean.clone(), self.variance.clone(), self.seen.clone())
        self.variance.copy_(variance)
        self.mean.add_((1 - decay) * shift)
        self.seen.add_(1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MomentAffine:
        """Move or cast the module, but keep the moments in at least float32."""
        before = {"mean": self.mean, "variance": self.variance}
        super()._apply(fn, recurse)
        keep_wide(self, before)
        return self


def as_affine(
    value: str | LearnableAffine | MomentAffine, dim: int, size: int
) -> LearnableAffine | MomentAffine | None:
    """Return the map of a name (``"none"``, ``"learnable"``, ``"moments"``), or the map that was given.

    Raises:
        ValueError: if the name is unknown, or the map is not for codes (``size``, ``dim``).
    """
    if not isinstance(value, LearnableAffine | MomentAffine):
        table = {"none": None, "learnable": LearnableAffine, "moments": MomentAffine}
        build = _checks.choice("affine", value, table)
        return build(dim) if build else None
    found = (value.bias if isinstance(value, LearnableAffine) else value.mean).shape[-1]
    if found != dim:
        raise ValueError(f"affine must be a map of dim {dim}; its dim was {found}")
    if size % value.groups:
        raise ValueError(f"affine must have groups that divide the number of codes, {size}; they were {value.groups}")
    return value


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (G, 1, D) of the codes (G, K/G, D) of each group, as constants."""
    return x.detach().mean(1, keepdim=True), x.detach().var(1, keepdim=True, correction=0).sqrt()


def _only_new(before: Tensor, after: Tensor, x: Tensor) -> Tensor:
    """Rows of x where before and after differ, as far as they are finite, and those of before elsewhere."""
    x = x.reshape(before.shape).to(before.dtype)
    return torch.where((after != before).any(1, keepdim=True) & x.isfinite(), x, before)


def _in_groups(codebook: Tensor, groups: int) -> Tensor:
    if len(codebook) % groups:
        raise ValueError(f"groups must divide the number of codes, {len(codebook)}; it was {groups}")
    return codebook.reshape(groups, -1, codebook.shape[1])
