"""Comparers: two commits and a group's cases in, rows out."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from benchmarks.gate import judge
from benchmarks.gate.rows import Row
from benchmarks.gate.trees import Tree
from benchmarks.gate.worker import LONG
from benchmarks.gate.workers import CaseError, Worker

Name = tuple[str, str]
"""Group and case."""
Records = dict[str, list[float]]
"""Log ratios of pairs, by "group: case"."""
Log = Callable[[str], None]

ROUNDS, BURSTS, BURST = 10, 3, 0.001
"""Rounds of a pair, bursts of a turn, and seconds of a burst."""
ABSENT = ("ImportError", "ModuleNotFoundError", "AttributeError", "TypeError")
"""What a base raises where it lacks what a case runs."""


@dataclass
class Timings:
    """Log ratios of the pairs so far, by case, and the rows of cases that are settled."""

    ratios: dict[Name, list[float]] = field(default_factory=dict)
    rows: dict[Name, Row] = field(default_factory=dict)

    @property
    def open(self) -> list[Name]:
        return [name for name in self.ratios if name not in self.rows]


def list_cases(groups: list[str]) -> list[Name]:
    """Return the cases of groups."""
    return [(group, case) for group in groups for case in importlib.import_module(f"benchmarks.{group}").gate()]


def timed(base: Tree, head: Tree, groups: list[str], *, until: float, log: Log) -> tuple[list[Row], Records]:
    """Time all cases of groups together, in pairs, until each is decided.

    Args:
        base: the older commit.
        head: the newer one.
        groups: names of modules of the benchmarks with a ``gate()`` of calls.
        until: monotonic time after which no pair begins.
        log: takes lines of progress.

    Returns:
        One row a case, and the log ratios of all pairs by "group: case".
    """
    names = list_cases(groups)
    timings = Timings({name: [] for name in names})
    total = max(1, len(names))
    for i in range(judge.BATCHES):
        if timings.open:
            run_batch((base, head) if i % 2 else (head, base), timings, until, log)
        last = i == judge.BATCHES - 1 or time.monotonic() >= until
        for name in timings.open:
            verdict = judge.decide(timings.ratios[name], total, last=last)
            if verdict:
                timings.rows[name] = Row(*name, verdict, *judge.describe(timings.ratios[name], total))
    return [timings.rows[name] for name in names], {": ".join(name): values for name, values in timings.ratios.items()}


def run_batch(trees: tuple[Tree, Tree], timings: Timings, until: float, log: Log) -> None:
    """Run a batch of pairs over the open cases, in new processes; a case that fails is settled."""
    wanted = {name: len(timings.ratios[name]) + judge.BATCH for name in timings.open}
    with contextlib.ExitStack() as stack:
        workers = {tree.side: stack.enter_context(Worker(tree)) for tree in trees}
        for i in range(judge.BATCH):
            names = [name for name in timings.open if len(timings.ratios[name]) < wanted[name]]
            if not names or time.monotonic() >= until:
                return
            for j, name in enumerate(names):
                for tree in trees:
                    if not workers[tree.side].copied:
                        if not workers[tree.side].alive:
                            workers[tree.side] = stack.enter_context(Worker(tree))
                        workers[tree.side].fork()
                try:
                    room = wanted[name] - len(timings.ratios[name])
                    found = measure(workers["base"], workers["head"], name, room, flip=bool((i + j) % 2))
                    timings.ratios[name] += found
                except CaseError as error:
                    timings.rows[name] = Row(*name, "failed", how=str(error))
                except AbsentError as error:
                    timings.rows[name] = Row(*name, "new", how=f"the base lacks it: {last_line(str(error))}")
            for worker in workers.values():
                if worker.copied:
                    worker.end()
            log(f"pair {i + 1} of {judge.BATCH}: {len(timings.open)} of {len(timings.ratios)} cases open")


class AbsentError(Exception):
    """The base lacks what a case runs."""


def measure(base: Worker, head: Worker, name: Name, room: int, *, flip: bool) -> list[float]:
    """Return the log ratio of a pair on a case: turns alternate, and so does who goes first.

    Where a call is long, each is a pair of its own, and there are ``room`` of them.
    """
    where = {"group": name[0], "case": name[1]}
    one = head.ask("prepare", **where)
    try:
        one = min(one, base.ask("prepare", **where))
    except CaseError as error:
        if error.kind in ABSENT:
            raise AbsentError(str(error)) from error
        raise
    long = one > LONG
    plan = {"number": 1 if long else max(1, round(BURST / one)), "bursts": 1 if long else BURSTS}
    taken: dict[str, list[float]] = {"base": [], "head": []}
    for i in range(room if long else ROUNDS):
        for worker in (base, head) if (i % 2) ^ flip else (head, base):
            taken[worker.side].append(worker.ask("time", **where, **plan))
    if long:
        return [judge.median_ratio([b], [h]) for b, h in zip(taken["base"], taken["head"], strict=True)]
    return [judge.median_ratio(taken["base"], taken["head"])]


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else ""


COUNTED = 0.02
"""Share by which a count may differ: allocators round."""


def counted(base: Tree, head: Tree, group: str) -> Iterator[Row]:
    """Compare numbers that do not vary from run to run, such as bytes; lower is better."""
    with Worker(base) as one, Worker(head) as other:
        for name in list_cases([group]):
            try:
                new, old = (count(worker, name) for worker in (other, one))
            except CaseError as error:
                absent = error.side == "base" and error.kind in ABSENT
                yield Row(*name, "new" if absent else "failed", how=str(error))
                continue
            slack = COUNTED * abs(old) + 1e-9
            verdict = "worse" if new > old + slack else "better" if new < old - slack else "unchanged"
            yield Row(*name, verdict, f"{old:.6g} to {new:.6g}", "counted once")


def count(worker: Worker, name: Name) -> float:
    with worker.copy():
        return worker.ask("value", group=name[0], case=name[1])
