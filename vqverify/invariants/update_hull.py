"""How a codebook moves that keeps no averages which could be read: what holds whatever they are (theory T17)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from vqverify.bounds import Clause, within
from vqverify.case import Case
from vqverify.invariant import invariant
from vqverify.invariants.measure import array, kept_within, norms, stream, traced, views
from vqverify.quantizer import Quantizer

OFF = 2e-2  # of the way to the mean, and of norms a twentieth of it: for smoothing that nobody could read


LONE = 6  # latents that are given alone to see what else moves
PASSES = 3  # with each: some layers move their codes in every other pass
STILL = 1e-6  # of its norm: a code that nothing moved


def unshared(subject: Quantizer) -> tuple[str | None, ...]:
    """Applies to codes that levels do not share, are not put back on a sphere, and move with their own latents alone."""
    books = subject.codebooks()
    twice = any(torch.equal(a, b) for i, a in enumerate(books) for b in books[:i] if a.shape == b.shape)
    return () if twice or subject.domain.codebook == "sphere" or not _alone(subject) else (None,)


def _alone(subject: Quantizer) -> bool:
    """Whether latents move their own code only: not the code's neighbours, nor all codes by soft shares."""
    book = subject.codebooks()[0]
    size = float(book.double().square().mean().sqrt()) or 1.0
    for seed in range(LONE):
        z = size * torch.randn(1, subject.domain.dim, generator=stream(seed))
        z = z.expand(subject.domain.min_n, -1).to(subject.domain.dtype)
        subject.restore()
        books = subject.codebooks()
        named: list[np.ndarray] = []
        for step in range(PASSES):
            out = subject.forward(z, train=True, seed=seed + step)
            if out.codes is None or out.codes.shape[1] != len(books):
                return False
            named.append(out.codes.cpu().numpy())
        for level, (old, new) in enumerate(zip(books, subject.codebooks(), strict=True)):
            e, e2 = array(old), array(new)
            others = np.ones(len(e), dtype=bool)
            others[np.clip(np.concatenate(named)[:, level], 0, len(e) - 1)] = False
            if (norms(e2 - e) > STILL * norms(e).max(initial=0.0))[others].any():
                return False
    return True


@invariant(
    "update.hull",
    source="theory T17",
    needs=(
        "learning=ema",
        "!accumulators",
        "replacement=none",
        "metric=euclidean",
        "codebook",
        "codes",
        "levels",
        "deterministic",
    ),
    parts=unshared,
    corners=("single", "unit", "parallel", "duplicates"),
    mutants=("ema_of_means", "kmeans_old_count"),
    hint="divide the sum of a code's latents by the count that they are part of; a sum for a mean, or the count before "
    "the step, moves the code past its latents.",
)
def hull(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A code that moves towards the mean of its latents goes no further than there, and nowhere else.

    Margin: a right layer is on the way up to rounding; a fiftieth of the way is left for smoothing that nobody can read.
    """
    if case.codebook is not None or case.history:
        return  # averages that are not seen would not suit codes that were written over them
    out = traced(subject, case)
    after = subject.codebooks()
    for view in views(out):
        e, e2, keep = view.codebook, array(after[view.index]), view.k >= 0
        n, mean = np.bincount(view.k[keep], minlength=len(e)).astype(float), np.zeros_like(e)
        np.add.at(mean, view.k[keep], view.z[keep])
        used = n > 0
        mean[used] /= n[used, None]
        size, way = norms(e) + norms(mean), norms(mean - e)
        small = OFF / 20 * size + 4 * kept_within(after[view.index].dtype, size, e.shape[1])
        if not used.any() or (norms(e2 - e) > small)[~used].any():
            continue
        outside = norms(e2 - e) + norms(e2 - mean) - way
        yield within(
            outside[used], (OFF * way + small)[used], "hull", f"|e′ − e| + |e′ − z̄| − |z̄ − e|, level {view.index}"
        )
