"""Several processes that share a batch move their codebooks as one process with the whole batch does (theory T22)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, distributed

from vqverify.bounds import Clause, within
from vqverify.case import Case
from vqverify.invariant import Undetermined, invariant
from vqverify.invariants.measure import array, norms, roundoff, tiny, trait
from vqverify.quantizer import CannotOpenError, Quantizer

STEPS = 2
ROWS = 32  # latents of a process


class Ended(NamedTuple):
    """State of one process after its passes.

    Attributes:
        codebooks: a level each.
        counts: of a level each, if there are any.
        sums: likewise.
        calls: collective operations of the group, the layer's.
    """

    codebooks: tuple[Tensor, ...]
    counts: tuple[Tensor, ...]
    sums: tuple[Tensor, ...]
    calls: int


def share(subject: Quantizer, rank: int, batches: list[Tensor]) -> Ended:
    """What each process does: training passes on its share of the batches, with random numbers of its own."""
    n = len(batches[0]) // distributed.get_world_size()
    for step, batch in enumerate(batches):
        subject.forward(batch[rank * n : (rank + 1) * n], train=True, seed=1000 * rank + step, grad=False)
    group = distributed.group.WORLD
    return _ended(subject, int(getattr(group, "_get_sequence_number_for_group")()))  # noqa: B009 - torch's, unstubbed


def _ended(subject: Quantizer, calls: int) -> Ended:
    kept = subject.accumulators()
    return Ended(subject.codebooks(), tuple(a.counts for a in kept), tuple(a.sums for a in kept), calls)


def _batches(subject: Quantizer, seed: int) -> list[Tensor]:
    """Latents in general position, of the codes' size: nothing is a tie."""
    n, generator = 2 * max(ROWS, subject.domain.min_n), torch.Generator().manual_seed(seed % 2**31)
    size = float(subject.codebooks()[0].double().square().mean().sqrt()) or 1.0
    return [
        (size * torch.randn(n, subject.domain.dim, generator=generator)).to(subject.domain.dtype) for _ in range(STEPS)
    ]


def _run(subject: Quantizer, batches: list[Tensor]) -> list[Ended]:
    return subject.together(f"{__name__}:share", batches)


def speaks(subject: Quantizer) -> tuple[str | None, ...]:
    """Applies to layers that use the process group when there is one: the others leave it to their user."""
    try:
        ended = _run(subject, _batches(subject, 0))
    except CannotOpenError:
        return (None,)
    return (None,) if any(one.calls for one in ended) else ()


@invariant(
    "update.distributed",
    mode="process",
    source="theory T22",
    needs=("learning=ema", "codebook", "codes"),
    parts=speaks,
    profiles=("merge", "nightly"),
    mutants=("distributed_counts_local", "distributed_codes_averaged"),
    hint="all-reduce the sum of counts and of sums before the averages, and let one process draw what replaces dead codes.",
)
def distributed_(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Two processes with half a batch each end in the same state, and in that of one process with the whole batch."""
    batches = _batches(subject, case.seed)
    try:
        one, other = _run(subject, batches)
    except CannotOpenError as error:
        raise Undetermined(f"another process cannot build the layer by its name: {error}") from None
    u = max(roundoff(subject), torch.finfo(torch.float32).eps / 2)
    reach = max(float(batch.abs().max()) for batch in batches) * subject.domain.dim**0.5
    for index, (a, b) in enumerate(zip(one.codebooks, other.codebooks, strict=True)):
        error = norms(array(a) - array(b))
        yield within(error, 8 * u * reach + tiny(subject), "ranks", f"codes of level {index} in two processes")
    if trait(subject, "replacement", "none") != "none" or trait(subject, "initialisation", "none") != "none":
        return  # drawn at random: another draw than that of one process
    alone, most = subject.build(warm=False), 0
    for step, batch in enumerate(batches):
        out = alone.forward(batch, train=True, seed=step, grad=False)
        if out.codes is not None:  # latents of the code that has most of them
            most += max(int(torch.bincount(column.clamp_min(0)).max()) for column in out.codes.t())
    whole = _ended(alone, 0)
    # sums in another order, and their quotient
    allowed = (most + len(whole.codebooks[0]) + 16) * u * reach + tiny(subject)
    drawn = trait(subject, "stochastic", "none") in {"train", "both"}
    for index, (a, b) in enumerate(zip(one.counts, whole.counts, strict=True)):
        if drawn:  # other codes than those of one process, but as many latents
            error, size = array(a).sum() - array(b).sum(), float(b.sum())
            yield within(error, (len(b) + 16) * u * size, "total", f"ΣN of level {index}: two processes, and one")
            continue
        yield within(
            array(a) - array(b), (most + 16) * u * most, "counts", f"N of level {index}: two processes, and one"
        )
    if drawn:
        return
    for index, (a, b) in enumerate(zip(one.codebooks, whole.codebooks, strict=True)):
        yield within(norms(array(a) - array(b)), allowed, "whole", f"codes of level {index}: two processes, and one")
