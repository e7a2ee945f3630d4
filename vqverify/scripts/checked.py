"""A script is shown only after it failed in a fresh process, in the way that its witness says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from vqverify.witness import Witness

LONGEST = 120.0  # seconds


@dataclass(frozen=True)
class Ran:
    """What a script did in a process of its own.

    Attributes:
        code: exit status.
        printed: what it printed.
        error: the line that names the exception; empty without one.
    """

    code: int
    printed: str
    error: str


@dataclass(frozen=True)
class Script:
    """A script that was seen to fail, with what it printed."""

    text: str
    printed: str


def run(text: str) -> Ran:
    """Run a script in a fresh interpreter, in the working directory, which its own files may be named from."""
    with TemporaryDirectory(prefix="vqverify-") as folder:
        file = Path(folder) / "witness.py"
        file.write_text(text, "utf-8")
        command = [sys.executable, "-W", "ignore", str(file)]
        more = {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
        try:
            done = subprocess.run(  # noqa: S603  (the script was written here)
                command, capture_output=True, text=True, encoding="utf-8", timeout=LONGEST, check=False,
                env={**os.environ, **more},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Ran(-1, "", f"it ran for more than {LONGEST:g} s")
    return Ran(done.returncode, done.stdout, _raised(done.stderr) if done.returncode else "")


def _raised(text: str) -> str:
    """The line of a traceback that names the exception, whose message may have more lines."""
    _, _, after = text.rpartition("Traceback (most recent call last):")
    lines = [line for line in after.splitlines() if line and not line.startswith(" ")]
    return lines[0] if lines else ""


def fails(ran: Ran, witness: Witness) -> bool:
    """Whether a script failed as its witness does: by its assertion, or by the exception that the layer raised."""
    wanted = "AssertionError"
    if witness.label in {"raised", "slip"}:
        named = re.search(r"raise[sd] (\w+)", witness.message)
        wanted = named[1] if named else wanted
    return ran.code == 1 and re.match(rf"([\w.]+\.)?{wanted}\b", ran.error) is not None
