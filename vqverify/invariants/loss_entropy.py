"""Regularisers at inputs where their value is known: orthogonal codes, one code in use, all codes in even use (theory T31, T37)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vqverify.bounds import Clause, Violation, within
from vqverify.case import Case
from vqverify.invariant import invariant
from vqverify.invariants.lookup_cells import in_own_space
from vqverify.invariants.loss_terms import weight_arguments
from vqverify.invariants.measure import roundoff, trait
from vqverify.invariants.weights import constructed
from vqverify.quantizer import Quantizer

ENTROPIES = ("entropy", "diversity", "kl_")
SHARP = 2.0**14  # distance of codes at which a softmax is one-hot for every temperature up to 100
MOST_CODES = 1024
UNITS = (np.log, np.log2, lambda _: 1.0)  # of log K: nats, bits, and parts of it
GUARD = 1e-9  # an ε inside a logarithm, a code


@dataclass(frozen=True)
class Term:
    """What a unit of a weight adds to the loss of one pass, and how far rounding may take it."""

    value: float
    noise: float


def _kind(name: str) -> str | None:
    if "orthogonal" in name:
        return "orthogonal"
    return "entropy" if any(word in f"{name}_" for word in ENTROPIES) else None


def entropies(subject: Quantizer) -> tuple[str, ...]:
    """Weights above 0 whose term is an entropy."""
    return tuple(name for name in weight_arguments(subject) if _kind(name) == "entropy" and not _within(name))


def _within(name: str) -> bool:
    """Whether a weight stands inside another one's term: the share of the diversity in an entropy loss."""
    return name.startswith("diversity")


def _regularisers(subject: Quantizer) -> tuple[str, ...]:
    size = trait(subject, "codebook_size")
    if not isinstance(size, int) or not 2 <= size <= MOST_CODES:
        return ()
    return tuple(name for name in weight_arguments(subject) if _kind(name) == "orthogonal" and _free(subject)) + (
        entropies(subject) if _sharpens(subject) else ()
    )


def _sharpens(subject: Quantizer) -> bool:
    """Whether latents can be made sure of their codes: signs, or distances to codes that may be put anywhere."""
    far = trait(subject, "metric") == "euclidean" and trait(subject, "structure") == "plain"
    return trait(subject, "structure") == "sign" or (far and _free(subject))


def _free(subject: Quantizer) -> bool:
    """Whether codes may be put anywhere, in the space of the latents."""
    return bool(trait(subject, "settable", default=False)) and in_own_space(subject)


def term(subject: Quantizer, name: str, z: Tensor, book: Tensor | None = None, *, seed: int = 0) -> Term | None:
    """The term of a weight by itself: the loss is affine in the weight (loss.terms); None without a loss."""
    weight = weight_arguments(subject)[name]
    losses: list[float] = []
    for factor in (1.0, 0.5):
        try:
            twin = subject.build({name: factor * weight})
            if book is not None:
                twin.set_codebook([book])
            out = twin.forward(z.to(subject.domain.dtype), train=True, seed=seed, grad=False)
        except Violation:
            if factor != 1.0:
                return None
            raise
        if out.loss is None:
            return None
        losses.append(float(out.loss.detach().double()))
    full, half = losses
    noise = (z.numel() + 64) * roundoff(subject) * (abs(full) + abs(half))
    return Term(2 * (full - half) / weight, 2 * noise / weight)


@invariant(
    "loss.closed_forms",
    source="theory T31, T37; Shin 2021 eq. 2; Yu 2024 eq. 5",
    mode="table",
    needs=("loss", "codes"),
    parts=_regularisers,
    corners=("single",),
    follows=("loss.terms",),
    mutants=("entropy_wrong_axis", "entropy_sign", "orthogonal_diagonal", "orthogonal_counts_inactive"),
    hint="average probabilities over the batch, then take the entropy, −Σ p log p; subtract the identity from CCᵀ before "
    "squaring; and count the codes that the flag says.",
)
def closed_forms(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A regulariser takes its known values: 0 for orthogonal codes; for entropies 0 or log K with one code or all in use.

    Known up to a convention, which both values have to share: pairs or entries averaged or summed; nats, bits or
    parts of log K; E[H] − γH(mean), or a divergence from the uniform distribution.

    Margin: axes and equal codes make every cosine exact, so that it is 0 there.
    """
    assert case.part is not None
    if _kind(case.part) == "orthogonal":
        yield from _orthogonal(subject, case.part, case.seed)
    else:
        yield from _entropy(subject, case.part, case.seed)


def _orthogonal(subject: Quantizer, name: str, seed: int) -> Iterator[Clause]:
    """Codes along the axes, and codes that are all the same; S = Σ cos² over the pairs of two."""
    (own,) = subject.codebooks()
    size, dim = own.shape
    axes = torch.eye(dim)[torch.arange(size) % dim].to(own)
    same = axes[:1].expand_as(axes).clone()
    in_use = _flag(subject, "active")
    counts = np.bincount(np.arange(size) % dim)
    want = [float((counts**2).sum() - size), 0.0 if in_use else float(size**2 - size)]
    found = [term(subject, name, book[torch.arange(max(size, subject.domain.min_n)) % size], book, seed=seed)
             for book in (axes, same)]  # fmt: skip
    if any(part is None for part in found):
        return
    terms = [part for part in found if part is not None]
    if in_use and size > dim:
        terms, want = terms[1:], want[1:]  # of equal codes one is in use, and nobody says which
    readings: list[list[Clause]] = []
    for factor in (1 / size**2, 1 / (size * (size - 1)), 1.0, 1 / size):
        unit = max(want[-1], float(size)) * factor
        rounding = (size + dim + 32) * roundoff(subject) * unit
        readings.append([
            within(part.value - factor * s, part.noise + rounding, label, f"{part.value:.6g} for a term that is {factor * s:.6g}")
            for part, s, label in zip(terms, want, ("orthogonal", "equal")[-len(terms) :], strict=True)
        ])  # fmt: skip
    yield from min(readings, key=lambda clauses: max(clause.margin or 0.0 for clause in clauses))


def _flag(subject: Quantizer, word: str) -> bool:
    """Whether a boolean argument of that name is on, given or by default."""
    return any(value is True and word in name for name, value in subject.arguments.items())


@dataclass(frozen=True)
class Reading:
    """An entropy term in units of log K: with one code in use, with all in even and sharp use, and its bounds."""

    one: float
    every: float
    low: float
    high: float


def readings(subject: Quantizer, name: str) -> list[Reading]:
    """What an entropy term may be: E[H] − γH(mean), the divergence of each latent's, or of the mean use, from the uniform.

    E[H] alone, which is 0 for every sharp use, is one where no argument speaks of diversity.
    """
    numbers = constructed(subject)
    said = [value for argument, value in numbers.items() if argument.startswith("diversity")]
    share = said[0] if said else 1.0
    size = float(trait(subject, "codebook_size"))
    kinds = [
        Reading(0.0, -share, -share, max(0.0, 1.0 - share)),
        Reading(1.0, 1.0, 0.0, 1.0),
        Reading(1.0, 0.0, 0.0, 1.0),
    ]
    if not said and "diversity" not in name:
        kinds.append(Reading(0.0, 0.0, 0.0, 1.0))
    units = [unit(size) for unit in UNITS]
    return [Reading(*(unit * x for x in (r.one, r.every, r.low, r.high))) for r in kinds for unit in units]


def _entropy(subject: Quantizer, name: str, seed: int) -> Iterator[Clause]:
    """One code for all latents, and every code for as many: both sharply, so that each latent's own entropy is 0."""
    book, every = _sharp(subject)
    found = [term(subject, name, z, book, seed=seed) for z in (every[:1].expand_as(every), every)]
    if found[0] is None or found[1] is None:
        return
    size, u = int(trait(subject, "codebook_size")), roundoff(subject)
    options: list[list[Clause]] = []
    for reading in readings(subject, name):
        slack = (2 * size + 32) * u * max(abs(reading.low), abs(reading.high)) + GUARD * size
        options.append([
            within(part.value - want, part.noise + slack, label, f"{part.value:.6g} for a term that is {want:.6g} with {said}")
            for part, want, label, said in (
                (found[0], reading.one, "one code", "one code in use"),
                (found[1], reading.every, "all codes", f"{size} codes in even use"),
            )
        ])  # fmt: skip
    yield from min(options, key=lambda clauses: max(clause.margin or 0.0 for clause in clauses))


def _sharp(subject: Quantizer) -> tuple[Tensor | None, Tensor]:
    """Codes far apart, and latents on them, each code once; for signs, latents far from the boundaries."""
    size, dim = int(trait(subject, "codebook_size")), subject.domain.dim
    if trait(subject, "structure") == "sign":
        bits = (torch.arange(size)[:, None] >> torch.arange(dim)) & 1
        return None, 32.0 * (2 * bits - 1)
    (own,) = subject.codebooks()
    book = torch.zeros_like(own)
    book[:, 0] = SHARP * torch.arange(size)
    return book, book.float()


def entropy_bounds(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A sign layer's entropy term lies between −γ log K and (1 − γ)₊ log K (E[H] alone, between 0 and log K)."""
    for name in entropies(subject):
        found = term(subject, name, case.z, seed=case.seed)
        if found is None:
            continue
        entropic = [reading for reading in readings(subject, name)[:: len(UNITS)] if reading.one == 0.0]
        low, high = min(reading.low for reading in entropic), max(reading.high for reading in entropic)
        slack = found.noise + (2 * case.z.numel() + 64) * roundoff(subject) * max(-low, high) + GUARD
        middle, half = (low + high) / 2, (high - low) / 2
        yield within(
            found.value - middle,
            half + slack,
            "entropy",
            f"the entropy term is {found.value:.6g}, outside [{low:.4g}, {high:.4g}]",
        )
