"""The layers of subjects.toml, with the rows that are pinned to apply to them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
EXPECTATIONS = HERE / "expectations.toml"


@dataclass(frozen=True)
class Subject:
    """A layer by name, the rows of the quick run (all if none is named), and the ids that must apply to it."""

    name: str
    target: str
    kwargs: dict[str, Any]
    only: tuple[str, ...]
    applies: tuple[str, ...]
    expectations: Path | None


def subjects() -> tuple[Subject, ...]:
    """Every layer of subjects.toml."""
    layers = tomllib.loads((HERE / "subjects.toml").read_text("utf-8"))
    pins = HERE / "applies.toml"
    pinned = tomllib.loads(pins.read_text("utf-8")) if pins.exists() else {}
    return tuple(
        Subject(
            name,
            layer["target"],
            layer["kwargs"],
            tuple(layer.get("only", ())),
            tuple(pinned.get(name, {}).get("applies", ())),
            EXPECTATIONS if layer["target"].startswith("vector_quantize_pytorch") else None,
        )
        for name, layer in layers.items()
    )
