"""Releases of a library that had a bug, each beside the one that mended it: what to install, what to call, what must fail."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vqverify
from vqverify.report import Report, Result, from_json

HERE = Path(__file__).parent
LIMIT = 900  # seconds for one check; it takes some ten


@dataclass(frozen=True)
class Pair:
    """A mistake that was in one release of a package and not in another.

    Attributes:
        id: of the test.
        package: on PyPI.
        bad, good: the releases.
        target, kwargs: the call that exposes it.
        names: rows that name the cause, as `row`, `row[case]` or `row: label`: one fails on the bad release, none on the good.
        mistake: what was wrong.
        source: where it was told or mended.
        refused: the good release refuses the arguments instead.
        missed: why the suite does not find it; a pair that is found may not say so.
    """

    id: str
    package: str
    bad: str
    good: str
    target: str
    names: tuple[str, ...]
    mistake: str
    kwargs: Mapping[str, Any]
    source: str = ""
    refused: bool = False
    missed: str = ""


@dataclass(frozen=True)
class Real:
    """A law that good releases break, too, and why that is no false alarm.

    Attributes:
        row: the row and label, as in `Pair.names`.
        reason: what is wrong with these releases.
        pairs: ids of the pairs whose good release has it.
    """

    row: str
    reason: str
    pairs: tuple[str, ...]


def load() -> tuple[tuple[Pair, ...], tuple[Real, ...]]:
    """The pairs of old_releases.toml, and the real failures of their good releases."""
    data = tomllib.loads((HERE / "old_releases.toml").read_text("utf-8"))
    pairs = tuple(Pair(**{**table, "names": tuple(table["names"])}) for table in data["pair"])
    real = tuple(Real(table["row"], table["reason"], tuple(table["pairs"])) for table in data["real"])
    return pairs, real


def install(package: str, version: str) -> Path:
    """A folder with one release and nothing that it depends on; kept outside the repository, made once.

    Raises:
        CalledProcessError: if pip cannot install it.
    """
    folder = _cache() / f"{package}-{version}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", temporary]
            subprocess.run([*pip, f"{package}=={version}"], check=True, timeout=LIMIT)
            Path(temporary).rename(folder)
            Path(temporary).mkdir()  # for the context manager to take away
    return folder


def check(pair: Pair, version: str) -> Report | None:
    """Run `vqverify check` on a release, in a process of its own.

    Args:
        pair: the call.
        version: which release.

    Returns:
        The report; None if the layer cannot be built (exit code 2).
    """
    paths = (install(pair.package, version), Path(vqverify.__file__).parents[1])
    words = [sys.executable, "-m", "vqverify", "check", pair.target, "--kwargs", json.dumps(pair.kwargs)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        done = subprocess.run(
            [*words, "--jobs", "1", "--json", str(file)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
            cwd=HERE.parent,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT,
        )
        if done.returncode == 2:
            return None
        assert file.exists(), f"vqverify check ended with {done.returncode} and no report:\n{done.stdout}{done.stderr}"
        report = from_json(json.loads(file.read_text("utf-8")))
    package = report.subjects[0].package or {}
    known = re.sub("[-_.]+", "-", package.get("name", "")).lower(), package.get("version")
    assert known == (pair.package, version), f"{package} was checked instead of {version}"
    return report


def failed(report: Report) -> list[Result]:
    """What fails."""
    return [result for subject in report.subjects for result in subject.results if result.status == "failed"]


def judged(result: Result, rows: Iterable[str]) -> bool:
    """Whether a failure is one of some rows, or follows from one of them."""
    causes = [f"{cause}: {result.label}" for cause in result.explained_by]
    return any(named(result, row) or row in causes for row in rows)


def named(result: Result, row: str) -> bool:
    """Whether a result is of a row, and of its case and label where they are given."""
    id_, _, label = row.partition(": ")
    return id_ in {result.invariant, f"{result.invariant}[{result.case}]"} and (not label or result.label == label)


def told(result: Result) -> str:
    """One line on a failure."""
    return f"{result.invariant}[{result.case}] {result.label}: {result.message}"


def _cache() -> Path:
    given = os.environ.get("VQVERIFY_RELEASES")
    return Path(given) if given else Path.home() / ".cache" / "vqverify" / "releases"
