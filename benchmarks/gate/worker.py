"""The process that runs a commit's cases: one JSON request a line in, one JSON answer a line out.

The first process imports what takes long and computes nothing; the requests `fork` and `end` bracket a copy of it that
answers the others, so that every pair of a batch starts afresh at next to no cost.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path

from benchmarks._measure import Work

LONG = 0.03
"""CPU seconds from which a call is timed in CPU time, its children's included: it cannot dodge other processes."""


def cpu_time() -> float:
    """Return CPU seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def interruptions() -> int:
    """Return how often this thread had to yield its core to another process."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


class Runner:
    """Answers requests; keeps the calls that were prepared."""

    def __init__(self) -> None:
        self.ready: dict[tuple[str, str], Work] = {}

    def prepare(self, group: str, case: str) -> float:
        """Build a case, call it until it is warm, and return the CPU seconds of a call."""
        call = importlib.import_module(f"benchmarks.{group}").gate()[case]()
        call()
        taken: list[float] = []
        while len(taken) < 2 or (sum(taken) < 0.01 and len(taken) < 100):
            start = cpu_time()
            call()
            taken.append(cpu_time() - start)
            if taken[0] > LONG:
                break
        self.ready[group, case] = call
        return min(taken)

    def time(self, group: str, case: str, number: int, bursts: int) -> float:
        """Return the least seconds of a call over bursts of ``number`` calls; CPU seconds if there is one burst.

        Bursts that another process interrupted do not count, if others can be had: up to three times as many are run.
        """
        call = self.ready[group, case]
        if bursts == 1:
            start = cpu_time()
            call()
            return cpu_time() - start
        clean: list[float] = []
        broken: list[float] = []
        call()  # another process had the caches
        while len(clean) < bursts and len(clean) + len(broken) < 3 * bursts:
            before = interruptions()
            start = time.perf_counter()
            for _ in range(number):
                call()
            seconds = (time.perf_counter() - start) / number
            (clean if interruptions() == before else broken).append(seconds)
        return min(clean or broken)

    def value(self, group: str, case: str, **options: object) -> object:
        """Return what a case computes: a number, or what its comparer understands."""
        return importlib.import_module(f"benchmarks.{group}").gate()[case](**options)

    def end(self) -> None:
        """Be the last answer of a copy."""


def answer(runner: Runner, do: str, request: dict) -> dict:
    try:
        return {"value": getattr(runner, do)(**request)}
    except Exception as error:  # noqa: BLE001 - the gate reports it
        return {"error": traceback.format_exc(), "kind": type(error).__name__}


def serve(fork: bool, out) -> None:
    """Answer until the input ends, or the request `end` in a copy."""
    runner = Runner()
    for line in sys.stdin:
        request = json.loads(line)
        do = request.pop("do")
        if fork:
            assert do == "fork"
            child = os.fork()
            if child:
                _, status = os.waitpid(child, 0)
                if status:
                    text = f"its process ended with exit {os.waitstatus_to_exitcode(status)}"
                    say(out, {"error": text, "kind": "Death"})
                continue
            say(out, {"value": None})
            serve(False, out)
            os._exit(0)
        say(out, answer(runner, do, request))
        gc.collect()
        if do == "end":
            return


def say(out, reply: dict) -> None:
    out.write(json.dumps(reply) + "\n")
    out.flush()


def main(tree: str) -> None:
    """Serve until the input ends. Nothing that a case prints reaches the answers."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch

    import vqverify
    import vqverify.reference

    if not Path(vqverify.__file__).is_relative_to(tree):
        raise SystemExit(f"vqverify was imported from {vqverify.__file__}, not from the commit in {tree}")
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    gc.disable()
    serve(True, out)


if __name__ == "__main__":
    main(sys.argv[1])
