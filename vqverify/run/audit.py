"""The kill matrix: every mutant against the rows, through the front door, and what a suite that can fail owes."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vqverify import environment
from vqverify._version import __version__
from vqverify.invariant import registry
from vqverify.mutant import Mutant, mutants
from vqverify.quantizer import Spec
from vqverify.render import words
from vqverify.report import SubjectReport
from vqverify.run import matrix
from vqverify.run.request import Request, RequestError

SOFT = ("limit", "hardening")
ONE_IN = 20  # runs of a mutant, of which one may be at fault
LIVES = 10  # runs of a process: a first run costs twice as much


@dataclass(frozen=True)
class Verdict:
    """What one run made of one mutant.

    Attributes:
        mutant: its name.
        seed: of the run.
        rejected_by: rows that failed, as a report lists them: laws first, what only follows from a row after it.
        named: the first of them that names the mutant's mistake, or None.
        first: whether that row is listed first.
        error: why the run was cut short, or empty.
    """

    mutant: str
    seed: int
    rejected_by: tuple[str, ...]
    named: str | None
    first: bool
    error: str = ""

    @property
    def fault(self) -> str:
        """What is wrong with the suite on this mutant; empty if nothing is."""
        if not self.rejected_by:
            return f"not finished: {self.error}" if self.error else "survives"
        if self.named is None:
            return f"rejected, and by no row that names it: {self.rejected_by[0]}"
        return "" if self.first else f"{self.rejected_by[0]} is listed before {self.named}"


def judge(mutant: Mutant, subject: SubjectReport, seed: int = 0) -> Verdict:
    """Read a report on a mutant."""
    groups = words.grouped(words.failures(subject))
    listed = [result for head, members in groups for result in (head, *members)]
    ids = tuple(dict.fromkeys(result.invariant for result in listed))
    named = next((id_ for id_ in ids if id_ in mutant.names), None)
    # a limit may be that of the right layer, too: it counts only where it is the mistake
    causes = [head for head, _ in groups if head.kind not in SOFT or head.invariant in mutant.names]
    error = next((result.reason or "" for result in subject.results if result.status == "error"), "")
    return Verdict(mutant.name, seed, ids, named, bool(causes) and causes[0].invariant in mutant.names, error)


@dataclass(frozen=True)
class Audit:
    """Every verdict, and the rows that killed nothing.

    Attributes:
        verdicts: one a mutant and seed.
        idle: rows that rejected no mutant; empty where only some mutants were tried.
    """

    verdicts: tuple[Verdict, ...]
    idle: tuple[str, ...] = ()

    @property
    def faults(self) -> tuple[Verdict, ...]:
        """Verdicts with a fault."""
        return tuple(verdict for verdict in self.verdicts if verdict.fault)

    @property
    def missed(self) -> tuple[str, ...]:
        """Mutants at fault in more than one run in twenty."""
        runs, faults = (Counter(verdict.mutant for verdict in some) for some in (self.verdicts, self.faults))
        return tuple(name for name in faults if faults[name] > runs[name] // ONE_IN)

    @property
    def exit_code(self) -> int:
        """0 if every mutant is rejected, by a row that names it and is listed first, and every row rejects one."""
        return 1 if self.missed or self.idle else 0

    def kills(self) -> dict[str, tuple[str, ...]]:
        """Mutants that each row rejected."""
        table: dict[str, list[str]] = {id_: [] for id_ in registry()}
        for verdict in self.verdicts:
            for id_ in verdict.rejected_by:
                if verdict.mutant not in table[id_]:
                    table[id_].append(verdict.mutant)
        return {id_: tuple(names) for id_, names in table.items()}

    def to_json(self) -> dict[str, Any]:
        """The audit as data, format 1."""
        verdicts = [asdict(verdict) | {"fault": verdict.fault} for verdict in self.verdicts]
        return {
            "format": 1, "vqverify": __version__, "environment": environment.describe(), "verdicts": verdicts,
            "kills": self.kills(), "idle": self.idle, "missed": self.missed, "exit_code": self.exit_code,
        }  # fmt: skip


def chosen(patterns: Sequence[str] = ()) -> dict[str, Mutant]:
    """Mutants whose name matches one of the patterns; all without any.

    Raises:
        RequestError: if a pattern matches none.
    """
    known = mutants()
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            raise RequestError(f"no mutant is called {pattern!r}")
    return {name: m for name, m in known.items() if not patterns or any(fnmatch.fnmatch(name, p) for p in patterns)}


def run(
    wrong: Mapping[str, Mutant],
    folder: Path,
    *,
    seeds: int = 1,
    whole: bool = False,
    jobs: int = 1,
    timeout: float = 600.0,
    watch: Callable[[Verdict], None] = lambda _: None,
) -> Audit:
    """Check every mutant against all rows, in processes of their own.

    A mutant whose row is checked in longer profiles only is checked in that profile against the rows that name it.

    Args:
        wrong: what to try.
        folder: for the reports; what an earlier run left there is taken over.
        seeds: runs of each mutant, with seeds 0, 1, …; those after the first check the rows that name it only, since what
            one row finds depends on no other.
        whole: check all rows under every seed, which shows what is listed first there.
        jobs: processes at a time.
        timeout: seconds for one run.
        watch: called with each verdict as it is reached.
    """
    verdicts: list[Verdict] = []
    for request, members in _requests(wrong.values(), seeds, whole=whole):
        asked = {member.name: (mutant, seed) for member, mutant, seed in members}
        for member, report in matrix.outcomes([m for m, *_ in members], request, folder, jobs, timeout, lives=LIVES):
            mutant, seed = asked[member.name]
            verdicts.append(judge(mutant, report.subjects[0], seed))
            watch(verdicts[-1])
    order = list(wrong)
    verdicts.sort(key=lambda verdict: (order.index(verdict.mutant), verdict.seed))
    audit = Audit(tuple(verdicts))
    idle = tuple(id_ for id_, names in audit.kills().items() if not names) if set(wrong) == set(mutants()) else ()
    return replace(audit, idle=idle)


def _requests(
    wrong: Iterable[Mutant], seeds: int, *, whole: bool
) -> Iterator[tuple[Request, list[tuple[matrix.Member, Mutant, int]]]]:
    """Runs that one request serves, together."""
    served: dict[tuple[str, tuple[str, ...]], list[tuple[matrix.Member, Mutant, int]]] = {}
    for mutant in wrong:
        for seed in range(seeds):
            rows = mutant.names if mutant.profile != "quick" or (seed and not whole) else ()
            served.setdefault((mutant.profile, rows), []).append((_member(mutant, seed), mutant, seed))
    for (profile, rows), members in served.items():
        yield Request(Spec(""), profile, rows, fail_on=words.KIND_ORDER), members


def _member(mutant: Mutant, seed: int) -> matrix.Member:
    spec = Spec(mutant.target, dict(mutant.kwargs), {}, mutant.role, None, seed)
    return matrix.Member(f"{mutant.name}.{seed}", spec)
