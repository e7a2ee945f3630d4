"""What a layer is, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from vqverify.render import words


def table(identified: Mapping[str, Any], *, fold: bool) -> RenderableType:
    """Traits with value, origin and evidence; what is unknown goes into one line.

    Args:
        identified: as in a report.
        fold: whether long evidence takes more lines, or is cut.
    """
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold", max_width=28)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(style="dim", overflow="fold" if fold else "ellipsis", no_wrap=not fold, ratio=1)
    known = {name: item for name, item in identified.items() if item.get("value") is not None}
    for name, item in known.items():
        mistake = f" ({item['mistake']})" if item.get("mistake") else ""
        grid.add_row(
            name,
            Text(words.value(item["value"]) + mistake),
            item.get("origin", ""),
            Text(item.get("evidence") or ""),
        )
    unknown = [name for name in identified if name not in known]
    if not unknown:
        return grid
    if not fold:
        return Group(grid, Text(f"not determined: {', '.join(unknown)}", "dim"))
    for name in unknown:
        grid.add_row(name, Text("unknown", "yellow"), "", Text(identified[name].get("evidence") or ""))
    return grid


def render(data: Mapping[str, Any]) -> RenderableType:
    """Everything that `vqverify identify` knows."""
    domain = data["domain"]
    takes = f"takes latents of D = {domain['dim']} in {domain['dtype'].removeprefix('torch.')}, laid out as {', '.join(domain['layouts'])}"
    least = f", at least {domain['min_n']}" if domain["min_n"] > 1 else ""
    parts: list[RenderableType] = [
        Rule(Text(data["name"], "bold"), align="left", style="blue"),
        Text(data["target"], "dim"),
        Text(takes + least),
        "",
    ]
    return Group(*parts, table(data["identified"], fold=True))
