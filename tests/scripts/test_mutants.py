"""A script fails on the mutant that it was written for, and passes on the right layer that the mutant was made from."""

import inspect
from dataclasses import replace

import pytest

from tests.scripts import forked
from tests.test_kill_matrix import CONTROLS
from vqverify import check_quantizer, engine
from vqverify.invariant import applicability, registry
from vqverify.mutant import Mutant, mutants
from vqverify.quantizer import Spec
from vqverify.scripts import Unscripted, checked, compose
from vqverify.scripts.registry import written
from vqverify.subject import open_subject
from vqverify.subject.target import load
from vqverify.witness import Witness, from_json

SHOWN = [name for name, mutant in mutants().items() if mutant.profile == "quick" and set(mutant.names) & set(written())]
RIGHT = {f"vqverify.mutants.{name}" for name in CONTROLS}


def cases() -> list[object]:
    """Every mutant; those whose rows are all written as those of a mutant before them only in the nightly run."""
    seen: set[object] = set()
    found: list[object] = []
    for name in SHOWN:
        writers = {written()[id_].body for id_ in mutants()[name].names if id_ in written()}
        found.append(pytest.param(name, marks=pytest.mark.nightly if writers <= seen else ()))
        seen |= writers
    return found


def scripts(mutant: Mutant) -> list[tuple[Witness, list[str]]]:
    """The witnesses of a mutant that have a script, with every way to write it."""
    report = check_quantizer(mutant.target, mutant.kwargs, only=mutant.names, profile=mutant.profile, role=mutant.role)
    failed = [result for result in report.subjects[0].results if result.status == "failed"]
    witnesses = [from_json(report.witnesses[str(result.witness)]) for result in failed]
    found: list[tuple[Witness, list[str]]] = []
    subject = open_subject(witnesses[0].spec)
    for witness in witnesses:
        try:
            found.append((witness, list(compose.ways(subject, witness))))
        except Unscripted:
            continue
    return found


def right_layer(mutant: Mutant) -> Spec | None:
    """The layer that a mutant derives from, where that is one of the kill matrix's controls."""
    kind = load(mutant.target)
    for parent in inspect.getmro(kind)[1:] if isinstance(kind, type) else ():
        if f"{parent.__module__}:{parent.__qualname__}" in RIGHT:
            known = inspect.signature(parent).parameters
            kwargs = {name: value for name, value in mutant.kwargs.items() if name in known}
            return Spec(f"{parent.__module__}:{parent.__qualname__}", kwargs)
    return None


def on(spec: Spec, witness: Witness, number: int) -> str | None:
    """The same way to write a witness for another layer, where the row holds on it."""
    subject, row = open_subject(spec), registry()[witness.invariant]
    if applicability(row, subject.traits).verdict != "applies" or witness.case.part not in row.parts(subject):
        return None
    clauses = list(engine.evaluate(row, subject, witness.case))
    if not clauses or not all(clause.holds for clause in clauses):
        return None
    subject.restore()
    try:
        return list(compose.ways(subject, replace(witness, spec=spec)))[number]
    except (Unscripted, IndexError):
        return None


@pytest.mark.parametrize("name", cases())
def test_scripts_fail_on_the_mutant_and_pass_on_the_right_layer(name):
    mutant = mutants()[name]
    right = right_layer(mutant)
    for witness, texts in scripts(mutant):
        rans = [forked.run(text) for text in texts]
        failing = [number for number, ran in enumerate(rans) if checked.fails(ran, witness)]
        for text, ran in zip(texts, rans, strict=True):
            lines = text.splitlines()
            assert len(lines) <= compose.LINES
            assert max(map(len, lines)) <= 120
            assert ran.code == 0 or checked.fails(ran, witness) or "raise" in witness.message, f"{ran.error}\n{text}"
        if not failing:
            continue  # it is not shown, and the report says why
        assert rans[failing[0]].printed or witness.label in {"raised", "slip"}
        text = on(right, witness, failing[0]) if right else None
        if text:
            ran = forked.run(text)
            assert ran.code == 0, f"{witness.invariant} {witness.label}: {ran.error} {ran.printed}\n{text}"


def test_most_mutants_are_shown():
    """What has no script says so; the number that have one may only grow."""
    rows = {id_ for name in SHOWN for id_ in mutants()[name].names}
    assert len(rows & set(written())) >= 60
    assert set(written()) <= set(registry())
