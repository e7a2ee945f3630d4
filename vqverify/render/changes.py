"""What changed between two reports, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vqverify.run.baseline import Change

STYLES = {"worse": "bold red", "better": "green", "other": "dim"}


def render(changes: Sequence[Change]) -> RenderableType:
    """A line a result whose status changed, the worse first."""
    if not changes:
        return Text("nothing changed")
    table = Table.grid(padding=(0, 2))
    for change in changes:
        subject, invariant, case, label = change.key
        row = f"{invariant}[{case}]" if case else invariant
        turned = f"{change.before or 'not there'} → {change.after or 'not there'}"
        table.add_row(
            Text(change.direction, STYLES[change.direction]),
            Text(row),
            Text(label or "", "yellow"),
            Text(turned),
            Text(subject, "dim"),
        )
    count = {name: sum(change.direction == name for change in changes) for name in STYLES}
    return Group(
        table,
        Text(f"{count['worse']} worse, {count['better']} better, {count['other']} otherwise changed", "bold"),
    )
