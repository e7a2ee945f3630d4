"""Claims against what probing found: consistent, joined, and judged."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vqverify.quantizer import Finding
from vqverify.subject.claims.words import NUMBERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def consistent(name: str, claim: Finding, found: Mapping[str, Finding]) -> bool | None:
    """Whether what was found agrees with a claim; None if it could not be determined."""
    here = found.get(name, Finding(None))
    weights = found.get("loss_coefficients", Finding(None)).value
    if name in {"beta", "commitment_weight", "codebook_weight"}:
        if claim.value == 0 and weights is None and found.get("loss", Finding(None)).value is False:
            return True  # no loss is a loss of weight 0
        readings = [claim.value]
        if name == "commitment_weight" and "inner_commitment_weight" in found:  # it may be the whole loss's weight
            readings.append(claim.value * found["inner_commitment_weight"].value)
        if not weights and here.value is not None:  # seen by itself, among other terms
            return any(_close(here.value, claimed) for claimed in readings)
        pairs = [_each(pair, count) for pair in (weights or {}).values() for count in _parts(found)]
        fits = [_weight_fits(name, claimed, *pair) for pair in pairs for claimed in readings]
        return None if None in fits or not fits else any(fits)
    if name == "temperature" and "temperature_equivalent" in found:
        return any(abs(t - claim.value) <= 0.2 * claim.value for t in found["temperature_equivalent"].value)
    if here.value is None:
        used = found.get("codes_used", Finding(None)).value if name == "codebook_size" else None
        return None if used is None or used < claim.value else used == claim.value
    if name == "decay":
        return abs(here.value - claim.value) <= max(0.25 * (1 - claim.value), 1e-4)
    if name in NUMBERS:
        return abs(here.value - claim.value) <= 0.2 * abs(claim.value)
    if name == "learning":
        inside = found.get("alternating", Finding(None)).value  # an optimiser inside learns by gradient, too
        return set(claim.value) <= {*here.value, *(["gradient"] if inside else [])}
    if name == "estimator" and here.value == "synchronized":  # straight-through to the latents, a share to the codes
        return claim.value in {"synchronized", "straight-through"}
    if name == "metric":
        return claim.value in found.get("metric_equivalent", Finding([here.value])).value
    if name == "stochastic":
        return here.value in {claim.value, "both"}
    if name == "dim":
        return claim.value in {here.value, found.get("code_dim", Finding(None)).value}
    return here.value == claim.value


def _weight_fits(name: str, claimed: float, commitment: float, codebook: float | None) -> bool | None:
    """Whether the coefficients found are what a weight, or any reading of β (T16), gives.

    The codebook's coefficient is None where the codebook takes no gradient; then nothing is known about it.
    """
    if name == "commitment_weight":
        return _close(commitment, claimed)
    if name == "codebook_weight":
        return None if codebook is None else _close(codebook, claimed)
    readings = [(claimed, 1.0), ((1 - claimed) / 2, claimed / 2), (1 - claimed, claimed)]
    readings += [] if codebook is None else [(1.0, claimed), (claimed, 0.0)]
    return any(_close(commitment, a) and (codebook is None or _close(codebook, b)) for a, b in readings)


def _parts(found: Mapping[str, Finding]) -> list[int]:
    """By how many a weight may be divided: 1, or the levels over which a stack takes the mean."""
    return [1, *(count for count in [found.get("num_quantizers", Finding(None)).value] if count and count > 1)]


def _each(pair: tuple[float, float | None], count: int) -> tuple[float, float | None]:
    """The coefficients of a level whose share in a mean over levels was found."""
    return pair[0] * count, None if pair[1] is None else pair[1] * count


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= 0.02 * max(abs(b), 1e-3)


def _exchanged(claim: Finding, found: Mapping[str, Finding]) -> bool:
    """Whether β weighs the commitment and 1 − β the codebook, whose weight β is in 001 eq. 8."""
    pairs = (found.get("loss_coefficients", Finding(None)).value or {}).values()
    return any(b is not None and _close(a, claim.value) and _close(b, 1 - claim.value) for a, b in pairs)


def join(claims: Mapping[str, Finding], found: Mapping[str, Finding]) -> dict[str, Finding]:
    """The traits that rows select on: the claim where there is one, so that its law applies, else what was found."""
    traits = dict(found)
    for name, claim in claims.items():
        here = found.get(name, Finding(None))
        agrees = consistent(name, claim, found)
        if agrees and name in {"learning", "dim", "stochastic"}:  # a claim says less than was found
            traits[name] = replace(here, origin=claim.origin, evidence=f"{claim.evidence}; {here.evidence}")
            continue
        evidence = f"{claim.evidence}; {'found: ' + here.evidence if here.evidence else 'not probed'}"
        traits[name] = replace(claim, evidence=evidence, mistake=here.mistake if here.value == claim.value else None)
    return traits


def honesty(claims: Mapping[str, Finding], found: Mapping[str, Finding]) -> Iterator[tuple[str, str, str, str]]:
    """One case for each claim: (name, status passed | failed | undetermined, label, message).

    A claim that probing contradicts fails (`contradicted`); one that was given and cannot be determined too
    (`unverifiable`); a default that cannot be determined is undetermined (`dormant` where nothing moves), and so is
    a temperature where nothing is drawn.
    """
    for name, claim in claims.items():
        here = found.get(name, Finding(None, evidence="not probed"))
        value = here.value if here.mistake is None else f"{here.value} ({here.mistake})"
        agrees = consistent(name, claim, found)
        if name == "beta" and not agrees and _exchanged(claim, found):
            text = f"{claim.evidence}; {here.evidence}: as meant, or exchanged, where β is the codebook's as in 001"
            yield name, "undetermined", "ambiguous", text
        elif agrees:
            yield name, "passed", "", f"{claim.evidence}; found {value}: {here.evidence}"
        elif agrees is False:
            yield (
                name,
                "failed",
                "contradicted",
                f"{claim.evidence}, found {value}{_swap(name, claim, here)}: {here.evidence}",
            )
        elif claim.origin == "default" or (name == "temperature" and here.evidence.startswith("dormant")):
            # a temperature may be one of another term of the loss: nothing that it could rule is drawn at random
            label = "dormant" if here.evidence.startswith("dormant") else "unknown"
            yield name, "undetermined", label, f"{claim.evidence}; {here.evidence}"
        else:
            yield (
                name,
                "failed",
                "unverifiable",
                f"{claim.evidence}, which probing cannot confirm: {here.evidence}",
            )


def _swap(name: str, claim: Finding, here: Finding) -> str:
    if (
        name == "decay"
        and here.value is not None
        and abs(1 - here.value - claim.value) < 0.25 * min(claim.value, 1 - claim.value)
    ):
        return f", which is 1 − {claim.value:g}"
    return ""


def contradictions(claims: Mapping[str, Finding], found: Mapping[str, Finding]) -> list[tuple[str, str, str]]:
    """The claims that fail: (name, label, message)."""
    return [(name, label, text) for name, status, label, text in honesty(claims, found) if status == "failed"]
