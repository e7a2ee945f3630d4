"""Losses of other terms than commitment and codebook: what is left to hold for a term that nobody knows."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from vqverify.bounds import Clause, within
from vqverify.case import Case, prepare
from vqverify.invariant import invariant
from vqverify.invariants.loss import elsewhere
from vqverify.invariants.measure import roundoff, stream, trait
from vqverify.quantizer import Quantizer

LOOSE = 1e-4  # of the losses: one over the wrong axis is off by log 2 of a term
TIMES = (1, 2, 4)
STILL = ("learning!=ema", "affine!=moments")  # a term may see the codes as the batch has moved them


def _other_terms(subject: Quantizer) -> tuple[str | None, ...]:
    """Applies where the loss holds terms that were not identified, of codes that the batch does not move first."""
    known = trait(subject, "loss_coefficients") is not None
    return () if known or elsewhere(subject) or trait(subject, "update_order") == "after" else (None,)


def _loss(subject: Quantizer, case: Case, z: Tensor) -> tuple[float, Tensor] | None:
    """Loss and codes of a training pass on other latents, from the case's state."""
    prepare(subject, case)
    out = subject.forward(z, train=True, seed=case.seed, grad=False)
    if out.loss is None or out.codes is None or not math.isfinite(float(out.loss)):
        return None
    return float(out.loss.double()), out.codes


@invariant(
    "loss.repeats",
    kind="hardening",
    source="definition of a mean and of a sum",
    needs=("loss", "codes", "deterministic", *STILL),
    parts=_other_terms,
    corners=("generic", "unit", "parallel"),
    mutants=("entropy_over_batch",),
    hint="a softmax over the batch, or a variance over N − 1, sees how many latents there are; a contrastive term does so "
    "on purpose.",
)
def repeats(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Of a batch repeated m times every term of a loss is the same, as means are, or m times as much, as sums are.

    Then L(m) = a + bm, and L(4) − 3L(2) + 2L(1) = 0. What rounding does to terms that are not known is measured, by
    latents that are off by some roundings; terms of the size of 1 may cancel in L.
    """
    found = [_loss(subject, case, torch.cat([case.z] * times)) for times in TIMES]
    books = [book.abs().amax() for book in subject.codebooks() if book.numel()]
    size = 64 * roundoff(subject) * torch.stack([case.z.abs().amax(), *(book.to(case.z) for book in books)]).amax()
    for draw in range(2):
        noise = torch.randn(case.z.shape, generator=stream(draw)).to(case.z)
        found.append(_loss(subject, case, case.z + size * noise))
    losses = [one for one in found if one is not None]
    if len(losses) < len(found):
        return
    (once, codes), (twice, more), (often, most) = losses[: len(TIMES)]
    if not (torch.equal(torch.cat([codes] * 2), more) and torch.equal(torch.cat([codes] * 4), most)):
        return  # a tie: products of other sizes break it in another way
    moved = [abs(value - once) for value, k in losses[len(TIMES) :] if torch.equal(k, codes)]
    if len(moved) < 2:
        return
    allowed = LOOSE * (abs(once) + abs(twice) + abs(often)) + 16 * max(moved) + 256 * roundoff(subject)
    said = f"L(4) − 3L(2) + 2L(1) of a batch repeated m times, L = {once:.4g}, {twice:.4g}, {often:.4g}"
    yield within(often - 3 * twice + 2 * once, allowed, "repeats", said)
