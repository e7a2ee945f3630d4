"""Quantizers without a stored codebook: each coordinate is rounded to its own few levels (Mentzer 2023; T36, T37)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vqverify.bounds import Clause, Violation, holds, within
from vqverify.case import Case
from vqverify.invariant import invariant
from vqverify.invariants.measure import Array, array, roundoff, trait
from vqverify.quantizer import Quantized, Quantizer

STORED = "plain|residual|grouped|heads|grouped residual|projected residual|sum"
NEEDS = ("codes", f"structure!={STORED}", "fsq_levels")
MOST = 4096  # level tuples that are tried one by one; beyond that, neighbours of drawn ones
FAR = 20.0  # a latent out here is past every bound: tanh, sigmoid and clamp are flat


@dataclass(frozen=True)
class Axis:
    """One coordinate as a sweep shows it: the values that z_q takes, in order, a latent in the middle of each cell."""

    declared: int
    sweep: Array
    got: Array
    values: Array
    middles: Array


def _scalar_modes(subject: Quantizer) -> tuple[str, ...]:
    """Both modes; none for a stack of scalar quantizers, whose code columns outnumber its codebooks."""
    return () if width(subject) > max(subject.domain.dim, len(trait(subject, "fsq_levels"))) else ("train", "eval")


def declared_levels(subject: Quantizer) -> tuple[int, ...] | None:
    """L of each coordinate of z, the levels of each codebook side by side; None behind a projection."""
    levels, dim = tuple(trait(subject, "fsq_levels")), subject.domain.dim
    return levels * (dim // len(levels)) if dim % len(levels) == 0 else None


def width(subject: Quantizer) -> int:
    """Coordinates that the code columns account for: as many as z has, unless a projection stands before them."""
    z = torch.zeros(max(2, subject.domain.min_n), subject.domain.dim, dtype=subject.domain.dtype)
    codes = subject.forward(z, grad=False).codes
    return len(trait(subject, "fsq_levels")) * (1 if codes is None else codes.shape[1])


def _points(most: int) -> Array:
    """Latents from far below to far above, dense where tanh, sigmoid or clamp rise; one and its negative, never 0."""
    count = max(400, 8 * most)
    inner = np.arctanh((np.arange(count) + 0.5) / count * 0.99999)
    flat = (np.arange(count // 2) + 0.5) / (count // 2) * FAR
    half = np.sort(np.concatenate([inner, flat]))
    return np.concatenate([-half[::-1], half])


def _pass(subject: Quantizer, rows: Array, case: Case, *, train: bool) -> tuple[Quantized, Array, Array]:
    subject.restore()
    out = subject.forward(torch.from_numpy(rows).to(subject.domain.dtype), train=train, seed=case.seed, grad=False)
    if out.codes is None:
        raise Violation("codes", "the layer returned no codes")
    return out, array(out.z_q.rows), out.codes.cpu().numpy()


def axes(subject: Quantizer, levels: Sequence[int], case: Case) -> list[Axis]:
    """Sweep every coordinate at once, in eval mode."""
    points = _points(max(levels))
    rows = np.repeat(points[:, None], len(levels), axis=1)
    _, z_q, _ = _pass(subject, rows, case, train=False)
    found: list[Axis] = []
    for declared, got in zip(levels, z_q.T, strict=True):
        order = np.sort(got)
        gap = (order[-1] - order[0]) / (8 * declared)
        values = order[np.concatenate([[True], np.diff(order) > gap])]
        cell = np.abs(got[:, None] - values[None]).argmin(1)
        middles = np.array([np.median(points[cell == index]) for index in range(len(values))])
        # a median between two points of the sweep may fall on a boundary: take the point itself
        middles = points[np.abs(points[:, None] - middles[None]).argmin(0)]
        found.append(Axis(declared, points, got, values, middles))
    return found


@invariant(
    "fsq.bijection",
    follows=("lfq.sign",),
    source="Mentzer 2023 §3, eq. 1-2; theory T36",
    needs=NEEDS,
    parts=_scalar_modes,
    mode="table",
    corners=("zero", "single", "unit", "far"),
    mutants=(
        "fsq_unoffset",
        "fsq_half_level",
        "fsq_unshifted",
        "fsq_level_too_many",
        "fsq_level_lost",
        "fsq_index_bf16",
        "fsq_index_int8",
        "fsq_basis_inclusive",
        "fsq_noise_in_code",
    ),
    hint="round(h tanh(z + s) − o), o = ½ for even L only, s = artanh(o/h); the code is Σ ℓᵢ Πⱼ﹤ᵢ Lⱼ in an integer "
    "dtype throughout: bfloat16 holds 256 of them.",
)
def bijection(subject: Quantizer, case: Case) -> Iterator[Clause]:
    """Codes and level tuples are a bijection onto [0, ΠL) in an integer dtype that holds it, and every code is reached.

    Each coordinate takes the declared number of equally spaced values, with boundaries to suit, in train as in eval.

    Margin: levels and codes are compared as integers, so that a right layer's margin is 0.
    """
    levels, train = declared_levels(subject), case.part == "train"
    if levels is None or len(levels) != width(subject):
        yield from _behind_projection(subject, case, train=train)
        return
    found = axes(subject, levels, case)
    u = roundoff(subject)
    for index, axis in enumerate(found):
        yield from _level_set(axis, index, u)
    if any(len(axis.values) != axis.declared for axis in found):
        return
    yield from _codes(subject, case, found, u, train=train)


def _level_set(axis: Axis, index: int, u: float) -> Iterator[Clause]:
    count, values = len(axis.values), axis.values
    said = f"coordinate {index} takes {count} values, {axis.declared} levels are declared"
    yield holds(count == axis.declared, "level lost" if count < axis.declared else "level too many", said)
    if count < 2:
        return
    step = (values[-1] - values[0]) / (count - 1)
    # z + sg(ẑ − z), then a division: a few roundings of numbers up to L steps
    rounding = 16 * u * (count * step + np.abs(values).max())
    yield within(
        values - (values[0] + step * np.arange(count)),
        rounding,
        "spacing",
        f"values of coordinate {index} off an even grid",
    )
    centred, symmetric = bool((np.abs(values) <= rounding).any()), bool(abs(values[0] + values[-1]) <= rounding)
    said = (
        f"the values of coordinate {index} are neither symmetric nor around a level at 0: {np.round(values[:4], 4)} …"
    )
    yield holds(centred or symmetric, "level set", said)
    falls = np.diff(axis.got) < -0.5 * step
    yield holds(not falls.any(), "boundaries", f"coordinate {index} of z_q falls where z rises")
    near = np.abs(axis.sweep) < 0.1 / axis.declared
    if centred:
        fine = (np.abs(axis.got[near]) < 0.5 * step).all()
        yield holds(fine, "boundaries", f"z = 0 lies on a boundary of coordinate {index}, whose values hold 0")
    if symmetric:
        # away from the boundaries, where rounding decides
        still = (np.diff(axis.got, prepend=axis.got[0]) == 0) & (np.diff(axis.got, append=axis.got[-1]) == 0)
        both = still & still[::-1]
        odd = np.abs(axis.got + axis.got[::-1])[both] < 0.5 * step
        yield holds(odd.all(), "boundaries", f"values of coordinate {index} are symmetric, its boundaries are not")


def _tuples(levels: Sequence[int], seed: int) -> NDArray[np.int64]:
    """Level tuples (M, D): all of them, or drawn ones with their neighbours and both ends."""
    if math.prod(levels) <= MOST:
        return np.stack([axis.ravel() for axis in np.meshgrid(*map(np.arange, levels), indexing="ij")], axis=1)
    rng, sizes = np.random.default_rng(seed), np.array(levels)
    drawn = rng.integers(0, sizes, (MOST // (2 * len(levels) + 1), len(levels)))
    steps = np.concatenate([np.eye(len(levels), dtype=np.int64), -np.eye(len(levels), dtype=np.int64)])
    around = [np.clip(drawn + step, 0, sizes - 1) for step in steps]
    # the largest codes are the ones that a small format cannot hold
    top = sizes - 1 - np.eye(len(levels), dtype=np.int64)
    return np.unique(np.concatenate([drawn, *around, top, (sizes - 1)[None], 0 * sizes[None]]), axis=0)


def _codes(subject: Quantizer, case: Case, found: list[Axis], u: float, *, train: bool) -> Iterator[Clause]:
    width = len(trait(subject, "fsq_levels"))
    levels = [axis.declared for axis in found[:width]]
    tuples = _tuples(levels, case.seed)
    size = math.prod(levels)
    for part in range(len(found) // width):
        here = found[part * width : (part + 1) * width]
        rows = np.full((len(tuples), len(found)), 0.3)
        rows[:, part * width : (part + 1) * width] = np.stack(
            [axis.middles[tuples[:, i]] for i, axis in enumerate(here)], axis=1
        )
        out, z_q, codes = _pass(subject, rows, case, train=train)
        assert out.codes is not None
        if part >= codes.shape[1]:
            return
        column = codes[:, part]
        most = torch.iinfo(out.codes.dtype).max if not out.codes.is_floating_point() else 0
        yield holds(most >= size - 1, "dtype", f"codes are {out.codes.dtype}, which does not hold {size - 1}")
        low, high = int(column.min()), int(column.max())
        yield holds(low >= 0 and high < size, "range", f"codes from {low} to {high}, expected within [0, {size})")
        distinct = len(np.unique(column))
        said = f"{len(tuples)} level tuples have {distinct} codes"
        yield holds(distinct == len(tuples), "collision", said)
        if len(tuples) == size:
            reached = len(np.intersect1d(column, np.arange(size)))
            yield holds(reached == size, "unreached", f"{reached} of {size} codes are reached")
        want = np.stack([axis.values[tuples[:, i]] for i, axis in enumerate(here)], axis=1)
        yield from _values(subject, z_q[:, part * width : (part + 1) * width], want, u, train=train)


def _values(subject: Quantizer, got: Array, want: Array, u: float, *, train: bool) -> Iterator[Clause]:
    if trait(subject, "deterministic" if train else "eval_deterministic", default=False):
        rounding = 64 * u * (np.abs(want).max() + 1)
        yield within(got - want, rounding, "separate", "a coordinate of z_q depends on the others, or on the mode")
    else:
        inside = (got >= want.min() - 1e-3) & (got <= want.max() + 1e-3)
        yield holds(inside.all(), "overshoot", "noise takes z_q past its outermost levels")


def _behind_projection(subject: Quantizer, case: Case, *, train: bool) -> Iterator[Clause]:
    """The levels cannot be swept: equal codes and equal z_q are then the same thing, and the range is known."""
    size = math.prod(trait(subject, "fsq_levels"))
    rng = np.random.default_rng(case.seed)
    rows = rng.standard_normal((256, subject.domain.dim)) * rng.choice([0.1, 1, 10], (256, 1))
    out, z_q, codes = _pass(subject, rows, case, train=train)
    assert out.codes is not None
    yield holds(
        codes.min() >= 0 and codes.max() < size,
        "range",
        f"codes from {codes.min()} to {codes.max()}, expected within [0, {size})",
    )
    if trait(subject, "deterministic" if train else "eval_deterministic", default=False):
        scale = np.abs(z_q).max()
        same = np.abs(z_q[:, None] - z_q[None]).max(-1) <= 1e-5 * scale
        equal = (codes[:, None] == codes[None]).all(-1)
        yield holds(not (equal & ~same).any(), "ambiguous", "latents with one code have two values of z_q")
        yield holds(not (same & ~equal).any(), "collision", "latents with one value of z_q have two codes")
