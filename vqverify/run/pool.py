"""Rows in processes of their own, so that a layer that crashes or hangs costs one row and not the run."""

from __future__ import annotations

import gc
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError as Late
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from pebble import ProcessExpired, ProcessPool

from vqverify import engine
from vqverify.invariant import registry
from vqverify.quantizer import Spec
from vqverify.report import dumps
from vqverify.run import memory, opening
from vqverify.run.expected import Entry
from vqverify.subject import open_subject

if TYPE_CHECKING:
    from vqverify.subject.layer import Layer

_kept: dict[str, Layer] = {}  # what a worker has opened, by its spec: specs hold dicts, which are no keys


def outcomes(
    jobs: Sequence[engine.Job], workers: int, timeout: float | None, left: Callable[[], float | None]
) -> Iterator[tuple[engine.Job, engine.Outcome]]:
    """Run jobs in worker processes.

    Args:
        jobs: what to run, one row each.
        workers: how many processes.
        timeout: seconds that one job may take, the start of a worker and the opening of the subject included.
        left: seconds of the budget that are left, None without a budget.

    Yields:
        Each job with its outcome, in the order given; it ends early when the budget is spent.
    """
    yield from _collected(_pool(workers), jobs, timeout, left)


def _collected(
    pool: ProcessPool, jobs: Sequence[engine.Job], timeout: float | None, left: Callable[[], float | None]
) -> Iterator[tuple[engine.Job, engine.Outcome]]:
    try:
        futures = [(job, pool.schedule(_run, args=(job,), timeout=timeout)) for job in jobs]
        for job, future in futures:
            seconds = left()
            try:
                yield job, future.result(timeout=None if seconds is None else max(seconds, 0))
            except Late:
                if not future.done():
                    return
                yield job, _error(job, f"timed out after {timeout:g} s")
            except ProcessExpired as died:
                yield job, _error(job, _died(died))
            except Exception as error:  # noqa: BLE001  (what a worker cannot even start is an error of its row)
                yield job, _error(job, f"{type(error).__name__}: {error}")
    finally:
        pool.stop()
        pool.join()


def can_fork() -> bool:
    """Whether copies of this process may check rows of a subject that it has opened.

    On Linux, with one thread and no CUDA context, torch survives a fork, autograd included.
    """
    return sys.platform == "linux" and not torch.cuda.is_initialized()


def shared(
    jobs: Sequence[engine.Job], workers: int, subject: Layer, left: Callable[[], float | None]
) -> Iterator[tuple[engine.Job, engine.Outcome]]:
    """Run jobs in copies of this process, which have the opened subject already; arguments as in `outcomes`.

    Yields:
        Each job with its outcome, in the order given; it ends early when the budget is spent.
    """
    _kept[dumps(vars(subject.spec))] = subject
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()  # else the copies' collectors write to every page that they share
    try:
        yield from _collected(_pool(workers, "fork"), jobs, None, left)
    finally:
        gc.unfreeze()
        torch.set_num_threads(threads)
        _kept.clear()


def opened(spec: Spec, entries: Sequence[Entry], timeout: float | None) -> opening.Opened:
    """Open a subject in a worker, only to learn what it is; a subject that kills the worker is `broken`.

    Raises:
        Exception: as `opening.opened`.
    """
    pool = _pool(1)
    try:
        return pool.schedule(_describe, args=(spec, tuple(entries)), timeout=timeout).result()
    except Late:
        return opening.Opened(broken=f"opening it timed out after {timeout:g} s")
    except ProcessExpired as died:
        return opening.Opened(broken=f"while it was opened, {_died(died)}")
    finally:
        pool.stop()
        pool.join()


def _pool(workers: int, method: str = "spawn") -> ProcessPool:
    return ProcessPool(max_workers=workers, context=multiprocessing.get_context(method))


def _died(died: ProcessExpired) -> str:
    return f"the process died (exit code {died.exitcode})"


def _describe(spec: Spec, entries: Sequence[Entry]) -> opening.Opened:
    with memory.bounded(spec):
        return replace(opening.opened(spec, entries), subject=None)


def _run(job: engine.Job) -> engine.Outcome:
    with memory.bounded(job.spec):
        return engine.run(job, _open)


def _open(spec: Spec) -> Layer:
    key = dumps(vars(spec))
    if key not in _kept:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _kept[key] = open_subject(spec)
    return _kept[key]


def _error(job: engine.Job, reason: str) -> engine.Outcome:
    return engine.Outcome((opening.unchecked(registry()[job.ids[0]], "error", reason, job.seed),), {})
