"""The weights that the gradients and the value of a loss imply, and how they are read (theory T16).

The value cannot tell |z − sg q|² from |sg z − q|²: only gradients do. Weights are a on the commitment and b on the
codebook term: ∂loss/∂z = 2aF(z − q), ∂loss/∂e = 2bF Σ(e − z), loss = (a + b)F Σ|z − q|², with F = 1/(N·D) for a mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from vqverify.bounds import Clause, within
from vqverify.case import Case
from vqverify.invariants.measure import Array, norms, roundoff, tiny, trait
from vqverify.invariants.pulls import Measured, Side, measure
from vqverify.quantizer import Quantizer

WEIGHTS = ("commitment_weight", "commitment_cost", "commitment_loss_weight", "commit_weight")
COARSE = 2e-3  # how well identification knows a weight that nobody declared


@dataclass(frozen=True)
class Law:
    """Weights with their factor, and how far each may be off, relatively: 0 where somebody declared it."""

    a: float
    b: float
    factor: float
    loose_a: float = 0.0
    loose_b: float = 0.0


def laws(subject: Quantizer, found: Measured) -> Iterator[Law]:
    """Every reading of what is declared: weights, β in each convention (T16), each reduction that is not excluded."""
    coefficients: dict[str, tuple[float | None, float | None]] = trait(subject, "loss_coefficients", {})
    factors = {"mean": 1 / (found.n * found.dim), "token-mean": 1 / found.n, "sum": 1.0, "batch-mean": 1.0}
    said = subject.claims.get("reduction")
    names = (
        [said.value]
        if said is not None and said.value in factors
        else _exchanged(subject, coefficients) or list(factors)
    )
    for name in names:
        known = coefficients.get(name)
        a, b = (known[0] or 0.0, known[1] or 0.0) if known else (None, None)
        if not a and found.sides[0].got.any():
            a = _fitted_weight(found.sides[0], factors[name])
        for wanted_a, wanted_b in _weights(subject, learnable=bool(found.pulled)):
            first, second = _settled(wanted_a, a), _settled(wanted_b, b)
            if first is None or second is None:
                continue
            law = Law(first[0], second[0], factors[name], first[1], second[1])
            yield law
            if found.levels > 1:  # the losses of the levels averaged, and not added up
                yield replace(law, factor=law.factor / found.levels)


def _exchanged(subject: Quantizer, coefficients: dict[str, tuple[float | None, float | None]]) -> list[str]:
    """Reductions under which the declared commitment weight stands on the codebook's term, and 1 on the commitment.

    Another reduction may excuse that, with a commitment weight that fits by chance (1/D is ¼ at D = 4); no right layer
    looks so, unless its codebook weight is the square of its commitment weight.
    """
    claim = subject.claims.get("commitment_weight")
    if claim is None or "codebook_weight" in subject.claims or claim.value == 1:
        return []
    near = {name: (a or 0.0, b or 0.0) for name, (a, b) in coefficients.items()}
    return [name for name, pair in near.items() if np.allclose(pair, (1.0, claim.value), rtol=COARSE, atol=0)]


def _fitted_weight(side: Side, factor: float) -> float | None:
    """The weight that this pass shows, where identification saw none: direction and value are then what is judged."""
    size = float((side.away**2).sum())
    return float((side.got * side.away).sum()) / (2 * factor * size) if size else None


def _settled(claimed: float | None, known: float | None) -> tuple[float, float] | None:
    """A weight and its uncertainty: as claimed, or as found, taken for the round number that it is next to."""
    if claimed is not None or known is None:
        return None if claimed is None else (claimed, 0.0)
    near = float(f"{known:.2g}")
    return (near, 0.0) if abs(near - known) <= 2e-4 * abs(known) else (known, COARSE)


def _weights(subject: Quantizer, *, learnable: bool) -> list[tuple[float | None, float | None]]:
    """(a, b) as claimed; None where nobody says."""
    claims = {name: claim.value for name, claim in subject.claims.items()}
    a, b = claims.get("commitment_weight"), claims.get("codebook_weight") if learnable else 0.0
    if a is None and "beta" in claims:
        beta = float(claims["beta"])
        readings: list[tuple[float | None, float | None]] = [
            (beta, 1.0),
            (1.0, beta),
            ((1 - beta) / 2, beta / 2),
            (1 - beta, beta),
            (beta, 1 - beta),
        ]
        return readings if learnable else [(beta, 0.0), (1.0, 0.0), ((1 - beta) / 2, 0.0), (1 - beta, 0.0)]
    # a weight of the whole loss beside one of the commitment in it, as in vector-quantize-pytorch's SimVQ
    inner = [value for name, value in constructed(subject).items() if "commit" in name and name not in WEIGHTS]
    return [(a, b), *((a * value, b) for value in inner if a is not None)]


def constructed(subject: Quantizer) -> dict[str, float]:
    """The numbers that the layer was constructed with, given or by default."""
    values = subject.arguments.items()
    return {k: float(v) for k, v in values if isinstance(v, int | float) and not isinstance(v, bool)}


def weighed(subject: Quantizer, found: Measured, law: Law) -> list[Clause]:
    """Gradients under one reading: seen from the side that suits it best."""
    u, scale = roundoff(subject), 2 * law.factor
    clauses: list[Clause] = []
    for side in found.sides:
        want = scale * law.a * side.away
        allowed = 8 * u * scale * abs(law.a) * side.reach + law.loose_a * norms(want) + side.noise + tiny(subject)
        said = f"|∂loss/∂z − 2·{law.a:.4g}·F(z − q)|{_instead(side.got, scale * side.away)}"
        clauses.append(within(norms(side.got - want), allowed, "commitment weight", said))
    best = [min(clauses, key=lambda clause: clause.margin or 0.0)]
    for pulled in found.pulled:
        want = scale * law.b * pulled.want
        allowed = max(u, pulled.u) * scale * abs(law.b) * pulled.reach + law.loose_b * norms(want) + tiny(subject)
        said = f"|∂loss/∂e − 2·{law.b:.4g}·F Σ(e − z)|{_instead(pulled.got, scale * pulled.want)}"
        best.append(within(norms(pulled.got - want), allowed, "codebook weight", said))
    return best


def _instead(got: Array, unit: Array) -> str:
    size = float((unit * unit).sum())
    fitted = float((got * unit).sum()) / size if size else 0.0
    return f", the weight found is {fitted:.4g}"


def undivided(subject: Quantizer, found: Measured, law: Law) -> list[float]:
    """What Σ|z − q|² may be multiplied by: both weights, or the one of a term whose gradient goes both ways."""
    sums = [law.a + law.b] + ([law.a] if law.b and abs(law.a - law.b) < 1e-9 else [])
    if found.indirect:  # codes W x: their term is in the value, and moves W
        claim = subject.claims.get("codebook_weight")
        sums.append(law.a + (1.0 if claim is None else float(claim.value)))
    return sums


def value(subject: Quantizer, found: Measured, law: Law) -> Clause:
    """The value that weights imply: both terms added, or one undivided term whose gradient goes both ways."""
    u, side = roundoff(subject), found.sides[0]
    clauses: list[Clause] = []
    for weight in undivided(subject, found, law):
        size = abs(weight) * law.factor
        depth = found.n * found.dim + 8
        loose = max(law.loose_a, law.loose_b) * side.squares
        allowed = size * (depth * u * side.squares + found.cross(u) + side.slack + loose)
        want = weight * law.factor * side.squares
        said = f"|loss − {weight:.4g}·F Σ|z − q|²|, loss {found.loss:.4g}"
        clauses.append(within(found.loss - want, allowed + found.noise + tiny(subject) * depth, "value", said))
    return min(clauses, key=lambda clause: clause.margin or 0.0)


def weight_argument(subject: Quantizer) -> tuple[str, float] | None:
    """Name and value of the constructor's commitment weight, if it has one above 0."""
    numbers = constructed(subject)
    return next(((name, numbers[name]) for name in WEIGHTS if numbers.get(name, 0.0) > 0), None)


def isolated(subject: Quantizer, case: Case) -> tuple[Measured, Law] | None:
    """The commitment term alone, where the loss holds others: what doubling its weight adds in another construction."""
    argument = weight_argument(subject)
    once = measure(subject, case) if argument else None
    if once is None or argument is None or "commitment_weight" not in subject.claims:
        return None
    name, weight = argument
    twin = subject.build({name: 2 * weight})
    twin.restore()
    twin.set_codebook(case.codebook) if case.codebook is not None else None
    more = measure(twin, replace(case, history=()))
    if more is None or len(more.sides) != len(once.sides) or case.history:
        return None
    u, depth = roundoff(subject), once.n * once.dim + 8
    sides = tuple(
        replace(b, got=b.got - a.got, reach=4 * b.reach, noise=u * depth * (norms(a.got) + norms(b.got)))
        for a, b in zip(once.sides, more.sides, strict=True)
    )
    noise = u * depth * (abs(once.loss) + abs(more.loss))
    found = replace(more, loss=more.loss - once.loss, sides=sides, pulled=(), noise=noise)
    return found, Law(weight, 0.0, 1.0)
