"""The report as JUnit XML: a suite a subject, a test case a result."""

from __future__ import annotations

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from vqverify.render import witness, words
from vqverify.report import Report, Result, SubjectReport


def render(report: Report) -> str:
    """XML text; what is neither passed nor failed is a skipped case with its reason: CI has no other word."""
    document = JUnitXml("vqverify")
    for subject in report.subjects:
        suite = TestSuite(subject.name)
        suite.add_property("exit_code", str(subject.exit_code))
        suite.add_property("seed", str(report.profile.get("seed")))
        suite.add_testcases([_case(report, subject, result) for result in subject.results])
        document.add_testsuite(suite)
    document.update_statistics()
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{document.tostring().decode()}\n'


def _case(report: Report, subject: SubjectReport, result: Result) -> TestCase:
    message = words.clean(result.message or result.reason)
    name = words.title(result) + (f" {result.label}" if result.label else "")
    case = TestCase(name, f"{subject.name}.{result.invariant.partition('.')[0]}", round(result.seconds, 3))
    match result.status:
        case "failed" | "fixed" if result.status == "fixed" or result.kind in report.profile.get(
            "fail_on", ("law", "contract")
        ):
            case.result = [_with_text(Failure(message, result.label), report, result)]
        case "error":
            case.result = [Error(message, "harness")]
        case "passed":
            pass
        case status:
            case.result = [Skipped(f"{status}: {words.clean(result.reason or result.message)}")]
    return case


def _with_text(failure: Failure, report: Report, result: Result) -> Failure:
    lines = [f"must hold: {result.statement}", f"source: {result.source}", f"hint: {result.hint}"]
    program = report.witnesses.get(result.witness) if result.witness else None
    if program:
        lines += [f"{name}: {value}" for name, value in witness.lines(program)]
        lines.append(f"vqverify replay REPORT.json#{result.witness}")
    failure.text = words.clean("\n".join(lines))
    return failure
