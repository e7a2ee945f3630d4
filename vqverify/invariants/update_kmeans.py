"""The first codes, where the first batch gives them (theory T24: a step of Lloyd's algorithm never raises Σ|z − c|²)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from vqverify.bounds import Clause, within
from vqverify.case import Case
from vqverify.invariant import invariant
from vqverify.invariants.measure import Array, Rows, array, norms, rotation_law_bound, roundoff, tiny, trait
from vqverify.invariants.weights import constructed
from vqverify.quantizer import Quantizer


@invariant(
    "update.kmeans_init",
    mode="table",
    source="Łańcucki 2020; theory T24",
    needs=("initialisation=kmeans", "codebook", "codes", "structure=plain"),
    corners=("generic", "unit", "duplicates", "single"),
    follows=("honesty.traits[initialisation]",),
    mutants=("kmeans_wrong_counts", "kmeans_sign"),
    hint="divide the sums by the counts of the same assignment, and keep the centre of a cluster that is empty.",
)
def kmeans_init(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """After a start by k-means each used code is the mean of its cluster, and Lloyd's objective never rises.

    Judged on few latents, where ten iterations are enough: what has not converged yet is not judged.
    """
    z = _crowd(subject, case)
    first = _started(subject, z, case.seed)
    if first is None:
        return
    rows, q, k = first
    means, n = _means(rows, k)
    if not _settled(rows, means, n, k):
        return
    off = norms(q - means[k])
    yield within(off, _allowed(subject, rows, means, n, k), "mean", "|c − mean of its cluster| after the first batch")
    yield from _descends(subject, case, z)


def _crowd(subject: Quantizer, case: Case) -> torch.Tensor:
    """The latents of the case, and more of their size: half as many again as there are codes."""
    most = max(subject.domain.min_n, 3 * len(subject.codebooks()[0]) // 2)
    generator = torch.Generator().manual_seed(1000 + case.seed)
    size = float(case.z.abs().max()) or 1.0
    more = size * torch.randn(max(0, most - len(case.z)), case.z.shape[1], generator=generator)
    return torch.cat([case.z, more.to(case.z)])


def _started(subject: Quantizer, z: torch.Tensor, seed: int, **overrides: int) -> tuple[Array, Array, Rows] | None:
    """Latents (N, D) as the codes see them, codes' rows (N, D) and indices (N,) of the first pass of a new layer."""
    twin = subject.build(overrides, warm=False)
    out = twin.forward(z, train=True, seed=seed, grad=False)
    rows, q = array(out.z.rows), array(out.z_q.rows)
    if out.codes is None or out.codes.shape[1] != 1 or twin.codebooks()[0].shape[1] != z.shape[1]:
        return None
    if subject.domain.codebook == "sphere" or trait(subject, "metric") == "cosine":
        length = norms(rows)
        if not length.all():
            return None
        rows = rows / length[:, None]
    return rows, q, out.codes[:, 0].cpu().numpy()


def _means(rows: Array, k: Rows) -> tuple[Array, Array]:
    n = np.bincount(k).astype(float)
    total = np.zeros((len(n), rows.shape[1]))
    np.add.at(total, k, rows)
    means = total / np.maximum(n, 1)[:, None]
    if np.allclose(norms(rows), 1, atol=1e-12):  # directions of means, where latents are directions
        means = means / np.maximum(norms(means), 1e-30)[:, None]
    return means, n


def _settled(rows: Array, means: Array, n: Array, k: Rows) -> bool:
    """Whether the assignment is the one that its own means give: Lloyd's algorithm has converged there."""
    squares = np.square(rows[:, None] - means[n > 0]).sum(2)
    own = np.square(rows - means[k]).sum(1)
    return bool((own <= squares.min(1) + 1e-9 * np.square(rows).sum(1).max()).all())


def _allowed(subject: Quantizer, rows: Array, means: Array, n: Array, k: Rows) -> Array:
    """Rounding of a sum of n latents and its quotient, and of the estimator's forward."""
    u = max(roundoff(subject), torch.finfo(torch.float32).eps / 2)
    size = np.zeros(len(n))
    np.add.at(size, k, norms(rows))
    mean = ((n + 8) * u * size / np.maximum(n, 1))[k]
    forward = 4 * u * (norms(rows) + norms(means[k]))
    if trait(subject, "estimator") == "rotation":
        turned = rotation_law_bound(rows, means[k], u)
        forward = forward + np.where(np.isfinite(turned), turned, 2.0) * norms(means[k])
    if subject.domain.codebook == "sphere":
        mean = mean * 2 / np.maximum(n, 1)[k].clip(max=1)
    return mean + forward + tiny(subject)


def _descends(subject: Quantizer, case: Case, z: torch.Tensor) -> Iterator[Clause]:
    """The objective after 1, 2 and 3 iterations of one start, where the constructor lets their number be chosen."""
    name = next((name for name, value in constructed(subject).items() if "iter" in name and value >= 1), None)
    if name is None:
        return
    last: float | None = None
    for count in (1, 2, 3):
        started = _started(subject, z, case.seed, **{name: count})
        if started is None:
            return
        rows, q, _ = started
        objective = float(np.square(rows - q).sum())
        reach = float(np.square(rows).sum() + np.square(q).sum())
        if last is not None:
            allowed = (z.shape[1] + len(z) + 8) * 4 * roundoff(subject) * reach + tiny(subject)
            yield within(max(0.0, objective - last), allowed, "objective", f"rise of Σ|z − c|² with {count} iterations")
        last = objective
