"""Two reports side by side: what is new, what is gone, what changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vqverify.report import Report, Result

Key = tuple[str, str, str | None, str | None]
BAD = frozenset({"failed", "fixed", "error"})


@dataclass(frozen=True)
class Change:
    """One result whose status differs between two reports; None where it was not there."""

    key: Key
    before: str | None
    after: str | None

    @property
    def direction(self) -> str:
        """`worse`, `better` or `other`."""
        if self.after in BAD and self.before not in BAD:
            return "worse"
        return "better" if self.before in BAD and self.after not in BAD else "other"


def marked(report: Report, old: Report) -> Report:
    """The report with the failures that the old one has, too, expected ones among them, marked as known."""
    before = {key for key, result in keyed(old).items() if result.status in {"failed", "expected"}}
    subjects = tuple(
        replace(
            subject,
            results=tuple(
                replace(r, known=r.status == "failed" and (subject.name, r.invariant, r.case, r.label) in before)
                for r in subject.results
            ),
        )
        for subject in report.subjects
    )
    return replace(report, subjects=subjects)


def keyed(report: Report) -> dict[Key, Result]:
    """Results by (subject, invariant, case, label)."""
    return {(s.name, r.invariant, r.case, r.label): r for s in report.subjects for r in s.results}


def changes(report: Report, old: Report) -> tuple[Change, ...]:
    """What differs, the worse first."""
    order = ("worse", "better", "other")
    return tuple(sorted(_changes(report, old), key=lambda change: (order.index(change.direction), change.key[:2])))


def _changes(report: Report, old: Report) -> Iterator[Change]:
    new_results, old_results = keyed(report), keyed(old)
    for key in {**old_results, **new_results}:
        before, after = old_results.get(key), new_results.get(key)
        if (before and before.status) != (after and after.status):
            yield Change(key, before and before.status, after and after.status)
