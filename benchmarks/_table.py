"""What asv shows: a group is measured once, in one process, and each number of the dashboard is read from its table."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks import _measure

Table = dict[str, dict[str, float | str]]


@dataclass(frozen=True)
class Case:
    """One point of the plan: sizes, what is computed, and where."""

    n: int
    k: int
    d: int
    method: str = "euclidean"
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1

    def __str__(self) -> str:
        where = "cuda" if self.device == "cuda" else f"cpu x{self.threads}"
        return f"N {self.n} K {self.k} D {self.d} {self.method} {self.dtype} {where}"


def by_name(*cases: Case) -> dict[str, Case]:
    return {str(case): case for case in cases}


def measured(cases: Mapping[str, Case], work: Callable[[Case], dict[str, _measure.Work]]) -> Table:
    """Measure all cases: seconds of ``ours``, and the paired ratio of ours to everything beside it.

    A case whose device is not here is left out (n/a); one that fails is kept as its error.
    """
    import torch

    table: Table = {}
    for name, case in cases.items():
        if case.device == "cuda" and not torch.cuda.is_available():
            continue
        threads = torch.get_num_threads()
        torch.set_num_threads(case.threads)
        try:
            taken = _measure.samples(work(case), device=case.device)
            table[name] = {"seconds": min(taken["ours"])}
            table[name] |= {other: _measure.paired(taken, "ours", other) for other in taken if other != "ours"}
        except Exception:  # noqa: BLE001 - the other cases are still worth measuring
            table[name] = {"error": traceback.format_exc()}
        finally:
            torch.set_num_threads(threads)
    return table


def cell(table: Table, case: str, column: str) -> float:
    """Return a number of the table; NaN, which asv shows as n/a, where there is none.

    Raises:
        RuntimeError: with the traceback, if the case failed.
    """
    row = table.get(case, {})
    if "error" in row:
        raise RuntimeError(row["error"])
    return float(row.get(column, math.nan))


def track(pretty_name: str, unit: str, column: str, about: str) -> Callable[..., float]:
    """Return a method for an asv class that reads one column of the table."""

    def method(_self: object, table: Table, case: str) -> float:
        return cell(table, case, column)

    method.pretty_name, method.unit, method.version = pretty_name, unit, "1"
    # what asv's pages show in place of the source; without a dot in the name it puts no class around it
    method.pretty_source, method.__qualname__ = about, "method"
    return method
