"""Commitment and codebook losses: their weights, their value, and what they may move (theory T16)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from vqverify.bounds import Clause, holds, within
from vqverify.case import Case, prepare
from vqverify.invariant import Undetermined, invariant
from vqverify.invariants.measure import array, roundoff, tiny, trait
from vqverify.invariants.pulls import Measured, measure
from vqverify.invariants.weights import isolated, laws, value, weighed, weight_argument
from vqverify.quantizer import Quantizer

TERMS = ("loss", "codes", "codebook")
PLAIN = (*TERMS, "structure=plain", "metric=euclidean")
CORNERS = ("on-code", "single", "tie", "parallel", "far", "off-centre")


def these_terms(subject: Quantizer) -> tuple[str | None, ...]:
    """Applies where the loss was found to be of commitment and codebook terms only, of codes that are known.

    Raises:
        Undetermined: if it was not: a term that is wrong looks like another term.
    """
    if elsewhere(subject):
        return ()
    if trait(subject, "loss_coefficients") is None:
        found = subject.traits.get("loss_coefficients")
        raise Undetermined(f"loss_coefficients is unknown: {found.evidence if found else 'not probed'}")
    return (None,)


def elsewhere(subject: Quantizer) -> bool:
    """Whether the loss is of other codes and latents than those that are known.

    An optimiser in the pass moves the codes before they are looked up again; or stored codes and the latents are
    normalised on the way into the loss.
    """
    within_pass = bool(trait(subject, "alternating")) and trait(subject, "update_order") == "after"
    plan = getattr(subject, "plan", None)
    return within_pass or any(slot.transform == "normalize" for slot in (plan.slots if plan else ()))


def _weighted(subject: Quantizer) -> tuple[str | None, ...]:
    """Applies where, beside, somebody declares a weight: its term is then judged by itself."""
    alone = weight_argument(subject) and "commitment_weight" in subject.claims and not elsewhere(subject)
    return (None,) if alone else these_terms(subject)


@invariant(
    "loss.gradients",
    source="van den Oord 2017 eq. 3; 001 eq. 8-9, 002 eq. 1; theory T16",
    needs=TERMS,
    parts=_weighted,
    corners=CORNERS,
    follows=(
        "residual.sum",
        "interface.shapes",
        "interface.device_moves",
        "stochastic.hard",
        "loss.stop_gradients",
        "loss.duplication",
        "loss.zero_at_codes",
    ),
    mutants=(
        "loss_swapped",
        "loss_weights_exchanged",
        "loss_half_lost",
        "loss_detach_missing",
        "loss_halved",
        "loss_commitment_detached",
        "loss_unsquared",
        "loss_huber",
    ),
    hint="the weight belongs on |z − sg q|², which moves the latents; swapped stop-gradients leave every value "
    "unchanged and exchange the two gradients.",
)
def gradients(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Commitment weight in ∂loss/∂z and codebook weight in ∂loss/∂e are the declared ones, and agree with the value."""
    if trait(subject, "loss_coefficients") is None:
        yield from _other_terms(subject, case)
        return
    found = measure(subject, case)
    if found is None:
        return
    readings = [[*weighed(subject, found, law), value(subject, found, law)] for law in laws(subject, found)]
    if readings:
        yield from min(readings, key=_worst)


def _other_terms(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """The loss holds other terms than commitment and codebook: what the weight multiplies is judged by itself."""
    alone = isolated(subject, case)
    if alone is None:
        return
    found, law = alone
    factors = (1 / (found.n * found.dim), 1 / found.n, 1.0)
    readings = [
        [*weighed(subject, found, read), value(subject, found, read)]
        for read in (replace(law, factor=f) for f in factors)
    ]
    yield from min(readings, key=_worst)


def _worst(clauses: list[Clause]) -> float:
    return max(clause.margin or 0.0 for clause in clauses)


@invariant(
    "loss.value",
    source="van den Oord 2017 eq. 3; theory T16",
    needs=TERMS,
    parts=these_terms,
    corners=CORNERS,
    state="both",
    mutants=("loss_halved", "loss_sign"),
    follows=("loss.gradients",),
    hint="mean over batch and features, |·|² and not |·|, the weight once.",
)
def value_(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """The loss is a known convention with the declared weights: (a + b)F Σ|z − q|², ½F Σ|z − q|² for A_β."""
    found = measure(subject, case)
    if found is not None:
        readings = [value(subject, found, law) for law in laws(subject, found)]
        if readings:
            yield min(readings, key=lambda clause: clause.margin or 0.0)


@invariant(
    "loss.zero_at_codes",
    source="van den Oord 2017 eq. 3; theory T16",
    needs=(*TERMS, "structure=plain"),
    parts=these_terms,
    corners=CORNERS,
    mutants=("loss_offset", "loss_sign"),
    hint="a squared distance is ≥ 0 and vanishes where latent and code agree: look for a sign, an ε or a constant.",
)
def zero_at_codes(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A loss of commitment and codebook terms is ≥ 0, and 0 where z = q.

    Margin: on a code z − q is exactly 0, and so is the margin, unless a projection or normalisation rounds.
    """
    found = measure(subject, case)
    if found is None:
        return
    depth = (found.dim + 8) * roundoff(subject)
    weight = _most(subject, found)
    yield holds(
        found.loss >= -depth * weight * found.sides[0].squares - tiny(subject),
        "negative",
        f"the loss is {found.loss:.4g}",
    )
    if not found.plain:
        return  # which latents become codes is the projection's secret
    prepare(subject, case)
    book = subject.codebooks()[0]
    z = book[torch.arange(len(case.z)) % len(book)].to(subject.domain.dtype)
    if not torch.equal(z.to(book), book[torch.arange(len(case.z)) % len(book)]):
        return
    again = measure(subject, Case(z, case.g, case.seed))
    if again is not None and again.sides[0].squares == 0:
        yield within(again.loss, depth * weight * float((array(z) ** 2).sum()) + tiny(subject), "zero", "loss at z = q")


def _most(subject: Quantizer, found: Measured) -> float:
    """The largest (|a| + |b|)F of any reading."""
    return max(((abs(law.a) + abs(law.b)) * law.factor for law in laws(subject, found)), default=1.0)


@invariant(
    "loss.duplication",
    source="definition of a mean; theory T16",
    mutants=("loss_bessel",),
    needs=(*TERMS, "deterministic", "reduction!=sum|batch-mean"),
    parts=these_terms,
    corners=("single", "tie", "parallel"),
    hint="divide by the number of elements that were added up, no more and no less: padding and N − 1 are not it.",
)
def duplication(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Repeating the batch leaves a mean loss unchanged."""
    once = measure(subject, case)
    if once is None:
        return
    prepare(subject, case)
    twice = measure(subject, Case(torch.cat([case.z, case.z]), torch.cat([case.g, case.g]), case.seed))
    if twice is None:
        return
    size = _most(subject, once)
    u, side = roundoff(subject), once.sides[0]
    # two sums of N·D and 2N·D terms, of the same squares
    allowed = size * ((3 * once.n * once.dim + 16) * u * side.squares + 2 * once.cross(u) + 2 * side.slack)
    # products of other sizes may break a tie in another way
    allowed += size * abs(twice.sides[0].squares / 2 - side.squares)
    yield within(
        twice.loss - once.loss, allowed + tiny(subject), "duplication", "loss of the batch twice − loss of the batch"
    )


@invariant(
    "loss.homogeneous",
    source="theory T16, T27",
    needs=(*PLAIN, "settable", "deterministic"),
    parts=these_terms,
    corners=("single", "tie", "parallel"),
    mutants=("loss_offset",),
    follows=("loss.value",),
    hint="|z − q|² scales with the square of the data; a norm without its square, a normalisation or an ε does not.",
)
def homogeneous(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Scaling latents and codes by s scales the loss by s²: exactly, for a power of two.

    Margin: a power of two commutes with rounding, so that a right layer's margin is 0.
    """
    books = subject.codebooks()
    once = measure(subject, case)
    if once is None or not once.plain:
        return
    factor = 4.0
    subject.restore()
    subject.set_codebook([factor * book for book in books])
    more = measure(subject, Case(factor * case.z, case.g, case.seed))
    if more is None:
        return
    u, side = roundoff(subject), once.sides[0]
    size = _most(subject, once) * factor**2
    allowed = size * (8 * u * side.squares + 2 * once.cross(u))
    allowed += size * abs(more.sides[0].squares / factor**2 - side.squares)
    yield within(
        more.loss - factor**2 * once.loss,
        allowed + tiny(subject),
        "homogeneous",
        f"loss({factor:g}z, {factor:g}e) − {factor**2:g} loss(z, e)",
    )
