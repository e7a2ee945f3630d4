"""Cosine lookup sees directions: norms of latents do not matter, and codes stay on the sphere (theory T27)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from torch import Tensor

from vqverify.bounds import Clause, within
from vqverify.case import Case, prepare
from vqverify.invariant import invariant
from vqverify.invariants.agreement import distance_gap
from vqverify.invariants.lookup import both_modes
from vqverify.invariants.measure import SAFE, array, norms, rotation_law_bound, roundoff, tiny, trait, views
from vqverify.invariants.pulls import gradient_at
from vqverify.invariants.weights import constructed
from vqverify.quantizer import Quantized, Quantizer

NEEDS = ("codes", "codebook", "structure=plain", "metric=cosine")
UNIT = 1e-3  # a norm this near to 1 was meant to be 1
LEAST = 2.0**-6  # latents shorter than this meet the ε of a normalisation


def _probe(subject: Quantizer, *, train: bool) -> Quantized:
    count = max(24, subject.domain.min_n)
    z = torch.randn(count, subject.domain.dim, generator=torch.Generator().manual_seed(0xC05))
    return subject.forward(z.to(subject.domain.dtype), train=train, trace=True)


def sees_directions(subject: Quantizer) -> bool:
    """Whether z itself, up to its norm, is what ought to be compared with codes: no projection comes between.

    Told by what is compared; where that is not parallel to z, by whether the layer holds anything to project with.
    """
    books = subject.codebooks()
    if len(books) != 1 or books[0].shape[1] != subject.domain.dim:
        return False
    out = _probe(subject, train=False)
    z = _directed(array(out.z.rows))
    parallel = all(bool((norms(_directed(view.z) - z) < UNIT).all()) for view in views(out))
    return parallel or not _may_project(subject, *books[0].shape)


def _directed(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(norms(rows)[:, None], 1e-30)


def _may_project(subject: Quantizer, size: int, dim: int) -> bool:
    """Whether the state holds more than tables of K rows, counts and scalars."""
    known = {(size, dim), (dim, size), (size,), ()}
    shapes = [tuple(n for n in tensor.shape if n != 1) for tensor in subject.state().values()]
    return size == dim or any(shape not in known for shape in shapes)


def _codes(out: Quantized) -> list[np.ndarray]:
    """What stands for the code of each level, or z_q where no level was located."""
    return [array(level.q_c.rows) for level in out.levels] or [array(out.z_q.rows)]


def on_sphere(subject: Quantizer) -> bool:
    """Whether the layer, as built, returns codes of norm 1."""
    return all(_unit(rows) for rows in _codes(_probe(subject, train=True)))


def _scale_free(subject: Quantizer) -> tuple[str, ...]:
    return both_modes(subject) if sees_directions(subject) else ()


def rescaled(z: Tensor, seed: int) -> Tensor:
    """Lengths from 1/8 to 16, one a latent, (N, 1)."""
    generator = torch.Generator().manual_seed(0x5CA + seed)
    powers = torch.randint(-3, 4, (len(z), 1), generator=generator)
    return (1 + torch.rand(len(z), 1, generator=generator)).to(z) * 2.0 ** powers.to(z)


@invariant(
    "lookup.cosine_scale_free",
    follows=("lookup.nearest",),
    source="theory T27",
    needs=(*NEEDS, "deterministic"),
    parts=_scale_free,
    corners=("single", "unit", "on-code", "generic"),
    mutants=("cosine_wrong_axis", "cosine_by_distance_unprojected"),
    hint="F.normalize(z, dim=-1): the default dim=1 is another axis in a (B, N, D) tensor; normalise before comparing.",
)
def cosine_scale_free(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Cosine lookup ignores the norms of latents: codes and z_q are those of the directions."""
    train, scale, u = case.part == "train", rescaled(case.z, case.seed), roundoff(subject)
    book = array(subject.codebooks()[0])
    if norms(book).min(initial=1.0) < LEAST:
        return  # a code of norm 0 has no direction
    out = subject.forward(case.z, train=train, seed=case.seed)
    prepare(subject, case)
    again = subject.forward(scale * case.z, train=train, seed=case.seed)
    assert out.codes is not None
    assert again.codes is not None
    z, moved = array(case.z), array(scale * case.z)
    first, second = out.codes[:, 0].cpu().numpy(), again.codes[:, 0].cpu().numpy()
    seen = (np.minimum(norms(z), norms(moved)) > LEAST) & (np.minimum(first, second) >= 0)
    differ, a, b = first != second, book[np.maximum(first, 0)], book[np.maximum(second, 0)]
    gap, bound = distance_gap("cosine", z, a, b, u)
    if seen.any():
        yield within(np.where(differ, gap, 0.0)[seen], bound[seen], "codes", "similarity lost by a latent's length")
    value, got = array(out.z_q.rows), array(again.z_q.rows)
    size = 2 * norms(a) + norms(z) + norms(moved) + 2
    allowed = 4 * u * size + np.sqrt(z.shape[1]) * tiny(subject)
    if trait(subject, "estimator") not in {"straight-through", "none"}:
        law = rotation_law_bound(z / np.maximum(norms(z), LEAST)[:, None], a, u)
        allowed = allowed + np.where(law < SAFE, 2 * law * size, np.inf)
    keep = seen & ~differ & np.isfinite(allowed)
    if keep.any():
        yield within(norms(got - value)[keep], allowed[keep], "value", "z_q of a latent and of a multiple of it")


def _spheres(subject: Quantizer) -> tuple[str, ...]:
    if not on_sphere(subject):
        return ()
    free = sees_directions(subject) and trait(subject, "deterministic", default=False)
    return ("norm", "directions") if free else ("norm",)


@invariant(
    "lookup.cosine_sphere",
    follows=("lookup.cosine_scale_free",),
    source="theory T27",
    needs=NEEDS,
    state="both",
    parts=_spheres,
    corners=("single", "unit", "generic"),
    mutants=("cosine_codes_drift", "cosine_raw_loss", "cosine_raw_update"),
    hint="normalise latents once, at the entry, and the codes after every update: loss, gradient and averages then see "
    "directions only.",
)
def cosine_sphere(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Codes keep norm 1 through updates and optimiser steps; losses, gradients and updates see directions only."""
    if case.part == "norm":
        yield from _stays(subject, case)
    else:
        yield from _directions(subject, case)


def _stays(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Two training steps, one of an optimiser among them, and the codes of a pass after them.

    Where z_q is the code itself it is judged too: the codes that are read off the layer are normalised.
    """
    parameters = [p for p in subject.module.parameters() if p.requires_grad]
    rate = 2.0**-4
    whole = False
    for step in range(2):
        out = subject.forward(case.z, train=True, seed=case.seed + step, trace=step == 0)
        whole = _whole(out) if step == 0 else whole
        value = out.z_q.rows.sum() if out.loss is None else out.z_q.rows.sum() + out.loss
        if value.requires_grad and parameters:
            found = cast("tuple[Tensor | None, ...]", torch.autograd.grad(value, parameters, allow_unused=True))
            with torch.no_grad():
                for parameter, gradient in zip(parameters, found, strict=True):
                    if gradient is not None and bool(torch.isfinite(gradient).all()):
                        parameter.data.sub_(rate * gradient)
    out = subject.forward(case.z, train=True, seed=case.seed, trace=True)
    u, d = roundoff(subject), subject.domain.dim
    judged = list(zip(_codes(out), _latents(out), strict=True))
    judged += [(array(out.z_q.rows), array(out.z.rows))] if whole and out.levels else []
    for rows, z in judged:
        # the code's own norm, and z + sg(q − z) (T14)
        allowed = (4 * d + 16) * u + 1.01 * u * (2 * norms(rows) + norms(rows - z))
        if trait(subject, "estimator") not in {"straight-through", "none"}:
            law = rotation_law_bound(z, rows / np.maximum(norms(rows), UNIT)[:, None], u)
            allowed = np.where(law < SAFE, allowed + law, np.inf)
        keep = np.isfinite(allowed)
        if keep.any():
            yield within(norms(rows)[keep] - 1, allowed[keep], "norm", "| |q| − 1 | after two training steps")


def _whole(out: Quantized) -> bool:
    """Whether z_q is the code itself: one whose norm is 1 by chance, behind a projection, is not."""
    z_q, (q, *more) = array(out.z_q.rows), _codes(out)
    return not more and z_q.shape == q.shape and _unit(z_q) and bool((norms(z_q - q) < UNIT).all())


def _unit(rows: np.ndarray) -> bool:
    return bool((np.abs(norms(rows) - 1) < UNIT).all())


def _latents(out: Quantized) -> list[np.ndarray]:
    found = [array(out.z.rows if level.z_c is None else level.z_c.rows) for level in out.levels]
    return found or [array(out.z.rows)]


def _directions(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """A training pass on z and on multiples of it: one loss, one update, gradients in inverse proportion."""
    if norms(array(case.z)).min(initial=1.0) <= 8 * LEAST:
        return
    scale, u = rescaled(case.z, case.seed), roundoff(subject)
    outs: list[Quantized] = []
    books: list[tuple[Tensor, ...]] = []
    pulled: list[np.ndarray] = []
    for z in (case.z, scale * case.z):
        prepare(subject, case)
        outs.append(subject.forward(z, train=True, seed=case.seed))
        books.append(subject.codebooks())
        pulled.append(np.zeros((0, 0)) if outs[-1].loss is None else array(gradient_at(outs[-1], outs[-1].z.tensor)))
    first, second = outs
    if first.codes is not None and second.codes is not None and not torch.equal(first.codes, second.codes):
        return  # a tie, or a matter for lookup.cosine_scale_free
    n, d = case.z.shape
    for before, after in zip(*books, strict=True):
        allowed = (n + 4 * d + 32) * u * np.maximum(norms(array(before)), 1.0)
        yield within(norms(array(after) - array(before)), allowed, "update", "the update depends on latents' lengths")
    if first.loss is None or second.loss is None:
        return
    weights = [
        value for name, value in constructed(subject).items() if "weight" in name or "cost" in name or name == "beta"
    ]
    unit = 4 * max([1.0, *map(abs, weights)]) * (n * d if trait(subject, "reduction") == "sum" else 1.0)
    a, b = (float(out.loss.detach().double()) for out in outs if out.loss is not None)
    yield within(b - a, (n + d + 32) * u * (abs(a) + unit), "loss", f"loss {a:.6g}, and {b:.6g} of multiples of z")
    reach = (norms(pulled[0]) * norms(array(case.z))).max(initial=0.0) / norms(array(case.z))
    error = norms(array(scale) * pulled[1] - pulled[0])
    floor = unit / (n * norms(array(case.z)))
    yield within(
        error, 16 * (d + 8) * u * (reach + floor) + tiny(subject), "gradient", "∂loss/∂z of multiples of z, times them"
    )
