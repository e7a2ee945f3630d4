"""`vqverify prove`: every derivation and every erratum, executed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vqverify.cli import outputs, words
from vqverify.cli.types import FILE

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vqverify.symbolic.catalogue import Result
    from vqverify.symbolic.derivation import Derivation
    from vqverify.symbolic.errata import Erratum


@click.command("prove")
@click.option("--only", default="*", metavar="GLOB", help="Ids, or theorem numbers: 'rotation.*', T9, 'T3?', '001.*'.")
@click.option(
    "--json",
    "json_file",
    type=FILE,
    metavar="FILE",
    help="The results as data.",
)
def command(only: str, json_file: Path | None) -> int:
    """Execute the derivation of every theorem and the proof of every erratum; exit 1 if one does not hold."""
    from rich.console import Console
    from rich.progress import track

    from vqverify.symbolic import catalogue

    items = catalogue.selected(only)
    if not items:
        near = words.near(only, catalogue.known())
        words.refuse(f"--only {only!r} matches no derivation and no erratum{near}")
    console = Console(stderr=True)
    bar = track(items, "proving", console=console, transient=True, disable=not console.is_terminal)
    results = [catalogue.prove_one(item) for item in bar]
    if json_file:
        outputs.write_data(json_file, {"format": 1, "results": [result.as_json() for result in results]})
    outputs.printed(_rendered(items, results))
    return 0 if all(result.proof.holds for result in results) else 1


def _rendered(items: Sequence[Derivation | Erratum], results: Sequence[Result]) -> RenderableType:
    from rich.console import Group

    pairs = list(zip(items, results, strict=True))
    theorems = [pair for pair in pairs if pair[1].kind == "theorem"]
    ledger = [pair for pair in pairs if pair[1].kind == "erratum"]
    parts = (
        [_table(theorems), _ledger(ledger)]
        if ledger and theorems
        else [_ledger(ledger) if ledger else _table(theorems)]
    )
    return Group(*parts, *_verdict(results))


def _table(pairs: Sequence[tuple[Derivation | Erratum, Result]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table("theorem", "id", "what", "steps", "s", box=None, pad_edge=False, header_style="dim")
    for item, result in pairs:
        steps = "/".join(str(result.proof.kinds[kind]) for kind in ("algebra", "certificate", "lemma"))
        mark = "" if result.proof.holds else " does not hold"
        title = Text(getattr(item, "title", ""), overflow="fold").append(mark, "bold red")
        table.add_row(getattr(item, "theorem", ""), item.id, title, steps, f"{result.proof.seconds:.2f}")
    return table


def _ledger(pairs: Sequence[tuple[Derivation | Erratum, Result]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table("where", "printed", "right", "by", box=None, pad_edge=False, header_style="dim", title="Errata")
    table.title_justify = "left"
    for item, result in pairs:
        mark = "" if result.proof.holds else " does not hold"
        right = Text(getattr(item, "right", ""), overflow="fold").append(mark, "bold red")
        printed = Text(getattr(item, "printed", ""), overflow="fold")
        table.add_row(Text(result.source, no_wrap=False), printed, right, getattr(item, "theorem", "") or "arithmetic")
    return table


def _verdict(results: Sequence[Result]) -> Iterator[RenderableType]:
    from rich.text import Text

    from vqverify.symbolic.book import plain

    for result in results:
        for reason in result.proof.failed:
            yield Text(f"{result.proof.id} does not hold: {plain(reason)}", "bold red")
    kinds = {kind: sum(result.proof.kinds[kind] for result in results) for kind in ("algebra", "certificate", "lemma")}
    counts = {
        kind: (
            sum(result.proof.holds for result in results if result.kind == kind),
            sum(r.kind == kind for r in results),
        )
        for kind in ("theorem", "erratum")
    }
    plural = {"theorem": "theorems", "erratum": "errata"}
    held = " and ".join(f"{holding} of {number} {plural[kind]}" for kind, (holding, number) in counts.items() if number)
    yield Text(
        f"{held} hold, in {sum(result.proof.seconds for result in results):.1f} s; "
        f"steps: {kinds['algebra']} algebra, {kinds['certificate']} certificates, executed; {kinds['lemma']} lemmas, cited",
        "dim",
    )
