"""Many layers against all rows, each layer in a process of its own and with a report of its own, which a later run goes on from."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import re
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError as Late
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from pebble import ProcessExpired, ProcessPool

from vqverify import environment
from vqverify._version import __version__
from vqverify.invariant import Invariant, select
from vqverify.quantizer import Finding, Spec
from vqverify.report import Report, ReportError, Result, SubjectReport, from_json, save
from vqverify.run import expected, memory, opening, runner
from vqverify.run.request import Request, RequestError
from vqverify.run.scripts import scripted
from vqverify.subject.claims import ClaimError, consistent, normalise
from vqverify.subject.layer import Layer
from vqverify.subject.target import TargetError

FIELDS = ("target", "kwargs", "claims", "adapter", "role", "dtype", "documented")
AUTOSAVE = 2.0  # seconds between two writes of a report that grows: what a layer that kills its process leaves
IMPORTS = (
    __name__,
    "vqverify.invariants",
    "vqverify.subject",
    "vqverify.discovery",
    "vqverify.identify",
    "scipy.stats",
    "vqverify.symbolic.householder",
)
REFUSED = (TargetError, ClaimError)  # the layer cannot be built, or was asked for in the wrong words: exit 2


@dataclass(frozen=True)
class Member:
    """One layer of a matrix.

    Attributes:
        name: of its table, and of its column.
        spec: how to build it.
        documented: what its documentation says of it, trait by trait; compared with what is found, never handed in.
    """

    name: str
    spec: Spec
    documented: Mapping[str, Any] = field(default_factory=dict[str, Any])


def load(path: Path, seed: int) -> tuple[Member, ...]:
    """Read a file of layers: TOML, a table a layer with target, kwargs and what else a layer may need.

    Raises:
        RequestError: if it cannot be read, or a table is not that of a layer.
    """
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise RequestError(f"the layers {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} is not TOML: {error}") from None
    if not tables:
        raise RequestError(f"{path} names no layer: it needs a table [name] with a target for each")
    return tuple(_member(path, name, table, seed) for name, table in tables.items())


def _member(path: Path, name: str, table: Any, seed: int) -> Member:
    where = f"{path}, [{name}]"
    if not re.fullmatch(r"[\w.-]+", name):
        raise RequestError(f"{where}: a name is letters, digits, dots and dashes, since a file is called after it")
    if not isinstance(table, dict) or not isinstance(table.get("target"), str):
        raise RequestError(f"{where} needs target = 'package.module:Class'")
    if unknown := set(table) - set(FIELDS):
        raise RequestError(f"{where}: {', '.join(sorted(unknown))} is no field; there are {', '.join(FIELDS)}")
    for kind in ("kwargs", "claims", "documented"):
        if not isinstance(table.get(kind, {}), dict):
            raise RequestError(f"{where}: {kind} must be a table, it was {table[kind]!r}")
    if table.get("role", "layer") not in {"layer", "estimator"}:
        raise RequestError(f"{where}: role must be layer or estimator, it was {table['role']!r}")
    try:
        documented = {
            trait: value if trait == "structure" else normalise(trait, value)
            for trait, value in table.get("documented", {}).items()
        }
    except ClaimError as error:
        raise RequestError(f"{where}: {error}") from None
    spec = Spec(
        table["target"], table.get("kwargs", {}), table.get("claims", {}), table.get("role", "layer"),
        table.get("adapter"), seed, table.get("dtype"),
    )  # fmt: skip
    return Member(name, spec, documented)


def outcomes(
    members: Sequence[Member],
    request: Request,
    folder: Path,
    workers: int,
    timeout: float,
    *,
    scripts: Path | None = None,
    lives: int = 1,
) -> Iterator[tuple[Member, Report]]:
    """Check every layer in a process of its own.

    Args:
        members: the layers.
        request: what to check of each; its spec is not used.
        folder: where each layer's report is kept; rows that an earlier run of the same request left there are taken over.
        workers: how many processes at a time.
        timeout: seconds that one layer may take.
        lives: how many layers one process checks before it is replaced: more than one only for layers that are known.
        scripts: where failures are written as scripts.

    Yields:
        Each layer with its report, in the order in which they are done. A layer that crashes, hangs or cannot be
        built has `error` in the cells that it did not reach.

    Raises:
        Exception: what is not a layer's fault, as an unreadable file of expected failures.
    """
    pool = ProcessPool(max_workers=workers, max_tasks=lives, context=_context())
    try:
        futures = {
            pool.schedule(
                _check, args=(member, replace(request, spec=member.spec), folder, scripts), timeout=timeout
            ): member
            for member in members
        }
        finished: Iterator[Any] = as_completed(
            cast("Any", futures)
        )  # pebble's futures are the library's in all but name
        for future in finished:
            member = futures[future]
            file = _file(folder, member)
            try:
                future.result()
            except REFUSED as error:
                yield member, _cut_short(member, request, None, str(error), 2)
            except Late:
                yield member, _cut_short(member, request, _kept(file), f"timed out after {timeout:g} s", 3)
            except ProcessExpired as died:
                reason = f"the process died (exit code {died.exitcode})"
                yield member, _cut_short(member, request, _kept(file), reason, 3)
            except (expected.ExpectationError, RequestError):
                raise
            except Exception as error:  # noqa: BLE001  (a fault of the harness on one layer costs that layer's cells only)
                reason = f"{type(error).__name__}: {error}"
                yield member, _cut_short(member, request, _kept(file), reason, 3)
            else:
                kept = _kept(file)
                assert kept is not None  # the worker has just written it
                yield member, kept
    finally:
        pool.stop()
        pool.join()


def _context() -> Any:
    """How processes start: copies of one that has done nothing but the imports, where the system can; else anew."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTS))
    return context


def joined(parts: Sequence[Report], request: Request, members: Sequence[Member]) -> Report:
    """One report of all layers, in the order of the file."""
    place = {member.name: number for number, member in enumerate(members)}
    subjects = sorted((s for part in parts for s in part.subjects), key=lambda s: place[s.label])
    witnesses = {digest: witness for part in parts for digest, witness in part.witnesses.items()}
    complete = len(subjects) == len(members) and all(part.complete for part in parts)
    return Report(request.described(), environment.describe(), tuple(subjects), witnesses, complete, __version__)


def _check(member: Member, request: Request, folder: Path, scripts: Path | None) -> None:
    """Check one layer in this process, and keep its report as it grows. What the layer prints is dropped."""
    file = _file(folder, member)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # what is written past sys.stdout, by C or os.write
        os.dup2(nowhere, stream)
    with (
        memory.bounded(member.spec),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        run = _start(request, _kept(file))
        compared = _compared(member, run)
        saved = time.monotonic()
        for _ in run.steps():
            if time.monotonic() - saved > AUTOSAVE:
                save(_named(run.report(), member, compared), file)
                saved = time.monotonic()
        report = _named(run.report(), member, compared)
        save(report, file)
        if scripts is not None:
            subject = run.opened.subject
            save(scripted(report, scripts, subject=subject if isinstance(subject, Layer) else None), file)


def _start(request: Request, old: Report | None) -> runner.Run:
    """Go on from an old report where it is of the same request and of the same versions, else start anew."""
    here = environment.describe()
    if old is not None and old.vqverify == __version__ and dict(old.environment) == here:
        with contextlib.suppress(RequestError):
            return runner.start(request, resume=old)
    return runner.start(request)


def _compared(member: Member, run: runner.Run) -> dict[str, Any]:
    """What the documentation says beside what probing found: agrees True, False, or None where nothing was found."""
    subject = run.opened.subject
    found: Mapping[str, Finding] = subject.found if subject is not None else {}
    table: dict[str, Any] = {}
    for trait, said in member.documented.items():
        here = found.get(trait, Finding(None))
        value = here.value or ["none"] if trait == "learning" and here.value is not None else here.value
        if trait in {"structure", "learning"}:
            agrees = None if value is None else value == said
        else:
            agrees = consistent(trait, Finding(said), found)
        table[trait] = {"documented": said, "found": value, "agrees": agrees, "evidence": here.evidence}
    return opening.plain(table)


def _named(report: Report, member: Member, compared: Mapping[str, Any]) -> Report:
    return replace(report, subjects=(replace(report.subjects[0], label=member.name, documented=compared),))


def _cut_short(member: Member, request: Request, old: Report | None, reason: str, least: int) -> Report:
    """What a layer left before its process ended, with `error` where it did not get to."""
    spec = member.spec
    rows = select(request.only, request.skip)
    had = old.subjects[0] if old else None
    if had is None or had.spec != opening.plain(asdict(spec)):
        empty = SubjectReport(spec.name, spec.target, spec.kwargs, None, {}, (), spec=asdict(spec), label=member.name)
        had, old = empty, None
    reached = {result.invariant for result in had.results}
    missing: list[Result] = [_missing(row, reason, spec.seed) for row in rows if row.id not in reached]
    failed = any(r.status in {"failed", "fixed"} and r.kind in request.fail_on for r in had.results)
    code = 1 if failed and least != 2 else least
    subject = replace(had, results=(*had.results, *missing), status="error", exit_code=code, label=member.name)
    witnesses = old.witnesses if old else {}
    return Report(request.described(), environment.describe(), (subject,), witnesses, least == 2, __version__)


def _missing(row: Invariant, reason: str, seed: int) -> Result:
    return opening.unchecked(row, "error", reason, seed)


def _file(folder: Path, member: Member) -> Path:
    return folder / f"{member.name}.json"


def _kept(file: Path) -> Report | None:
    try:
        return from_json(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, ReportError):
        return None
