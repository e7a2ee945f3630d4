"""A latent is quantized on its own: mode, order, company, grouping, layout and memory format change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from vqverify.bounds import Clause
from vqverify.case import Case, prepare
from vqverify.invariant import invariant
from vqverify.invariants.agreement import agree, learnt, learnt_agree
from vqverify.invariants.interface import CORNERS, MODES
from vqverify.invariants.interface_purity import DRAWS
from vqverify.invariants.measure import trait
from vqverify.quantizer import Quantized, Quantizer

SOURCE = "theory T27: the code is a function of the latent"
SOFT = {*DRAWS, "softmax"}
COUPLED = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)  # noqa: SLF001  (their common bases)
MOST_WORK = 4_000_000  # N·K of a pass


def train_repeats(subject: Quantizer) -> bool:
    """Whether a training pass is a function of each latent alone: no noise, no batch statistics."""
    coupled = any(isinstance(child, COUPLED) for child in subject.module.modules())
    return bool(trait(subject, "deterministic", default=False)) and not coupled


def repeating_modes(subject: Quantizer) -> tuple[str, ...]:
    """Modes in which the result is a function of each latent alone."""
    modes = {"train": train_repeats(subject), "eval": trait(subject, "eval_deterministic", default=True)}
    return tuple(mode for mode in MODES if modes[mode])


def still(subject: Quantizer) -> bool:
    """Whether a step replaces no code, so that it is the same for the same latents in any order."""
    return trait(subject, "replacement", default="none") == "none" and trait(subject, "deterministic", default=False)


def value_modes(subject: Quantizer) -> tuple[str | None, ...]:
    """None where training is said to give another value: noise, a mixture, the code after the update."""
    other = trait(subject, "estimator") in SOFT or trait(subject, "update_order") == "after"
    return (None,) if repeating_modes(subject) == MODES and not other else ()


@invariant(
    "interface.train_eval_agree", kind="contract", source="theory T14 (forward invariance)", state="both",
    parts=value_modes, corners=CORNERS, mutants=("value_unscaled_in_train", "quantise_after_update"),
    hint="the estimator may only change gradients, and z_q comes from the codebook before the update.",
)
def train_eval_agree(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """From the same state, train and eval give the same codes, and z_q equal within rounding."""
    want = subject.forward(case.z, train=True, seed=case.seed)
    prepare(subject, case)
    got = subject.forward(case.z, train=False, seed=case.seed)
    yield from agree(subject, case, want, _without_loss(got), train=True)


def _without_loss(out: Quantized) -> Quantized:
    """A pass of eval mode, where a loss may be left out."""
    return Quantized(out.z, out.z_q, out.codes, None, (), out.levels, out.codebook, out.raw)


@invariant(
    "interface.row_permutation", kind="contract", source=SOURCE, state="both", parts=repeating_modes,
    corners=("on-code", "unit", "tie"), mutants=("sums_lose_duplicates",),
    hint="a layout mistake, or something that looks at a latent's place: reshape for permute, a window, z[0].",
)
def row_permutation(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Permuting the latents permutes z_q and codes, and leaves loss and updated state equal within rounding."""
    n, train = len(case.z), case.part == "train"
    order = torch.randperm(n, generator=torch.Generator().manual_seed(case.seed))
    want = subject.forward(case.z, train=train, seed=case.seed)
    moved = learnt(subject)
    prepare(subject, case)
    got = subject.forward(case.z[order], train=train, seed=case.seed)
    if train and still(subject) and _same_codes(want, got, order):
        yield from learnt_agree(subject, moved, learnt(subject), n, float(case.z.abs().max()))
    yield from agree(subject, case, want, got, train=train, rows=order)


def _same_codes(want: Quantized, got: Quantized, order: Tensor) -> bool:
    return want.codes is None or got.codes is None or torch.equal(want.codes[order], got.codes)


@invariant(
    "interface.batch_independence", kind="contract", source=SOURCE, state="both", parts=repeating_modes,
    corners=("on-code", "unit", "tie", "far"), mutants=("centres_by_batch",),
    hint="batch statistics (a mean, a largest norm) leak into the lookup.",
)
def batch_independence(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A latent's code and value do not depend on the other latents of the batch."""
    n, train = len(case.z), case.part == "train"
    rows = torch.arange(0, n, 2)
    if len(rows) < subject.domain.min_n or len(rows) == n:
        return
    want = subject.forward(case.z, train=train, seed=case.seed)
    prepare(subject, case)
    got = subject.forward(case.z[rows], train=train, seed=case.seed)
    yield from agree(subject, case, want, got, train=train, rows=rows)


def groupings(subject: Quantizer) -> tuple[str, ...]:
    """Every way to hand in the same latents, besides the one that checks use first."""
    layouts = subject.domain.layouts
    entries = [f"{layout} x N" for layout in layouts if "B" in layout]
    return (*entries, *(f"{layout} x 1" for layout in layouts[1:]))


@invariant(
    "interface.regroup", kind="contract", mode="table", source="theory: losses and statistics are sums over latents", state="both",
    parts=groupings, corners=("generic", "on-code", "unit"), mutants=("loss_summed_over_batch", "learns_first_entry"),
    hint="reduce losses and statistics over all token axes together; a mean over one axis depends on the grouping.",
)
def regroup(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """The same latents as (N, D), as N batch entries, one entry or an image give the same codes, loss and state."""
    layout, _, count = (case.part or "").partition(" x ")
    train = train_repeats(subject)
    want = subject.forward(case.z, train=train, seed=case.seed)
    moved = learnt(subject)
    prepare(subject, case)
    groups = len(case.z) if count == "N" else 1
    got = subject.forward(case.z, train=train, seed=case.seed, layout=layout, groups=groups)
    if train and still(subject) and _same_codes(want, got, torch.arange(len(case.z))):
        yield from learnt_agree(subject, moved, learnt(subject), len(case.z), float(case.z.abs().max()))
    yield from agree(subject, case, want, got, train=train)


def entries(case: Case, layout: str) -> int:
    """A number of batch entries, more than one where the layout has them and the latents allow it."""
    return next((count for count in (2, 3, 5) if len(case.z) % count == 0), 1) if "B" in layout else 1


def other_layouts(subject: Quantizer) -> tuple[str, ...]:
    """Layouts beyond the one that checks use first."""
    return subject.domain.layouts[1:]


@invariant(
    "interface.layout", kind="contract", mode="table", source=SOURCE, parts=other_layouts, corners=("generic", "on-code", "unit"),
    mutants=("image_path_differs",),
    hint="channels-first needs movedim or permute, before and after; reshape only relabels memory and mixes latents.",
)
def layout(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Channels-last, channels-first and image layouts, several entries of several latents, give the same codes and values."""
    want = subject.forward(case.z, train=False, seed=case.seed)
    groups = entries(case, case.part or "")
    got = subject.forward(case.z, train=False, seed=case.seed, layout=case.part, groups=groups)
    yield from agree(subject, case, _without_loss(want), got, train=False)


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
    "interface.noncontiguous", kind="contract", mode="table", source="torch notes on tensor views", parts=lambda _: tuple(FORMATS),
    corners=("generic", "on-code", "unit"), mutants=("views_strides", "reads_storage"),
    hint="view needs contiguous memory, and as_strided or data_ptr read it as it lies: reshape, or call contiguous first.",
)
def noncontiguous(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Strided, transposed and expanded latents give the result of their contiguous copies, in train and eval."""
    made = FORMATS[case.part or "strided"]
    groups = entries(case, subject.domain.layouts[0])
    z = case.z
    if case.part == "expanded":
        z = z[: len(z) // groups].repeat(groups, 1) if "B" in subject.domain.layouts[0] else z[:1].expand_as(z)
    for mode in repeating_modes(subject):
        train = mode == "train"
        prepare(subject, case)
        want = subject.forward(z, train=train, seed=case.seed, groups=groups, via=lambda f, x: f(x.contiguous()))
        prepare(subject, case)
        got = subject.forward(z, train=train, seed=case.seed, groups=groups, via=lambda f, x: f(made(x)))
        yield from agree(subject, case, want, got, train=train)


def lengths(subject: Quantizer) -> list[int]:
    """Batches on the far side of the sizes at which kernels and chunked loops switch, as far as the work allows."""
    work = max((book.shape[0] for book in subject.codebooks()), default=1)
    return [n for n in (26, 65, 129, 1025, 4099) if n * work <= MOST_WORK]


@invariant(
    "interface.size_free", kind="contract", mode="table", source="torch.cdist switches its algorithm above 25 rows",
    parts=repeating_modes, corners=("generic", "unit"), mutants=("chunk_forgets_rest",),
    hint="a loop over chunks drops the rest, or counts its codes from the chunk's start.",
)
def size_free(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Results do not depend on which side of an internal size switch the batch falls: 26, 65, 129, 1025, 4099 latents."""
    n, train = len(case.z), case.part == "train"
    want = subject.forward(case.z, train=train, seed=case.seed)
    for length in lengths(subject):
        rows = torch.arange(length) % n
        prepare(subject, case)
        got = subject.forward(case.z[rows], train=train, seed=case.seed)
        yield from agree(subject, case, want, got, train=train, rows=rows)
