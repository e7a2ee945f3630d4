"""Expected failures: each with a reason and a witness, which is replayed before it is believed.

A file of them is TOML, one `[[expected]]` table an entry. The search goes on past an expected failure, so
that another label on the same row is a new failure; once the witness passes, the entry is `fixed` and fails
the run.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vqverify import engine
from vqverify.invariant import applicability, registry
from vqverify.quantizer import Quantizer
from vqverify.report import Report, Result, dumps, write_atomically
from vqverify.witness import Witness, WitnessError, from_json

FIELDS = ("subject", "invariant", "case", "label", "reason", "link", "witness")
NEEDED = ("subject", "invariant", "label", "reason", "witness")


class ExpectationError(Exception):
    """A file of expected failures that cannot be believed; the message says why."""


@dataclass(frozen=True)
class Entry:
    """One failure that is known and explained.

    Attributes:
        subject, invariant, case, label: the key of the result.
        reason: why it is expected, for a reader who was not there.
        link: where it is discussed.
        witness: the file with the failing input.
    """

    subject: str
    invariant: str
    label: str
    reason: str
    witness: Path
    case: str | None = None
    link: str = ""


@dataclass(frozen=True)
class Verdict:
    """What replaying an entry's witness showed."""

    fails: bool
    message: str


def load(path: Path) -> tuple[Entry, ...]:
    """Read a file of expected failures.

    Raises:
        ExpectationError: if it cannot be read, an entry lacks its reason or its witness, or a row is unknown.
    """
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ExpectationError(f"{path} cannot be read: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise ExpectationError(f"{path} is not TOML: {error}") from None
    return tuple(_entry(path, number, table) for number, table in enumerate(data.get("expected", []), start=1))


def _entry(path: Path, number: int, table: Mapping[str, Any]) -> Entry:
    where = f"{path}, entry {number} ({table.get('invariant', 'without a row')})"
    if unknown := set(table) - set(FIELDS):
        raise ExpectationError(f"{where}: {', '.join(sorted(unknown))} is no field; there are {', '.join(FIELDS)}")
    for name in NEEDED:
        if not str(table.get(name, "")).strip():
            raise ExpectationError(f"{where} has no {name}: an expected failure needs {', '.join(NEEDED)}")
    if table["invariant"] not in registry():
        raise ExpectationError(f"{where}: the catalogue has no such row")
    witness = path.parent / table["witness"]
    return Entry(
        table["subject"],
        table["invariant"],
        table["label"],
        table["reason"],
        witness,
        table.get("case") or None,
        table.get("link", ""),
    )


def replayed(entry: Entry, subject: Quantizer) -> Verdict:
    """Run an entry's witness on the subject.

    Raises:
        ExpectationError: if the witness cannot be read, or is of another row or subject.
    """
    try:
        witness = from_json(json.loads(entry.witness.read_text("utf-8")))
    except OSError as error:
        raise ExpectationError(
            f"the witness {entry.witness} of {entry.invariant} cannot be read: {error.strerror}"
        ) from None
    except (json.JSONDecodeError, WitnessError) as error:
        raise ExpectationError(f"the witness {entry.witness} of {entry.invariant} cannot be read: {error}") from None
    if (witness.invariant, witness.spec.name) != (entry.invariant, entry.subject):
        raise ExpectationError(
            f"the witness {entry.witness} is of {witness.invariant} on {witness.spec.name}, not of its entry"
        )
    row = registry()[entry.invariant]
    verdict = applicability(row, subject.traits)
    if verdict.verdict != "applies":
        return Verdict(fails=False, message=f"the row is {verdict.verdict} now ({verdict.reason})")
    return _evaluated(witness, entry, subject)


def _evaluated(witness: Witness, entry: Entry, subject: Quantizer) -> Verdict:
    row = registry()[entry.invariant]
    for clause in engine.evaluate(row, subject, witness.case):
        if not clause.holds and clause.label == entry.label:
            return Verdict(fails=True, message=clause.message)
    return Verdict(fails=False, message="its witness passes now")


def applied(results: Iterable[Result], verdicts: Mapping[Entry, Verdict]) -> list[Result]:
    """Results with the expected failures named as such, and the mended ones as `fixed`."""
    results = list(results)
    reached = {result.invariant for result in results}
    for entry, verdict in verdicts.items():
        if entry.invariant in reached:
            results = _apply(results, entry, verdict)
    return results


def _apply(results: list[Result], entry: Entry, verdict: Verdict) -> list[Result]:
    mine = [
        i
        for i, r in enumerate(results)
        if r.status == "failed" and key(r) == (entry.invariant, entry.case, entry.label)
    ]
    if verdict.fails and mine:
        return [replace(r, status="expected", reason=entry.reason) if i in mine else r for i, r in enumerate(results)]
    if mine:
        renew = "the expected witness passes, another input fails in the same way: renew the entry"
        return [replace(r, reason=renew) if i in mine else r for i, r in enumerate(results)]
    place = next(i for i, r in enumerate(results) if r.invariant == entry.invariant)
    row = registry()[entry.invariant]
    status = "expected" if verdict.fails else "fixed"
    reason = entry.reason if verdict.fails else f"{verdict.message}: remove the entry ({entry.reason})"
    added = Result(
        entry.invariant,
        status,
        row.kind,
        row.mode,
        row.state,
        entry.case,
        entry.label,
        reason,
        verdict.message,
        row.statement,
        row.source,
        row.hint,
        examples=1,
        seed=results[place].seed,
    )
    # the search may miss what the witness shows: a row without a failure of its own then stands as expected
    stale = [
        i for i, r in enumerate(results) if verdict.fails and r.status == "passed" and key(r)[:2] == key(added)[:2]
    ]
    return [*(r for i, r in enumerate(results) if i not in stale), added]


def key(result: Result) -> tuple[str, str | None, str | None]:
    """What a result is found by, beside its subject."""
    return result.invariant, result.case, result.label


def undone(results: Sequence[Result]) -> list[Result]:
    """Results as they were before `applied`, so that a resumed run can apply its own expectations."""
    plain = [replace(r, status="failed", reason=None) if r.status == "expected" and r.witness else r for r in results]
    return [r for r in plain if r.status not in {"expected", "fixed"}]


def accept(report: Report, path: Path) -> int:
    """Append the new failures of a report to a file, each with its witness and without a reason.

    The loader refuses them until somebody has written the reason down. What else the file holds, comments
    included, stays as it is.

    Returns:
        How many entries were added.
    """
    import tomlkit

    document = tomlkit.parse(path.read_text("utf-8")) if path.exists() else tomlkit.document()
    entries: Any = document.setdefault("expected", tomlkit.aot())
    added = 0
    for subject in report.subjects:
        for result in subject.results:
            if result.status != "failed" or not result.witness:
                continue
            file = path.parent / "witnesses" / f"{result.witness}.json"
            write_atomically(file, dumps(report.witnesses[result.witness]))
            table = tomlkit.table()
            values = {
                "subject": subject.name,
                "invariant": result.invariant,
                "case": result.case,
                "label": result.label,
                "reason": "",
                "link": "",
                "witness": f"witnesses/{file.name}",
            }
            table.update({name: value for name, value in values.items() if value is not None})
            entries.append(table)
            added += 1
    if added:
        write_atomically(path, tomlkit.dumps(document))
    return added
