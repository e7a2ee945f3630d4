"""Places in a record: how a tensor holds the rows of a level, and the same place in another record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vqverify.quantizer import Level, Node


@dataclass(frozen=True)
class Reading:
    """How rows (N, Dc) of one level are laid out inside a recorded tensor.

    Attributes:
        axis: where the features are, counted from the end (−1 last, −2 channels first, −3 image).
        part: the level's index where L levels share a tensor, else None.
        leading: levels run first (L, N, Dc), else next to the features (N, L, Dc).
    """

    axis: int = -1
    part: int | None = None
    leading: bool = True

    def rows(self, tensor: Tensor, dim: int, levels: int) -> Tensor:
        """Rows of this level, attached to the graph of `tensor`."""
        flat = tensor.movedim(self.axis, -1).reshape(-1, dim).cpu()
        if self.part is None:
            return flat
        return flat.reshape(levels, -1, dim)[self.part] if self.leading else flat.reshape(-1, levels, dim)[:, self.part]


@dataclass(frozen=True)
class Position:
    """A place in the record: index of the tensor, and how to read it. Index −1 is the input leaf.

    In a `Located`, an attached tensor is counted among the attached ones alone: what a lookup does with
    detached numbers may depend on the data, the path of the gradient does not.
    """

    index: int
    reading: Reading
    attached: bool = False


@dataclass(frozen=True)
class Located:
    """Positions of every level's z_c and q_c, valid for records with as many (attached) tensors.

    `attached` is None where no code has a gradient: then it does not matter which tensors carry a graph.

    A level that the pass dropped has neither place. `plain` says that z_c is the input and q_c the output, in value
    and in gradient: no record is needed. `steps` are those of the pass that was searched.
    """

    length: int
    attached: int | None
    levels: tuple[tuple[Position | None, Position | None], ...]
    plain: bool = False
    steps: tuple[str, ...] = ()

    def fits(self, record: Sequence[Tensor]) -> bool:
        """Whether its positions mean the same in another record."""
        if self.attached is None:
            return self.length == len(record)
        whole = all(place is None or place.attached or place.index < 0 for pair in self.levels for place in pair)
        return (whole or self.length == len(record)) and self.attached == len(attached(record))


def attached(record: Sequence[Tensor]) -> list[Tensor]:
    """The recorded tensors that carry a graph."""
    return [tensor for tensor in record if tensor.requires_grad]


def steps(record: Sequence[Tensor]) -> tuple[str, ...]:
    """What made each tensor with a graph: as many of them in another order are another pass."""
    return tuple(type(tensor.grad_fn).__name__ for tensor in attached(record))


def readings(tensor: Tensor, n: int, dim: int, levels: int) -> Iterator[Reading]:
    """Every way in which a tensor can hold rows (n, dim) of one of `levels` levels."""
    if tensor.numel() not in {n * dim, n * dim * levels}:
        return
    axes = [axis for axis in (-1, -2, -3) if -axis <= tensor.ndim and tensor.shape[axis] == dim]
    for axis in axes:
        if tensor.numel() == n * dim:
            yield Reading(axis)
        elif levels > 1:
            for part in range(levels):
                yield Reading(axis, part, leading=True)
                yield Reading(axis, part, leading=False)
    # heads side by side: (N, L·Dc)
    if levels > 1 and not axes and tensor.ndim and tensor.shape[-1] == dim * levels:
        for part in range(levels):
            yield Reading(-1, part, leading=False)


def pull(src: Tensor, dst: Tensor, g: Tensor) -> Tensor:
    """Jᵀg from src to dst, zeros where nothing connects them."""
    if src is dst:
        return g
    if not src.requires_grad or not dst.requires_grad:
        return torch.zeros_like(dst)
    found = gradient(src, dst, g)
    return torch.zeros_like(dst) if found is None else found


def gradient(src: Tensor, dst: Tensor, g: Tensor | None = None, *, create_graph: bool = False) -> Tensor | None:
    """Jᵀg from src to dst, the graph kept; None where nothing connects them."""
    return torch.autograd.grad(src, dst, g, retain_graph=True, create_graph=create_graph, allow_unused=True)[0]


def node(tensor: Tensor, reading: Reading, dim: int, levels: int) -> Node:
    """A recorded tensor as a Node of rows."""
    return Node(tensor, lambda value: reading.rows(value, dim, levels))


def tensor_at(record: Sequence[Tensor], leaf: Tensor, index: int) -> Tensor:
    """The recorded tensor at an index; −1 is the input leaf."""
    return leaf if index < 0 else record[index]


def read(record: Sequence[Tensor], leaf: Tensor, located: Located, dims: Sequence[int]) -> tuple[Level, ...]:
    """The levels of another pass with the same sequence of operations."""
    count = len(located.levels)
    graph = attached(record)

    def at(place: Position) -> Tensor:
        return tensor_at(graph if place.attached else record, leaf, place.index)

    def empty(dim: int) -> Node:
        return Node(torch.zeros(len(leaf), dim, dtype=leaf.dtype), lambda rows: rows)

    return tuple(
        Level(
            None if z_c is None else node(at(z_c), z_c.reading, dim, count),
            empty(dim) if q_c is None else node(at(q_c), q_c.reading, dim, count),
        )
        for (z_c, q_c), dim in zip(located.levels, dims, strict=True)
    )
