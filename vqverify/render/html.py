"""The report as one HTML file that opens offline: no script, style or font from elsewhere."""

from __future__ import annotations

import jinja2

from vqverify.render import witness, words
from vqverify.report import Report, Result


def render(report: Report) -> str:
    """Fill in the page."""
    loader = jinja2.PackageLoader("vqverify.render")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["margin"] = words.margin
    environment.filters["value"] = words.value
    environment.filters["title"] = words.title
    results = [result for subject in report.subjects for result in subject.results]

    def program(result: Result) -> list[tuple[str, str]]:
        found = report.witnesses.get(result.witness) if result.witness else None
        return list(witness.lines(found)) if found else []

    return environment.get_template("report.html.j2").render(
        report=report, program=program, grouped=words.grouped, failures=words.failures,
        verdict=words.verdict(report),
        worst=words.worst(results), examples=sum(result.examples for result in results),
        command=words.command,
        seconds=sum(subject.seconds for subject in report.subjects),
    )  # fmt: skip
