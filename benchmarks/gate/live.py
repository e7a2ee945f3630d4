"""Run the gate on planted faults, and on none: `python -m benchmarks.gate.live [--runs 5] [PLANT]...`.

In a temporary clone a commit is made that holds nothing but the plant, and the gate compares it with its parent, so
many times. Exit 1 if a run says what it should not: a plant must end with 1, and nothing with 0.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Plant:
    """A change of one line, and the group that must see it."""

    group: str
    file: str
    old: str
    new: str


SLOW = """started = time.perf_counter()
    found = search(rows, codebook).reshape(z.shape[:-1])
    ended = time.perf_counter()
    while time.perf_counter() - ended < 0.1 * (ended - started):
        pass
    return found"""
PLANTS = {
    "slow-lookup": Plant(
        "lookup", "vqverify/reference/lookup.py", "return search(rows, codebook).reshape(z.shape[:-1])", SLOW
    ),
    "silent-straight-through": Plant(
        "training",
        "vqverify/reference/estimators.py",
        "return _Rotate.apply(z, q)",
        "return _StraightThrough.apply(z, q)",
    ),
    "wrong-decay": Plant(
        "training",
        "vqverify/reference/codebooks.py",
        '_checks.number("decay", decay, 0, 1)\n    smoothing = _checks.number("smoothing", smoothing)\n',
        '_checks.number("decay", decay, 0, 1)\n    smoothing = _checks.number("smoothing", smoothing)\n    decay = 1 - decay\n',
    ),
    "nothing": Plant("", "", "", ""),
}


def plant(clone: Path, name: str) -> None:
    """Commit the plant; ``nothing`` is an empty commit.

    Raises:
        ValueError: if the line that it changes is not there.
    """
    what = PLANTS[name]
    if what.file:
        path = clone / what.file
        text = path.read_text("utf-8")
        if text.count(what.old) != 1:
            raise ValueError(f"{what.file} must hold the line of the plant {name!r} once: {what.old!r}")
        text = text.replace(what.old, what.new)
        if "time." in what.new:
            text = text.replace(
                "from __future__ import annotations\n", "from __future__ import annotations\n\nimport time\n"
            )
        path.write_text(text, "utf-8")
    identity = ["-c", "user.name=plant", "-c", "user.email=plant@plant.example"]
    git(clone, *identity, "commit", "--quiet", "--allow-empty", "--all", "--message", f"Plant: {name}")


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate.live", description=__doc__)
    parser.add_argument("plants", nargs="*", metavar="PLANT", help=", ".join(PLANTS))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--minutes", help="handed on to the gate")
    parser.add_argument("--group", help="what `nothing` is compared in; all groups by default")
    options = parser.parse_args(arguments)
    unknown = set(options.plants) - set(PLANTS)
    if unknown:
        parser.error(f"PLANT must be one of {', '.join(PLANTS)}; it was {', '.join(sorted(unknown))}")
    wrong = 0
    for name in options.plants or PLANTS:
        with tempfile.TemporaryDirectory(prefix="live-") as folder:
            clone = Path(folder) / "clone"
            git(Path.cwd(), "clone", "--quiet", "--shared", ".", str(clone))
            plant(clone, name)
            command = [sys.executable, "-m", "benchmarks.gate", "HEAD~1", "HEAD"]
            group = options.group if name == "nothing" else PLANTS[name].group
            command += ["--group", group] if group else []
            command += ["--minutes", options.minutes] if options.minutes else []
            codes = []
            for run in range(options.runs):
                start = time.monotonic()
                environment = dict(os.environ, PYTHONPATH=str(clone))
                done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
                codes.append(done.returncode)
                load = os.getloadavg()[0]
                print(f"{name} {run + 1}: exit {codes[-1]}, {time.monotonic() - start:.0f} s, load {load:.1f}")
                print("\n".join(line for line in done.stdout.splitlines() if "unchanged |" not in line), flush=True)
        wanted = 0 if name == "nothing" else 1
        wrong += sum(code != wanted for code in codes)
        print(f"{name}: {codes.count(wanted)} of {options.runs} runs ended with {wanted}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
