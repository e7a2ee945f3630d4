"""Layouts, memory formats and sizes: the same latents, however they lie in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vqverify.case import Case, prepare
from vqverify.invariant import invariant
from vqverify.invariants.agreement import agree
from vqverify.invariants.interface import in_place
from vqverify.invariants.interface_batching import SOURCE, repeating_modes, without_loss
from vqverify.invariants.measure import trait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from vqverify.bounds import Clause
    from vqverify.quantizer import Quantizer

MOST_WORK = 4_000_000  # N·K of a pass


def entries(case: Case, layout: str) -> int:
    """A number of batch entries, more than one where the layout has them and the latents allow it."""
    return next((count for count in (2, 3, 5) if len(case.z) % count == 0), 1) if "B" in layout else 1


def other_layouts(subject: Quantizer) -> tuple[str, ...]:
    """Layouts beyond the one that checks use first."""
    return subject.domain.layouts[1:] if trait(subject, "eval_deterministic", default=True) else ()


def formats(subject: Quantizer) -> tuple[str, ...]:
    """Memory formats, where two passes can be compared."""
    return tuple(FORMATS) if repeating_modes(subject) else ()


@invariant(
    "interface.layout",
    kind="contract",
    mode="table",
    source=SOURCE,
    parts=other_layouts,
    corners=("generic", "on-code", "unit"),
    mutants=("image_path_differs",),
    hint="channels-first needs movedim or permute, before and after; reshape only relabels memory and mixes latents.",
    follows=("interface.eval_pure",),
)
def layout(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Channels-last, channels-first and image layouts give the same codes and values for the same latents, in place.

    Margin: where a layout is moved and then treated alike, the margin is 0; the bound is for products cut into
    other blocks.
    """
    want = subject.forward(case.z, train=False, seed=case.seed)
    groups = entries(case, case.part or "")
    prepare(subject, case)
    got = subject.forward(case.z, train=False, seed=case.seed, layout=case.part, groups=groups)
    yield from in_place(got)
    yield from agree(subject, case, without_loss(want), got, train=False)


def _strided(x: Tensor) -> Tensor:
    """Every other entry of a wider buffer, whose gaps hold NaN."""
    wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"))
    wide[..., ::2] = x
    return wide[..., ::2]


def _transposed(x: Tensor) -> Tensor:
    """The same numbers with the axes in memory the other way round."""
    back = tuple(reversed(range(x.ndim)))
    return x.permute(*back).contiguous().permute(*back)


def _expanded(x: Tensor) -> Tensor:
    """The batch entry repeated by a stride of 0, as `expand` does."""
    return x[:1].expand_as(x)


FORMATS: dict[str, Callable[[Tensor], Tensor]] = {
    "strided": _strided, "transposed": _transposed, "expanded": _expanded,
}  # fmt: skip


@invariant(
    "interface.noncontiguous",
    kind="contract",
    mode="table",
    source="torch notes on tensor views",
    parts=formats,
    corners=("generic", "on-code", "unit"),
    mutants=("views_strides", "reads_storage"),
    hint="view needs contiguous memory, and as_strided or data_ptr read it as it lies: reshape, or call "
    "contiguous first.",
)
def noncontiguous(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Strided, transposed and expanded latents give the result of their contiguous copies.

    Margin: most layers copy the latents and then do the same: small, unless a product takes other strides.
    """
    made = FORMATS[case.part or "strided"]
    groups = entries(case, subject.domain.layouts[0])
    z = case.z
    if case.part == "expanded":
        alike = len(z) // groups if "B" in subject.domain.layouts[0] else 1  # latents along the axis of stride 0
        z = z[:alike].repeat(len(z) // alike, 1)
    for mode in repeating_modes(subject):
        train = mode == "train"
        prepare(subject, case)
        want = subject.forward(z, train=train, seed=case.seed, groups=groups, via=lambda f, x: f(x.contiguous()))
        prepare(subject, case)
        got = subject.forward(z, train=train, seed=case.seed, groups=groups, via=lambda f, x: f(made(x)))
        yield from agree(subject, case, want, got, train=train)


def lengths(subject: Quantizer) -> list[int]:
    """Batches beyond the sizes at which kernels and chunked loops switch, as far as the work allows."""
    work = max((book.shape[0] for book in subject.codebooks()), default=1)
    return [n for n in (26, 65, 129, 1025, 4099) if n * work <= MOST_WORK]


@invariant(
    "interface.size_free",
    kind="contract",
    mode="table",
    source="torch.cdist switches its algorithm above 25 rows",
    parts=repeating_modes,
    corners=("generic", "unit"),
    mutants=("chunk_forgets_rest",),
    hint="a loop over chunks drops the rest, or counts its codes from the chunk's start.",
    follows=("interface.eval_pure",),
)
def size_free(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Results do not depend on which side of an internal size switch the batch falls.

    The same latents again and again, to batches of 26, 65, 129, 1025 and 4099.

    Margin: rows that are computed one by one are the same: 0, unless a product is cut into other blocks.
    """
    n, train = len(case.z), case.part == "train"
    want = subject.forward(case.z, train=train, seed=case.seed)
    for length in lengths(subject):
        rows = torch.arange(length) % n
        prepare(subject, case)
        got = subject.forward(case.z[rows], train=train, seed=case.seed)
        yield from agree(subject, case, want, got, train=train, rows=rows)
