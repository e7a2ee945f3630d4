"""How a codebook moves that keeps no averages which could be read: what holds whatever they are (theory T17)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from vqverify.bounds import Clause, within
from vqverify.case import Case
from vqverify.invariant import invariant
from vqverify.invariants.measure import array, kept_within, norms, traced, views
from vqverify.quantizer import Quantizer

OFF = 2e-2  # of the way to the mean, and of norms a twentieth of it: for smoothing that nobody could read


def unshared(subject: Quantizer) -> tuple[str | None, ...]:
    """Applies to codes that levels do not share, and that are not put back on a sphere."""
    books = subject.codebooks()
    twice = any(torch.equal(a, b) for i, a in enumerate(books) for b in books[:i] if a.shape == b.shape)
    return () if twice or subject.domain.codebook == "sphere" else (None,)


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
        # neighbours of the winner move too, soft assignments move all: these are other laws
        if not used.any() or (norms(e2 - e) > small)[~used].any():
            continue
        outside = norms(e2 - e) + norms(e2 - mean) - way
        yield within(
            outside[used], (OFF * way + small)[used], "hull", f"|e′ − e| + |e′ − z̄| − |z̄ − e|, level {view.index}"
        )
