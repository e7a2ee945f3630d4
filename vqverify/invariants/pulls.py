"""What a loss does, measured: its value, and its gradients at latents, codes and learnt maps (theory T16)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqverify.bounds import unit_roundoff
from vqverify.case import Case
from vqverify.invariants.measure import Array, View, array, norms, roundoff, trait, views
from vqverify.invariants.residual import stacked
from vqverify.quantizer import Quantized, Quantizer
from vqverify.subject.capture import pull
from vqverify.subject.guards import guarded

BASIS = 8  # up to so many dimensions |J|_F is exact, from one pull a dimension
DRAWN = 4  # beyond, its square is estimated from so many
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
    if trait(subject, "metric") != "cosine" or subject.domain.codebook != "sphere" or not found:
        return False  # DAC compares directions, and takes its loss between rows of any norm
    size = norms(found[0].z)
    return np.array_equal(found[0].z, z) or bool((np.abs(size - 1)[size > 0] > 1e-2).any())


def _pulled_back(subject: Quantizer, out: Quantized, found: list[View]) -> Side:
    """The loss as z sees it: z_c − q of every level, pulled back through projection and normalisation."""
    dtype = subject.domain.dtype
    n, dim = out.z.rows.shape
    away, reach, squares, span = np.zeros((n, dim)), np.zeros(n), 0.0, 0.0
    for view in found:
        place = ("z_c", view.index)
        gap = view.z - view.q
        away += array(subject.vjp(out, torch.from_numpy(gap).to(dtype), place, "z"))
        sizes = [norms(array(subject.vjp(out, cotangent.to(dtype), place, "z"))) for cotangent in cotangents(gap.shape)]
        size = np.sqrt(np.sum(np.square(sizes), axis=0)) + norms(away) / np.maximum(norms(gap), 1e-30)
        reach += (norms(view.z) + norms(view.q)) * size * np.sqrt(gap.shape[1])
        squares += float((gap**2).sum())
        span += float(((norms(view.z) + norms(view.q)) ** 2).sum())
    return Side(array(gradient_at(out, out.z.tensor)), away, reach, squares, span**0.5)


def cotangents(shape: tuple[int, ...]) -> list[Tensor]:
    """Cotangents whose pulls show |J|_F a row: Σ|Jᵀc|² is its square, or an estimate that is small for no J but 0.

    Few random ones would do for a map of full rank. That of a normalisation in two dimensions has rank 1, and two random
    cotangents lie so near its kernel, once in a thousand rows, that rounding passes what they allow.
    """
    n, dim = shape
    if dim <= BASIS:
        return [row.expand(n, dim) for row in torch.eye(dim)]
    probe = torch.Generator().manual_seed(0)
    return [torch.randn(n, dim, generator=probe) / DRAWN**0.5 for _ in range(DRAWN)]


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
