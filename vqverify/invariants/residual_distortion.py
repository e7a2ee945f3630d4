"""Stacks whose levels have scales: what is left over after each is as small as its scale says (theory T34, T36)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import cast

import numpy as np
import torch

from vqverify.bounds import Clause, Violation, within
from vqverify.case import Case
from vqverify.invariant import invariant
from vqverify.invariants.agreement import CLAMP
from vqverify.invariants.measure import Array, array, norms, roundoff, tiny, trait
from vqverify.invariants.residual import stacked
from vqverify.quantizer import Quantizer

MOST_LEVELS = 8


def _scaled(subject: Quantizer) -> tuple[str, ...]:
    """Stacks of codebooks that may be written; stacks of scalar grids with an odd number of values a coordinate."""
    books, levels = subject.codebooks(), trait(subject, "num_quantizers")
    if not isinstance(levels, int) or levels < 2:
        return ()
    if trait(subject, "structure") == "residual" and trait(subject, "settable", default=False):
        own = len(books) == levels and all(book.shape[1] == subject.domain.dim and len(book) > 1 for book in books)
        own = own and not any(torch.equal(a, b) for a, b in combinations(books, 2))  # levels that share have one scale
        return ("lattice",) if own and trait(subject, "metric") == "euclidean" else ()
    values = trait(subject, "fsq_levels", default=())
    odd = isinstance(values, Sequence) and len(values) == subject.domain.dim and all(v % 2 and v > 2 for v in values)
    return ("grid",) if odd and "num_quantizers" in subject.spec.kwargs and not books else ()


@invariant(
    "residual.distortion",
    source="Zeghidour 2021; Mentzer 2023; theory T34, T36",
    needs=("codes", "deterministic"),
    parts=_scaled,
    mode="table",
    corners=("single", "unit", "generic"),
    follows=("residual.sum",),
    mutants=("residual_squashed", "residual_grid_squashed"),
    hint="divide the residual by the level's scale and multiply its code by it; what bounds the first latent, a tanh, "
    "must not bound the residuals again.",
)
def distortion(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """What is left over falls from level to level as the scales predict: by K for K equally spaced codes, by L − 1 on a grid."""
    if case.part == "grid":
        yield from _grid(subject, case)
        return
    sizes = [len(book) for book in subject.codebooks()]
    step, steps = 1.0, list[float]()
    books: list[torch.Tensor] = []
    for size, own in zip(sizes, subject.codebooks(), strict=True):
        book = torch.zeros_like(own)
        book[:, 0] = step * (torch.arange(size) - (size - 1) / 2)
        books.append(book)
        steps.append(step)
        step /= size
    generator = torch.Generator().manual_seed(0xD157 + case.seed)
    z = torch.zeros(max(64, subject.domain.min_n), subject.domain.dim, dtype=subject.domain.dtype)
    z[:, 0] = sizes[0] * (torch.rand(len(z), generator=generator) - 0.5)
    subject.restore()
    subject.set_codebook(books)
    stack = stacked(subject, Case(z, z, case.seed), train=False)
    if stack is None:
        return
    keep = np.isfinite(stack.off)
    for index, level in enumerate(stack.levels):
        left, width = norms(level.z - level.q)[keep], steps[index]
        # half a step; clamped squares, a lookup that is nearest up to T28, and the rounding of the residuals before
        slack = 4 * level.off[keep] + 8 * roundoff(subject) * sizes[0] + CLAMP / width
        if width > 64 * slack.max(initial=0.0):
            yield within(left, width / 2 + slack, "level", f"|z − Σ of the codes| after level {index}")
    if steps[-1] > 64 * float((4 * stack.off[keep]).max(initial=0.0)):
        error = norms(array(stack.out.z_q.rows) - array(stack.out.z.rows))[keep]
        slack = 4 * stack.off[keep] + 8 * roundoff(subject) * sizes[0] + CLAMP / steps[-1]
        yield within(error, steps[-1] / 2 + slack, "value", "|z − z_q|")


def _grid(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Stacks of 1, 2, ... levels: each is within half its step of what the whole stack comes to, and that of its limit."""
    values = np.array(cast("Sequence[int]", trait(subject, "fsq_levels")), float)
    most = min(int(trait(subject, "num_quantizers")), MOST_LEVELS)
    generator = torch.Generator().manual_seed(0x96 + case.seed)
    z = torch.randn(max(64, subject.domain.min_n), subject.domain.dim, generator=generator).to(subject.domain.dtype)
    found: list[Array] = []
    for count in range(1, most + 1):
        try:
            twin = subject.build({"num_quantizers": count})
            found.append(array(twin.forward(z, train=False, seed=case.seed, grad=False).z_q.rows))
        except Violation:
            return
    rounding = 64 * roundoff(subject) + tiny(subject)
    for count, value in enumerate(found[:-1], 1):
        halves = (values - 1.0) ** -count + (values - 1.0) ** -most
        yield within(np.abs(value - found[-1]), halves + rounding, "level", f"|z_q of {count} levels − of {most}|")
