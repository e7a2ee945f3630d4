"""What a derivation is: a stated theorem, its hypotheses, and steps that are executed.

The *stated* formulas are data (SymPy trees), apart from the steps that establish them: a step receives them
and compares them with what it derives from the definitions, by another route. So a wrong statement can be
put in place of the right one and must be refuted (``mutation``), and the oracles used elsewhere are generated
from the same trees (``oracles``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["algebra", "certificate", "lemma"]
Stated = Mapping[str, Any]
Check = Callable[[Stated], bool]


@dataclass(frozen=True)
class Step:
    """One step of a proof.

    Attributes:
        kind: ``algebra`` (SymPy with free symbols, or exact rationals), ``certificate`` (sum of squares,
            exact counterexample, inequality that SymPy decides) or ``lemma`` (cited, not executed).
        text: what the step establishes, in words; inline mathematics between dollar signs.
        check: the executed part; None for a lemma.
    """

    kind: Kind
    text: str
    check: Check | None = None


def algebra(text: str, check: Check) -> Step:
    """An identity, established with free symbols or exact rationals."""
    return Step("algebra", text, check)


def certificate(text: str, check: Check) -> Step:
    """An inequality with its certificate, or an exact counterexample."""
    return Step("certificate", text, check)


def lemma(text: str) -> Step:
    """A named result that is cited and not executed; it is counted apart and shown as such."""
    return Step("lemma", text)


@dataclass(frozen=True)
class Proof:
    """The outcome of executing the steps of a derivation or an erratum.

    Attributes:
        id: of what was proved.
        holds: whether every executed step holds.
        failed: the text of each step that does not, with the exception where it raised one.
        kinds: how many steps of each kind there are.
        seconds: wall-clock time.
    """

    id: str
    holds: bool
    failed: tuple[str, ...]
    kinds: Mapping[str, int]
    seconds: float


def execute(name: str, steps: tuple[Step, ...], stated: Stated) -> Proof:
    """Run the steps on the stated formulas. A step that cannot be evaluated does not hold."""
    start = time.perf_counter()
    failed: list[str] = []
    for step in steps:
        if step.check is None:
            continue
        try:
            if not step.check(stated):
                failed.append(step.text)
        except Exception as error:  # noqa: BLE001  a statement that cannot even be evaluated is refuted
            failed.append(f"{step.text} [{type(error).__name__}: {error}]")
    kinds = {kind: sum(step.kind == kind for step in steps) for kind in ("algebra", "certificate", "lemma")}
    executed = kinds["algebra"] + kinds["certificate"]
    return Proof(name, not failed and executed > 0, tuple(failed), kinds, time.perf_counter() - start)


@dataclass(frozen=True)
class Derivation:
    """A theorem with the steps that prove it.

    Attributes:
        id: stable name, ``subject.topic``.
        theorem: number on the theory page, ``T1`` to ``T37``.
        title: a few words.
        statement: the theorem in plain text.
        latex: the theorem in LaTeX (display mathematics).
        hypotheses: under which it holds.
        source: paper and equation.
        stated: the formulas of the statement, by name, as SymPy trees; what the steps check.
        steps: the proof.
        catches: the mistakes in code that it catches.
        bounds: names of the stated formulas that bound something.
        tolerances: bounds on the rounding of code that computes it, by name, to first order in the unit
            roundoff u and from the usual error analysis. The tests search for inputs that break each of the
            bounds and of the tolerances.
    """

    id: str
    theorem: str
    title: str
    statement: str
    latex: str
    hypotheses: tuple[str, ...]
    source: str
    stated: Stated
    steps: tuple[Step, ...]
    catches: str = ""
    bounds: tuple[str, ...] = ()
    tolerances: Stated = field(default_factory=dict[str, Any])

    def prove(self, stated: Stated | None = None) -> Proof:
        """Execute the steps, on the stated formulas or on others put in their place.

        Args:
            stated: replaces ``self.stated``; the mutation test hands in wrong formulas.

        Returns:
            The proof; ``holds`` is False when a step fails or cannot be evaluated.
        """
        return execute(self.id, self.steps, self.stated if stated is None else stated)
