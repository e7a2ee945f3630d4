"""The door for pytest: one test a row.

    @vqverify.parametrize_with_invariants("my_vq.py:MyVQ", {"dim": 8}, claims={"estimator": "rotation"})
    def test_my_vq(check):
        check()

Rows that do not apply, or could not be decided, pass under a status of their own (`n/a`, `undetermined`) that
the summary counts and `-v` explains; `applies=` pins the rows that must apply, so that none can vanish.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    from torch import nn

    from vqverify.report import Result
    from vqverify.run.request import Request
    from vqverify.run.runner import Run

PROPERTY = "vqverify"
LETTERS = {"n/a": "n", "undetermined": "u", "expected": "x", "noted": "o"}


def parametrize_with_invariants(
    target: str | Callable[..., Any] | nn.Module,
    kwargs: Mapping[str, Any] | None = None,
    *,
    claims: Mapping[str, Any] | None = None,
    role: Literal["layer", "estimator", "lookup"] = "layer",
    adapter: str | None = None,
    profile: str = "quick",
    seed: int | None = None,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    applies: Collection[str] | None = None,
    fail_on: Sequence[str] = ("law", "contract"),
    strict: bool = False,
    expectations: Path | str | None = None,
) -> pytest.MarkDecorator:
    """Give a test function one item for each row; it takes `check` and calls it.

    Collecting builds nothing: the layer is opened when the first item of a process runs.

    Args:
        target: `pkg.mod:Class`, `file.py:Class`, a class, a factory, a function, or a module already built.
        kwargs: constructor arguments.
        claims: what the layer says it is, as `{"estimator": "rotation"}`.
        role: `layer`, `estimator` for a function (z, q) -> z_q, or `lookup` for (z, codebook) -> codes.
        adapter: `mod:obj` that says how to call the layer, where discovery is not enough.
        profile: quick, merge or nightly.
        seed: of construction and search, 0 by default.
        only: shell patterns of row ids to check.
        skip: shell patterns of row ids to leave out.
        applies: ids that must apply; if one does not any more, its item and the item `subject` fail.
        fail_on: kinds whose failures fail an item.
        strict: undetermined rows fail.
        expectations: file of expected failures.
    """
    from vqverify.api import subject_of
    from vqverify.invariant import select
    from vqverify.run.request import Request

    spec, obj = subject_of(target, kwargs, claims=claims, role=role, adapter=adapter, seed=seed or 0)
    request = Request(
        spec, profile, tuple(only), tuple(skip), (), tuple(fail_on), strict,
        expectations=Path(expectations) if expectations else None,
    )  # fmt: skip
    select(applies or ())  # a pin that names no row is a mistake of the test file
    pinned = frozenset(applies or ())
    subject = _Subject(request, obj)
    checks = [
        SubjectCheck(subject, pinned),
        *(RowCheck(subject, row.id, pinned) for row in select(only, skip)),
    ]
    return pytest.mark.parametrize("check", [pytest.param(check, id=check.id) for check in checks])


class _Subject:
    """The layer behind a test function, opened when it is needed and then shared by its items."""

    def __init__(self, request: Request, obj: Any) -> None:
        self.request = request
        self._obj = obj

    @cached_property
    def run(self) -> Run:
        from vqverify.run.runner import start

        return start(self.request, obj=self._obj)


class SubjectCheck:
    """The item `subject`: the layer opens, what is pinned applies, and something decisive can be decided."""

    id = "subject"
    note: str | None = None

    def __init__(self, subject: _Subject, pinned: frozenset[str]) -> None:
        self._subject, self._pinned = subject, pinned

    def __call__(self) -> None:
        """Fail unless the set of rows that apply has what it must have."""
        from vqverify.invariant import applicability

        run = self._subject.run
        verdicts = {row.id: applicability(row, run.opened.traits) for row in run.rows}
        lost = sorted(self._pinned - {id_ for id_, found in verdicts.items() if found.verdict == "applies"})
        if lost:
            reasons = [
                f"{id_}: {verdicts[id_].verdict}, {verdicts[id_].reason}" if id_ in verdicts else f"{id_}: not selected"
                for id_ in lost
            ]
            pytest.fail("rows that are pinned do not apply:\n  " + "\n  ".join(reasons), pytrace=False)
        decisive = [verdicts[row.id] for row in run.rows if row.decisive and verdicts[row.id].verdict != "n/a"]
        if decisive and all(found.verdict == "undetermined" for found in decisive):
            pytest.fail(f"no row of lookup or estimator could be determined: {decisive[0].reason}", pytrace=False)


class RowCheck:
    """One row of the catalogue on the subject; calling it fails the test where the row fails."""

    note: str | None = None
    folder: Path | None = None  # of pytest's cache, for witnesses

    def __init__(self, subject: _Subject, id_: str, pinned: frozenset[str]) -> None:
        self._subject, self.id, self._pinned = subject, id_, pinned

    def __call__(self) -> tuple[Result, ...]:
        """Check the row.

        Returns:
            Its results, one a case.
        """
        run = self._subject.run
        results = run.row(self.id)
        bad = [result for result in results if self._fails(result)]
        if bad:
            from vqverify.render import terminal
            from vqverify.report import save_witnesses

            report = run.report()
            if self.folder is not None:
                save_witnesses(report, self.folder)
            text = "\n".join(terminal.failure_text(report, result, self.folder) for result in bad)
            pytest.fail(text, pytrace=False)
        self.note = _note(results)
        return results

    def _fails(self, result: Result) -> bool:
        if result.status in {"n/a", "undetermined"} and self.id in self._pinned:
            return True
        if result.status == "undetermined":
            return self._subject.request.strict
        return result.status in {"fixed", "error"} or (
            result.status == "failed" and result.kind in self._subject.request.fail_on
        )


def _note(results: Sequence[Result]) -> str | None:
    """What a row that did not simply pass came to: `status: reason`; None if each of its cases passed."""
    for result in results:
        if result.status == "failed":
            return f"noted: {result.label}: {result.message}"
        if result.status in LETTERS:
            return f"{result.status}: {result.reason}"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tell a row where pytest's cache keeps things: the witness of a failure is written there, to be replayed."""
    check = getattr(getattr(item, "callspec", None), "params", {}).get("check")
    cache = getattr(item.config, "cache", None)
    if isinstance(check, RowCheck) and cache is not None:
        folder, here = cache.mkdir("vqverify"), Path.cwd()
        check.folder = folder.relative_to(here) if folder.is_relative_to(here) else folder  # short enough for a line


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the note of a row to its report, so that it survives the way from a worker."""
    report = yield
    check = getattr(getattr(item, "callspec", None), "params", {}).get("check")
    if call.when == "call" and report.passed and isinstance(check, RowCheck) and check.note:
        report.user_properties.append((PROPERTY, check.note))
    return report


def pytest_report_teststatus(report: pytest.TestReport | pytest.CollectReport) -> tuple[str, str, str] | None:
    """Count rows that passed without a verdict under their own name."""
    note = dict(getattr(report, "user_properties", ())).get(PROPERTY) if report.passed else None
    if getattr(report, "when", None) != "call" or not isinstance(note, str):
        return None
    status, _, reason = note.partition(": ")
    return status, LETTERS[status], f"{status.upper()} ({reason})"
