"""The harness's own subjects: the report says the right thing about each."""

from pathlib import Path

import pytest

import vqverify
from vqverify.quantizer import Spec
from vqverify.run.request import Request
from vqverify.run.runner import check as run
from vqverify.subject.target import TargetError

HERE = str(Path(__file__).parents[1] / "miniatures.py")
ROWS = (
    "interface.runs", "interface.shapes", "interface.eval_*", "interface.generators", "lookup.nearest",
    "lookup.forward_is_code", "lookup.code_determines", "estimator.jacobian", "estimator.finite", "honesty.*",
)  # fmt: skip


def check(name, only=ROWS, **more):
    return vqverify.check_quantizer(f"{HERE}:{name}", only=only, **more)


def failed(report):
    return {result.invariant: result for result in report.subjects[0].results if result.status == "failed"}


def test_right_passes():
    report = check("Right")
    assert not failed(report)
    assert report.exit_code == 0
    assert report.complete
    assert report.counts["passed"] > 10


def test_always_wrong_fails_the_lookup_with_a_small_witness():
    report = check("AlwaysWrong", claims={"metric": "euclidean"})
    result = failed(report)["lookup.nearest"]
    assert report.exit_code == 1
    assert result.label == "regret"
    assert result.margin is not None
    assert result.margin > 1
    program = report.witnesses[result.witness]["operations"]
    assert sum(value != 0 for step in program if "z" in step for value in step["z"]["values"]) <= 4


def test_raising_on_every_call_fails_interface_runs():
    report = check("Raises")
    result = failed(report)["interface.runs"]
    assert report.exit_code == 1
    assert result.label == "raised"
    assert "RuntimeError" in result.message
    assert "no kernel for" in result.message


def test_a_system_exit_is_an_error_of_its_row_and_not_the_end():
    (subject,) = check("Exits", only=("interface.runs",)).subjects
    assert subject.exit_code == 3
    assert {result.status for result in subject.results} == {"error"}
    assert subject.results[0].reason == "a train pass on 1 latents called sys.exit(0)"


def test_nan_is_a_failure_and_never_an_error():
    report = check("GivesNaN")
    assert {"interface.runs", "estimator.finite"} <= set(failed(report))
    nearest = next(r for r in report.subjects[0].results if r.invariant == "lookup.nearest")
    assert nearest.status == "undetermined"
    assert "not finite" in nearest.reason
    assert report.exit_code == 1
    assert report.counts["error"] == 0


def test_a_lie_is_contradicted():
    report = check("Liar")
    honest = [r for r in report.subjects[0].results if r.status == "failed" and r.invariant == "honesty.traits"]
    assert [(r.case, r.label) for r in honest] == [("estimator", "contradicted")]
    assert "rotation_trick=True" in honest[0].message
    assert "straight-through" in honest[0].message
    assert "estimator.jacobian" in failed(report)


def test_hidden_state_is_found():
    assert "interface.eval_deterministic" in failed(check("HiddenState", only=("interface.*",)))


def test_reseeding_is_found_outside_the_fork():
    report = check("Reseeds", only=("interface.*",))
    counted = {result.invariant for result in failed(report).values() if result.kind != "hardening"}
    assert counted == {"interface.generators"}


def in_workers(**kwargs):
    spec = Spec(f"{HERE}:Dies", kwargs)
    report = run(Request(spec, only=("lookup.nearest", "estimator.detached"), timeout=60))
    return report, {result.invariant: result for result in report.subjects[0].results}


def test_a_layer_that_kills_the_process_costs_its_rows_only():
    report, by_row = in_workers()
    assert by_row["lookup.nearest"].status == "error"
    assert "process died (exit code 7)" in by_row["lookup.nearest"].reason
    assert report.complete
    assert report.exit_code == 3


def test_a_layer_that_kills_the_process_at_once_is_an_error():
    report, by_row = in_workers(at_once=True)
    assert {result.status for result in by_row.values()} == {"error"}
    assert report.exit_code == 3


def test_what_cannot_be_built_is_refused():
    with pytest.raises(TargetError, match="no argument 'dimm'; did you mean 'dim'"):
        vqverify.check_quantizer(f"{HERE}:Right", {"dimm": 4})
