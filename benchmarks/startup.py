"""How long a user waits before anything happens: processes from start to end."""

from __future__ import annotations

import subprocess
import sys

from benchmarks import _measure
from benchmarks._table import Table, track

COMMANDS = {
    "import vqverify": ("-c", "import vqverify"),
    "import vqverify.reference": ("-c", "import vqverify.reference"),
    "vqverify --help": ("-m", "vqverify", "--help"),
    "vqverify check, one row": ("-m", "vqverify", "check", "--only", "lookup.nearest"),
}


def process(*arguments: str) -> _measure.Work:
    """A Python process that must succeed."""

    def run():
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}")

    return run


def measured() -> Table:
    """Measure all commands, interleaved with an interpreter that does nothing and one that imports torch."""
    table: Table = {}
    for name, arguments in COMMANDS.items():
        work = {"ours": process(*arguments), "bare": process("-c", "pass"), "torch": process("-c", "import torch")}
        taken = _measure.samples(work, budget=4)
        table[name] = {"seconds": min(taken["ours"])}
        table[name] |= {other: _measure.paired(taken, "ours", other) for other in ("bare", "torch")}
    return table


def gate():
    """The commands that should take next to no time, in CPU time; a check's own time is the harness's."""
    return {name: lambda name=name: process(*COMMANDS[name]) for name in ("import vqverify", "vqverify --help")}


class Startup:
    params = (list(COMMANDS),)
    param_names = ("command",)
    timeout = 300

    def setup_cache(self):
        return measured()

    track_seconds = track(
        "Start-up: time of a process", "s", "seconds", "A process from start to end: least time of a few."
    )
    track_over_limit = track(
        "Start-up: time over that of a bare interpreter",
        "x python",
        "bare",
        "Time over that of python -c pass, the limit of any command. Median of paired runs.",
    )
    track_over_torch = track(
        "Start-up: time over that of importing torch",
        "x torch",
        "torch",
        "Time over that of python -c 'import torch'; --help must stay well below 1. Median of paired runs.",
    )
