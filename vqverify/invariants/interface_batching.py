"""A latent is quantized on its own: mode, order, company and grouping change nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vqverify.case import Case, prepare
from vqverify.invariant import invariant
from vqverify.invariants.agreement import agree, learnt, learnt_agree
from vqverify.invariants.interface import CORNERS, MODES
from vqverify.invariants.interface_purity import DRAWS
from vqverify.invariants.measure import trait
from vqverify.quantizer import Quantized, Quantizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vqverify.bounds import Clause

SOURCE = "theory T27: the code is a function of the latent"
SOFT = {*DRAWS, "softmax"}
COUPLED = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
)


def train_repeats(subject: Quantizer) -> bool:
    """Whether a training pass is a function of each latent alone: no noise, no batch statistics.

    Codes that a pass moves before it quantises depend on the batch by design: `update.alternating` and
    `update.affine` say how.
    """
    coupled = any(isinstance(child, COUPLED) for child in subject.module.modules())
    coupled = coupled or trait(subject, "alternating", False) or trait(subject, "affine", "none") == "moments"
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
    "interface.train_eval_agree",
    kind="contract",
    source="theory T14 (forward invariance)",
    state="both",
    parts=value_modes,
    corners=CORNERS,
    mutants=("value_unscaled_in_train",),
    hint="the estimator may only change gradients, and z_q comes from the codebook before the update.",
    follows=("interface.eval_pure", "interface.batch_independence", "update.uses_old_codes"),
)
def train_eval_agree(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """From the same state, train and eval give the same codes, and z_q equal within rounding.

    Margin: the same operations on the same numbers: the margin is 0 unless the estimator rounds the value.
    """
    want = subject.forward(case.z, train=True, seed=case.seed)
    prepare(subject, case)
    got = subject.forward(case.z, train=False, seed=case.seed)
    yield from agree(subject, case, want, without_loss(got), train=True)


def without_loss(out: Quantized) -> Quantized:
    """A pass of eval mode, where a loss may be left out."""
    return Quantized(out.z, out.z_q, out.codes, None, (), out.levels, out.codebook, out.raw)


@invariant(
    "interface.row_permutation",
    kind="contract",
    source=SOURCE,
    state="both",
    parts=repeating_modes,
    corners=("on-code", "unit", "tie"),
    mutants=("sums_lose_duplicates",),
    hint="a layout mistake, or something that looks at a latent's place: reshape for permute, a window, z[0].",
    follows=(
        "interface.eval_pure",
        "interface.size_free",
    ),
)
def row_permutation(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Permuting the latents permutes z_q and codes, and leaves loss and updated state equal."""
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
    "interface.batch_independence",
    kind="contract",
    source=SOURCE,
    state="both",
    parts=repeating_modes,
    corners=("on-code", "unit", "tie", "far"),
    mutants=("centres_by_batch",),
    hint="batch statistics (a mean, a largest norm) leak into the lookup.",
    follows=(
        "interface.eval_pure",
        "interface.size_free",
    ),
)
def batch_independence(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A latent's code and value do not depend on the others of its batch: half of them, or it alone."""
    n, train = len(case.z), case.part == "train"
    want = subject.forward(case.z, train=train, seed=case.seed)
    for rows in (torch.arange(0, n, 2), torch.arange(min(n, subject.domain.min_n))):
        if subject.domain.min_n <= len(rows) < n:
            prepare(subject, case)
            got = subject.forward(case.z[rows], train=train, seed=case.seed)
            yield from agree(subject, case, want, got, train=train, rows=rows)


def groupings(subject: Quantizer) -> tuple[str, ...]:
    """Every way to hand in the same latents, besides the one that checks use first."""
    layouts = subject.domain.layouts if repeating_modes(subject) else ()
    entries = [f"{layout} x {count}" for layout in layouts if "B" in layout for count in ("N", "2")]
    return (*entries, *(f"{layout} x 1" for layout in layouts[1:]))


@invariant(
    "interface.regroup",
    follows=("interface.layout",),
    kind="contract",
    mode="table",
    source="theory: losses and statistics are sums over latents",
    state="both",
    parts=groupings,
    corners=("generic", "on-code", "unit"),
    mutants=("loss_summed_over_batch", "learns_first_entry", "mixes_batch_and_tokens"),
    hint="reduce losses and statistics over all token axes together; a mean over one axis depends on the grouping; view(N, B) "
    "is no transpose of (B, N).",
)
def regroup(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """The same latents in another grouping or layout give the same codes, loss and state."""
    layout, _, count = (case.part or "").partition(" x ")
    if count == "2":  # entries of several latents each: axes that are mixed up show only here
        even = len(case.z) // 2 * 2
        if even < max(4, subject.domain.min_n):
            return
        case = replace(case, z=case.z[:even], g=case.g[:even])
    train = train_repeats(subject)
    want = subject.forward(case.z, train=train, seed=case.seed)
    moved = learnt(subject)
    prepare(subject, case)
    groups = len(case.z) if count == "N" else int(count)
    got = subject.forward(case.z, train=train, seed=case.seed, layout=layout, groups=groups)
    if train and still(subject) and _same_codes(want, got, torch.arange(len(case.z))):
        yield from learnt_agree(subject, moved, learnt(subject), len(case.z), float(case.z.abs().max()))
    yield from agree(subject, case, want, got, train=train)
