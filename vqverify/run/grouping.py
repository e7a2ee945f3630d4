"""Failed rows that only follow from other failed rows are grouped under them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from vqverify.invariant import registry
from vqverify.report import Result

# where one of these fails, no measurement of another row means what it says
BASIC = (
    "interface.instances_independent", "interface.input_unchanged", "interface.eval_pure", "interface.eval_deterministic",
)  # fmt: skip
RUNS, BROKEN = "interface.runs", ("raised", "shape")  # the row about passes that end in an exception, or in no rows


def explain(results: Iterable[Result]) -> tuple[Result, ...]:
    """Name, for each failed row, the failed rows that it only follows from."""
    results = tuple(results)
    known = registry()
    broken = any(_broken(result) and result.invariant == RUNS for result in results)
    failed = {
        name
        for result in results
        if result.status in {"failed", "fixed"}
        # a layer that raises on plain input breaks most rows, and these name no cause
        and not (broken and _broken(result) and result.invariant != RUNS)
        for name in _names(result)
    }
    return tuple(
        replace(result, explained_by=_causes(result, known[result.invariant].follows, failed))
        if result.status == "failed"
        else result
        for result in results
    )


def _broken(result: Result) -> bool:
    return result.status == "failed" and result.label in BROKEN


def _names(result: Result) -> tuple[str, str]:
    """What `follows` may call a result: its id, or its id with the case."""
    return result.invariant, f"{result.invariant}[{result.case}]"


def _causes(result: Result, follows: tuple[str, ...], failed: set[str]) -> tuple[str, ...]:
    """Failed rows that name the cause: what the row says it follows; for NaN and exceptions the rows about them; what is basic."""
    general = (RUNS,) if _broken(result) else ("estimator.finite",) if "finite" in (result.label or "") else ()
    causes = (*follows, *general, *(() if result.invariant in BASIC else BASIC))
    return tuple(dict.fromkeys(id_ for id_ in causes if id_ in failed and id_ != result.invariant))
