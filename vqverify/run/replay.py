"""Run a witness again: does its statement fail on it today?"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vqverify import engine
from vqverify.invariant import registry
from vqverify.quantizer import Spec
from vqverify.witness import Witness, WitnessError


@dataclass(frozen=True)
class Replay:
    """What a witness does today.

    Attributes:
        fails: whether its statement fails on it.
        label: the clause that fails now, which may be another than the witness's.
        message: what was found.
        checked: whether the statement's hypotheses were met at all.
    """

    fails: bool
    label: str | None
    message: str
    checked: bool


def replay(witness: Witness, *, obj: Any = None, against: Mapping[str, Any] | None = None) -> Replay:
    """Run a witness again.

    Args:
        witness: what to run.
        obj: a class or function in place of its target.
        against: the other layer, for a witness of `vqverify compare`.

    Raises:
        WitnessError: if its statement is not in the catalogue.
    """
    from vqverify.subject import open_subject

    if against is not None:
        return _compared(witness, against)
    row = registry().get(witness.invariant)
    if row is None:
        raise WitnessError(f"the witness is of the row {witness.invariant!r}, which this version does not have")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subject = open_subject(witness.spec, obj=obj)
        clauses = list(engine.evaluate(row, subject, witness.case))
    failing = [clause for clause in clauses if not clause.holds]
    worst = next((clause for clause in failing if clause.label == witness.label), failing[0] if failing else None)
    if worst is None:
        return Replay(fails=False, label=None, message="", checked=bool(clauses))
    return Replay(fails=True, label=worst.label, message=worst.message, checked=True)


def _compared(witness: Witness, against: Mapping[str, Any]) -> Replay:
    from vqverify.run.compare import Against, again
    from vqverify.subject import open_subject

    other = Against(Spec(**against["spec"]), against.get("python"), bool(against.get("compiled")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = open_subject(witness.spec)
        with other.opened() as side:
            failing = again(layer, side, witness.case)
    worst = next((clause for clause in failing if clause.label == witness.label), failing[0] if failing else None)
    if worst is None:
        return Replay(fails=False, label=None, message="", checked=True)
    return Replay(fails=True, label=worst.label, message=worst.message, checked=True)
