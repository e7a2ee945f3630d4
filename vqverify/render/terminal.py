"""The report for a terminal of 100 columns: causes first, then what holds, then what was not decided."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from vqverify.render import identity, witness, words
from vqverify.report import Report, Result, SubjectReport

IN_FULL = 5  # failures that are shown with statement, source, hint and witness
KIND_STYLE = {"law": "bold red", "contract": "red", "limit": "yellow", "hardening": "yellow"}


def render(report: Report, saved: Path | None = None) -> RenderableType:
    """A report as something that `rich` prints.

    Args:
        report: the report.
        saved: where its JSON is, for the advice on replaying.
    """
    parts: list[RenderableType] = []
    for subject in report.subjects:
        parts += [
            _head(report, subject),
            Padding(identity.compact(subject.identified), (0, 0, 1, 2)),
            *_failures(report, subject, saved),
            *_rest(subject),
        ]
    return Group(*parts, *_summary(report, saved))


def _head(report: Report, subject: SubjectReport) -> RenderableType:
    package = f"{subject.package['name']} {subject.package['version']} · " if subject.package else ""
    profile = f"{report.profile.get('name')} · seed {report.profile.get('seed')}"
    torch = report.environment.get("torch", "?")
    line = Text(f"{subject.target} · {package}{profile} · torch {torch}", "dim", overflow="fold")
    return Group(Rule(Text(subject.name, "bold"), align="left", style="blue"), line, "")


def _grid(*styles: str | None) -> Table:
    table = Table.grid(padding=(0, 2))
    for style in styles:
        table.add_column(style=style, overflow="fold")
    return table


def _failures(report: Report, subject: SubjectReport, saved: Path | None) -> Iterator[RenderableType]:
    groups = words.grouped(words.failures(subject))
    for number, (cause, followers) in enumerate(groups):
        brief = number >= IN_FULL
        yield _brief(cause) if brief else _failure(report, cause, _inside(saved))
        if followers:
            yield Padding(Text("and with it:", "dim"), (0, 0, 0, 4), expand=False)
        for result in followers:
            yield Padding(_brief(result), (0, 0, 0, 4), expand=False)
        if not brief or number == len(groups) - 1:
            yield ""
    if len(groups) > IN_FULL:
        yield Text(f"the first {IN_FULL} in full; --html and --markdown show all of them\n", "dim")


def _headline(result: Result) -> Text:
    text = Text.assemble(("✗ ", "bold red"), (words.title(result), "bold"), "  ", (result.label or "", "bold yellow"))
    text.append(f"  {result.kind}", KIND_STYLE.get(result.kind, "red"))
    if result.status == "fixed":
        text.append("  fixed: it was expected to fail", "bold green")
    if result.known:
        text.append("  known", "dim")
    return text


def _inside(saved: Path | None) -> Callable[[str | None], object]:
    """Where a witness of a report is, for who replays it."""
    return lambda digest: f"{saved or 'REPORT.json'}#{digest}"


def _failure(report: Report, result: Result, at: Callable[[str | None], object]) -> RenderableType:
    table = _grid("dim", None)
    if result.reason:
        table.add_row("reason", Text(words.clean(result.reason)))
    if result.statement:
        table.add_row("must hold", Text(result.statement))
    if result.source:
        table.add_row("source", Text(result.source))
    if result.hint:
        table.add_row("hint", Text(result.hint, "italic"))
    program = report.witnesses.get(result.witness) if result.witness else None
    if program:
        inner = _grid("cyan", None)
        for name, value in witness.lines(program):
            inner.add_row(name, Text(value))
        table.add_row("witness", inner)
        table.add_row("replay", Text(f"vqverify replay {at(result.witness)}"))
    if result.script:
        table.add_row("script", Text(f"seen to fail in a process of its own\n{result.script.rstrip()}"))
    elif result.unscripted:
        table.add_row("script", Text(f"none: {words.clean(result.unscripted)}"))
    message = Text(words.clean(result.message), overflow="fold")
    return Group(_headline(result), Padding(message, (0, 0, 0, 2)), Padding(table, (0, 0, 0, 4)))


def failure_text(report: Report, result: Result, kept: Path | None = None, width: int = 100) -> str:
    """One result as plain text, for a test's failure message; `kept` is the folder with its witness, if any."""
    console = Console(width=width, color_system=None, highlight=False)
    with console.capture() as text:
        console.print(_failure(report, result, (lambda digest: kept / f"{digest}.json") if kept else _inside(None)))
    return "\n".join(line.rstrip() for line in text.get().splitlines())


def _brief(result: Result) -> RenderableType:
    message = Text(words.clean(result.message or result.reason), "dim", overflow="ellipsis", no_wrap=True)
    return Group(_headline(result), Padding(message, (0, 0, 0, 2)))


def _rest(subject: SubjectReport) -> Iterator[RenderableType]:
    of = {
        status: [r for r in subject.results if r.status == status]
        for status in ("passed", "expected", "undetermined", "n/a", "error")
    }
    yield from _reasons("error", "bold magenta", of["error"])
    for result in of["expected"]:
        yield Text.assemble(
            ("x ", "yellow"),
            (words.title(result), "bold"),
            f" {result.label}",
            (f"  expected: {words.clean(result.reason)}", "dim"),
        )
    yield from _passed(of["passed"])
    yield from _reasons("undetermined", "yellow", of["undetermined"])
    yield from _reasons("n/a", "dim", of["n/a"])


def _passed(results: Sequence[Result]) -> Iterator[RenderableType]:
    """A line a group: names, with the worst margin of their cases where something was measured."""
    if not results:
        return
    groups: dict[str, dict[str, list[Result]]] = {}
    for result in results:
        group, _, name = result.invariant.partition(".")
        groups.setdefault(group, {}).setdefault(name, []).append(result)
    table = _grid("green", None)
    for group, rows in groups.items():
        table.add_row(f"✓ {group}", Text("  ").join(_passed_row(name, cases) for name, cases in rows.items()))
    yield table
    yield ""


def _passed_row(name: str, cases: list[Result]) -> Text:
    text = Text(name if len(cases) == 1 else f"{name}×{len(cases)}")
    worst = words.worst(cases)
    return text.append(f" {words.margin(worst.margin)}", "dim") if worst else text


def _reasons(status: str, style: str, results: Iterable[Result]) -> Iterator[RenderableType]:
    table = _grid(style, "dim")
    for reason, rows in words.by_reason(results):
        table.add_row(status, Text(f"{', '.join(dict.fromkeys(map(words.title, rows)))}: {reason}"))
    if table.row_count:
        yield table
        yield ""


def _summary(report: Report, saved: Path | None) -> Iterator[RenderableType]:
    yield Rule(style="blue")
    yield Text(words.summary(report), "bold")
    if report.witnesses and saved is None:
        yield Text("--json REPORT.json keeps the witnesses for replay", "dim")
    if not report.complete:
        yield Text("not complete: the run was cut short; --resume goes on from its JSON report", "bold yellow")
    yield Text(words.verdict(report), "bold green" if report.exit_code == 0 else "bold red")
