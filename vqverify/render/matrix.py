"""Many layers against all rows: the conformance page as HTML, as Markdown, and as a table for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vqverify.render import witness, words
from vqverify.report import Report, Result, SubjectReport

ORDER = ("failed", "fixed", "error", "expected", "undetermined", "passed", "n/a")  # the worst first: what a cell shows
SYMBOLS = {"failed": "✗", "fixed": "↑", "error": "!", "expected": "x", "undetermined": "?", "passed": "✓", "n/a": "·"}
TOLD = ("failed", "fixed", "error", "expected", "undetermined")  # statuses of which a reader wants to know more
COUNTED = ("passed", "failed", "expected", "undetermined", "error")
AGREES = {True: "agrees", False: "differs", None: "unknown"}
STYLES = {"agrees": "green", "differs": "bold red", "unknown": "yellow"}


@dataclass(frozen=True)
class Cell:
    """One row on one layer: its worst status, all its results, and where the page tells of them."""

    status: str
    results: tuple[Result, ...]
    anchor: str

    @property
    def symbol(self) -> str:
        """One character a status."""
        return SYMBOLS[self.status]

    @property
    def told(self) -> tuple[Result, ...]:
        """The results that are not simply good."""
        return tuple(result for result in self.results if result.status in TOLD)

    @property
    def soft(self) -> bool:
        """Whether nothing but a limit or a hardening row fails: what by default does not fail a run."""
        return self.status == "failed" and all(
            r.kind in {"limit", "hardening"} for r in self.results if r.status in {"failed", "fixed"}
        )

    @property
    def hint(self) -> str:
        """What a cell says when pointed at."""
        return "; ".join(dict.fromkeys(words.clean(r.message or r.reason) for r in self.told))[:300]


def cells(subject: SubjectReport) -> dict[str, Cell]:
    """A layer's cells by row."""
    rows: dict[str, list[Result]] = {}
    for result in subject.results:
        rows.setdefault(result.invariant, []).append(result)
    return {
        id_: Cell(min((r.status for r in results), key=ORDER.index), tuple(results), anchor(subject, id_))
        for id_, results in rows.items()
    }


def anchor(subject: SubjectReport, id_: str) -> str:
    """Where the page tells of a row on a layer."""
    return re.sub(r"[^\w-]+", "-", f"{title(subject)}--{id_}").lower()


def title(subject: SubjectReport) -> str:
    """The name in the matrix, else the layer's own."""
    return subject.label or subject.name


def package(subject: SubjectReport) -> str:
    """`vector-quantize-pytorch 1.32.0`, empty where nothing is known of it."""
    return f"{subject.package['name']} {subject.package['version']}" if subject.package else ""


def row_ids(report: Report) -> list[str]:
    """Every row of some layer, in the order of the catalogue."""
    return list(dict.fromkeys(result.invariant for subject in report.subjects for result in subject.results))


def html(report: Report) -> str:
    """The page: a table of cells, each of which leads to its witness."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vqverify.render"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["value"] = words.value
    environment.filters["title"] = words.title

    def program(result: Result) -> list[tuple[str, str]]:
        found = report.witnesses.get(result.witness) if result.witness else None
        return list(witness.lines(found)) if found else []

    return environment.get_template("matrix.html.j2").render(
        report=report, rows=row_ids(report), table=[(subject, cells(subject)) for subject in report.subjects],
        program=program, name=title, package=package, command=words.command, symbols=SYMBOLS, agrees=AGREES,
        verdict=words.verdict(report), agreement=agreement(report),
    )  # fmt: skip


def markdown(report: Report) -> str:
    """The page as GitHub-flavoured Markdown; symbols lead to the text below."""
    lines = [f"# vqverify matrix: {words.verdict(report)}", "", words.summary(report), ""]
    lines += [" · ".join(f"{symbol} {status}" for status, symbol in SYMBOLS.items()), ""]
    lines += [*_layers(report), *_table(report), *_documented(report), "## Failures", ""]
    for subject in report.subjects:
        for id_, cell in cells(subject).items():
            if cell.told:
                lines += _told(report, subject, id_, cell)
    environment = " · ".join(f"{name} {value}" for name, value in report.environment.items())
    return "\n".join([*lines, environment, ""])


def _layers(report: Report) -> Iterator[str]:
    yield from (
        "| | layer | package | passed | failed | expected | undetermined | error |",
        "|---|---|---|---|---|---|---|---|",
    )
    for number, subject in enumerate(report.subjects, start=1):
        of = [
            sum(r.status == status for r in subject.results)
            for status in ("passed", "failed", "expected", "undetermined", "error")
        ]
        yield f"| {number} | {_cell(title(subject))} | {_cell(package(subject))} | {' | '.join(map(str, of))} |"
    yield ""


def _table(report: Report) -> Iterator[str]:
    numbers = " | ".join(str(number) for number in range(1, len(report.subjects) + 1))
    yield from (f"| row | {numbers} |", "|---" * (len(report.subjects) + 1) + "|")
    table = [cells(subject) for subject in report.subjects]
    for id_ in row_ids(report):
        found = [of.get(id_) for of in table]
        shown = [
            "" if cell is None else f"[{cell.symbol}](#{cell.anchor})" if cell.told else cell.symbol for cell in found
        ]
        yield f"| {id_} | {' | '.join(shown)} |"
    yield ""


def _documented(report: Report) -> Iterator[str]:
    rows = list(agreement(report))
    if not rows:
        return
    yield from (
        "## What is documented, and what was found",
        "",
        "| layer | trait | documented | found | |",
        "|---|---|---|---|---|",
    )
    for subject, trait, item in rows:
        said, found = (_cell(words.value(item[key])) for key in ("documented", "found"))
        yield f"| {_cell(title(subject))} | {trait} | {said} | {found} | {AGREES[item['agrees']]} |"
    yield ""


def agreement(report: Report) -> list[tuple[SubjectReport, str, Mapping[str, Any]]]:
    """Every trait of which some documentation speaks."""
    return [(subject, trait, item) for subject in report.subjects for trait, item in subject.documented.items()]


def _told(report: Report, subject: SubjectReport, id_: str, cell: Cell) -> Iterator[str]:
    first = cell.told[0]
    yield from (
        f'<a id="{cell.anchor}"></a>',
        "",
        f"### {_cell(title(subject))}: {id_}",
        "",
        _cell(first.statement),
        "",
    )
    for result in cell.told:
        yield f"- {SYMBOLS[result.status]} {words.title(result)} {_cell(result.label or '')}: {_cell(result.message or '')}"
        if result.reason:
            yield f"  ({_cell(result.reason)})"
    yield ""
    for result in cell.told:
        found = report.witnesses.get(result.witness) if result.witness else None
        if found:
            yield from ("```text", *(f"{name:<10}  {value}" for name, value in witness.lines(found)), "```", "")
            break


def _cell(text: str) -> str:
    """Words of others inside Markdown: no table cell, tag or emphasis of their own."""
    text = words.clean(text)
    for character in "\\`*_|<>[]":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def terminal(report: Report) -> RenderableType:
    """A line a layer with its counts, and what of the documentation was found."""
    table = Table.grid(padding=(0, 2))
    for _ in range(2):
        table.add_column(overflow="fold")
    for subject in report.subjects:
        table.add_row(Text(title(subject), "bold"), _counts(subject), Text(f"exit {subject.exit_code}", "dim"))
    said = [AGREES[item["agrees"]] for _, _, item in agreement(report)]
    parts: list[RenderableType] = [table]
    if said:
        parts.append(Text(f"documented traits: {', '.join(f'{said.count(word)} {word}' for word in STYLES)}"))
        parts += [
            Text(f"  {title(s)}: {trait} documented {words.value(i['documented'])}, found {words.value(i['found'])}", "red")
            for s, trait, i in agreement(report) if i["agrees"] is False
        ]  # fmt: skip
    parts += [Text(words.summary(report), "bold"), Text(words.verdict(report), "bold")]
    return Group(*parts)


def _counts(subject: SubjectReport) -> Text:
    of = {status: [r for r in subject.results if r.status == status] for status in ORDER}
    laws = list(dict.fromkeys(words.title(r) for r in of["failed"] if r.kind in {"law", "contract"}))
    text = Text(" · ".join(f"{len(results)} {status}" for status, results in of.items() if results))
    return text.append(f"\n{', '.join(laws)}", "red") if laws else text
