"""Cells of a lookup: codes stand, ties are settled in one way, and cells move with the codes (theory T27, T28)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vqverify.bounds import Clause, holds, within
from vqverify.case import Case, prepare
from vqverify.invariant import invariant
from vqverify.invariants.agreement import EXACT_VALUE, distance_gap
from vqverify.invariants.measure import (
    SAFE,
    Array,
    Mask,
    array,
    kept_within,
    norms,
    rotation_law_bound,
    roundoff,
    tiny,
    traced,
    trait,
    views,
)
from vqverify.quantizer import Quantizer


@invariant(
    "lookup.codes_are_fixed_points",
    follows=(
        "lookup.nearest",
        "lookup.cosine_scale_free",
        "lookup.cosine_sphere",
    ),
    source="theory T27",
    corners=("single",),
    needs=("codes", "codebook", "levels", "deterministic", "structure=plain", "metric=euclidean|cosine"),
    mutants=("argmax_lookup",),
    hint="a code put through the quantizer must come back: check the space in which distances are taken.",
)
def codes_are_fixed_points(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Quantising a code returns it (or a duplicate of it)."""
    table = subject.codebooks()[0]
    if table.shape[1] != subject.domain.dim:
        return
    u = roundoff(subject)
    count = max(subject.domain.min_n, min(len(table), 64))
    z = table[torch.arange(count) % len(table)].to(subject.domain.dtype)
    for view in views(subject.forward(z, train=False, seed=case.seed, trace=True)):
        want = array(table)[np.arange(count) % len(table)]
        arrived = _unmoved(view.z, want, cosine=trait(subject, "metric") == "cosine")
        want, got = want[arrived], array(table)[view.k[arrived]]
        if not len(want):
            continue
        if trait(subject, "metric") == "cosine":
            directed = norms(want) > 1e-3  # a code at the origin has no direction to be found by
            want, got = want[directed], got[directed]
            if not len(want):
                continue
            want, got = (x / np.maximum(norms(x)[:, None], 1e-12) for x in (want, got))
        d = want.shape[1]
        reach = np.sqrt(2 * (d + 4) * u) * (norms(want) + norms(got)) + 1e-4
        yield within(norms(got - want), reach, "fixed point", "distance between a code and the code chosen for it")


def _unmoved(latents: Array, z: Array, *, cosine: bool = False) -> Mask:
    """Rows where the layer searches what it was given, or its direction; not a multiple or a projection of it."""
    if latents.shape != z.shape:
        return np.zeros(len(z), bool)
    if cosine:
        latents, z = (x / np.maximum(norms(x)[:, None], 1e-30) for x in (latents, z))
    return norms(latents - z) <= 1e-4 * norms(z)


@invariant(
    "lookup.discrete",
    source="definition of a quantizer",
    needs=("!codes", "!codebook", "estimator!=noise"),
    corners=("single",),
    mutants=("rounding_left_out",),
    hint="nothing was rounded or looked up: the bound is there, and the round is not.",
)
def discrete(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A layer without codes quantises all the same: most small moves of a latent leave z_q where it is."""
    if len(case.z) < 8:
        return
    z = case.z / case.z.abs().amax(1, keepdim=True).clamp_min(1e-6)
    moved = z * (1 + 2.0**-12)
    a, b = (array(subject.forward(x, train=False, seed=case.seed, grad=False).z_q.rows) for x in (z, moved))
    alive = np.any(array(z) != 0, axis=1)
    still = np.all(np.abs(a - b) <= 16 * roundoff(subject) * np.maximum(np.abs(a), 1), axis=1)
    if alive.sum() >= 8:
        share = still[alive].mean()
        yield holds(
            share >= 0.5, "discrete", f"z_q of {1 - share:.0%} of the latents moves with a step of 2⁻¹² of the latent"
        )


@invariant(
    "lookup.star_shaped",
    follows=("lookup.nearest", "interface.eval_deterministic"),
    source="theory T27 (cells are convex)",
    corners=("single", "unit"),
    needs=("codes", "codebook", "deterministic", "structure=plain", "metric=euclidean", "levels"),
    mutants=("argmax_lookup",),
    hint="cells of a nearest-code lookup are convex: noise, argmax or another metric breaks this without any oracle.",
)
def star_shaped(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Moving a latent half-way towards its own code never changes the code, up to ties."""
    u = roundoff(subject)
    first = next(views(traced(subject, case, train=False)), None)
    if first is None or first.z.shape != case.z.shape:
        return
    moved = torch.from_numpy((first.z + first.q) / 2).to(subject.domain.dtype)
    second = next(views(subject.forward(moved, train=False, seed=case.seed, trace=True)), None)
    if second is None:
        return
    z, book, k = array(moved), first.codebook, second.k
    searched = _unmoved(first.z, array(case.z)) & _unmoved(second.z, z)
    if not searched.any():
        return
    # |z − c₁|² − |z − c₂|² is affine in z and not positive at c₁: half-way it is at most half of what T28 allows at z
    excess = ((z - book[k]) ** 2).sum(1) - ((z - book[first.k]) ** 2).sum(1)
    reach = (norms(first.z) + norms(z) + norms(book).max()) ** 2 * (2 * len(z[0]) + 8) * u + 2e-8
    left = (k != first.k) & searched
    yield within(np.where(left, excess, 0.0), reach, "cell", "a latent left its cell on the way to its code")


def in_own_space(subject: Quantizer) -> bool:
    """Whether the latents that are compared with codes are z itself, so that z and e may be moved together."""
    books = subject.codebooks()
    if len(books) != 1 or books[0].shape[1] != subject.domain.dim or subject.domain.codebook == "sphere":
        return False
    count = max(2 * len(books[0]), subject.domain.min_n)
    spread = books[0].std().clamp_min(1e-3)
    noise = torch.randn(count, subject.domain.dim, generator=torch.Generator().manual_seed(0xCE11))
    z = (books[0][torch.arange(count) % len(books[0])] + spread * noise.to(books[0])).to(subject.domain.dtype)
    out = subject.forward(z, train=False, trace=True)
    if out.codes is None or out.codes.shape[1] != 1:
        return False
    seen = next(views(out), None)
    if seen is not None and not np.allclose(seen.z, array(z), rtol=1e-5, atol=1e-5 * float(spread)):
        return False
    q = array(books[0])[out.codes[:, 0].cpu().numpy()]
    return bool((norms(array(out.z_q.rows) - q) <= 1e-3 * (norms(q) + norms(array(z)))).mean() > 0.5)


def _motions(subject: Quantizer) -> tuple[str, ...]:
    """All motions at once where nothing comes between latents and codes; else codes can only be renumbered."""
    return ("moved",) if in_own_space(subject) else ("permuted",)


@dataclass(frozen=True)
class Motion:
    """A map x ↦ factor · x[axes] · signs + shift of latents and codes, and an order for the codes."""

    order: Tensor
    axes: Tensor
    signs: Tensor
    shift: Tensor
    factor: float = 1.0

    def __call__(self, rows: Tensor) -> Tensor:
        """The moved rows, rounded once by the factor and once by the shift."""
        return self.factor * rows[:, self.axes] * self.signs.to(rows) + self.shift.to(rows)


def _motion(part: str, size: int, dim: int, reach: float, seed: int) -> Motion:
    generator = torch.Generator().manual_seed(0x407E + seed)
    order, axes = torch.randperm(size, generator=generator), torch.randperm(dim, generator=generator)
    if part == "permuted":
        return Motion(order, torch.arange(dim), torch.ones(dim), torch.zeros(dim))
    signs, sides = (torch.randint(0, 2, (dim,), generator=generator) * 2.0 - 1 for _ in range(2))
    return Motion(order, axes, signs, sides * 2.0 ** np.ceil(np.log2(max(reach, 2.0**-20))), 3.0)


@invariant(
    "lookup.equivariance",
    follows=("lookup.nearest", "interface.eval_deterministic"),
    source="theory T27, T28",
    needs=("codes", "codebook", "settable", "deterministic", "structure=plain", "metric=euclidean"),
    parts=_motions,
    corners=("single", "unit", "on-code", "tie", "generic"),
    mutants=("lookup_biased_by_index", "lookup_rounds_distances"),
    hint="a distance knows neither the index of a code nor the origin nor the unit: look for a bias, an ε, a round().",
)
def equivariance(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Permuting the codes permutes the indices; rotating, scaling and translating latents and codes together moves z_q along."""
    book = subject.codebooks()[0]
    assert case.part is not None
    out = subject.forward(case.z, train=False, seed=case.seed)
    if out.codes is None:
        return
    reach = float(max(book.abs().max(), case.z.abs().max()))
    if not 2.0**-20 < reach < min(2.0**40, torch.finfo(book.dtype).max / 8):
        return
    kept, book = book.dtype, book.to(torch.promote_types(book.dtype, case.z.dtype))
    size, dim = book.shape
    move = _motion(case.part, size, dim, reach, case.seed)
    moved = case.z if case.part == "permuted" else move(case.z)
    prepare(subject, case)
    subject.set_codebook([move(book)[move.order]])
    again = subject.forward(moved, train=False, seed=case.seed)
    assert again.codes is not None
    first, second = out.codes[:, 0].cpu(), move.order[again.codes[:, 0].cpu()]
    u, value = roundoff(subject), array(out.z_q.rows)
    if book.shape[1] == case.z.shape[1] and trait(subject, "levels", default=False):
        yield from _same_cell(subject, (case.z, book), (moved, move(book)), first, second, move.factor, kept)
    same = (first == second).numpy()
    want = value if case.part == "permuted" else array(move(torch.from_numpy(value)))  # through a projection, too
    # z + sg(q − z) rounds twice (T14), a rotation within its law, the map once; a pass on the same rows hardly at all
    own = book.shape[1] == case.z.shape[1]  # behind a projection the first pass has to do for the codes
    codes = [array(x)[first.clamp_min(0).numpy()] if own else v for x, v in ((book, value), (move(book), want))]
    sizes = [norms(array(z)) + norms(q) for z, q in zip((case.z, moved), codes, strict=True)]
    reached = move.factor * sizes[0] + sizes[1]
    bound = 4 * u * reached + kept_within(kept, norms(codes[1]), dim) + np.sqrt(case.z.shape[1]) * tiny(subject)
    if trait(subject, "estimator") not in EXACT_VALUE:
        laws = [rotation_law_bound(array(z), q, u) for z, q in zip((case.z, moved), codes, strict=True)]
        bound = bound + np.where(np.maximum(*laws) < SAFE, (laws[0] + laws[1]) * reached, np.inf)
    keep = same & np.isfinite(bound)
    if keep.any():
        yield within(
            norms(array(again.z_q.rows) - want)[keep], bound[keep], "value", f"z_q of the {case.part} latents and codes"
        )


def _same_cell(
    subject: Quantizer,
    before: tuple[Tensor, Tensor],
    after: tuple[Tensor, Tensor],
    first: Tensor,
    second: Tensor,
    factor: float,
    kept: torch.dtype,
) -> Iterator[Clause]:
    """Where two passes chose differently, both codes were nearest up to T28 in either, and the rounding of the map."""
    u = roundoff(subject)
    differ = (first != second).numpy()
    z, w = array(after[0]), array(after[1])
    a, b = w[first.numpy()], w[second.numpy()]
    gap, bound = distance_gap("euclidean", z, a, b, u)
    z_old, old = array(before[0]), array(before[1])
    _, bound_old = distance_gap("euclidean", z_old, old[first.numpy()], old[second.numpy()], u)
    rounding = 4 * u * (norms(z) + np.maximum(norms(a), norms(b))) * (norms(z - a) + norms(z - b))
    stored = kept_within(kept, np.maximum(norms(a), norms(b)), z.shape[1])  # the moved codes, as they are kept
    rounding = rounding + 2 * stored * (norms(z - a) + norms(z - b) + stored)
    allowed = bound + factor**2 * bound_old + rounding
    yield within(np.where(differ, gap, 0.0), allowed, "codes", "what the other code is nearer by")


def _own(subject: Quantizer) -> tuple[str | None, ...]:
    return (None,) if in_own_space(subject) else ()


@invariant(
    "lookup.tie_stable",
    follows=("lookup.nearest", "interface.eval_deterministic", "interface.batch_independence"),
    source="theory T27, T28 (unstable merges)",
    mode="table",
    needs=(
        "codes",
        "codebook",
        "settable",
        "deterministic",
        "structure=plain",
        "metric=euclidean|dot",
        "alternating!=True",
    ),
    parts=_own,
    corners=("single", "unit"),
    mutants=("ties_by_chunk", "ties_flip_in_eval"),
    hint="merge chunks with a strict <, in the order of the index: the first of equal distances wins, whatever the batch.",
)
def tie_stable(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Equal distances are resolved in the same way in train and in eval and across batch sizes.

    Latents and codes are small integers: every sum is exact in any order, so that the ties are ties.
    """
    (own,) = subject.codebooks()
    size, dim = own.shape
    if dim * 64 * roundoff(subject) > 0.5:
        return
    generator = torch.Generator().manual_seed(0x71E + case.seed)
    drawn = torch.randint(-2, 3, (-(-size // 4), dim), generator=generator).double()
    book = torch.stack([drawn, -drawn, drawn, -drawn], 1).flatten(0, 1)[:size]
    if size % 2:
        book[-1] = 0.0  # the mean of the codes is 0, for a lookup that subtracts it
    elif size % 4:
        book[-1] = -book[-2]
    z = torch.randint(-2, 3, (40, dim), generator=generator).to(subject.domain.dtype)
    z[::5] = 0

    def codes(batch: Tensor, *, train: bool = False) -> Tensor:
        subject.restore()
        subject.set_codebook([book.to(own)])
        out = subject.forward(batch, train=train, seed=case.seed, grad=False)
        assert out.codes is not None
        return out.codes[:, 0].cpu()

    want = codes(z)
    yield holds(
        torch.equal(codes(z, train=True), want), "modes", "latents half-way between codes get others in train and eval"
    )
    for count in (1, 3, 40 * 8):
        if count >= subject.domain.min_n:
            many = z.repeat(max(1, count // 40), 1)[:count] if count >= 40 else z[-count:]
            expected = want.repeat(max(1, count // 40))[:count] if count >= 40 else want[-count:]
            yield holds(
                torch.equal(codes(many), expected),
                "batch size",
                f"latents half-way between codes get others in batches of {count} and of 40",
            )
