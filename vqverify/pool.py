"""Rows in processes of their own, so that a layer that crashes or hangs costs one row and not the run."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError as Late
from typing import TYPE_CHECKING, Any

from pebble import ProcessExpired, ProcessPool

from vqverify import engine
from vqverify.invariant import registry
from vqverify.quantizer import Spec
from vqverify.report import Result, dumps
from vqverify.subject import open_subject

if TYPE_CHECKING:
    from vqverify.layer import Layer

# Each worker opens the subject once; specs hold dicts, so they are remembered by what they say.
_opened: dict[str, Any] = {}


def outcomes(
    jobs: Sequence[engine.Job], workers: int, timeout: float | None, left: Callable[[], float | None]
) -> Iterator[tuple[engine.Job, engine.Outcome]]:
    """Run jobs in worker processes; yields each with its outcome, in the order given.

    Args:
        jobs: what to run, one row each.
        workers: how many processes.
        timeout: seconds that one job may take, the start of a worker and the opening of the subject included.
        left: seconds of the budget that are left, None without a budget.
    """
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    pool = ProcessPool(max_workers=workers, context=context)
    try:
        futures = [(job, pool.schedule(_run, args=(job,), timeout=timeout)) for job in jobs]
        for job, future in futures:
            seconds = left()
            try:
                yield job, future.result(timeout=None if seconds is None else max(seconds, 0))
            except Late:
                if not future.done():
                    return  # the budget is spent
                yield job, _error(job, f"timed out after {timeout:g} s")
            except ProcessExpired as died:
                yield job, _error(job, f"the process died (exit code {died.exitcode})")
            except Exception as error:  # noqa: BLE001  (what a worker cannot even start is an error of its row)
                yield job, _error(job, f"{type(error).__name__}: {error}")
    finally:
        pool.stop()
        pool.join()


def _run(job: engine.Job) -> engine.Outcome:
    return engine.run(job, _open)


def _open(spec: Spec) -> Layer:
    key = dumps(spec.__dict__)
    if key not in _opened:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _opened[key] = open_subject(spec)
    return _opened[key]


def _error(job: engine.Job, reason: str) -> engine.Outcome:
    row = registry()[job.ids[0]]
    result = Result(
        row.id, "error", row.kind, row.mode, row.state, reason=reason, statement=row.statement, source=row.source,
        hint=row.hint, seed=job.seed,
    )  # fmt: skip
    return engine.Outcome((result,), {})
