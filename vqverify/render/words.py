"""What several renderings say in the same words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vqverify.report import Report, Result, SubjectReport

KIND_ORDER = ("law", "contract", "limit", "hardening")
EXIT_MEANING = {
    0: "every statement that applies held",
    1: "something that must hold does not, or could not be decided",
    2: "the command line, the import or the construction is wrong",
    3: "the harness could not judge a row",
}


def title(result: Result) -> str:
    """`rotation.angle[gradient]`, the key of a result without its label."""
    return f"{result.invariant}[{result.case}]" if result.case else result.invariant


def failures(subject: SubjectReport) -> list[Result]:
    """What fails or is fixed, laws first; stable otherwise."""
    bad = [result for result in subject.results if result.status in {"failed", "fixed"}]
    return sorted(
        bad,
        key=lambda result: KIND_ORDER.index(result.kind) if result.kind in KIND_ORDER else len(KIND_ORDER),
    )


def grouped(failed: Sequence[Result]) -> list[tuple[Result, list[Result]]]:
    """Causes, each with the results that only follow from it; a result with no cause in sight stands alone."""
    causes = [result for result in failed if not result.explained_by]
    roots = {cause.invariant for cause in causes}
    followers = [result for result in failed if result.explained_by]
    alone = [result for result in followers if not roots & set(result.explained_by)]
    groups: dict[int, list[Result]] = {id(cause): [] for cause in (*causes, *alone)}
    for result in followers:
        home = next((cause for cause in causes if cause.invariant in result.explained_by), None)
        if home is not None:
            groups[id(home)].append(result)
    return [(cause, groups[id(cause)]) for cause in sorted((*causes, *alone), key=failed.index)]


def by_reason(results: Iterable[Result]) -> list[tuple[str, list[Result]]]:
    """Results with the same reason together."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.reason or "no reason given", []).append(result)
    return list(found.items())


def worst(results: Iterable[Result]) -> Result | None:
    """The passed result with the largest margin."""
    measured = [result for result in results if result.status == "passed" and result.margin is not None]
    return max(measured, key=lambda result: result.margin or 0.0, default=None)


def margin(value: float | None) -> str:
    """error / bound in three digits; empty where nothing was measured."""
    return "" if value is None else f"{value:.2g}"


def counts(report: Report) -> str:
    """`50 passed · 1 failed`, leaving out what there is none of."""
    return " · ".join(f"{count} {status}" for status, count in report.counts.items() if count)


def verdict(code: int) -> str:
    """What an exit code means."""
    return f"exit {code}: {EXIT_MEANING.get(code, 'unknown')}"


def value(found: object) -> str:
    """A trait's value, for a reader."""
    if isinstance(found, list | tuple):
        return ", ".join(map(value, found)) or "none"
    if isinstance(found, bool):
        return "yes" if found else "no"
    return f"{found:.6g}" if isinstance(found, float) else str(found)
