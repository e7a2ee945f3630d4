"""`vqverify explain`: the mathematics behind a row, a theorem or an erratum; the book of all of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vqverify.cli import outputs, words
from vqverify.cli.types import FILE

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vqverify.invariant import Invariant
    from vqverify.symbolic.book import Chapter, Entry, Row
    from vqverify.symbolic.derivation import Derivation
    from vqverify.symbolic.errata import Erratum


@click.command("explain")
@click.argument("name", metavar="[ID]", required=False)
@click.option("--latex", "latex_file", type=FILE, metavar="FILE", help="A LaTeX document (for LuaLaTeX).")
@click.option("--html", "html_file", type=FILE, metavar="FILE", help="A page that opens offline.")
def command(name: str | None, latex_file: Path | None, html_file: Path | None) -> None:
    """Explain a row of the catalogue, a theorem or an erratum: rotation.angle, T2, 001.eq21.

    Without an ID, --html or --latex writes the book: every theorem with its derivation, executed, and the errata.
    """
    from vqverify.invariant import registry
    from vqverify.symbolic import catalogue

    if name is None:
        if not (latex_file or html_file):
            words.refuse("explain needs an ID, or --html or --latex for the whole book; `vqverify list` shows the ids")
        _write(*_book(catalogue.derivations(), catalogue.errata(), executed=True), latex_file, html_file)
        return
    row = registry().get(name)
    theorems = _theorems(row) if row else ()
    derivations = [
        one for one in catalogue.derivations() if one.theorem in theorems or name.casefold() in catalogue.names(one)
    ]
    errata = [one for one in catalogue.errata() if name.casefold() in catalogue.names(one)]
    if not (row or derivations or errata):
        near = words.near(name, dict.fromkeys((*registry(), *catalogue.known())))
        words.refuse(f"nothing is called {name!r}{near}")
    chapters, entries = _book(derivations, errata, executed=bool(html_file))
    if latex_file or html_file:
        if not (chapters or entries):
            words.refuse(f"{name} rests on no theorem of the theory page: there is no derivation to write")
        _write(chapters, entries, latex_file, html_file)
        return
    from rich.console import Group

    outputs.printed(Group(*_shown(_row(row) if row else None, chapters, entries)))


def _theorems(row: Invariant) -> tuple[str, ...]:
    """The theorems that the source of a row names."""
    return tuple(re.findall(r"\bT\d+\b", row.source))


def _row(row: Invariant) -> Row:
    from vqverify.mutant import mutants
    from vqverify.symbolic.book import Row

    known = mutants()
    mistakes = {name: known[name].mistake if name in known else "" for name in row.mutants}
    return Row(row.id, row.statement, row.hint, mistakes)


def _book(
    derivations: Sequence[Derivation], errata: Sequence[Erratum], *, executed: bool
) -> tuple[list[Chapter], list[Entry]]:
    from vqverify.invariant import registry
    from vqverify.symbolic.book import Chapter, Entry

    resting = {
        one.theorem: tuple(_row(row) for row in registry().values() if one.theorem in _theorems(row))
        for one in derivations
    }
    chapters = [Chapter(one, resting[one.theorem], one.prove() if executed else None) for one in derivations]
    return chapters, [Entry(one, one.prove() if executed else None) for one in errata]


def _write(
    chapters: Sequence[Chapter], entries: Sequence[Entry], latex_file: Path | None, html_file: Path | None
) -> None:
    from vqverify.symbolic import book

    for path, rendering in ((html_file, book.as_html), (latex_file, book.as_latex)):
        if path:
            outputs.write_text(path, rendering(chapters, entries))


def _shown(row: Row | None, chapters: Sequence[Chapter], entries: Sequence[Entry]) -> Iterator[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    if row:
        yield Text(row.id, "bold cyan")
        yield Padding(Text(row.statement), (0, 0, 1, 2))
        yield from _field("mutants it rejects", [f"{name}: {what}" for name, what in row.mutants.items()] or ["none"])
        yield from _field("what to look for", [row.hint])
    for chapter in chapters:
        yield from _chapter(chapter, alone=row is None)
    for entry in entries:
        one = entry.erratum
        yield Text(f"{one.where} ({one.id})", "bold cyan")
        yield from _field("printed", [one.printed])
        yield from _field("right", [f"{one.right} ({one.theorem or 'arithmetic'})"])
        yield from _field("test", [f"{one.by}: the right claim passes it, the printed one fails"])
    if row and not chapters:
        yield Text("It rests on no theorem of the theory page.", "dim")


def _chapter(chapter: Chapter, *, alone: bool) -> Iterator[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    from vqverify.symbolic import book

    one = chapter.derivation
    yield Text.assemble((f"{one.theorem}  {one.title}", "bold"), (f"  {one.id} · {one.source}", "dim"))
    yield Padding(Text(book.plain(one.statement)), (0, 0, 1, 2))
    yield from _field("hypotheses", [book.plain(hypothesis) for hypothesis in one.hypotheses])
    steps = [f"{index}. [{step.kind}] {book.plain(step.text)}" for index, step in enumerate(one.steps, 1)]
    yield from _field(f"derivation ({book.kinds(one.steps)})", steps)
    tried = [*one.bounds, *(f"rounding: {name}" for name in one.tolerances)]
    if tried:
        yield from _field("bounds that the tests try to break", tried)
    if one.catches:
        yield from _field("catches", [one.catches])
    if alone and chapter.rows:
        yield from _field(
            "rows that rest on it", [f"{row.id}: {', '.join(row.mutants) or '–'}" for row in chapter.rows]
        )


def _field(name: str, lines: Sequence[str]) -> Iterator[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    yield Text(f"  {name}", "dim")
    yield Padding(Text("\n").join(Text(line) for line in lines), (0, 0, 1, 4))
