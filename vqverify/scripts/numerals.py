"""Tensors as short Python: the witness's numbers, written so that they can be read."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

WIDTH = 120
MOST_NONZERO = 8  # entries that are still written one by one into a tensor of zeros


def literal(tensor: Tensor) -> str:
    """The shortest of several ways to write a tensor; every one gives exactly its values.

    Args:
        tensor: any floating or integer tensor on the CPU.
    """
    tensor = tensor.detach().cpu()
    return min(_ways(tensor), key=len)


def _ways(tensor: Tensor) -> Iterator[str]:
    dtype = "" if tensor.dtype == torch.float32 else f", dtype={tensor.dtype}"
    shape = ", ".join(map(str, tensor.shape))
    finite = bool(tensor.isfinite().all())
    if finite:
        yield f"torch.tensor({_nested(tensor)}{dtype})"
    else:
        listed = _nested(tensor).replace("nan", 'float("nan")').replace("inf", 'float("inf")')
        yield f"torch.tensor({listed}{dtype})"
    if tensor.numel() and finite:
        first = tensor.flatten()[0]
        if bool((tensor == first).all()) and tensor.ndim:
            yield _filled(first, shape, dtype)
        yield from _sparse(tensor, shape, dtype)
        if tensor.ndim == 2 and len(tensor) > 1:
            if bool((tensor == tensor[0]).all()):
                yield f"torch.tensor([{_nested(tensor[0])}]{dtype}).repeat({len(tensor)}, 1)"
            same = int((tensor == tensor[-1]).all(1).flip(0).long().cumprod(0).sum())
            if 2 < same < len(tensor):
                rows = f"{_nested(tensor[:-same])[:-1]}, *[{_nested(tensor[-1])}] * {same}]"
                yield f"torch.tensor({rows}{dtype})"


def _filled(value: Tensor, shape: str, dtype: str) -> str:
    number = value.item()
    if number in {0, 1}:
        return f"torch.{'ones' if number else 'zeros'}({shape}{dtype})"
    return f"torch.full(({shape},), {_number(value)}{dtype})"


def _sparse(tensor: Tensor, shape: str, dtype: str) -> Iterator[str]:
    places = tensor.nonzero()
    if tensor.ndim == 2 and 0 < len(places) <= MOST_NONZERO:
        values = ", ".join(_number(tensor[i, j]) for i, j in places.tolist())
        rows, columns = (places[:, axis].tolist() for axis in (0, 1))
        where = f"(torch.tensor({rows}), torch.tensor({columns}))"
        yield f"torch.zeros({shape}{dtype}).index_put({where}, torch.tensor([{values}]{dtype}))"


def _nested(tensor: Tensor) -> str:
    if tensor.ndim == 0:
        return _number(tensor)
    return "[" + ", ".join(_nested(part) for part in tensor) + "]"


def _number(value: Tensor) -> str:
    """The shortest decimal that rounds to the value in its dtype."""
    if not value.is_floating_point():
        return str(value.item())
    number = value.item()
    texts = (f"{number:.{digits}g}" for digits in range(1, 18))
    exact = (text for text in texts if torch.equal(torch.tensor(float(text), dtype=torch.float64).to(value), value))
    text = next(exact, str(number))
    return text if any(mark in text for mark in ".einf") else f"{text}."


def folded(line: str, width: int = WIDTH) -> Iterator[str]:
    """A line of code in pieces of at most that width, broken after commas inside brackets.

    A line that has no such place stays as long as it is.
    """
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    while len(line) > width:
        place = _last_comma(line, width)
        if place is None:
            break
        yield line[: place + 1]
        line = indent + line[place + 1 :].lstrip()
    yield line


def _last_comma(line: str, width: int) -> int | None:
    """The last comma before `width` that is inside brackets and in no string.

    A continuation is inside brackets from its start, for which the missing opening brackets are supplied.
    """
    depth, quoted, found = max(0, line.count(")") + line.count("]") - line.count("(") - line.count("[")), "", None
    for place, character in enumerate(line[:width]):
        if quoted:
            quoted = "" if character == quoted else quoted
        elif character in "\"'":
            quoted = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and depth > 0:
            found = place
    return found
