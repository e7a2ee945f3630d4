"""Witnesses and reports: values that survive a file, and bad files that are named."""

import json

import pytest
import torch

from vqverify import report, witness
from vqverify.case import Case
from vqverify.quantizer import Spec
from vqverify.witness import Witness, WitnessError


def example() -> Witness:
    case = Case(
        torch.tensor([[0.1, float("nan")], [float("inf"), -0.0]]),
        torch.ones(2, 2),
        3,
        (torch.tensor([[1.0, 2.0]], dtype=torch.float64),),
        (torch.zeros(1, 2), torch.ones(3, 2)),
        "train",
    )
    return Witness(Spec("pkg:VQ", {"dim": 2}), "rotation.angle", case, "angle", "why")


def test_round_trip_is_exact():
    first = example()
    again = witness.from_json(json.loads(report.dumps(first.to_json())))
    assert again.digest == first.digest
    assert again.case.seed == 3
    assert again.case.part == "train"
    assert again.case.codebook is not None
    for a, b in zip(
        (first.case.z, *first.case.history, *first.case.codebook),
        (again.case.z, *again.case.history, *again.case.codebook),
        strict=True,
    ):
        assert a.dtype == b.dtype
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8)) or torch.equal(a.isnan(), b.isnan())


def test_program_uses_the_closed_list():
    assert {step["op"] for step in example().to_json()["operations"]} == set(witness.OPERATIONS)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 99}, "99"),
        ({"operations": [{"op": "exec", "code": "1"}]}, "exec"),
        ({"operations": []}, "check"),
        ({"subject": {"nonsense": 1}}, "nonsense"),
    ],
)
def test_bad_witness_is_named(change, says):
    with pytest.raises(WitnessError, match=says):
        witness.from_json({**example().to_json(), **change})


def test_report_round_trip_ignores_unknown_keys():
    result = report.Result("rotation.angle", "failed", margin=float("inf"), witness="abc", explained_by=("x",))
    subject = report.SubjectReport("s", "t:C", {}, None, {}, (result,), "failed", 1)
    first = report.Report({"name": "quick"}, {}, (subject,), {"abc": {}})
    data = json.loads(report.dumps(first.to_json()))
    data["new key"] = data["subjects"][0]["new key"] = data["subjects"][0]["results"][0]["new key"] = 1
    again = report.from_json(data)
    assert again.subjects[0].results[0] == result
    assert again.exit_code == 1
    assert data["subjects"][0]["results"][0]["witness"] == "witnesses/abc.json"
    assert data["counts"]["failed"] == 1


def row(status, invariant="lookup.nearest", kind="law"):
    return report.Result(invariant, status, kind=kind)


@pytest.mark.parametrize(
    ("results", "strict", "code"),
    [
        ([row("passed")], False, 0),
        ([row("failed")], False, 1),
        ([row("failed", kind="limit"), row("passed")], False, 0),
        ([row("fixed")], False, 1),
        ([row("passed"), row("undetermined", "loss.value")], False, 0),
        ([row("passed"), row("undetermined", "loss.value")], True, 1),
        ([row("undetermined"), row("passed", "interface.runs")], False, 1),
        ([row("n/a"), row("passed", "interface.runs")], False, 0),
        ([row("undetermined"), row("passed", "estimator.linear")], False, 1),
        ([row("passed"), row("error")], False, 3),
        ([row("failed"), row("error")], False, 1),
    ],
)
def test_exit_code_by_the_contract(results, strict, code):
    decisive = {"lookup.nearest"}
    assert report.subject_exit(results, fail_on=("law", "contract"), strict=strict, decisive=decisive) == code


def test_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "r.json"
    report.write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        report.write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
