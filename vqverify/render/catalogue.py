"""The catalogue for a terminal: a group of rows after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


def render(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Rows as `rich` prints them.

    Args:
        rows: id, kind, statement and source of each.
    """
    return Group(*_groups(rows), Text(f"{len(rows)} rows; `vqverify explain ID` tells more of one", "dim"))


def _groups(rows: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    ordered = sorted(rows, key=lambda row: row["id"].partition(".")[0])
    for group, members in groupby(ordered, key=lambda row: row["id"].partition(".")[0]):
        table = Table.grid(padding=(0, 2))
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(style="dim")
        table.add_column(overflow="fold")
        for row in members:
            table.add_row(row["id"], row["kind"], Text(row["statement"]))
        yield Group(Text(group, "bold"), table, "")
