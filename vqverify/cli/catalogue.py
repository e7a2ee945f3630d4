"""`vqverify list`: the catalogue of rows."""

from __future__ import annotations

from pathlib import Path

import click

from vqverify.cli import outputs, words
from vqverify.cli.types import FILE


@click.command("list")
@click.argument("patterns", nargs=-1, metavar="[GLOB]...")
@click.option(
    "--json",
    "json_file",
    type=FILE,
    metavar="FILE",
    help="The catalogue as data.",
)
def command(patterns: tuple[str, ...], json_file: Path | None) -> None:
    """List the rows of the catalogue, all or those that match."""
    from vqverify.invariant import select

    with words.refusing(traceback=False):
        rows = select(patterns)
    if json_file:
        outputs.write_data(json_file, {"format": 1, "invariants": [_described(row) for row in rows]})
    from vqverify.render import catalogue

    outputs.printed(catalogue.render([_described(row) for row in rows]))


def _described(row: object) -> dict[str, object]:
    names = ("id", "statement", "source", "kind", "mode", "state", "needs", "mutants", "hint", "follows")
    return {name: list(value) if isinstance(value := getattr(row, name), tuple) else value for name in names}
