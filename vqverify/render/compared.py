"""Two layers side by side, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vqverify.render import witness


def render(data: Mapping[str, Any]) -> RenderableType:
    """What `vqverify compare` found: the smallest difference first, or none."""
    return Group(*_parts(data))


def _parts(data: Mapping[str, Any]) -> Iterator[RenderableType]:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan")
    table.add_column(overflow="fold")
    table.add_row("A", Text(_name(data["a"])))
    table.add_row("B", Text(_name(data["b"]["spec"]) + _how(data["b"])))
    yield Padding(table, (0, 0, 0, 2))
    for one in data["differences"]:
        yield Text.assemble(("✗ ", "bold red"), (f"{one['label']} in {one['mode']}", "bold"), f": {one['message']}")
        lines = Table.grid(padding=(0, 2))
        lines.add_column(style="dim", no_wrap=True)
        lines.add_column(overflow="fold")
        for name, value in witness.lines(one["witness"]):
            lines.add_row(name, Text(value))
        yield Padding(lines, (0, 0, 0, 4))
    for aspect, reason in data["left_out"].items():
        yield Text(f"{aspect} left out: {reason}", "yellow")
    if not data["differences"]:
        seen = ", ".join(f"{aspect} {value:.3g}" for aspect, value in data["deviations"].items())
        yield Text.assemble(
            ("✓ ", "bold green"), f"no difference in {data['examples']} examples; largest deviation: {seen}"
        )


def _name(spec: Mapping[str, Any]) -> str:
    return f"{spec['target']}({', '.join(f'{name}={value!r}' for name, value in spec['kwargs'].items())})"


def _how(against: Mapping[str, Any]) -> str:
    spec = against["spec"]
    said = [str(spec[name]) for name in ("dtype", "device") if spec.get(name)]
    said += ["compiled"] * bool(against["compiled"]) + [f"in {against['python']}"] * bool(against["python"])
    return f"  {', '.join(said)}" if said else ""
