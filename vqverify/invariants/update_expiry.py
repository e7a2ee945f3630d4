"""Codes that nothing uses, replaced by latents of the batch (theory T18, T22; 001 §2; Zeghidour 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from vqverify.bounds import Clause, holds, within
from vqverify.case import Case
from vqverify.invariant import Undetermined, invariant
from vqverify.invariants.averages import codes_from, kept
from vqverify.invariants.measure import Array, Mask, View, array, norms, roundoff, tiny, trait, views
from vqverify.quantizer import Accumulators, Quantizer
from vqverify.symbolic import oracles

COARSE = 2e-2  # what tells a replaced code where smoothing is unknown


@dataclass(frozen=True)
class Pass:
    """One level around one training pass, in float64.

    Attributes:
        view: latents, codes and codebook of the pass.
        n: latents of each code, (K,).
        N: counts as averages give them after the pass, before anything is replaced; None if there are none.
        e: codes likewise, (K, Dc).
        N2, m2: accumulators after the pass, or None.
        e2: codes after the pass.
        off: what rounding may do to e, (K,).
    """

    view: View
    n: Array
    N: Array | None
    e: Array
    N2: Array | None
    m2: Array | None
    e2: Array
    off: Array

    def replaced(self) -> Mask:
        """Codes that are not what averages make of them; where that is unknown, those that became latents."""
        new = norms(self.e2 - self.view.codebook) > 1e-3 * norms(self.e2)
        exact = norms(self.e2[:, None] - self.view.z).min(1) <= 1e-6 * norms(self.e2)
        return ~(norms(self.e2 - self.e) <= self.off) | (np.isinf(self.off) & exact & new)


def probed(subject: Quantizer) -> tuple[str | None, ...]:
    """Applies where probing saw whether rare codes become latents.

    Raises:
        Undetermined: if they become something else, such as the most used code and some noise: that may be meant.
    """
    found = subject.found.get("replacement")
    if found is None or found.value is None:
        said = found.evidence if found else "not probed"
        raise Undetermined(f"nobody saw a rare code become a latent or stay: {said}")
    return (None,)


@invariant(
    "update.expiry",
    mode="table",
    parts=probed,
    source="001 §2; theory T18, T22",
    needs=("replacement=batch", "codebook", "codes", "levels", "settable"),
    corners=("generic", "single", "on-code", "duplicates", "unit"),
    follows=("honesty.traits[replacement]",),
    mutants=("expiry_forgets_sums", "expiry_duplicates", "expiry_of_frequent", "expiry_off_sphere", "expiry_too_early"),
    hint="after the step, write latents as the layer compares them, without repetition, into codes and sums, N as well.",
)
def expiry(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A code that is unused for longer than the lifespan, or rare, becomes a current latent, with its accumulators.

    In the layer's own space, judged right after the step, a level on its own, no latent twice if they suffice; a code
    that is used, or frequent, does not.

    Margin: mostly 0, since latents are copied.
    """
    rule = trait(subject, "replacement_rule", "count")
    life = int(trait(subject, "lifespan", 1))
    case = replace(case, z=_crowd(subject, case))
    ages: dict[int, tuple[Array, Array]] = {}
    for step in range(life + 2 if rule == "age" else 2):
        if rule == "count":
            subject.set_accumulators(_spread(subject, case.seed, -3 if step else -9))
        for one in passes(subject, case, step):
            gone, index = one.replaced(), one.view.index
            yield from _replaced_well(subject, one, gone)
            if rule == "count" and one.N is not None:
                yield from _rare(subject, one, gone)
            if rule == "age":
                least, most = ages.get(index, (np.zeros(len(one.n)), np.full(len(one.n), np.inf)))
                least, most = (np.where(one.n > 0, 0, age + 1) for age in (least, most))
                yield from _old(one, gone, least, most, life)
                ages[index] = (np.where(gone, 0, least), np.where(gone, 0, most))


def _crowd(subject: Quantizer, case: Case) -> torch.Tensor:
    """As many latents as codes around two of the case's, so that many codes are unused and the latents just suffice.

    A single latent stays alone.
    """
    n = max(subject.domain.min_n, len(subject.codebooks()[0]))
    if len(case.z) <= subject.domain.min_n:
        return case.z
    z = case.z[:2].repeat(-(-n // 2), 1)[:n]
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(case.seed)).to(z)
    return z + 2.0**-7 * (case.z.abs().max() + 2.0**-7) * noise


def _spread(subject: Quantizer, seed: int, lowest: int) -> list[Accumulators]:
    """Counts from 10ˡ to 10ˡ⁺⁶ in another order for each seed, and the sums that go with the codes."""
    found: list[Accumulators] = []
    for old, e in zip(subject.accumulators(), subject.codebooks(), strict=False):
        order = torch.randperm(len(e), generator=torch.Generator().manual_seed(seed))
        counts = torch.logspace(lowest, lowest + 6, len(e))[order].to(old.counts)
        found.append(Accumulators(counts, e.to(old.sums) * counts[:, None].to(old.sums)))
    return found


def passes(subject: Quantizer, case: Case, step: int) -> Iterator[Pass]:
    """One training pass on the case's latents, a `Pass` a level.

    Raises:
        Undetermined: if codes move by a law that is unknown.
    """
    before = subject.accumulators()
    out = subject.forward(case.z, train=True, seed=case.seed + step, trace=True)
    after, books = subject.accumulators(), subject.codebooks()
    found = list(views(out))
    sharing = list(trait(subject, "sharing", range(len(books))))[: len(books)]
    for first in dict.fromkeys(sharing):
        mine = [view for view in found if view.index < len(sharing) and sharing[view.index] == first]
        if len(mine) < sharing.count(first) or (len(mine) > 1 and trait(subject, "sharing_order") == "in turn"):
            continue  # not located; or a level replaces what the next one uses
        old, new = (states[first] if first < len(states) else None for states in (before, after))
        if (old is None) == bool(before):
            continue
        if (compared := _compared(subject, _together(mine))) is not None:
            yield _pass(subject, compared, old, new, array(books[first]))


def _together(found: list[View]) -> View:
    """Levels, or heads, that search one codebook in one pass, as one."""
    z, q, k = (np.concatenate([getattr(view, name) for view in found]) for name in ("z", "q", "k"))
    return replace(found[0], z=z, q=q, k=k)


def _compared(subject: Quantizer, view: View) -> View | None:
    """The latents as codes on the sphere are compared with them, wherever they are normalised; None if one has no direction."""
    if subject.domain.codebook != "sphere":
        return view
    size = norms(view.z)[:, None]
    return replace(view, z=view.z / size) if (size > 0).all() else None


def _pass(subject: Quantizer, view: View, old: Accumulators | None, new: Accumulators | None, book: Array) -> Pass:
    n, total, size = np.zeros(len(book)), np.zeros_like(book), np.zeros(len(book))
    seen = view.k >= 0
    np.add.at(n, view.k[seen], 1.0)
    np.add.at(total, view.k[seen], view.z[seen])
    np.add.at(size, view.k[seen], norms(view.z[seen]))
    u = max(roundoff(subject), torch.finfo(torch.float32).eps / 2)
    decay = trait(subject, "decay")
    moves = "ema" in trait(subject, "learning", ())
    if moves and decay is None:
        raise Undetermined("codes move in a training pass by a law that is unknown")
    counts, after = None, (None, None)
    if old is not None and new is not None and decay is not None:
        N, m, _ = oracles.ema_step(array(old.counts), array(old.sums), n, total, float(decay))
        counts, after = N, (array(new.counts), array(new.sums))
        if moves:
            e = codes_from(subject, m, kept(subject, N))
            weight = decay * norms(array(old.sums)) + (1 - decay) * size
            off = (n + len(n) + 24) * u * weight * norms(e) / np.maximum(norms(m), tiny(subject))
            known = subject.domain.codebook == "sphere" or trait(subject, "smoothing") is not None
            off = off if known else np.where(N > 1 / 64, off + COARSE * norms(e), np.inf)
            return Pass(view, n, N, e, *after, book, np.where(np.isfinite(off), off, np.inf))
    rate = np.where(n > 0, 1 - float(decay or 0.0), 0.0)[:, None] if moves else 0.0
    e = view.codebook + rate * (total / np.maximum(n, 1)[:, None] - view.codebook)
    e = e / norms(e)[:, None] if moves and subject.domain.codebook == "sphere" else e
    off = (n + 16) * u * (norms(view.codebook) + size) * moves
    return Pass(view, n, counts, e, *after, book, off)


def _replaced_well(subject: Quantizer, one: Pass, gone: Mask) -> Iterator[Clause]:
    """What is not as averages have it is a latent of the batch, has accumulators to suit, and no other code has it."""
    if not gone.any():
        yield holds(condition=True, label="latent", message="")
        return
    index, u = one.view.index, max(roundoff(subject), torch.finfo(torch.float32).eps / 2)
    z, codes = one.view.z, one.e2[gone]
    apart = norms(codes[:, None] - z)
    nearest = apart.argmin(1)
    allowed = (z.shape[1] + 8) * u * norms(z)[nearest] + tiny(subject)
    yield within(apart.min(1), allowed, "latent", f"distance of a replaced code to the nearest latent, level {index}")
    if one.N2 is not None and one.m2 is not None:
        yield holds(bool((one.N2[gone] > 0).all()), "counts", f"replaced codes of level {index} start with count 0")
        want = one.N2[gone, None] * codes
        error = norms(one.m2[gone] - want)
        yield within(error, 8 * u * norms(want) + tiny(subject), "sums", f"|m − N e| of replaced codes, level {index}")
    rows, held = np.unique(z, axis=0, return_counts=True)
    if gone.sum() <= len(z) and (apart.min(1) <= allowed).all():
        taken = np.bincount(norms(codes[:, None] - rows).argmin(1), minlength=len(rows))
        twice = int((taken > held).sum())
        yield holds(not twice, "duplicates", f"{twice} latents replace more codes of level {index} than they are")


def _rare(subject: Quantizer, one: Pass, gone: Mask) -> Iterator[Clause]:
    """Which codes were replaced: those below one threshold of N′, the declared one if there is one."""
    assert one.N is not None
    u = 16 * max(roundoff(subject), torch.finfo(torch.float32).eps / 2)
    claim = subject.claims.get("dead_below")
    if claim is None:
        left = ~gone & ~_latents(one)
        if gone.any() and left.any() and gone.sum() < len(one.view.z):
            reach, kept_ = one.N[gone].max(), one.N[left].min()
            yield holds(
                reach <= kept_ * (1 + u), "order", f"a code with N′ = {reach:.3g} went, one with {kept_:.3g} not"
            )
        return
    dead, alive = (claim.value * (1 - u) > one.N), (claim.value * (1 + u) < one.N)
    yield holds(
        not (gone & alive).any(), "frequent", f"{int((gone & alive).sum())} codes above {claim.value:g} were replaced"
    )
    if dead.sum() <= len(one.view.z):
        late = dead & ~gone & ~_latents(one)
        yield holds(not late.any(), "rare", f"{int(late.sum())} codes with N′ below {claim.value:g} were not replaced")


def _old(one: Pass, gone: Mask, least: Array, most: Array, life: int) -> Iterator[Clause]:
    """Which codes were replaced: those unused for `life` steps; how long before the first pass is unknown."""
    early = gone & (most < life)
    yield holds(
        not early.any(), "early", f"{int(early.sum())} codes were replaced within {life} steps of their last use"
    )
    late = ~gone & (least >= life) & ~_latents(one)
    if (least >= life).sum() <= len(one.view.z):
        yield holds(not late.any(), "late", f"{int(late.sum())} codes stay after {life} steps without use")


def _latents(one: Pass) -> Mask:
    """Codes that are latents, so that it does not show whether they were replaced."""
    apart = norms(one.e2[:, None] - one.view.z).min(1)
    return apart <= one.off + 1e-6 * norms(one.e2)
