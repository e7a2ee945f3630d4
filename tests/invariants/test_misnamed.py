"""Codes that do not name the vectors that stand for them, found by a row that says so; and no alarm where they do."""

import pytest

from vqverify import check_quantizer
from vqverify.quantizer import Spec
from vqverify.subject import open_subject

M = "tests.invariants.misnamed"
ROWS = ("lookup.*", "residual.*", "product.*", "estimator.*", "gap.*", "interface.shapes", "interface.autocast")


def causes(layer, *, wrong, seed=0):
    report = check_quantizer(f"{M}:{layer}", {"wrong": wrong}, only=ROWS, seed=seed)
    results = [r for r in report.subjects[0].results if r.kind in {"law", "contract"}]
    assert any(r.status == "passed" for r in results)
    assert not [r for r in results if r.status == "error"]
    return {r.invariant for r in results if r.status == "failed" and not r.explained_by}


@pytest.mark.parametrize(
    ("layer", "cause"), [("Chain", "residual.sum"), ("AroundTheSum", "residual.sum"), ("Swapped", "lookup.nearest")]
)
@pytest.mark.parametrize("seed", [0, 3])
def test_codes_that_name_other_vectors(layer, cause, seed):
    assert causes(layer, wrong=1, seed=seed) == {cause}


@pytest.mark.parametrize("layer", ["Chain", "AroundTheSum", "Swapped"])
def test_right_names_raise_no_alarm(layer):
    assert causes(layer, wrong=0) == set()


def test_a_stack_of_renumbered_codes_is_no_projected_one():
    found = open_subject(Spec(f"{M}:AroundTheSum", {"wrong": 1})).found["structure"]
    assert found.value == "residual"
    assert "not of those that the codes name" in found.evidence
    right = open_subject(Spec(f"{M}:AroundTheSum", {"wrong": 0})).found["structure"]
    assert (right.value, "not of those" in right.evidence) == ("residual", False)
