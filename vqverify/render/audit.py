"""The kill matrix for a terminal and as one page."""

from __future__ import annotations

from itertools import groupby

import jinja2
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vqverify.mutant import Mutant
from vqverify.run.audit import Audit, Verdict


def by_mutant(audit: Audit) -> dict[str, tuple[Verdict, ...]]:
    """Verdicts of all seeds, a mutant each."""
    return {name: tuple(found) for name, found in groupby(audit.verdicts, key=lambda verdict: verdict.mutant)}


def rejecting(found: tuple[Verdict, ...]) -> tuple[str, ...]:
    """Rows that rejected a mutant under any seed, the ones listed first before."""
    return tuple(dict.fromkeys(id_ for verdict in found for id_ in verdict.rejected_by))


def terminal(audit: Audit) -> RenderableType:
    """A line a mutant, then what is wrong."""
    table = Table("mutant", "killed", "rejected by", box=None, pad_edge=False, header_style="dim")
    for name, found in by_mutant(audit).items():
        dead = sum(bool(verdict.rejected_by) for verdict in found)
        style = "bold red" if any(verdict.fault for verdict in found) else ""
        ids = rejecting(found)
        shown = Text(ids[0] if ids else "", overflow="fold").append(
            f"  {', '.join(ids[1:4])}{' …' if len(ids) > 4 else ''}", "dim"
        )
        table.add_row(Text(name, style), f"{dead}/{len(found)}", shown)
    faults = [Text(f"{v.mutant}, seed {v.seed}: {v.fault}", "red") for v in audit.faults]
    idle = [Text(f"{id_} rejects no mutant", "red") for id_ in audit.idle]
    runs, dead = len(audit.verdicts), sum(bool(verdict.rejected_by) for verdict in audit.verdicts)
    said = (
        f"{len(by_mutant(audit))} mutants, {dead} of {runs} runs rejected; {len(faults)} faults, {len(idle)} idle rows"
    )
    return Group(table, "", *faults, *idle, Text(said, "dim"))


def html(audit: Audit, wrong: dict[str, Mutant]) -> str:
    """One page that opens offline: mutants down, the rows that rejected them beside."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vqverify.render"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("audit.html.j2").render(
        audit=audit, mutants=by_mutant(audit), rejecting=rejecting, wrong=wrong, kills=audit.kills()
    )
