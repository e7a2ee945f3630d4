"""One run of a check: open the subject, go through the rows, keep what was found. Behind all three doors.

A run is a value that grows row by row, so that whatever cuts it short (Ctrl-C, a budget, a layer that kills the
process) leaves a report with what it had.
"""

from __future__ import annotations

import fnmatch
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from vqverify import __version__, engine, environment, expected, target
from vqverify.invariant import Invariant, registry, select
from vqverify.quantizer import Finding, Quantizer, Spec
from vqverify.report import Report, Result, SubjectReport, subject_exit
from vqverify.request import Request, RequestError, profile_called

if TYPE_CHECKING:
    pass

BUDGET = "budget"  # the reason of a row that the budget did not reach
STATUS_OF_EXIT = {0: "passed", 1: "failed", 3: "error"}


@dataclass
class Run:
    """A check in progress; `start` makes one, `steps` drives it, `report` says what it has."""

    request: Request
    subject: Quantizer
    rows: tuple[Invariant, ...]
    package: dict[str, str] | None = None
    verdicts: Mapping[expected.Entry, expected.Verdict] = field(
        default_factory=dict[expected.Entry, expected.Verdict]
    )
    done: dict[str, tuple[Result, ...]] = field(default_factory=dict[str, tuple[Result, ...]])
    witnesses: dict[str, Any] = field(default_factory=dict[str, Any])
    began: float = field(default_factory=time.monotonic)

    def steps(self) -> Iterator[str]:
        """Check row after row; yields the id of each when it is done."""
        jobs = [self._job(row) for row in self.rows if row.id not in self.done]
        for job, outcome in self._outcomes(jobs):
            self._keep(job.ids[0], outcome)
            yield job.ids[0]

    def row(self, id_: str) -> tuple[Result, ...]:
        """Check one row, unless that is done, and return what it came to."""
        if id_ not in self.done:
            self._keep(id_, engine.run(self._job(registry()[id_]), lambda _: self.subject))
        return tuple(expected.applied(self.done[id_], self.verdicts))

    def _keep(self, id_: str, outcome: engine.Outcome) -> None:
        self.done[id_] = outcome.results
        self.witnesses |= {digest: witness.to_json() for digest, witness in outcome.witnesses.items()}

    def _job(self, row: Invariant) -> engine.Job:
        return engine.Job(
            self.request.spec, (row.id,), profile_called(self.request.profile), self.request.spec.seed
        )

    def _outcomes(self, jobs: Sequence[engine.Job]) -> Iterator[tuple[engine.Job, engine.Outcome]]:
        if self.request.jobs > 1 or self.request.timeout is not None:
            from vqverify import pool

            yield from pool.outcomes(jobs, self.request.jobs, self.request.timeout, self._left)
            return
        for job in jobs:
            if (left := self._left()) is not None and left <= 0:
                return
            yield job, engine.run(job, lambda _: self.subject)

    def _left(self) -> float | None:
        """Seconds of the budget that are left; None without a budget."""
        budget = self.request.budget
        return None if budget is None else budget - (time.monotonic() - self.began)

    def report(self) -> Report:
        """The report of what is done by now; `complete` once every row is."""
        missing = [row for row in self.rows if row.id not in self.done]
        results = [result for row in self.rows for result in self.done.get(row.id, ())]
        results = expected.applied(results, self.verdicts)
        if self.request.budget is not None and missing and (self._left() or 0) <= 0:
            results += [_unreached(row, self.request) for row in missing]
        results = list(engine.explain(results))
        required = _required(results, self.request.require)
        code = subject_exit(
            results, fail_on=self.request.fail_on, strict=self.request.strict, required=required
        )
        spec = self.request.spec
        subject = SubjectReport(
            spec.name,
            spec.target,
            spec.kwargs,
            self.package,
            identified(self.subject.traits),
            tuple(results),
            STATUS_OF_EXIT[code],
            code,
            asdict(spec),
            time.monotonic() - self.began,
        )
        return Report(
            self.request.described(),
            environment.describe(),
            (subject,),
            self.witnesses,
            not missing,
            __version__,
        )


def start(request: Request, *, obj: Any = None, resume: Report | None = None) -> Run:
    """Open the subject and get ready.

    Args:
        request: what to check.
        obj: a class, factory, function or built module in place of the spec's target.
        resume: an earlier report of the same request, whose rows are taken over.

    Raises:
        Exception: of target, discovery, claims, invariant or expected, each with one sentence for the user.
    """
    from vqverify.subject import open_subject

    began = time.monotonic()
    rows = select(request.only, request.skip)
    select(request.require)
    profile_called(request.profile)
    if obj is not None and (request.jobs > 1 or request.timeout is not None):
        raise RequestError(
            "worker processes open the subject by its name: give a target `pkg.mod:Class` or `file.py:Class`"
        )
    entries = expected.load(request.expectations) if request.expectations else ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subject = open_subject(request.spec, obj=obj)
        mine = [
            entry
            for entry in entries
            if entry.subject == request.spec.name and entry.invariant in {row.id for row in rows}
        ]
        verdicts = {entry: expected.replayed(entry, subject) for entry in mine}
    run = Run(request, subject, rows, _package(request.spec, obj), verdicts, began=began)
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
    same = old.profile == run.request.described() and len(old.subjects) == 1
    if not same or old.subjects[0].name != run.request.spec.name:
        raise RequestError(
            "the report to resume is of another run: subject, profile, seed and selection must be the same"
        )
    found: dict[str, list[Result]] = {}
    for result in old.subjects[0].results:
        found.setdefault(result.invariant, []).append(result)
    wanted = {row.id for row in run.rows}
    run.done |= {
        id_: tuple(expected.undone(results))
        for id_, results in found.items()
        if id_ in wanted and expected.undone(results) and all(result.reason != BUDGET for result in results)
    }
    run.witnesses |= dict(old.witnesses)


def _unreached(row: Invariant, request: Request) -> Result:
    return Result(
        row.id,
        "undetermined",
        row.kind,
        row.mode,
        row.state,
        reason=BUDGET,
        statement=row.statement,
        source=row.source,
        hint=row.hint,
        seed=request.spec.seed,
    )


def _required(results: Iterable[Result], patterns: Iterable[str]) -> bool:
    """Whether each pattern has rows here, and all of them passed."""
    results = list(results)
    for pattern in patterns:
        matched = [result for result in results if fnmatch.fnmatch(result.invariant, pattern)]
        if not matched or any(result.status != "passed" for result in matched):
            return False
    return True


def identified(traits: Mapping[str, Finding]) -> dict[str, Any]:
    """Traits as the report keeps them."""
    return {
        name: {
            "value": _plain(finding.value),
            "origin": finding.origin,
            "evidence": finding.evidence,
            "mistake": finding.mistake,
        }
        for name, finding in traits.items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def _package(spec: Spec, obj: Any) -> dict[str, str] | None:
    """Name and version of the distribution that a subject comes from; None for a local file."""
    factory = target.load(spec.target) if obj is None else obj
    found = target.package_of(type(factory) if isinstance(factory, torch.nn.Module) else factory)
    return {"name": found[0], "version": found[1]} if found else None
