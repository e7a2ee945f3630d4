"""What every identifier starts from: latents in general position, and a few passes that all of them share."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqverify.bounds import Violation
from vqverify.quantizer import Accumulators, Finding, Quantized

if TYPE_CHECKING:
    from collections.abc import Callable

    from vqverify.subject.layer import Layer

Findings = dict[str, Finding]
SEEDS = 16  # tried for a pass without dropout: with L levels one in L has none
CLUSTERS = 6  # few codes with many latents each: the count n dominates N, so rounding of N hardly matters


class Unknown(Exception):  # noqa: N818
    """Probing cannot decide; the message is the evidence."""


@dataclass(frozen=True)
class Step:
    """One training pass with the state around it."""

    out: Quantized
    before: tuple[Tensor, ...]
    after: tuple[Tensor, ...]
    counted: tuple[Accumulators, ...]
    recounted: tuple[Accumulators, ...]


@dataclass(frozen=True)
class Probe:
    """A layer and the passes made on it; each pass starts from the layer as built."""

    layer: Layer
    n: int

    @cached_property
    def scale(self) -> float:
        """The size of a latent's entries that suits the codes: theirs where latents and codes share a space."""
        books = self.layer.codebooks()
        if books and books[0].shape[1] == self.layer.domain.dim:
            size = float(books[0].double().square().mean().sqrt())
            if 1e-6 < size < 1e6:
                return size
        return 1.0

    def latents(self, n: int, seed: int = 0) -> Tensor:
        """Latents (n, D) in general position, of the codes' size."""
        generator = torch.Generator().manual_seed(1000 + seed)
        z = self.scale * torch.randn(n, self.layer.domain.dim, generator=generator, dtype=torch.float64)
        return z.to(self.layer.domain.dtype)

    @cached_property
    def z(self) -> Tensor:
        """The latents that most passes use."""
        return self.latents(self.n)

    @cached_property
    def clustered(self) -> Tensor:
        """Latents crowded around a few centres, so that few codes receive many."""
        centres = self.latents(CLUSTERS, seed=1).repeat_interleave(max(1, self.n // CLUSTERS), 0)
        return centres + 0.02 * self.latents(len(centres), seed=2)

    @cached_property
    def lone(self) -> Tensor:
        """As many latents around one centre, so that most codes receive none."""
        centre = self.clustered[:1].expand(len(self.clustered), -1)
        return centre + 0.02 * self.latents(len(centre), seed=2)

    def run(self, z: Tensor, *, train: bool, seed: int = 0, trace: bool = False) -> Quantized:
        """One pass from the state as built.

        Raises:
            Unknown: if z_q is not finite.
        """
        self.layer.restore()
        out = self.layer.forward(z, train=train, seed=seed, trace=trace)
        if not bool(out.z_q.tensor.isfinite().all()):
            raise Unknown(f"z_q of a {'train' if train else 'eval'} pass is not finite")
        return out

    @cached_property
    def train(self) -> Quantized:
        """A traced training pass."""
        return self.run(self.z, train=True, seed=self.seed, trace=True)

    @cached_property
    def seed(self) -> int:
        """A seed with which a training pass drops no level (structured dropout), where there is one."""
        for seed in range(SEEDS):
            codes = self.run(self.z[: max(2, self.layer.domain.min_n)], train=True, seed=seed).codes
            if codes is None or not bool((codes < 0).all(0).any()):
                return seed
        return 0

    @cached_property
    def evaluation(self) -> Quantized:
        """A traced eval pass."""
        return self.run(self.z, train=False, trace=True)

    def step(self, z: Tensor, prepare: Callable[[], None] | None = None) -> Step:
        """A traced training pass from the state as built (and then prepared), with what it changed."""
        seed = self.seed
        self.layer.restore()
        if prepare is not None:
            prepare()
        before, counted = self.layer.codebooks(), self.layer.accumulators()
        out = self.layer.forward(z, train=True, seed=seed, trace=True)
        return Step(out, before, self.layer.codebooks(), counted, self.layer.accumulators())

    @cached_property
    def crowded(self) -> Step:
        """The training pass on clustered latents."""
        return self.step(self.clustered)


def attempt(*names: str) -> Callable[[Callable[[Probe], Findings]], Callable[[Probe], Findings]]:
    """Decorate an identifier of the named traits: whatever goes wrong inside leaves them unknown, with the reason."""

    def decorate(identifier: Callable[[Probe], Findings]) -> Callable[[Probe], Findings]:
        @functools.wraps(identifier)
        def guarded(probe: Probe) -> Findings:
            try:
                found = identifier(probe)
            except Violation as violation:
                reason = violation.message
            except Unknown as unknown:
                reason = str(unknown)
            except Exception as error:  # noqa: BLE001
                reason = f"probing failed: {type(error).__name__}: {error}"[:200]
            else:
                reason = "not probed"
                return {name: found.get(name, unknown_(reason)) for name in names} | found
            return {name: unknown_(reason) for name in names}

        return guarded

    return decorate


def unknown_(reason: str) -> Finding:
    """The finding that says nothing, and why."""
    return Finding(None, "identified", reason)


def dormant(reason: str) -> Finding:
    """The finding for a trait that shows only where something moves, and nothing does."""
    return Finding(None, "identified", f"dormant: {reason}")


def code_rows(out: Quantized, level: int, table: Tensor) -> Tensor:
    """The code e[k] of each latent at one level, (N, Dc)."""
    assert out.codes is not None
    return table[out.codes[:, min(level, out.codes.shape[1] - 1)].clamp_min(0)]


def latents_at(out: Quantized, level: int) -> Tensor:
    """z_c of one level; z itself where the level was not located but has z's space.

    Raises:
        Unknown: if code space was not located.
    """
    if out.levels:
        node = out.levels[level].z_c
        if node is not None:
            return node.rows.detach()
    elif out.codes is not None and out.codes.shape[1] == 1 and same_space(out):
        return out.z.rows.detach()
    raise Unknown("code space was not located")


def same_space(out: Quantized) -> bool:
    """Whether codes have the length of latents, as far as the codebook is known."""
    return all(e.shape[1] == out.z.rows.shape[1] for e in out.codebook)


def relative(error: Tensor, size: Tensor) -> float:
    """|error| / |size|, in float64; 0 / 0 is 0."""
    top, bottom = float(error.double().norm()), float(size.double().norm())
    return 0.0 if top == 0 else top / bottom if bottom else float("inf")
