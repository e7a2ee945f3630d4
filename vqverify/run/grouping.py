"""Failed rows that only follow from other failed rows are grouped under them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from vqverify.invariant import registry
from vqverify.report import Result

RUNS = "interface.runs"


def explain(results: Iterable[Result]) -> tuple[Result, ...]:
    """Name, for each failed row, the failed rows that it only follows from."""
    results = tuple(results)
    known = registry()
    raises = any(_raised(result) and result.invariant == RUNS for result in results)
    failed = {
        name
        for result in results
        if result.status in {"failed", "fixed"}
        # a layer that raises on plain input breaks most rows, and these name no cause
        and not (raises and _raised(result) and result.invariant != RUNS)
        for name in _names(result)
    }
    return tuple(
        replace(result, explained_by=_causes(result, known[result.invariant].follows, failed))
        if result.status == "failed"
        else result
        for result in results
    )


def _raised(result: Result) -> bool:
    return result.status == "failed" and result.label == "raised"


def _names(result: Result) -> tuple[str, str]:
    """What `follows` may call a result: its id, or its id with the case."""
    return result.invariant, f"{result.invariant}[{result.case}]"


def _causes(result: Result, follows: tuple[str, ...], failed: set[str]) -> tuple[str, ...]:
    """Failed rows that name the cause: what the row says it follows, and for NaN and exceptions the rows about them."""
    general = RUNS if _raised(result) else None
    if "finite" in (result.label or ""):
        general = "estimator.finite"
    causes = (*follows, general) if general and general != result.invariant else follows
    return tuple(dict.fromkeys(id_ for id_ in causes if id_ in failed))
