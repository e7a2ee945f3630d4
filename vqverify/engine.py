"""The verb: run a job, a value, and return its results."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from vqverify.bounds import Clause, Ended, Violation
from vqverify.case import Case, prepare
from vqverify.examples import Examples, Profile
from vqverify.invariant import Invariant, Undetermined, applicability, registry
from vqverify.quantizer import Quantizer, Spec
from vqverify.report import Result, Status
from vqverify.shrink import shrink
from vqverify.subject.randomness import kept
from vqverify.witness import Witness

OpenSubject = Callable[[Spec], Quantizer]
MOST_LABELS = 3  # distinct failures of one case that are shrunk and reported


@dataclass(frozen=True)
class Job:
    """What to check on one subject; plain data, so that it can travel to another process.

    Attributes:
        spec: how to open the subject.
        ids: invariants, which may share a mass pass.
        profile: how long to look.
        seed: of the run.
    """

    spec: Spec
    ids: tuple[str, ...]
    profile: Profile
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What a job returns: results, and the witnesses that they name."""

    results: tuple[Result, ...]
    witnesses: dict[str, Witness]


def run(job: Job, open_subject: OpenSubject) -> Outcome:
    """Check every invariant of a job on its subject; a failing one never stops the others.

    Args:
        job: what to check.
        open_subject: hands in the subject, built and warmed; the engine knows nothing of discovery.
    """
    subject = open_subject(job.spec)
    known = registry()
    results: list[Result] = []
    witnesses: dict[str, Witness] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for id_ in job.ids:
                outcome = check(known[id_], subject, job)
                results += outcome.results
                witnesses |= outcome.witnesses
    finally:
        torch.set_num_threads(threads)
    return Outcome(tuple(results), witnesses)


def check(row: Invariant, subject: Quantizer, job: Job) -> Outcome:
    """Check one row on a subject, every case of it."""
    if job.profile.name not in row.profiles:
        return Outcome((_result(row, job, "n/a", reason=f"checked in {' and '.join(row.profiles)} only"),), {})
    verdict = applicability(row, subject.traits)
    if verdict.verdict != "applies":
        return Outcome((_result(row, job, verdict.verdict, reason=verdict.reason),), {})
    results: list[Result] = []
    witnesses: dict[str, Witness] = {}
    try:
        subject.restore()
        parts = tuple(row.parts(subject))
        subject.restore()
        examples = Examples(row, subject, job.profile, (job.seed, job.spec.name))
    except Undetermined as reason:
        return Outcome((_result(row, job, "undetermined", reason=str(reason)),), {})
    except Exception as error:  # noqa: BLE001
        return Outcome((_errored(row, job, None, error, 0.0),), {})
    for index, part in enumerate(parts):
        with kept():
            outcome = _check_part(row, subject, job, part, examples.of_case(index, len(parts)))
        results += outcome.results
        witnesses |= outcome.witnesses
    if not parts:
        results.append(_result(row, job, "n/a", reason="the layer has none of its cases"))
    return Outcome(tuple(results), witnesses)


@dataclass
class _Search:
    """What was seen so far of one case of a row."""

    row: Invariant
    subject: Quantizer
    examples: int = 0
    vacuous: int = 0
    margin: float | None = None
    effects: list[str] = field(default_factory=list[str])
    failures: dict[str, tuple[Clause, Case]] = field(default_factory=dict[str, tuple[Clause, Case]])

    def look(self, case: Case) -> None:
        """Test one example and note what it shows."""
        clauses = list(evaluate(self.row, self.subject, case))
        self.examples += 1
        self.vacuous += not clauses
        for clause in clauses:
            if not clause.holds:
                if clause.label not in self.failures or case.size() < self.failures[clause.label][1].size():
                    self.failures[clause.label] = (clause, case)
            elif clause.margin is not None:
                self.margin = max(self.margin or 0.0, clause.margin)
            if clause.holds and self.row.mode == "statistical" and clause.message:
                self.effects.append(clause.message)


def evaluate(row: Invariant, subject: Quantizer, case: Case) -> Iterator[Clause]:
    """The clauses of one example; what the layer raises is a failing clause.

    Raises:
        Ended: if the layer ended the process, or memory ran out.
    """
    try:
        prepare(subject, case)
        yield from row.check(subject, case)
    except Ended:
        raise
    except Violation as violation:
        yield Clause(violation.label, None, holds=False, message=violation.message)


def _check_part(row: Invariant, subject: Quantizer, job: Job, part: str | None, cases: Iterable[Case]) -> Outcome:
    start = time.perf_counter()
    seen = _Search(row, subject)
    try:
        for case in cases:
            seen.look(case.with_part(part))
        failed = dict(list(seen.failures.items())[:MOST_LABELS])
        small = {label: _smallest(row, subject, label, *found) for label, found in failed.items()}
    except Undetermined as open_question:
        seconds = time.perf_counter() - start
        return Outcome((_result(row, job, "undetermined", case=part, reason=str(open_question), seconds=seconds),), {})
    except Exception as error:  # noqa: BLE001  (an exception of the harness is an error of this row alone)
        return Outcome((_errored(row, job, part, error, time.perf_counter() - start),), {})
    base = _result(
        row,
        job,
        "passed",
        case=part,
        examples=seen.examples,
        vacuous=seen.vacuous,
        margin=seen.margin,
        seconds=time.perf_counter() - start,
        effect=seen.effects[0] if seen.effects else None,
    )
    if not failed:
        if seen.vacuous == seen.examples:
            reason = "no input met the hypotheses of the statement"
            base = replace(base, status="undetermined", reason=reason)
        return Outcome((base,), {})
    witnesses = {
        label: Witness(job.spec, row.id, case, label, clause.message) for label, (clause, case) in small.items()
    }
    results = tuple(
        replace(
            base,
            status="failed",
            label=label,
            message=clause.message,
            witness=witnesses[label].digest,
            margin=_worst(seen.margin, clause.margin, failed[label][0].margin),
        )
        for label, (clause, _) in small.items()
    )
    return Outcome(results, {witness.digest: witness for witness in witnesses.values()})


def _worst(*margins: float | None) -> float | None:
    return max((margin for margin in margins if margin is not None), default=None)


def _smallest(row: Invariant, subject: Quantizer, label: str, found: Clause, case: Case) -> tuple[Clause, Case]:
    """Shrink a failing case; the clause is the one that the smallest case gives."""
    if row.mode == "process":  # seconds a try
        return found, case

    def failing(candidate: Case) -> Clause | None:
        clauses = evaluate(row, subject, candidate)
        return next((clause for clause in clauses if not clause.holds and clause.label == label), None)

    most = 1 if row.mode == "statistical" else 400
    small = shrink(case, lambda candidate: failing(candidate) is not None, min_n=subject.domain.min_n, most=most)
    clause = failing(small)
    if clause is None:
        small, clause = case, failing(case)
    if clause is None:
        raise RuntimeError(
            f"{row.id} failed once with {label!r} and holds on the same input: the check is not deterministic"
        )
    return clause, small


def _result(row: Invariant, job: Job, status: Status, case: str | None = None, **values: Any) -> Result:
    return Result(
        invariant=row.id,
        status=status,
        kind=row.kind_of(case),
        mode=row.mode,
        state=row.state,
        case=case,
        statement=row.statement,
        source=row.source,
        hint=row.hint,
        seed=job.seed,
        **values,
    )


def _errored(row: Invariant, job: Job, part: str | None, error: Exception, seconds: float) -> Result:
    last = traceback.extract_tb(error.__traceback__)[-1]
    reason = f"error of the harness, {type(error).__name__} in {last.name}, line {last.lineno}: {error}"
    if isinstance(error, Ended):
        reason = error.message
    return _result(row, job, "error", case=part, seconds=seconds, reason=reason[:400])
