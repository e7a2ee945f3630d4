"""The first step of a codebook that data initialise: counts, sums and codes agree from the beginning (theory T17, T18)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from vqverify.bounds import Clause, within
from vqverify.case import Case
from vqverify.invariant import invariant
from vqverify.invariants.averages import EMA, divisor, stored
from vqverify.invariants.measure import array, norms, roundoff, stream, tiny, trait
from vqverify.quantizer import Quantizer

CROWD = 16  # latents a code in the first batch: where each code has one, sums and means are the same


def _first_batches(subject: Quantizer) -> tuple[str | None, ...]:
    """Layers that read their codes off their first batch, in the space of z_q, with counts that are kept as they are."""
    plan = getattr(subject, "plan", None)
    books = subject.codebooks()
    if not getattr(plan, "warm", 0) or len(books) != 1 or books[0].shape[1] != subject.domain.dim or stored(subject):
        return ()
    return (None,)


@invariant(
    "update.first_batch",
    source="theory T17, T18",
    needs=(*EMA, "metric=euclidean", "estimator=straight-through|none|rotation", "structure=plain"),
    mode="table",
    parts=_first_batches,
    corners=("generic",),
    mutants=("means_for_sums",),
    hint="after k-means the sums are counts times means: with bare means the first step divides them by the counts.",
)
def first_batch(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Codes that the first batch initialises lie, after its step, between their first places and the means of their latents.

    Margin: a detour of a triangle is of second order in the rounding, which the bound takes to be of first: the
    margin is small.
    """
    fresh = subject.build(warm=False)
    count, dim = subject.codebooks()[0].shape
    z = torch.randn((CROWD * count, dim), generator=stream(case.seed)).to(subject.domain.dtype)
    out = fresh.forward(z, train=True, seed=case.seed, grad=False)
    if out.codes is None or not fresh.accumulators():
        return
    k, rows, returned = out.codes[:, 0].cpu().numpy(), array(z), array(out.z_q.rows)
    N, e = array(fresh.accumulators()[0].counts), array(fresh.codebooks()[0])
    n = np.bincount(k, minlength=count).astype(float)
    total, first = np.zeros((count, dim)), np.zeros((count, dim))
    np.add.at(total, k, rows)
    first[k] = returned
    used = (n > 0) & (N > 1e-3)
    mean = total[used] / n[used][:, None]
    rho = N[used] / divisor(fresh, N)[used]
    new, old = e[used] / rho[:, None], first[used]
    outside = np.abs(norms(new - old) + norms(new - mean) - norms(mean - old))
    u = max(roundoff(subject), torch.finfo(torch.float32).eps / 2)
    # as in update.convex, the code read off z_q = z + sg(q − z) (T14) or off λRz far from the antipode (T5)
    size = norms(old) + norms(mean) + norms(rows).max()
    forward = 2 * u * (9 * dim + 50) * size if trait(subject, "estimator") == "rotation" else 4 * u * size
    sums = 2 * (n[used] + count + 16) * u * size * (1 + 2 * n[used])
    yield within(outside, sums + 2 * forward + tiny(subject), "convex", "first step off the way from code to mean")
