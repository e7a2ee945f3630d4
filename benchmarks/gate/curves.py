"""Comparer of trainings: curves of two commits from common seeds, judged by an exact test."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.gate.compare import ABSENT, Log, Name, list_cases
from benchmarks.gate.rows import Row
from benchmarks.gate.trees import Tree
from benchmarks.gate.workers import CaseError, Worker
from vqverify.training import Curve, Judgement, judge
from vqverify.training import folder as folders
from vqverify.training.judge import LEVEL

FIRST, ALL = range(2), range(10)
"""Seeds that every training runs from, and those that a training with any difference runs from in all."""

Pair = tuple[list[Curve], list[Curve]]


def judged(base: Tree, head: Tree, group: str, *, until: float, log: Log) -> list[Row]:
    """Train in both commits from the same seeds and judge what differs.

    A training whose watched numbers are the same bit for bit from the first seeds is unchanged. All others are judged
    together over all seeds: the probability of calling any of them changed where none is stays below the judge's
    level, 1%.
    """
    rows: list[Row] = []
    differing: dict[Name, Pair] = {}
    with Worker(base) as one, Worker(head) as other:
        for name in list_cases([group]):
            if time.monotonic() >= until:
                rows.append(Row(*name, "undecided", how="out of time"))
                continue
            try:
                before, after = trained((one, other), name, FIRST)
                if before == after:
                    rows.append(Row(*name, "unchanged", how=f"bit for bit the same from {len(FIRST)} seeds"))
                else:
                    more = trained((one, other), name, ALL[len(FIRST) :])
                    differing[name] = before + more[0], after + more[1]
            except CaseError as error:
                absent = error.side == "base" and error.kind in ABSENT
                rows.append(Row(*name, "new" if absent else "failed", how=str(error)))
            log(f"trained {name[1]}")
    return rows + judgements(differing)


def trained(workers: tuple[Worker, Worker], name: Name, seeds: Sequence[int]) -> Pair:
    """Return curves of both commits, which run side by side: time does not matter here."""

    def ask(worker: Worker) -> list[Curve]:
        with worker.copy():
            return [folders.loads(text) for text in worker.ask("value", group=name[0], case=name[1], seeds=list(seeds))]

    with ThreadPoolExecutor(2) as pool:
        before, after = pool.map(ask, workers)
    return before, after


def judgements(differing: dict[Name, Pair]) -> list[Row]:
    """Return a row for each training that differs, from one judgement of all of them."""
    if not differing:
        return []
    try:
        found = judge(
            [curve for before, _ in differing.values() for curve in before],
            [curve for _, after in differing.values() for curve in after],
        )
    except ValueError as error:
        return [Row(*name, "failed", how=f"the curves cannot be compared: {error}") for name in differing]
    return [row_of(name, found) for name in differing]


def row_of(name: Name, found: Judgement) -> Row:
    """Return the verdict on one training: the worst of its numbers, with the most significant named."""
    mine = [row for row in found.rows if row.training == name[1]]
    changes = {row.change for row in mine}
    verdict = next((one for one in ("worse", "moved", "better") if one in changes), "unchanged")
    first = next(row for row in mine if row.change == verdict)
    change = f"{first.summary} {first.watched} {first.before:.4g} to {first.after:.4g}"
    return Row(*name, verdict, change, f"{found.seeds} seeds, p {first.p_value:.3g}, level {LEVEL:g}")
