"""The failures of a report as standalone scripts, each seen to fail in a fresh process."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vqverify.files import write_atomically
from vqverify.quantizer import Spec
from vqverify.report import Report, Result, SubjectReport
from vqverify.run import opening
from vqverify.scripts import Script, Unscripted, checked, compose
from vqverify.subject.layer import Layer
from vqverify.witness import Witness, WitnessError, from_json

SHOWN = {"failed", "expected"}


@dataclass(frozen=True)
class Told:
    """What a witness is as a script.

    Attributes:
        script: with what it printed; None if there is none.
        reason: why there is none.
    """

    script: Script | None
    reason: str = ""


def of_witness(data: Mapping[str, Any]) -> Told:
    """Write one witness as a script, and see it fail.

    Raises:
        WitnessError: if it cannot be read.
        TargetError: if its subject cannot be opened.
    """
    if "against" in data:
        return Told(None, "the witness compares two layers")
    witness = from_json(data)
    if witness.spec.role != "layer":
        return Told(None, "the subject is a bare function")
    opened = opening.opened(witness.spec)
    assert isinstance(opened.subject, Layer)
    (found,) = _told(opened.subject, [witness], _package(opened.package))
    return found


def scripted(report: Report, folder: Path | None = None, *, subject: Layer | None = None) -> Report:
    """Add to each failed result its script, or the reason why it has none.

    Args:
        report: of one subject or more.
        folder: where each script is also written, as a file called after its row.
        subject: the layer of a report of one subject, if it is open.
    """
    return replace(report, subjects=tuple(_of_subject(report, one, folder, subject) for one in report.subjects))


def _of_subject(report: Report, one: SubjectReport, folder: Path | None, subject: Layer | None) -> SubjectReport:
    wanted = [
        number
        for number, result in enumerate(one.results)
        if result.status in SHOWN and result.witness in report.witnesses and result.script is None
    ]
    if not wanted:
        return one
    results = list(one.results)
    for number, told in zip(wanted, _all(report, one, [results[n] for n in wanted], subject), strict=True):
        text = told.script.text if told.script else None
        results[number] = replace(results[number], script=text, unscripted=told.reason or None)
        if folder is not None and text is not None:
            place = folder / one.label if one.label else folder
            write_atomically(place / f"{_file(results[number])}.py", text)
    return replace(one, results=tuple(results))


def _all(report: Report, one: SubjectReport, results: Iterable[Result], subject: Layer | None) -> list[Told]:
    data = [report.witnesses[str(result.witness)] for result in results]
    try:
        witnesses = [from_json(item) for item in data]
        if subject is None:
            opened = opening.opened(Spec(**one.spec)).subject
            subject = opened if isinstance(opened, Layer) else None
    except (WitnessError, TypeError) as error:
        return [Told(None, str(error))] * len(data)
    if subject is None or subject.spec.role != "layer":
        return [Told(None, "the subject is a bare function")] * len(data)
    return _told(subject, witnesses, _package(one.package))


def _told(subject: Layer, witnesses: Iterable[Witness], package: str) -> list[Told]:
    """Write here, where the subject is; run in processes of their own, a few at a time."""
    written = [_ways(subject, witness, package) for witness in witnesses]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(lambda item: _first(*item), written))


def _ways(subject: Layer, witness: Witness, package: str) -> tuple[Witness, list[str], str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return witness, list(compose.ways(subject, witness, package)), ""
    except Unscripted as reason:
        return witness, [], str(reason)
    except Exception as error:  # noqa: BLE001  (the report outlives a fault of what shows it)
        return witness, [], f"writing it raised {type(error).__name__}: {error}; please report it"


def _first(witness: Witness, texts: list[str], reason: str) -> Told:
    for text in texts:
        ran = checked.run(text)
        if checked.fails(ran, witness):
            return Told(Script(text, ran.printed))
        if ran.code == 0:
            reason = "written in plain torch it does not fail"
        reason = reason or f"written in plain torch it ends otherwise ({ran.error or f'exit {ran.code}'})"
    return Told(None, reason)


def _package(package: Mapping[str, str] | None) -> str:
    return f"{package['name']} {package['version']}" if package else ""


def _file(result: Result) -> str:
    words = "-".join(filter(None, (result.invariant, result.case, result.label)))
    return re.sub(r"[^\w.=-]+", "_", words)
