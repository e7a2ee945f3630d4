"""What several renderings say in the same words."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
    """Causes, each with what belongs to it: more cases and labels of its row, rows that follow from it."""
    ids = {result.invariant for result in failed}
    home: dict[str, str] = {}
    for result in failed:
        causes = (cause.partition("[")[0] for cause in result.explained_by)  # a cause may be one case of a row
        home[result.invariant] = next((id_ for id_ in causes if id_ in ids), result.invariant)
    groups: dict[str, list[Result]] = {}
    for result in failed:
        groups.setdefault(_root(result.invariant, home), []).append(result)
    led = [sorted(members, key=lambda result: result.invariant != root) for root, members in groups.items()]
    return [(members[0], members[1:]) for members in led]


def _root(id_: str, home: Mapping[str, str]) -> str:
    """The cause at the end of the chain; a circle ends where it began."""
    seen: list[str] = []
    while home[id_] != id_ and id_ not in seen:
        seen.append(id_)
        id_ = home[id_]
    return min(seen[seen.index(id_) :]) if id_ in seen else id_


def clean(text: str | None) -> str:
    """Text without control characters: an exception may hold what XML forbids or a terminal obeys."""
    return "".join(c for c in text or "" if c.isprintable() or c in "\t\n")


def by_reason(results: Iterable[Result]) -> list[tuple[str, list[Result]]]:
    """Results with the same reason together."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(clean(result.reason) or "no reason given", []).append(result)
    return list(found.items())


def worst(results: Iterable[Result]) -> Result | None:
    """The passed result with the largest margin."""
    measured = [result for result in results if result.status == "passed" and result.margin is not None]
    return max(measured, key=lambda result: result.margin or 0.0, default=None)


def margin(value: float | None) -> str:
    """Error / bound in three digits; empty where nothing was measured."""
    return "" if value is None else f"{value:.2g}"


def counts(report: Report) -> str:
    """`50 passed · 1 failed`, leaving out what there is none of."""
    return " · ".join(f"{count} {status}" for status, count in report.counts.items() if count)


def verdict(report: Report) -> str:
    """What the exit code means."""
    code = report.exit_code
    meaning = EXIT_MEANING.get(code, "unknown")
    if code == 0 and report.counts["failed"]:
        kinds = ", ".join(report.profile.get("fail_on", ())) or "no kind"
        meaning = f"what must hold does; failures count for {kinds}"
    elif code == 0 and report.counts["expected"]:
        meaning = "nothing fails but what is expected to"
    elif code == 0 and not report.counts["passed"]:
        meaning = "nothing was checked: no statement that was asked for could be, see above"
    if code == 0 and not report.complete:
        meaning = "nothing failed among the rows that were reached"
    return f"exit {code}: {meaning}"


def summary(report: Report) -> str:
    """Counts, examples, the worst margin and seconds, in one line."""
    results = [result for subject in report.subjects for result in subject.results]
    parts = [
        counts(report) or "nothing was checked",
        f"{sum(result.examples for result in results):,} examples",
    ]
    top = worst(results)
    if top is not None:
        parts.append(f"worst margin {margin(top.margin)} of what is allowed ({title(top)})")
    parts.append(f"{sum(subject.seconds for subject in report.subjects):.1f} s")
    return " · ".join(parts)


def command(subject: SubjectReport, profile: Mapping[str, Any]) -> str:
    """The command line that makes the same rows again."""
    spec = subject.spec
    words = ["vqverify", "check", subject.target]
    words += [f"--kw {shlex.quote(f'{name}={_json(given)}')}" for name, given in subject.kwargs.items()]
    words += [f"--claim {shlex.quote(f'{name}={_json(given)}')}" for name, given in spec.get("claims", {}).items()]
    words += [f"--as {spec['role']}"] if spec.get("role", "layer") != "layer" else []
    words += [
        f"--{name} {shlex.quote(str(spec[name]))}"
        for name in ("adapter", "submodule", "state", "latents", "dtype", "device")
        if spec.get(name)
    ]
    words += [f"--profile {profile['name']}"] if profile.get("name", "quick") != "quick" else []
    words += [f"--seed {profile['seed']}"] if profile.get("seed") else []
    words += [f"--{name} {shlex.quote(glob)}" for name in ("only", "skip", "require") for glob in profile.get(name, ())]
    return " ".join([*words, *(["--strict"] if profile.get("strict") else [])])


def _json(given: object) -> str:
    """A value as `--kw` reads it: a text that would read as something else keeps its quotes."""
    if not isinstance(given, str):
        return json.dumps(given, default=repr)
    try:
        json.loads(given)
    except json.JSONDecodeError:
        return given
    return json.dumps(given)


def value(found: object) -> str:
    """A trait's value, for a reader."""
    if isinstance(found, list | tuple):
        return ", ".join(map(value, found)) or "none"
    if isinstance(found, Mapping):
        return "; ".join(f"{name}: {value(item)}" for name, item in found.items())
    if found is None:
        return "–"
    if isinstance(found, bool):
        return "yes" if found else "no"
    return f"{found:.6g}" if isinstance(found, float) else str(found)
