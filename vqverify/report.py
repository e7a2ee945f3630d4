"""The results of a run as a value: versioned JSON in, versioned JSON out. Every rendering is a function of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from vqverify.files import write_atomically

FORMAT = 1
Status = Literal["passed", "failed", "expected", "fixed", "n/a", "undetermined", "error"]
STATUSES: tuple[Status, ...] = ("passed", "failed", "expected", "fixed", "n/a", "undetermined", "error")


@dataclass(frozen=True)
class Result:
    """What one row (or one case of it, or one label that failed) came to.

    Attributes:
        invariant, case, label: the key; label names the clause that failed, else None.
        kind, mode, state, statement, source, hint: of the invariant.
        status: one of `STATUSES`; `reason` says why a row is n/a, undetermined or error.
        message: what was found, in one sentence.
        examples: inputs on which the statement was tested; `vacuous` of them met no hypothesis.
        seconds: wall time of the row.
        margin: worst error / bound seen, None where nothing numeric was measured.
        effect: what a statistical row can detect.
        witness: digest of the witness, which the report embeds.
        explained_by: ids of failed rows that name the cause.
        seed: the run's seed.
        script: a standalone reproduction that was seen to fail, where there is one.
        unscripted: why there is none, where one was asked for.
        known: whether the baseline has it.
    """

    invariant: str
    status: Status
    kind: str = "law"
    mode: str = "search"
    state: str = "fresh"
    case: str | None = None
    label: str | None = None
    reason: str | None = None
    message: str | None = None
    statement: str = ""
    source: str = ""
    hint: str = ""
    examples: int = 0
    vacuous: int = 0
    seconds: float = 0.0
    margin: float | None = None
    effect: str | None = None
    witness: str | None = None
    explained_by: tuple[str, ...] = ()
    seed: int = 0
    script: str | None = None
    unscripted: str | None = None
    known: bool = False


@dataclass(frozen=True)
class SubjectReport:
    """One subject with what it is, its results, its status, its exit code, how to open it again, and the time it took.

    In a matrix, `label` is the name that it has there, and `documented` holds what its documentation says beside
    what was found.
    """

    name: str
    target: str
    kwargs: Mapping[str, Any]
    package: Mapping[str, str] | None
    identified: Mapping[str, Any]
    results: tuple[Result, ...]
    status: str = "passed"
    exit_code: int = 0
    spec: Mapping[str, Any] = field(default_factory=dict[str, Any])
    seconds: float = 0.0
    label: str = ""
    documented: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, repr=False)
class Report:
    """A run: format 1. Readers ignore unknown keys, so that adding one keeps the format."""

    profile: Mapping[str, Any]
    environment: Mapping[str, Any]
    subjects: tuple[SubjectReport, ...]
    witnesses: Mapping[str, Any] = field(default_factory=dict[str, Any])
    complete: bool = True
    vqverify: str = ""
    format: int = FORMAT

    @property
    def counts(self) -> dict[str, int]:
        """Number of results of each status."""
        found = Counter(result.status for subject in self.subjects for result in subject.results)
        return {status: found[status] for status in STATUSES}

    @property
    def exit_code(self) -> int:
        """The worst of the subjects' in the order 2, 1, 3, 0."""
        codes = {subject.exit_code for subject in self.subjects}
        return next((code for code in (2, 1, 3) if code in codes), 0)

    def __repr__(self) -> str:
        """One line: what was checked, and how many rows came to what."""
        counts = ", ".join(f"{count} {status}" for status, count in self.counts.items() if count)
        return f"<Report on {', '.join(subject.name for subject in self.subjects)}: {counts}>"

    def __str__(self) -> str:
        """What `print` shows: for each subject its counts and a line a failure; `vqverify report FILE` has the rest."""
        return "\n".join(line for subject in self.subjects for line in _lines(subject))

    def to_json(self) -> dict[str, Any]:
        """The report as plain data, keys as in the contract."""
        return {
            "format": self.format,
            "vqverify": self.vqverify,
            "complete": self.complete,
            "profile": dict(self.profile),
            "environment": dict(self.environment),
            "subjects": [_subject(subject) for subject in self.subjects],
            "counts": self.counts,
            "exit_code": self.exit_code,
            "witnesses": dict(self.witnesses),
        }


def _lines(subject: SubjectReport) -> Iterator[str]:
    counts = Counter(result.status for result in subject.results)
    shown = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    yield f"{subject.name}: {shown} (exit {subject.exit_code})"
    for result in subject.results:
        if result.status in {"failed", "fixed", "error"}:
            case = f"[{result.case}]" if result.case else ""
            label = f" {result.label}" if result.label else ""
            yield f"  {result.status} {result.invariant}{case}{label}: {result.message or result.reason or ''}"


def _subject(subject: SubjectReport) -> dict[str, Any]:
    data = asdict(subject)
    for result in data["results"]:
        if result["witness"]:
            result["witness"] = f"witnesses/{result['witness']}.json"
        result["explained_by"] = list(result["explained_by"])
    data["results"] = list(data["results"])
    return data


class ReportError(Exception):
    """A report file that cannot be read; the message says what is wrong."""


def from_json(data: Mapping[str, Any]) -> Report:
    """Read a report, ignoring keys that this version does not know.

    Raises:
        ReportError: if the format is another one, or a field is missing.
    """
    if data.get("format") != FORMAT:
        raise ReportError(f"report format {data.get('format')!r} is not {FORMAT}, the one that this version reads")
    try:
        subjects = tuple(_read_subject(subject) for subject in data["subjects"])
        return Report(
            data["profile"],
            data["environment"],
            subjects,
            data.get("witnesses", {}),
            bool(data.get("complete", True)),
            data.get("vqverify", ""),
        )
    except (KeyError, TypeError) as error:
        raise ReportError(f"the report lacks or misuses the field {error}") from None


def _read_subject(data: Mapping[str, Any]) -> SubjectReport:
    results: list[Result] = []
    for item in data["results"]:
        known = _only(Result, item)
        known["witness"] = Path(item["witness"]).stem if item.get("witness") else None
        known["margin"] = None if item.get("margin") is None else float(item["margin"])
        known["explained_by"] = tuple(item.get("explained_by") or ())
        results.append(Result(**known))
    known: dict[str, Any] = {**_only(SubjectReport, data), "results": tuple(results)}
    return SubjectReport(**known)


def _only(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: data[name] for name in cls.__dataclass_fields__ if name in data}  # type: ignore[attr-defined]


def subject_exit(
    results: Sequence[Result],
    *,
    fail_on: Iterable[str],
    strict: bool,
    decisive: Collection[str] = (),
    required: bool = True,
) -> int:
    """The exit code of one subject by the contract.

    Args:
        results: its rows.
        fail_on: kinds whose failures count.
        strict: whether undetermined rows fail the run.
        decisive: ids of the rows of lookup and estimator of which one has to be decided.
        required: False if a row that `--require` names did not pass.

    Returns:
        1 if something failed, is fixed or undetermined under `strict`, or no lookup or estimator row that
        applies could be determined; else 3 if a row is an error; else 0.
    """
    kinds = set(fail_on)
    if not required or any(
        result.status == "fixed" or (result.status == "failed" and result.kind in kinds) for result in results
    ):
        return 1
    if strict and any(result.status == "undetermined" for result in results):
        return 1
    deciding = [result for result in results if result.invariant in decisive and result.status != "n/a"]
    if deciding and all(result.status == "undetermined" for result in deciding):
        return 1
    return 3 if any(result.status == "error" for result in results) else 0


def save(report: Report, path: Path) -> None:
    """Write the report as JSON and its witnesses into `<path>.witnesses/`."""
    save_witnesses(report, path.with_name(f"{path.name}.witnesses"))
    write_atomically(path, dumps(report.to_json()))


def save_witnesses(report: Report, folder: Path) -> None:
    """Write each witness as `<digest>.json`."""
    for digest, witness in report.witnesses.items():
        write_atomically(folder / f"{digest}.json", dumps(witness))


def dumps(data: Any) -> str:
    """Indented JSON; numbers that JSON lacks become strings."""
    return json.dumps(_plain(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)  # noqa: PLR0124  (NaN)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, str | int | bool) or value is None:
        return value
    return repr(value)
