"""Inputs that find things: latents, codebooks, cotangents and histories with structure.

Structure is drawn by Hypothesis, the bulk comes from bytes on a small dyadic grid (sums and products of small
numbers are exact, so that ties are ties), and each latent stands in a drawn relation to a code: on it, half-way
between two, antiparallel, zero, ... Independent normal numbers reach none of these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from vqverify.case import Case
from vqverify.invariant import State
from vqverify.quantizer import Quantizer

GRID = np.array([0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6, -6, 7, -7, 8, -8], np.float64)
_BYTES = GRID[np.arange(256) % len(GRID)]
SCALES = (0, -7, -4, 3)
OFFSETS = (0.0, 30000.0, 1000.0, 1.0)
RELATIONS = 10
SEARCH = "search"  # origin of a case that Hypothesis drew
CORNERS = (
    "zero",
    "on-code",
    "tie",
    "antiparallel",
    "single",
    "off-centre",
    "clustered",
    "parallel",
    "duplicates",
    "far",
    "unit",
    "generic",
)


@dataclass(frozen=True)
class Frame:
    """What a subject lets one draw: sizes, and codebooks where they may be written."""

    dim: int
    dtype: torch.dtype
    min_n: int
    own: tuple[Tensor, ...]
    settable: bool
    sphere: bool
    max_n: int
    real: Tensor | None = None

    @property
    def large(self) -> bool:
        """Whether one pass is slow (K·D above 2¹⁷)."""
        return self.max_n < 16

    @property
    def related(self) -> bool:
        """Whether latents and the first level's codes live in one space, so that relations make sense."""
        return bool(self.own) and self.own[0].shape[1] == self.dim


def frame(subject: Quantizer) -> Frame:
    """Read off a subject, in its fresh state, what strategies may draw."""
    own = subject.codebooks()
    settable = bool(own) and _true(subject, "settable")
    work = max((e.numel() for e in own), default=1)
    most = int(min(96, max(8, 2_000_000 // work)))
    domain = subject.domain
    return Frame(
        domain.dim, domain.dtype, domain.min_n, own, settable, domain.codebook == "sphere",
        max(most, domain.min_n), domain.latents,
    )  # fmt: skip


def _true(subject: Quantizer, trait: str) -> bool:
    finding = subject.traits.get(trait)
    return finding is not None and bool(finding.value)


def _grid(raw: bytes | int, size: int) -> np.ndarray:
    """Grid numbers from bytes (missing bytes are zeros) or, for a seed, from a stream of mostly small numbers."""
    if isinstance(raw, int):
        rng = np.random.Generator(np.random.Philox(raw))
        return _BYTES[rng.integers(0, 256, size, np.uint8)]
    data = np.zeros(size, np.uint8)
    got = np.frombuffer(raw, np.uint8)[:size]
    data[: len(got)] = got
    return _BYTES[data]


@dataclass(frozen=True)
class Draw:
    """The structure of one example, before it is turned into numbers."""

    n: int
    scale: int
    offset: float
    bulk: bytes | int
    relations: bytes
    own_codebook: bool
    history: int
    seed: int


_HEADER = 14
_RELATIONS, _BULK = 16, 160  # bytes at most
_STEPS = (0, 0, 0, 0, 1, 1, 1, 2, 2, 3)  # of a history beyond the least: each costs a pass


def draws(frame_: Frame, state: State) -> st.SearchStrategy[Draw]:
    """Structures of examples for a subject.

    A structure is read from a few bytes: Hypothesis sprinkles its integers with constants that it finds in the
    source of whatever local modules are loaded, so that a stream of those would not be the same everywhere.

    Args:
        frame_: what the subject lets one draw.
        state: whether a history of training batches comes first.
    """
    return st.binary(min_size=_HEADER, max_size=_HEADER).map(lambda raw: _structure(raw, frame_, state))


def _structure(raw: bytes, frame_: Frame, state: State) -> Draw:
    """Read the structure of an example from bytes; zeros give the simplest one."""
    n, scale, offset, kind, bulk, relations, own, history = raw[:8]
    stream = int.from_bytes(raw[8:12])
    low, high = {"fresh": (0, 0), "warmed": (1, 4), "both": (0, 3)}[state]
    most = max(16, frame_.min_n + 4)
    numbers = np.random.Generator(np.random.Philox(stream)).bytes(_RELATIONS + _BULK)
    return Draw(
        n=frame_.min_n + n % (most - frame_.min_n + 1),
        scale=SCALES[scale % len(SCALES)],
        offset=OFFSETS[offset % len(OFFSETS)],
        # mostly short: numbers beyond the bytes are zeros
        bulk=stream if kind % 2 else numbers[_RELATIONS:][: round(_BULK * (bulk / 255) ** 4)],
        relations=numbers[: relations % (_RELATIONS + 1)],
        own_codebook=not frame_.settable or own % 2 == 1,
        history=min(low + _STEPS[history % len(_STEPS)], high),
        seed=int.from_bytes(raw[12:14]),
    )


def realise(draw: Draw, frame_: Frame, origin: str = "") -> Case:
    """Turn a drawn structure into a case of the subject."""
    books = _codebooks(draw, frame_)
    codes = books if books is not None else frame_.own
    table = codes[0].double().numpy() if frame_.related else None
    z = _latents(draw, frame_, table, draw.n, salt=1)
    g = _grid(_salted(draw.bulk, 2), draw.n * frame_.dim).reshape(draw.n, frame_.dim)
    if not g.any():
        g[:, 0] = 1
    history = tuple(
        _tensor(_latents(draw, frame_, table, max(draw.n, frame_.min_n), salt=10 + step), frame_)
        for step in range(draw.history)
    )
    return Case(_tensor(z, frame_), _tensor(g, frame_), draw.seed, books, history, origin=origin)


def _salted(bulk: bytes | int, salt: int) -> bytes | int:
    return bulk + salt * 7919 if isinstance(bulk, int) else bulk[salt * 16 :] + bulk[: salt * 16]


def _tensor(rows: np.ndarray, frame_: Frame) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(rows)).to(frame_.dtype)


def _codebooks(draw: Draw, frame_: Frame) -> tuple[Tensor, ...] | None:
    if draw.own_codebook:
        return None
    books: list[Tensor] = []
    for level, own in enumerate(frame_.own):
        rows = _grid(_salted(draw.bulk, 100 + level), own.numel()).reshape(own.shape)
        rows = rows * 2.0 ** (draw.scale - 2 * level) + (draw.offset if level == 0 else 0.0)
        if frame_.sphere:
            norms = np.linalg.norm(rows, axis=1, keepdims=True)
            rows = np.where(norms > 0, rows / np.where(norms > 0, norms, 1), np.eye(1, rows.shape[1]))
        books.append(torch.from_numpy(rows).to(own.dtype))
    return tuple(books)


def _latents(draw: Draw, frame_: Frame, table: np.ndarray | None, n: int, salt: int) -> np.ndarray:
    z = _grid(_salted(draw.bulk, salt), n * frame_.dim).reshape(n, frame_.dim) * 2.0**draw.scale
    if table is None:
        return z
    unit = 2.0**draw.scale if not draw.own_codebook else float(np.abs(table).mean()) or 1.0
    z = z / (8 * 2.0**draw.scale) * 2 * unit if draw.own_codebook else z + draw.offset
    spread = np.zeros(n, np.uint8)
    raw = np.frombuffer(draw.relations, np.uint8)
    spread[: len(raw)] = raw[:n]
    for i, byte in enumerate(spread):
        z[i] = _related(z, i, int(byte), table, unit)
    return z


def _related(z: np.ndarray, i: int, byte: int, codes: np.ndarray, unit: float) -> np.ndarray:
    """Put latent i in the relation that a byte names to a code that it picks."""
    j = byte // RELATIONS % len(codes)
    other = codes[(j + 1) % len(codes)]
    match byte % RELATIONS:
        case 1:
            return codes[j]
        case 2:
            return (codes[j] + other) / 2
        case 3:
            return codes[j] + unit / 1024
        case 4:
            return -codes[j] / 8
        case 5:
            return np.zeros_like(codes[j])
        case 6:
            return z[max(i - 1, 0)]
        case 7:
            return codes[j] * 1.25
        case 8:
            return (codes[j] + other) / 2 + (other - codes[j]) / 4096
        case 9:
            return codes[j] + (other - codes[j]) / 4
        case _:
            return z[i]


def searched(frame_: Frame, state: State) -> st.SearchStrategy[Case]:
    """Cases for the search phase, drawn by Hypothesis."""
    return draws(frame_, state).map(lambda draw: realise(draw, frame_, SEARCH))


def mass(frame_: Frame, state: State, count: int = 10) -> Iterator[Case]:
    """Vectorised batches of many structures: the fast phase, the same for every run."""
    n = frame_.max_n
    for index in range(count):
        rng = np.random.Generator(np.random.Philox(1000 + index))
        draw = Draw(
            n,
            SCALES[index % 4],
            OFFSETS[index // 2 % 4],
            5000 + index,
            rng.integers(0, 250, n, dtype=np.uint8).tobytes(),
            own_codebook=not frame_.settable or index % 3 == 2,
            history={"fresh": 0, "warmed": 1 + index // 2 % 2, "both": index % 3}[state],
            seed=index,
        )
        case = realise(draw, frame_, f"mass {index}")
        if frame_.real is not None and index % 2:
            yield _from_use(case, frame_.real, rng)
        else:
            yield _normal(case, frame_, rng) if index % 2 else case


def _from_use(case: Case, real: Tensor, rng: np.random.Generator) -> Case:
    """The layer's own codes, and latents that it meets in use, as they are."""

    def some(n: int) -> Tensor:
        return real[torch.from_numpy(rng.integers(0, len(real), n))]

    history = tuple(some(len(batch)) for batch in case.history)
    return replace(case, z=some(len(case.z)), codebook=None, history=history)


def _normal(case: Case, frame_: Frame, rng: np.random.Generator) -> Case:
    """Normal numbers in place of the grid for cotangents and, row by row, a jitter of the latents."""
    jitter = torch.from_numpy(rng.standard_normal(case.z.shape)).to(frame_.dtype)
    size = case.z.abs().amax(1, keepdim=True) * 2.0**-6
    g = torch.from_numpy(rng.standard_normal(case.g.shape)).to(frame_.dtype)
    return Case(case.z + jitter * size, g, case.seed, case.codebook, case.history, origin=case.origin)


def corners(frame_: Frame, names: tuple[str, ...], state: State) -> Iterator[Case]:
    """The pinned inputs of a row, as far as the subject's spaces allow them."""
    history = () if state == "fresh" else (_corner_batch(frame_),)
    for seed, name in enumerate(names):
        built = _corner(name, frame_)
        if built is not None:
            z, books = built
            n = max(len(z), frame_.min_n)
            z = np.resize(z, (n, frame_.dim))
            g = np.zeros((n, frame_.dim))
            g[:, 0], g[:, -1] = 1, 2
            yield Case(_tensor(z, frame_), _tensor(g, frame_), seed, books, history, origin=f"corner {name}")


def _corner_batch(frame_: Frame) -> Tensor:
    n = max(6, frame_.min_n)
    table = frame_.own[0].double().numpy() if frame_.related else GRID[: n * frame_.dim % 17 + 1].reshape(-1, 1)
    return _tensor(np.resize(table, (n, frame_.dim)) * 1.25 + 0.25, frame_)


def _filled(frame_: Frame, *rows: np.ndarray) -> tuple[Tensor, ...] | None:
    """Codebooks that hold the given rows first and the last of them ever after."""
    if not frame_.settable:
        return None
    books: list[Tensor] = []
    for own in frame_.own:
        table = np.tile(np.resize(rows[-1], own.shape[1]), (len(own), 1))
        for index, row in enumerate(rows[: len(own)]):
            table[index] = np.resize(row, own.shape[1])
        if frame_.sphere:
            table = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-9)
        books.append(torch.from_numpy(table).to(own.dtype))
    return tuple(books)


def _corner(name: str, frame_: Frame) -> tuple[np.ndarray, tuple[Tensor, ...] | None] | None:
    d = frame_.dim
    one = np.zeros(d)
    one[0] = 1.0
    ramp = np.arange(1, d + 1, dtype=np.float64)
    own = frame_.own[0].double().numpy() if frame_.related else None
    if name == "zero":
        return np.zeros((2, d)), None
    if name == "single":
        return ramp[None], None
    if name == "unit":
        return np.concatenate([np.eye(d), -np.eye(d)])[: max(2, 2 * d)], None
    if name == "far":
        return np.stack([ramp * 1e4, -ramp * 1e4]), None
    if name == "generic":
        noise = np.random.Generator(np.random.Philox(12)).standard_normal((12, d))
        return (noise if own is None else own[np.arange(12) % len(own)] + np.abs(own).mean() * noise), None
    if own is None:
        return None
    first, second = own[0], own[-1]
    free = frame_.settable and not frame_.sphere
    match name:
        case "on-code":
            return own[: min(len(own), 6)].copy(), None
        case "tie":
            return (
                (np.stack([one * 0, one * 3]), _filled(frame_, one, -one))
                if free
                else ((first + second)[None] / 2, None)
            )
        case "antiparallel":
            around = np.stack([-2 * one, -2 * one + 0.25 * np.roll(one, 1), -0.5 * one, -one])
            return (around, _filled(frame_, one)) if free else (-first[None], None)
        case "parallel":
            return (np.stack([2 * one, 0.25 * one, ramp]), _filled(frame_, one)) if free else (1.5 * first[None], None)
        case "off-centre" | "clustered":  # beyond what a sum of squares resolves in float32, and in half precision
            shift = np.full(d, 30000.0 if name == "off-centre" else 16 / np.sqrt(d))
            return (
                (np.stack([shift + 0.25 * one, shift + 0.75 * one]), _filled(frame_, shift, shift + one))
                if free
                else None
            )
        case "duplicates":
            return (np.stack([ramp, ramp + one]), _filled(frame_, ramp, ramp)) if free else None
        case _:
            return None
