"""The report as Markdown, for a pull request or a job's summary."""

from __future__ import annotations

from collections.abc import Iterator

from vqverify.render import witness, words
from vqverify.report import Report, Result, SubjectReport


def render(report: Report) -> str:
    """GitHub-flavoured Markdown: verdict, failures with witnesses, a table of every other status."""
    lines = [f"## vqverify: {words.verdict(report)}", "", words.summary(report), ""]
    for subject in report.subjects:
        lines += [f"### `{subject.name}`", "", *_failures(report, subject), *_others(subject)]
        lines += [f"`{words.command(subject, report.profile)}`", ""]
    return "\n".join(lines)


def _failures(report: Report, subject: SubjectReport) -> Iterator[str]:
    for cause, followers in words.grouped(words.failures(subject)):
        yield f"#### ✗ {words.title(cause)} `{cause.label}` ({cause.kind})"
        yield ""
        yield _text(cause.message or cause.reason or "")
        yield ""
        yield f"- must hold: {_text(cause.statement)} ({_text(cause.source)})"
        if cause.hint:
            yield f"- hint: {_text(cause.hint)}"
        if followers:
            yield f"- also fail because of it: {', '.join(dict.fromkeys(map(words.title, followers)))}"
        yield ""
        yield from _program(report, cause)


def _program(report: Report, result: Result) -> Iterator[str]:
    found = report.witnesses.get(result.witness) if result.witness else None
    if found:
        lines = list(witness.lines(found))
        width = max(len(name) for name, _ in lines)
        yield from ("```text", *(f"{name:<{width}}  {value}" for name, value in lines), "```", "")
    if result.script:
        yield from ("```python", result.script.rstrip(), "```", "")


def _others(subject: SubjectReport) -> Iterator[str]:
    yield from ("| status | rows | why |", "|---|---|---|")
    for status in ("error", "expected", "undetermined", "n/a"):
        rows = [result for result in subject.results if result.status == status]
        for reason, members in words.by_reason(rows):
            yield f"| {status} | {', '.join(dict.fromkeys(map(words.title, members)))} | {_text(reason)} |"
    passed = [result for result in subject.results if result.status == "passed"]
    if passed:
        worst = words.worst(passed)
        most = f"worst margin {words.margin(worst.margin)} ({words.title(worst)})" if worst else ""
        yield f"| passed | {len(passed)} | {most} |"
    yield ""


def _text(text: str) -> str:
    """Words of others inside Markdown: no table cell, tag or emphasis of their own."""
    text = words.clean(text)
    for character in "\\`*_|<>[]":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
