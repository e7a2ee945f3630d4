"""A layer in several real processes, joined by gloo on the CPU: started, waited for, and never left behind.

Each is `python -m vqverify.subject.joined`, which builds the layer inside the process group.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqverify.bounds import Violation
from vqverify.quantizer import CannotOpenError

if TYPE_CHECKING:
    from vqverify.subject.layer import Layer

CANNOT_OPEN = 3  # exit code of a process that cannot import or build the target


def together(layer: Layer, work: str, arguments: Any, *, count: int = 2, timeout: float = 90.0) -> list[Any]:
    """Run a function on a new construction of the layer in each of several processes of one group.

    Args:
        layer: whose spec, plan and domain the processes share.
        work: `module:function`, called with (layer, rank, arguments).
        arguments: anything that pickles.
        count: number of processes.
        timeout: seconds for all of it; whatever runs then is killed.

    Returns:
        What the function returned in each process, in the order of their ranks.

    Raises:
        CannotOpenError: if a process cannot build the target by its name.
        Violation: `hung` after the timeout, `raised` if a process failed.
    """
    with tempfile.TemporaryDirectory(prefix="vqverify-") as folder:
        job = Path(folder) / "job"
        job.write_bytes(pickle.dumps((layer.spec, layer.plan, layer.domain, work, arguments, count)))
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
            "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
            "OMP_NUM_THREADS": "1",
        }
        running: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(count):
                command = [sys.executable, "-m", "vqverify.subject.joined", str(job), str(rank)]
                with (Path(folder) / f"said{rank}").open("wb") as said:
                    running.append(subprocess.Popen(command, env=environment, stdout=said, stderr=said))  # noqa: S603
            _wait(running, folder, timeout)
        finally:
            for process in running:
                process.kill()
                process.wait()
        return [pickle.loads((Path(folder) / f"result{rank}").read_bytes()) for rank in range(count)]  # noqa: S301


def _wait(running: list[subprocess.Popen[bytes]], folder: str, timeout: float) -> None:
    """Until all ended well, one ended badly, or the time is over."""
    end = time.monotonic() + timeout
    while any(process.poll() is None for process in running) and not any(process.poll() for process in running):
        if time.monotonic() > end:
            raise Violation("hung", f"{len(running)} processes with gloo did not end within {timeout:g} s")
        with contextlib.suppress(subprocess.TimeoutExpired):
            next(process for process in running if process.poll() is None).wait(0.05)
    for rank, process in enumerate(running):
        if process.poll() or not (Path(folder) / f"result{rank}").exists():
            lines = (Path(folder) / f"said{rank}").read_text("utf-8", "replace").strip().splitlines()
            text = next((line for line in reversed(lines) if line.strip()), f"exit code {process.returncode}")
            if process.returncode == CANNOT_OPEN:
                raise CannotOpenError(text[:200])
            raise Violation("raised", f"in process {rank} of {len(running)}: {text}"[:300])
