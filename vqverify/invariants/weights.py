"""What a loss does, measured: its gradients at latents and codes, its value, and the weights they imply (theory T16).

The value cannot tell |z − sg q|² from |sg z − q|²: only gradients do. Weights are a on the commitment and b on the
codebook term: ∂loss/∂z = 2aF(z − q), ∂loss/∂e = 2bF Σ(e − z), loss = (a + b)F Σ|z − q|², with F = 1/(N·D) for a mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqverify.bounds import Clause, unit_roundoff, within
from vqverify.case import Case
from vqverify.invariants.measure import Array, View, array, norms, roundoff, tiny, trait, views
from vqverify.invariants.residual import stacked
from vqverify.quantizer import Quantized, Quantizer
from vqverify.subject.capture import pull
from vqverify.subject.guards import guarded

WEIGHTS = ("commitment_weight", "commitment_cost", "commitment_loss_weight", "commit_weight")
COARSE = 2e-3  # how well identification knows a weight that nobody declared


Pair = tuple[Array, Array, NDArray[np.int64], Array]  # latents, codes, indices and codebook of a level


@dataclass(frozen=True)
class Side:
    """The loss seen from one set of latents.

    Attributes:
        got: its gradient there, (N, D).
        away: z − q, summed over levels, (N, D): what the gradient should be a multiple of.
        reach: |z| + |q| a row, as large as it is where the gradient is taken: rounding is relative to it.
        squares: Σ|z − q|² over all levels, in code space.
        span: root of Σ(|z| + |q|)², in code space.
        slack: what latents that are off by rounding do to `squares`.
        noise: rounding of `got` that does not come from z − q: of other terms, subtracted.
    """

    got: Array
    away: Array
    reach: Array
    squares: float
    span: float
    slack: float = 0.0
    noise: Array | float = 0.0


@dataclass(frozen=True)
class Pulled:
    """The codebook gradient of one level: measured, Σ(e − z) by code, and its rounding, (K, D) each; u of its format."""

    got: Array
    want: Array
    reach: Array
    u: float


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
    indirect: bool = False  # the loss moves other parameters, which may be what the codes are made of
    noise: float = 0.0  # rounding of `loss` that comes from other terms, subtracted

    def cross(self, u: float) -> float:
        """What rounding of z and q themselves does to Σ|z − q|²; more where they were projected or normalised."""
        off = (4 if self.plain else self.dim + 8) * u * self.sides[0].span
        return off * self.sides[0].squares ** 0.5 + off**2


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
    if out.codes is not None and bool((out.codes < 0).all(0).any()):
        return None  # a level was dropped at random: its loss is 0, and means are over fewer terms
    if out.loss is None or out.codes is None:
        return None
    sides: list[Side] = []
    pairs: list[Pair] = []
    if out.levels and all(level.z_c is not None for level in out.levels):
        found = list(views(out))
        if all(_is_code(view.value, view.q, view.z) for view in found) and not _hidden(
            subject, found, array(out.z.rows)
        ):
            pairs = [(view.z, view.q, view.k, view.codebook) for view in found]
            sides.append(_pulled_back(subject, out, found))
    if len(books) == 1 and books[0].shape[1] == case.z.shape[1] and trait(subject, "metric") != "cosine":
        z, book, k = array(out.z.rows), array(books[0]), out.codes[:, 0].cpu().numpy()
        q = book[np.clip(k, 0, len(book) - 1)]
        if _is_code(array(out.z_q.rows), q, z):  # the codes live in z's own space
            pairs = pairs or [(z, q, k, book)]
            sides.append(_side(array(gradient_at(out, out.z.tensor)), z, q))
    if not sides:
        return None
    pulled = _codebook_sides(subject, out, pairs)
    plain = np.array_equal(pairs[0][0], array(out.z.rows))
    loss, dim = float(out.loss.detach().double()), sum(pair[0].shape[1] for pair in pairs)
    indirect = not pulled and _moves_parameters(subject, out)
    return Measured(loss, len(case.z), dim, len(pairs), plain, tuple(sides), pulled, indirect)


def _moves_parameters(subject: Quantizer, out: Quantized) -> bool:
    """Whether the loss is connected with some parameter of the module."""
    parameters = [parameter for parameter in subject.module.parameters() if parameter.requires_grad]
    if not parameters or out.loss is None or not out.loss.requires_grad:
        return False
    with guarded("backward of the loss"):
        found = torch.autograd.grad(out.loss, parameters, retain_graph=True, allow_unused=True)
    return any(gradient is not None for gradient in cast("tuple[Tensor | None, ...]", found))


def _is_code(value: Array, q: Array, z: Array) -> bool:
    """Whether most rows are the codes of the codebook, so that its space is known."""
    return bool((norms(value - q) <= 1e-3 * (norms(q) + norms(z))).mean() > 0.5)


def _hidden(subject: Quantizer, found: list[View], z: Array) -> bool:
    """Whether a cosine layer's normalised latents were not located, or cannot be told from the latents given."""
    if trait(subject, "metric") != "cosine" or not found:
        return False
    size = norms(found[0].z)
    return np.array_equal(found[0].z, z) or bool((np.abs(size - 1)[size > 0] > 1e-2).any())


def _pulled_back(subject: Quantizer, out: Quantized, found: list[View]) -> Side:
    """The loss as z sees it: z_c − q of every level, pulled back through projection and normalisation."""
    dtype, probe = subject.domain.dtype, torch.Generator().manual_seed(0)
    n, dim = out.z.rows.shape
    away, reach, squares, span = np.zeros((n, dim)), np.zeros(n), 0.0, 0.0
    for view in found:
        place = ("z_c", view.index)
        gap = view.z - view.q
        away += array(subject.vjp(out, torch.from_numpy(gap).to(dtype), place, "z"))
        # |Jᵀ| a row, from two random cotangents, of which no map but 0 makes 0; each entry is a sum of Dc products
        drawn = [torch.randn(gap.shape, generator=probe).to(dtype) for _ in range(2)]
        size = sum(norms(array(subject.vjp(out, cotangent, place, "z"))) for cotangent in drawn)
        size = size + norms(away) / np.maximum(norms(gap), 1e-30)
        reach += (norms(view.z) + norms(view.q)) * size * np.sqrt(gap.shape[1])
        squares += float((gap**2).sum())
        span += float(((norms(view.z) + norms(view.q)) ** 2).sum())
    return Side(array(gradient_at(out, out.z.tensor)), away, reach, squares, span**0.5)


def _measure_stack(subject: Quantizer, case: Case) -> Measured | None:
    stack = stacked(subject, case, train=True)
    if stack is None or stack.out.loss is None or not np.isfinite(stack.off).all():
        return None
    if any((level.k < 0).all() for level in stack.levels):
        return None  # dropped at random: its loss is 0, and means are over fewer terms
    out, levels = stack.out, stack.levels
    away = np.sum([level.z - level.q for level in levels], axis=0)
    reach = np.sum([norms(level.z) + norms(level.q) for level in levels], axis=0)
    off = np.sum([level.off for level in levels], axis=0)
    gap = np.array([norms(level.z - level.q) for level in levels])
    # a residual that is off by δ changes |r − q|² by 2|r − q|δ + δ²
    slack = float((2 * gap.max(0) * off + off**2).sum())
    u = roundoff(subject)
    squares, span = float((gap**2).sum()), float(np.sqrt((reach**2).sum()))
    side = Side(array(gradient_at(out, out.z.tensor)), away, reach + off / u, squares, span, slack)
    pairs = [(level.z, level.q, level.k, level.book) for level in levels]
    offs = [level.off / u for level in levels]
    pulled = _codebook_sides(subject, out, pairs, offs) if len(subject.codebooks()) == len(levels) else ()
    loss, indirect = float(stack.out.loss.detach().double()), not pulled and _moves_parameters(subject, out)
    return Measured(loss, len(case.z), away.shape[1], len(levels), True, (side,), pulled, indirect)


def _side(got: Array, z: Array, q: Array) -> Side:
    reach = norms(z) + norms(q)
    return Side(got, z - q, reach, float(((z - q) ** 2).sum()), float(np.sqrt((reach**2).sum())))


def _codebook_sides(
    subject: Quantizer, out: Quantized, pairs: list[Pair], offs: list[Array] | None = None
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
            sides.append(Pulled(array(got), want, reach * (count + 8), unit_roundoff(got.dtype)))
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
