"""A witness as a few readable lines: what state, which operations, which numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

MOST_ROWS, MOST_ENTRIES = 6, 12


def lines(witness: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, value) pairs of an embedded witness, in the order in which its program runs."""
    steps: Sequence[Mapping[str, Any]] = witness["operations"]
    touched = any(step["op"] in {"set_codebook", "train"} for step in steps)
    seed = next((step.get("seed", 0) for step in steps if step["op"] == "construct"), 0)
    yield "state", f"{'built' if touched else 'untouched initial state, built'} with seed {seed}"
    books = [step for step in steps if step["op"] == "set_codebook"]
    for step in books:
        name = "codebook" if len(books) == 1 else f"codebook {step['level']}"
        yield name, tensor(step["values"])
    batches = [step for step in steps if step["op"] == "train"]
    for number, step in enumerate(batches, start=1):
        yield f"train {number}", tensor(step["z"])
    check = next(step for step in steps if step["op"] == "check")
    yield "z", tensor(check["z"])
    if any(value != 0 for value in check["g"]["values"]):
        yield "g", tensor(check["g"])


def tensor(data: Mapping[str, Any]) -> str:
    """A tensor as rows of short numbers; runs of equal rows and entries are counted, long ones are cut."""
    shape: Sequence[int] = data["shape"]
    values: Sequence[Any] = data["values"]
    width = shape[-1] if shape else 1
    rows = [tuple(values[i : i + width]) for i in range(0, len(values), width)] if width else []
    runs = [(row, len(list(same))) for row, same in groupby(rows)]
    shown = [f"{count} × {_row(row)}" if count > 1 else _row(row) for row, count in runs[:MOST_ROWS]]
    left = sum(count for _, count in runs[MOST_ROWS:])
    dtype = "" if data["dtype"] == "float32" else f"  {data['dtype']}"
    return ", ".join(shown) + (f", … {left} more rows" if left else "") + dtype


def _row(row: Sequence[Any]) -> str:
    parts: list[str] = []
    for value, same in groupby(row):
        count = len(list(same))
        parts += [f"{number(value)} ×{count}"] if count > 3 else [number(value)] * count
    cut = len(parts) - MOST_ENTRIES
    return "[" + ", ".join(parts[:MOST_ENTRIES]) + (f", … {cut} more" if cut > 0 else "") + "]"


def number(value: Any) -> str:
    """Four digits are enough to recognise a number; the witness keeps them all."""
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)
