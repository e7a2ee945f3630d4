"""The kill matrix: what is a fault of the suite, and the command."""

import json
from dataclasses import replace

import pytest

from vqverify.cli import main
from vqverify.mutant import Mutant
from vqverify.report import Result, SubjectReport
from vqverify.run import audit
from vqverify.run.request import RequestError

MUTANT = Mutant("wrong", "m:Wrong", ("update.ema_law", "update.long_run"), "a mistake")


def subject(*rows):
    results = tuple(
        Result(id_, status, kind, "search", "fresh", label="off", reason="late", explained_by=after)
        for id_, status, kind, after in rows
    )
    return SubjectReport("Wrong()", "m:Wrong", {}, None, {}, results)


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([("update.ema_law", "failed", "law", ())], ""),
        ([("lookup.nearest", "failed", "law", ("update.ema_law",)), ("update.ema_law", "failed", "law", ())], ""),
        ([("interface.copies", "failed", "contract", ()), ("update.ema_law", "failed", "law", ())], ""),
        ([("lookup.nearest_off_centre", "failed", "limit", ()), ("update.long_run", "failed", "limit", ())], ""),
        (
            [("lookup.nearest", "failed", "law", ()), ("update.ema_law", "failed", "law", ())],
            "listed before update.ema_law",
        ),
        ([("lookup.nearest", "failed", "law", ())], "no row that names it"),
        ([("update.ema_law", "passed", "law", ())], "survives"),
        ([("update.ema_law", "error", "law", ())], "not finished"),
    ],
)
def test_faults_of_the_suite(rows, fault):
    verdict = audit.judge(MUTANT, subject(*rows))
    assert fault in verdict.fault
    assert bool(fault) == bool(verdict.fault)
    assert audit.Audit((verdict,)).exit_code == bool(fault)


def test_rows_that_reject_nothing_fail_the_audit():
    verdict = audit.judge(MUTANT, subject(("update.ema_law", "failed", "law", ())))
    whole = audit.Audit((verdict,))
    assert whole.kills()["update.ema_law"] == ("wrong",)
    assert not whole.kills()["lookup.nearest"]
    assert replace(whole, idle=("lookup.nearest",)).exit_code == 1


def test_one_run_in_twenty_may_be_at_fault():
    right = audit.judge(MUTANT, subject(("update.ema_law", "failed", "law", ())))
    wrong = audit.judge(MUTANT, subject(("update.ema_law", "passed", "law", ())))
    assert audit.Audit((right,) * 19 + (wrong,)).exit_code == 0
    assert audit.Audit((right,) * 18 + (wrong,) * 2).missed == ("wrong",)
    assert audit.Audit((right,) * 18 + (wrong,)).exit_code == 1


def test_later_seeds_check_the_rows_that_name_the_mistake(tmp_path):
    asked = audit.chosen(["fsq_index_int8"])
    found = audit.run(asked, tmp_path, seeds=2, jobs=2)
    first, second = found.verdicts
    assert (first.seed, second.seed) == (0, 1)
    assert not found.faults
    assert set(second.rejected_by) == {"fsq.bijection"} < set(first.rejected_by)
    again = audit.run(asked, tmp_path, seeds=2, jobs=1)
    assert again == found


def test_patterns_choose_and_a_wrong_one_is_refused():
    assert set(audit.chosen(["ema_stall*"])) == {"ema_stalls"}
    with pytest.raises(RequestError, match="no mutant is called 'emma'"):
        audit.chosen(["emma"])


def exit_code(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code or 0


def test_the_command_writes_the_matrix(tmp_path, capsys):
    data, page = tmp_path / "matrix.json", tmp_path / "matrix.html"
    assert exit_code("audit", "scalar_*none", "--json", str(data)) == 2
    assert "no mutant is called" in capsys.readouterr().err
    code = exit_code("audit", "fsq_half_level", "--json", str(data), "--html", str(page))
    found = json.loads(data.read_text())
    (verdict,) = found["verdicts"]
    assert code == found["exit_code"] == bool(verdict["fault"])
    assert verdict["mutant"] == "fsq_half_level"
    assert "fsq.bijection" in verdict["rejected_by"]
    assert "fsq_half_level" in page.read_text()
