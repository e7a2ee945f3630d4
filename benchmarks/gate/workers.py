"""The gate's end of a worker: a process that is asked, and that may crash or hang."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any, Self

from benchmarks.gate.trees import Tree

PATIENCE = 300.0
"""Seconds that a request may take."""


class CaseError(Exception):
    """A case failed in a worker: ``side``, the ``kind`` of exception, and the traceback as message."""

    def __init__(self, side: str, kind: str, text: str) -> None:
        super().__init__(text)
        self.side, self.kind = side, kind


class Worker:
    """A process that has one commit on its path. Only a copy of it answers: between :meth:`fork` and :meth:`end`."""

    def __init__(self, tree: Tree) -> None:
        self.side = tree.side
        environment = dict(os.environ, PYTHONPATH=f"{tree.folder}{os.pathsep}{tree.run}", PYTHONHASHSEED="0")
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed on exit, with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gate.worker", str(tree.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=tree.run,
            env=environment,
            start_new_session=True,
        )
        self._rest = b""
        self.copied = False

    def ask(self, do: str, **request: Any) -> Any:
        """Return the answer to a request.

        Raises:
            CaseError: if the case raised, or the process died or did not answer in time.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._death() from None
        reply = json.loads(self._line())
        if "error" in reply:
            self.copied &= reply["kind"] != "Death"
            raise CaseError(self.side, reply["kind"], f"{self.side}: {reply['error']}")
        return reply["value"]

    def fork(self) -> None:
        """Begin a copy."""
        self.ask("fork")
        self.copied = True

    def end(self) -> None:
        """End the copy."""
        self.ask("end")
        self.copied = False

    @contextlib.contextmanager
    def copy(self) -> Iterator[None]:
        """Have a copy in the block."""
        self.fork()
        try:
            yield
        finally:
            if self.copied:
                self.end()

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        until = time.monotonic() + PATIENCE
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._rest:
            if not select.select([descriptor], [], [], max(0, until - time.monotonic()))[0]:
                self._kill()
                self.copied = False
                raise CaseError(self.side, "Timeout", f"{self.side}: no answer within {PATIENCE:.0f} s")
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                raise self._death()
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _death(self) -> CaseError:
        code = self._process.wait()
        self._log.seek(0)
        last = self._log.read()[-2000:].strip()
        self.copied = False
        return CaseError(self.side, "Death", f"{last}\n{self.side}: its process ended with exit {code}")

    def _kill(self) -> None:
        """End the process and its copy, which are a group of their own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @property
    def alive(self) -> bool:
        """Whether the process can still be asked."""
        return self._process.poll() is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._kill()
        if self._process.stdout:
            self._process.stdout.close()
        self._log.close()
