"""Expected failures: accepted without a reason, refused until it is written, replayed, gone once mended."""

import tomllib
from pathlib import Path

import pytest

import vqverify
from vqverify.run import expected
from vqverify.run.expected import ExpectationError

MINIATURES = Path(__file__).parents[1] / "miniatures.py"
FIRST = "subject = 'AlwaysWrong()'\ninvariant = 'lookup.nearest'\nlabel = 'regret'\n"


@pytest.fixture
def accepted(tmp_path):
    """A file of expectations made from a failing run, its reasons still to be written."""
    file = tmp_path / "expectations.toml"
    file.write_text("# what we know about\n")
    report = check("AlwaysWrong", None)
    assert expected.accept(report, file) == 1
    return file


def check(name, file, source=MINIATURES, only=("lookup.nearest",)):
    return vqverify.check_quantizer(f"{source}:{name}", claims={"metric": "euclidean"}, only=only, expectations=file)


def explained(file):
    file.write_text(file.read_text().replace('reason = ""', 'reason = "it is a miniature"'))
    return file


def statuses(report):
    return [(result.status, result.label) for result in report.subjects[0].results]


def test_accept_keeps_comments_and_needs_a_reason(accepted):
    assert accepted.read_text().startswith("# what we know about\n")
    entry = tomllib.loads(accepted.read_text())["expected"][0]
    assert (entry["invariant"], entry["label"], entry["reason"]) == ("lookup.nearest", "regret", "")
    assert (accepted.parent / entry["witness"]).is_file()
    with pytest.raises(ExpectationError, match="has no reason"):
        expected.load(accepted)


def test_a_failure_with_a_reason_is_expected(accepted):
    report = check("AlwaysWrong", explained(accepted))
    assert statuses(report) == [("expected", "regret")]
    assert report.subjects[0].results[0].reason == "it is a miniature"
    assert report.exit_code == 0
    assert expected.accept(report, accepted) == 0


def test_another_label_is_a_new_failure(accepted):
    explained(accepted)
    accepted.write_text(accepted.read_text().replace('label = "regret"', 'label = "other"'))
    report = check("AlwaysWrong", accepted)
    assert ("failed", "regret") in statuses(report)
    assert ("fixed", "other") in statuses(report)
    assert report.exit_code == 1


def test_a_mended_layer_is_fixed_and_fails_the_run(accepted, tmp_path):
    mended = tmp_path / "mended.py"
    mended.write_text(MINIATURES.read_text().replace("argmax", "argmin"))
    report = check("AlwaysWrong", explained(accepted), mended)
    assert ("fixed", "regret") in statuses(report)
    assert report.exit_code == 1


def test_entries_of_other_subjects_and_rows_are_left_alone(accepted):
    explained(accepted)
    assert statuses(check("Right", accepted)) == [("passed", None)]
    assert statuses(check("AlwaysWrong", accepted, only=("lookup.decode",))) == [("n/a", None)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[expected", "is not TOML"),
        (f"[[expected]]\n{FIRST}reason = 'r'\n", "has no witness"),
        (f"[[expected]]\n{FIRST}witness = 'w.json'\nreason = '  '\n", "has no reason"),
        (f"[[expected]]\n{FIRST}wittness = 'w.json'\nreason = 'r'\n", "wittness is no field"),
        (
            f"[[expected]]\n{FIRST.replace('nearest', 'nearst')}witness = 'w.json'\nreason = 'r'\n",
            "no such row",
        ),
        (
            f"[[expected]]\n{FIRST}witness = 'w.json'\nreason = 'r'\n",
            "w.json of lookup.nearest cannot be read",
        ),
    ],
)
def test_what_cannot_be_believed_is_refused(tmp_path, text, words):
    file = tmp_path / "e.toml"
    file.write_text(text)
    with pytest.raises(ExpectationError, match=words):
        check("AlwaysWrong", file)
