"""What replaying a witness showed, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vqverify.render import witness


class Found(Protocol):
    """What a replay came to."""

    @property
    def fails(self) -> bool: ...  # noqa: D102
    @property
    def label(self) -> str | None: ...  # noqa: D102
    @property
    def message(self) -> str: ...  # noqa: D102
    @property
    def checked(self) -> bool: ...  # noqa: D102


def render(program: Mapping[str, Any], found: Found) -> RenderableType:
    """What was done, and what came of it."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan")
    table.add_column(overflow="fold")
    subject = program["subject"]
    arguments = ", ".join(f"{name}={value!r}" for name, value in subject.get("kwargs", {}).items())
    table.add_row("subject", Text(f"{subject['target']}({arguments})"))
    case = f"[{program['case']}]" if program.get("case") else ""
    table.add_row("row", Text(f"{program['invariant']}{case}  {program['label']}"))
    for name, value in witness.lines(program):
        table.add_row(name, Text(value))
    return Group(Padding(table, (0, 0, 0, 2)), _verdict(program, found))


def _verdict(program: Mapping[str, Any], found: Found) -> Text:
    if not found.fails:
        why = "" if found.checked else " (its hypotheses are no longer met, so nothing was compared)"
        return Text.assemble(("✓ ", "bold green"), f"passes now{why}")
    other = "" if found.label == program["label"] else f", now as {found.label}"
    return Text.assemble(("✗ ", "bold red"), (f"still fails{other}", "bold"), f": {found.message}")
