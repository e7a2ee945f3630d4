"""One run of a check: open the subject, go through the rows, keep what was found. Behind all three doors.

A run is a value that grows row by row, so that whatever cuts it short (Ctrl-C, a budget, a layer that kills
the process) leaves a report with what it had.
"""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vqverify import engine, environment
from vqverify._version import __version__
from vqverify.invariant import Invariant, registry, select
from vqverify.quantizer import Quantizer
from vqverify.report import Report, Result, SubjectReport, dumps, subject_exit
from vqverify.run import expected, grouping, opening
from vqverify.run.request import Request, RequestError, profile_called
from vqverify.subject.layer import Layer

FEW = 8  # rows for which copies of the process do not pay
BUDGET = "budget"  # the reason of a row that the budget did not reach
STATUS_OF_EXIT = {0: "passed", 1: "failed", 3: "error"}


@dataclass
class Run:
    """A check in progress; `start` makes one, `steps` drives it, `report` says what it has.

    Attributes:
        request: what was asked for.
        opened: the subject, or what a worker told of it.
        rows: what to check.
        done: results by row.
        witnesses: of the results, by digest, as plain data.
        began: when, on the monotonic clock.
    """

    request: Request
    opened: opening.Opened
    rows: tuple[Invariant, ...]
    done: dict[str, tuple[Result, ...]] = field(default_factory=dict[str, tuple[Result, ...]])
    witnesses: dict[str, Any] = field(default_factory=dict[str, Any])
    began: float = field(default_factory=time.monotonic)

    def steps(self) -> Iterator[str]:
        """Check row after row.

        Yields:
            The id of each row when it is done.
        """
        if self.opened.broken:
            seed = self.request.spec.seed
            self.done |= {row.id: (opening.unchecked(row, "error", self.opened.broken, seed),) for row in self.rows}
        for job, outcome in self._outcomes([self._job(row) for row in self.rows if row.id not in self.done]):
            self._keep(job.ids[0], outcome)
            yield job.ids[0]

    def row(self, id_: str) -> tuple[Result, ...]:
        """Check one row, unless that is done.

        Returns:
            What it came to, a result a case.
        """
        if id_ not in self.done:
            self._keep(id_, self._here(self._job(registry()[id_])))
        return tuple(expected.applied(self.done[id_], self.opened.verdicts))

    def _keep(self, id_: str, outcome: engine.Outcome) -> None:
        self.done[id_] = outcome.results
        self.witnesses |= {digest: witness.to_json() for digest, witness in outcome.witnesses.items()}

    def _job(self, row: Invariant) -> engine.Job:
        spec = self.request.spec
        return engine.Job(spec, (row.id,), profile_called(self.request.profile), spec.seed)

    def _here(self, job: engine.Job) -> engine.Outcome:
        subject = self.opened.subject
        assert subject is not None
        opened: Quantizer = subject
        return engine.run(job, lambda _: opened)

    def _outcomes(self, jobs: Sequence[engine.Job]) -> Iterator[tuple[engine.Job, engine.Outcome]]:
        if self.request.isolated:
            from vqverify.run import pool

            yield from pool.outcomes(jobs, self.request.jobs, self.request.timeout, self._left)
            return
        if self.request.forks > 1 and len(jobs) > FEW and isinstance(self.opened.subject, Layer):
            from vqverify.run import pool

            if pool.can_fork():
                yield from pool.shared(jobs, self.request.forks, self.opened.subject, self._left)
                return
        for job in jobs:
            if (left := self._left()) is not None and left <= 0:
                return
            yield job, self._here(job)

    def _left(self) -> float | None:
        """Seconds of the budget that are left; None without a budget."""
        budget = self.request.budget
        return None if budget is None else budget - (time.monotonic() - self.began)

    def report(self) -> Report:
        """Make the report of what is done by now.

        Returns:
            A report that is `complete` once every row is done.
        """
        request, spec = self.request, self.request.spec
        missing = [row for row in self.rows if row.id not in self.done]
        results = [result for row in self.rows for result in self.done.get(row.id, ())]
        results = expected.applied(results, self.opened.verdicts)
        if request.budget is not None and missing and (self._left() or 0) <= 0:
            results += [opening.unchecked(row, "undetermined", BUDGET, spec.seed) for row in missing]
        results = grouping.explain(results)
        required = _required(results, request.require)
        decisive = {row.id for row in self.rows if row.decisive}
        code = subject_exit(
            results, fail_on=request.fail_on, strict=request.strict, decisive=decisive, required=required
        )
        subject = SubjectReport(
            spec.name, spec.target, spec.kwargs, self.opened.package,
            opening.identified(self.opened.traits), results, STATUS_OF_EXIT[code], code, asdict(spec),
            time.monotonic() - self.began,
        )  # fmt: skip
        return Report(request.described(), environment.describe(), (subject,), self.witnesses, not missing, __version__)


def start(request: Request, *, obj: Any = None, resume: Report | None = None) -> Run:
    """Open the subject and get ready.

    Args:
        request: what to check.
        obj: a class, factory, function or built module in place of the spec's target.
        resume: an earlier report of the same request, whose rows are taken over.

    Returns:
        A run that has done nothing yet, or what the earlier report has.

    Raises:
        Exception: of target, discovery, claims, invariant or expected, each with one sentence for the user.
    """
    began = time.monotonic()
    rows = select(request.only, request.skip)
    select(request.require)
    profile_called(request.profile)
    if obj is not None and request.isolated:
        raise RequestError("worker processes open a subject by its name: give pkg.mod:Class or file.py:Class")
    ids = {row.id for row in rows}
    entries = expected.load(request.expectations) if request.expectations else ()
    mine = [entry for entry in entries if entry.subject == request.spec.name and entry.invariant in ids]
    if request.isolated:
        from vqverify.run import pool

        opened = pool.opened(request.spec, mine, request.timeout)
    else:
        opened = opening.opened(request.spec, mine, obj=obj)
    run = Run(request, opened, rows, began=began)
    if resume is not None:
        _take_over(run, resume)
    return run


def check(
    request: Request,
    *,
    obj: Any = None,
    resume: Report | None = None,
    watch: Callable[[Run], None] | None = None,
) -> Report:
    """Check a subject from beginning to end.

    Args:
        request: what to check.
        obj: a class, factory, function or built module in place of the spec's target.
        resume: an earlier, incomplete report of the same request.
        watch: called after each row.

    Returns:
        The report, with its exit code.

    Raises:
        Exception: as `start`.
    """
    run = start(request, obj=obj, resume=resume)
    for _ in run.steps():
        if watch:
            watch(run)
    return run.report()


def _take_over(run: Run, old: Report) -> None:
    """Keep the rows that an earlier report of the same request has settled."""
    request, subjects = run.request, old.subjects
    same = len(subjects) == 1 and dumps(subjects[0].spec) == dumps(asdict(request.spec))
    same = same and subjects[0].package == run.opened.package
    if not same or dumps(old.profile) != dumps(request.described()):
        raise RequestError(
            "the report to resume is of another run: subject, its version, profile, seed and selection must be the same"
        )
    found: dict[str, list[Result]] = {}
    for result in subjects[0].results:
        found.setdefault(result.invariant, []).append(result)
    for row in run.rows:
        settled = expected.undone(found.get(row.id, ()))
        if settled and all(result.reason != BUDGET for result in settled):
            run.done[row.id] = tuple(settled)
    run.witnesses |= dict(old.witnesses)


def _required(results: Iterable[Result], patterns: Iterable[str]) -> bool:
    """Whether each pattern has rows here, and all of them passed."""
    results = list(results)
    for pattern in patterns:
        matched = [result for result in results if fnmatch.fnmatch(result.invariant, pattern)]
        if not matched or any(result.status != "passed" for result in matched):
            return False
    return True
