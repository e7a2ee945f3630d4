"""One step of an EMA codebook, measured: counts, sums and codes before and after it (theory T16-T21)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vqverify.case import Case
from vqverify.invariants.measure import Array, View, array, kept_within, norms, roundoff, trait, views
from vqverify.quantizer import Accumulators, Quantizer
from vqverify.symbolic import oracles

EMA = ("learning=ema", "accumulators", "codebook", "codes", "levels", "deterministic")


@dataclass(frozen=True)
class Step:
    """One codebook before and after a training step on a batch, in float64.

    Attributes:
        views: latents, codes and codebook of the pass, at each level that searches this codebook.
        decay: γ of the whole step.
        n, S: count and sum of the latents of each code, (K,), (K, Dc).
        size: Σ|z| of the latents of each code, what a stack was given included, for bounds, (K,).
        terms: how many latents were added up for each code, for bounds, (K,).
        weights: of the latents of each view, in n and S.
        N, m: accumulators before; N2, m2, e2: accumulators and codebook after.
        u: unit roundoff of the accumulation.
        dtype: in which codes are kept, which may be a lower precision than that of their averages.
    """

    views: tuple[View, ...]
    decay: float
    n: Array
    S: Array
    size: Array
    terms: Array
    weights: tuple[float, ...]
    N: Array
    m: Array
    N2: Array
    m2: Array
    e2: Array
    u: float
    dtype: torch.dtype

    def kept(self, size: Array) -> Array:
        """What keeping codes of these norms may change in them, (K,)."""
        return kept_within(self.dtype, size, self.e.shape[1])

    @property
    def view(self) -> View:
        """The first level."""
        return self.views[0]

    @property
    def e(self) -> Array:
        """Codebook before the step."""
        return self.view.codebook


def steps(subject: Quantizer, case: Case) -> Iterator[Step]:
    """One training pass on the case's latents, a `Step` a codebook.

    Levels that share a codebook share its counts and sums: with all their latents at once, or one level after the
    other. L updates with γ in turn are one with γᴸ, where a latent of level l weighs (1 − γ)γᴸ⁻¹⁻ˡ / (1 − γᴸ).
    """
    before = subject.accumulators()
    out = subject.forward(case.z, train=True, seed=case.seed, trace=True)
    after, books = subject.accumulators(), subject.codebooks()
    found = list(views(out))
    stacked = "residual" in str(trait(subject, "structure")) and bool(found) and found[0].index == 0
    given = norms(found[0].z) if stacked else np.zeros(len(case.z))
    sharing = list(trait(subject, "sharing", range(len(before))))[: len(before)]
    for first in dict.fromkeys(sharing):
        mine = tuple(view for view in found if view.index < len(sharing) and sharing[view.index] == first)
        if len(mine) < sharing.count(first):
            continue  # a level was left out or not located: what it adds is not known
        yield _step(subject, mine, before[first], after[first], books[first], given)


def _step(
    subject: Quantizer, found: tuple[View, ...], old: Accumulators, new: Accumulators, book: Tensor, given: Array
) -> Step:
    """One codebook's step; `given` are the norms of what a stack was given, by which its remainders are rounded."""
    count, dim = found[0].codebook.shape
    decay, turns = float(trait(subject, "decay", np.nan)), len(found)
    weights = (1.0,) * turns
    u = max(roundoff(subject), torch.finfo(torch.float32).eps / 2)
    if turns > 1 and trait(subject, "sharing_order") == "in turn":
        weights = tuple((1 - decay) * decay ** (turns - 1 - turn) / (1 - decay**turns) for turn in range(turns))
        decay, u = decay**turns, u * turns
    n, total, size, terms = np.zeros(count), np.zeros((count, dim)), np.zeros(count), np.zeros(count)
    for view, weight in zip(found, weights, strict=True):
        kept = view.k >= 0
        received = np.bincount(view.k[kept], minlength=count).astype(float)
        n, terms = n + weight * received, terms + received
        np.add.at(total, view.k[kept], weight * view.z[kept])
        np.add.at(size, view.k[kept], weight * (norms(view.z) + given * (view.index > 0))[kept])
    return Step(
        found, decay, n, total, size, terms, weights,
        array(old.counts), array(old.sums), array(new.counts), array(new.sums), array(book), u, book.dtype,
    )  # fmt: skip


def smoothed(subject: Quantizer, N: Array) -> Array:
    """What the layer divides m by: N itself, Laplace-smoothed N, or N clamped from below."""
    eps = float(trait(subject, "smoothing", 0.0) or 0.0)
    kind = trait(subject, "smoothing_kind", "laplace" if eps else "none")
    if kind == "laplace" and eps:
        return oracles.laplace(N, eps)
    return np.maximum(N, eps) if kind == "clamp" else N


def stored(subject: Quantizer) -> bool:
    """Whether the smoothed counts are written back: then the counts kept are what m is divided by."""
    return bool(trait(subject, "smoothing_stored", False))


def kept(subject: Quantizer, N: Array) -> Array:
    """What the layer keeps as counts, given counts N after the moving average."""
    return smoothed(subject, N) if stored(subject) else N


def divisor(subject: Quantizer, N: Array) -> Array:
    """What m is divided by, given the counts that the layer keeps."""
    return N if stored(subject) else smoothed(subject, N)


def shrinkage(subject: Quantizer, step: Step) -> Array:
    """ρ of T21 after the step: the moving average of the counts over what m was divided by."""
    if not stored(subject):
        return step.N2 / smoothed(subject, step.N2)
    return (step.decay * step.N + (1 - step.decay) * step.n) / step.N2


def codes_from(subject: Quantizer, m: Array, N: Array) -> Array:
    """E = m / N̂, on the sphere for a cosine codebook."""
    with np.errstate(divide="ignore", invalid="ignore"):
        e = m / divisor(subject, N)[:, None]
        return e / norms(e)[:, None] if subject.domain.codebook == "sphere" else e
