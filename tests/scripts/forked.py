"""Runs scripts in forks of a server that has torch imported and no threads: a fresh interpreter takes seconds."""

import contextlib
import io
import multiprocessing
import warnings
from multiprocessing.connection import Connection

from vqverify.scripts.checked import LONGEST, Ran

PRELOADED = ["torch", "vqverify.mutants.base", "tests.scripts.forked"]


def run(text: str) -> Ran:
    """What `vqverify.scripts.checked.run` gives."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    here, there = context.Pipe()
    child = context.Process(target=_run, args=(text, there))
    child.start()
    there.close()
    try:
        found = here.recv() if here.poll(LONGEST) else (-1, "", "it hangs")
    except EOFError:
        found = (-1, "", "it died")
    child.kill()
    child.join()
    return Ran(*found)


def _run(text: str, answer: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    code, error, out = 0, "", io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            exec(compile(text, "witness.py", "exec"), {"__name__": "__main__"})
    except BaseException as raised:  # noqa: BLE001  (as an interpreter does)
        code, error = 1, f"{type(raised).__name__}: {raised}"
    answer.send((code, out.getvalue(), error))
