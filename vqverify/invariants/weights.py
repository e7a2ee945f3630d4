"""What a loss does, measured: its gradients at latents and codes, its value, and the weights they imply (theory T16).

The value cannot tell |z − sg q|² from |sg z − q|²: only gradients do. Weights are a on the commitment and b on the
codebook term: ∂loss/∂z = 2aF(z − q), ∂loss/∂e = 2bF Σ(e − z), loss = (a + b)F Σ|z − q|², with F = 1/(N·D) for a mean.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vqverify.bounds import Clause, within
from vqverify.capture import pull
from vqverify.case import Case
from vqverify.invariants.measure import Array, array, norms, roundoff, tiny, trait, views
from vqverify.invariants.residual import stacked
from vqverify.layer import guarded
from vqverify.quantizer import Quantized, Quantizer

COARSE = 2e-3  # how well identification knows a weight that nobody declared


@dataclass(frozen=True)
class Side:
    """The loss seen from one set of latents: its gradient there, z − q summed over levels, and what rounding may do to it."""

    got: Array
    away: Array
    reach: Array
    squares: float
    slack: float
    noise: Array | float = 0.0  # rounding of `got` that does not come from z − q: of other terms, subtracted


@dataclass(frozen=True)
class Pulled:
    """The codebook gradient of one level: measured, Σ(e − z) by code, and its rounding, (K, D) each."""

    got: Array
    want: Array
    reach: Array


@dataclass(frozen=True)
class Measured:
    """A training pass and its loss, from every side."""

    loss: float
    n: int
    dim: int
    levels: int
    plain: bool  # the latents that are compared with codes are z itself
    sides: tuple[Side, ...]
    pulled: tuple[Pulled, ...]
    noise: float = 0.0  # rounding of `loss`, likewise


def gradient_at(out: Quantized, tensor: Tensor) -> Tensor:
    """∂loss/∂tensor, zeros where nothing connects them."""
    assert out.loss is not None
    if not out.loss.requires_grad:
        return torch.zeros_like(tensor)
    with guarded("backward of the loss"):
        return pull(out.loss, tensor, torch.ones_like(out.loss))


def measure(subject: Quantizer, case: Case) -> Measured | None:
    """A training pass; None without a loss, or where codes and latents could not be told."""
    if trait(subject, "structure") == "residual":
        return _measure_stack(subject, case)
    books = subject.codebooks()
    out = subject.forward(case.z, train=True, seed=case.seed, trace=bool(trait(subject, "levels")))
    if out.loss is None or out.codes is None:
        return None
    sides: list[Side] = []
    pairs: list[tuple[Array, Array, Array, Array]] = []  # latents, codes, indices, codebook of each level
    if out.levels and all(level.z_c is not None for level in out.levels):
        got: list[Array] = []
        for view in views(out):
            assert view.level.z_c is not None
            got.append(array(view.level.z_c.to_rows(gradient_at(out, view.level.z_c.tensor))))
            pairs.append((view.z, view.q, view.k, view.codebook))
        reached = any(part.any() for part in got) or not bool(gradient_at(out, out.z.tensor).any())
        if reached and pairs and not (trait(subject, "metric") == "cosine" and _hidden(pairs[0][0], array(out.z.rows))):
            sides.append(_side(np.concatenate(got, 1), *(np.concatenate([pair[i] for pair in pairs], 1) for i in (0, 1))))
    if len(books) == 1 and books[0].shape[1] == case.z.shape[1]:
        z, book, k = array(out.z.rows), array(books[0]), out.codes[:, 0].cpu().numpy()
        q = book[np.clip(k, 0, len(book) - 1)]
        z_q = array(out.z_q.rows)
        plain = (norms(z_q - q) <= 0.05 * norms(q)).mean() > 0.5  # the codes live in z's own space
        if plain and trait(subject, "metric") != "cosine":
            sides.append(_side(array(gradient_at(out, out.z.tensor)), z, q))
            pairs = pairs or [(z, q, k, book)]
    if not sides:
        return None
    pulled = _codebook_sides(subject, out, pairs)
    plain = np.array_equal(pairs[0][0], array(out.z.rows))
    loss, dim = float(out.loss.detach().double()), sides[0].away.shape[1]
    return Measured(loss, len(case.z), dim, len(pairs), plain, tuple(sides), pulled)


def _hidden(latents: Array, z: Array) -> bool:
    """Whether a cosine layer's normalised latents are not what was located, or cannot be told from the latents given."""
    size = norms(latents)
    return np.array_equal(latents, z) or bool((np.abs(size - 1)[size > 0] > 1e-2).any())


def _measure_stack(subject: Quantizer, case: Case) -> Measured | None:
    stack = stacked(subject, case, train=True)
    if stack is None or stack.out.loss is None or not np.isfinite(stack.off).all():
        return None
    out, levels = stack.out, stack.levels
    away = np.sum([level.z - level.q for level in levels], axis=0)
    reach = np.sum([norms(level.z) + norms(level.q) for level in levels], axis=0)
    off = np.sum([level.off for level in levels], axis=0)
    gap = np.array([norms(level.z - level.q) for level in levels])
    # a residual that is off by δ changes |r − q|² by 2|r − q|δ + δ²
    slack = float((2 * gap.max(0) * off + off**2).sum())
    u = roundoff(subject)
    side = Side(array(gradient_at(out, out.z.tensor)), away, reach + off / u, float((gap**2).sum()), slack)
    pairs = [(level.z, level.q, level.k, level.book) for level in levels]
    offs = [level.off / u for level in levels]
    pulled = _codebook_sides(subject, out, pairs, offs) if len(subject.codebooks()) == len(levels) else ()
    loss = float(stack.out.loss.detach().double())
    return Measured(loss, len(case.z), away.shape[1], len(levels), True, (side,), pulled)


def _side(got: Array, z: Array, q: Array) -> Side:
    return Side(got, z - q, norms(z) + norms(q), float(((z - q) ** 2).sum()), 0.0)


def _codebook_sides(
    subject: Quantizer, out: Quantized, pairs: list[tuple[Array, Array, Array, Array]], offs: list[Array] | None = None
) -> tuple[Pulled, ...]:
    assert out.loss is not None
    if "gradient" not in trait(subject, "learning", ()) or not out.loss.requires_grad:
        return ()
    found = subject.codebook_gradients(out.loss)
    sides: list[Pulled] = []
    for index, (got, (z, q, k, book)) in enumerate(zip(found, pairs, strict=False)):
        keep = k >= 0
        want, reach, count = np.zeros_like(book), np.zeros(len(book)), np.zeros(len(book))
        np.add.at(want, k[keep], (q - z)[keep])
        np.add.at(reach, k[keep], (norms(q) + norms(z) + (0.0 if offs is None else offs[index]))[keep])
        np.add.at(count, k[keep], 1.0)
        if got.shape == book.shape:
            sides.append(Pulled(array(got), want, reach * (count + 8)))
    return tuple(sides)


@dataclass(frozen=True)
class Law:
    """Weights with their factor, and how far each may be off, relatively: 0 where somebody declared it."""

    a: float
    b: float
    factor: float
    loose_a: float = 0.0
    loose_b: float = 0.0


def laws(subject: Quantizer, found: Measured) -> Iterator[Law]:
    """Every reading of what is declared: weights, β in each convention (T16), and each reduction that is not excluded."""
    coefficients: dict[str, tuple[float | None, float | None]] = trait(subject, "loss_coefficients", {})
    factors = {"mean": 1 / (found.n * found.dim), "token-mean": 1 / found.n, "sum": 1.0, "batch-mean": 1.0}
    said = subject.claims.get("reduction")
    names = [said.value] if said is not None and said.value in factors else list(factors)
    for name in names:
        known = coefficients.get(name)
        a, b = (known[0] or 0.0, known[1] or 0.0) if known else (None, None)
        for wanted_a, wanted_b in _weights(subject, learnable=bool(found.pulled)):
            first, second = _settled(wanted_a, a), _settled(wanted_b, b)
            if first is None or second is None:
                continue
            law = Law(first[0], second[0], factors[name], first[1], second[1])
            yield law
            if found.levels > 1:  # the losses of the levels averaged, and not added up
                yield replace(law, factor=law.factor / found.levels)


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
        readings = [(beta, 1.0), (1.0, beta), ((1 - beta) / 2, beta / 2), (1 - beta, beta)]
        return readings if learnable else [(beta, 0.0), (1.0, 0.0), ((1 - beta) / 2, 0.0), (1 - beta, 0.0)]
    return [(a, b)]


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
        allowed = u * scale * abs(law.b) * pulled.reach + law.loose_b * norms(want) + tiny(subject)
        said = f"|∂loss/∂e − 2·{law.b:.4g}·F Σ(e − z)|{_instead(pulled.got, scale * pulled.want)}"
        best.append(within(norms(pulled.got - want), allowed, "codebook weight", said))
    return best


def _instead(got: Array, unit: Array) -> str:
    size = float((unit * unit).sum())
    fitted = float((got * unit).sum()) / size if size else 0.0
    return f", the weight found is {fitted:.4g}"


def value(subject: Quantizer, found: Measured, law: Law) -> Clause:
    """The value that weights imply: both terms added, or one undivided term whose gradient goes both ways."""
    u, side = roundoff(subject), found.sides[0]
    sums = [law.a + law.b] + ([law.a] if law.b and abs(law.a - law.b) < 1e-9 else [])
    clauses: list[Clause] = []
    for weight in sums:
        size = abs(weight) * law.factor
        depth = found.n * found.dim + 8
        cross = 4 * u * float((norms(side.away) * side.reach).sum())
        allowed = size * (depth * u * side.squares + cross + side.slack + max(law.loose_a, law.loose_b) * side.squares)
        want = weight * law.factor * side.squares
        said = f"|loss − {weight:.4g}·F Σ|z − q|²|, loss {found.loss:.4g}"
        clauses.append(within(found.loss - want, allowed + found.noise + tiny(subject) * depth, "value", said))
    return min(clauses, key=lambda clause: clause.margin or 0.0)


WEIGHTS = ("commitment_weight", "commitment_cost", "commitment_loss_weight", "commit_weight")


def weight_argument(subject: Quantizer) -> tuple[str, float] | None:
    """Name and value of the constructor's commitment weight, if it has one above 0."""
    defaults = {name: p.default for name, p in inspect.signature(type(subject.module).__init__).parameters.items()}
    for name in WEIGHTS:
        found = subject.spec.kwargs.get(name, defaults.get(name))
        if isinstance(found, int | float) and not isinstance(found, bool) and found > 0:
            return name, float(found)
    return None


def isolated(subject: Quantizer, case: Case) -> tuple[Measured, Law] | None:
    """The commitment term alone, where the loss holds others: what doubling its weight in a second construction adds."""
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
