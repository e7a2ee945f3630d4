"""Two passes before one backward, and one pass that runs twice: autograd across calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch.utils.checkpoint import checkpoint

from vqverify.bounds import Clause, holds, unit_roundoff, within
from vqverify.case import Case, prepare
from vqverify.invariant import invariant
from vqverify.invariants.agreement import STEPS, learnt, same
from vqverify.invariants.interface import backward, received
from vqverify.invariants.measure import array, norms, roundoff
from vqverify.subject.guards import guarded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from vqverify.quantizer import Quantized, Quantizer

CORNERS = ("generic", "on-code")


@invariant(
    "interface.accumulates",
    kind="contract",
    mode="table",
    source="torch: gradients accumulate",
    corners=CORNERS,
    mutants=("scale_kept_in_self",),
    hint="what autograd saved must not be overwritten: clone the codebook before an in-place update, never "
    "keep what backward needs in self.",
    follows=("interface.graph_free",),
)
def accumulates(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Gradients of two passes add up, and a second forward before the first backward changes nothing."""
    want = received(subject.forward(case.z, train=True, seed=case.seed), case.g)
    prepare(subject, case)
    first = subject.forward(case.z, train=True, seed=case.seed)
    second = subject.forward(case.z.flip(0) * 0.5, train=True, seed=case.seed + 1)
    got = received(first, case.g)
    u = roundoff(subject)
    size = norms(array(want)).max(initial=0.0)
    text = "gradient of the first pass when a second forward came before its backward"
    yield within(norms(array(got) - array(want)), STEPS * u * size, "second forward", text)
    parameters = [p for p in subject.module.parameters() if p.requires_grad]
    parts = [_gradients(out, case.g, parameters) for out in (first, second)]
    for p in parameters:
        p.grad = None
    backward(first, case.g)
    backward(second, case.g)
    for p, a, b in zip(parameters, *parts, strict=True):
        total = torch.zeros_like(p) if p.grad is None else p.grad
        kept = max(u, unit_roundoff(p.dtype))  # its gradient has the precision in which a parameter is kept
        bound = STEPS * kept * float(a.abs().max() + b.abs().max()) if p.numel() else 0.0
        yield within(
            (total - a - b).abs(),
            bound,
            "sum",
            "gradient of a parameter after two backward passes, less their sum",
        )


def _gradients(out: Quantized, g: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    total = (out.z_q.rows * g.to(out.z_q.rows)).sum() + (0.0 if out.loss is None else out.loss)
    if not parameters or not total.requires_grad:
        return [torch.zeros_like(p) for p in parameters]
    with guarded("backward"):
        found = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
    found = cast("tuple[Tensor | None, ...]", found)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


@invariant(
    "interface.checkpointed",
    kind="hardening",
    mode="table",
    source="torch.utils.checkpoint: forward runs again in backward",
    profiles=("merge", "nightly"),
    corners=CORNERS,
    mutants=("updates_twice",),
    hint="the update belongs into a step of its own, or must know that it runs again (a frozen flag, a hook "
    "after backward).",
)
def checkpointed(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Under activation checkpointing gradients equal the plain ones, and the state moves once, not twice."""
    want = received(subject.forward(case.z, train=True, seed=case.seed), case.g)
    moved = learnt(subject)
    prepare(subject, case)
    out = subject.forward(case.z, train=True, seed=case.seed, via=lambda f, x: checkpoint(f, x, use_reentrant=False))
    got = received(out, case.g)
    size = norms(array(want)).max(initial=0.0)
    for a, b in zip(moved, learnt(subject), strict=True):
        yield holds(same(a, b), "state", "the codebook or its accumulators moved twice in one step")
    bound = STEPS * roundoff(subject) * size
    yield within(norms(array(got) - array(want)), bound, "gradient", "gradient under checkpointing, less the plain one")
