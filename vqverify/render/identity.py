"""What a layer is, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from vqverify.render import words


def compact(identified: Mapping[str, Any]) -> RenderableType:
    """Traits for the head of a report: yes and no in a line each, evidence cut to what fits.

    Args:
        identified: as in a report.
    """
    of = {
        answer: [name for name, item in identified.items() if item.get("value") is answer]
        for answer in (True, False, None)
    }
    values = {name: item for name, item in identified.items() if not isinstance(item.get("value"), bool | None)}
    lines = _lines({"has": of[True], "lacks": of[False], "unknown": of[None]})
    return Group(_table(values, fold=False), lines)


def _lines(named: Mapping[str, list[str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(style="dim", overflow="fold")
    for name, items in named.items():
        if items:
            grid.add_row(name, Text(", ".join(items)))
    return grid


def _table(identified: Mapping[str, Any], *, fold: bool) -> Table:
    """Name, value, origin and evidence; `fold` lets long evidence take more lines, else it is cut."""
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold" if fold else "ellipsis", no_wrap=not fold, max_width=20)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(style="dim", overflow="fold" if fold else "ellipsis", no_wrap=not fold, ratio=1)
    for name, item in identified.items():
        mistake = f" ({item['mistake']})" if item.get("mistake") else ""
        found = item.get("value")
        shown = Text("unknown", "yellow") if found is None else Text(words.value(found) + mistake)
        grid.add_row(name, shown, item.get("origin", ""), Text(words.clean(item.get("evidence"))))
    return grid


def render(data: Mapping[str, Any]) -> RenderableType:
    """Everything that `vqverify identify` knows."""
    domain = data["domain"]
    dtype, layouts = domain["dtype"].removeprefix("torch."), ", ".join(domain["layouts"])
    takes = f"takes latents of D = {domain['dim']} in {dtype}, laid out as {layouts}"
    least = f", at least {domain['min_n']}" if domain["min_n"] > 1 else ""
    parts: list[RenderableType] = [
        Rule(Text(data["name"], "bold"), align="left", style="blue"),
        Text(data["target"], "dim"),
        Text(takes + least),
        "",
    ]
    return Group(*parts, _table(data["identified"], fold=True))
