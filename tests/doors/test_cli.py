"""The command line: exit codes, bad input, what is written and what is not."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vqverify import cli, report
from vqverify.invariant import _REGISTRY, Invariant, no_parts, registry

MINIATURES = str(Path(__file__).parents[1] / "miniatures.py")
RIGHT, WRONG = f"{MINIATURES}:Right", f"{MINIATURES}:AlwaysWrong"
EUCLIDEAN = ("--claim", "metric=euclidean")


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run the command line in an empty folder; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = cli.run([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def row(monkeypatch):
    """Add a row to the catalogue for the length of a test."""
    registry()

    def add(id_, check):
        made = Invariant(
            id_,
            "a row of the tests",
            "here",
            "law",
            "table",
            "fresh",
            (),
            (),
            "",
            (),
            check,
            no_parts,
            ("zero",),
        )
        monkeypatch.setitem(_REGISTRY, id_, made)

    return add


def python(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_help_is_quick_and_imports_no_torch():
    code = """
import sys, vqverify.cli as cli
for words in (["--help"], ["check", "--help"], ["list", "--help"], ["replay", "--help"], ["train", "--help"]):
    assert cli.run(words) == 0
assert not {"torch", "numpy", "hypothesis", "sympy", "jinja2"} & set(sys.modules), "heavy"
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert "vqverify check" in done.stdout
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "vqverify", "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.5


def test_importing_the_package_imports_no_torch():
    assert python("import vqverify, sys; assert 'torch' not in sys.modules; vqverify.Spec").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "nothing_of_that_name:VQ"], "there is no module 'nothing_of_that_name'"),
        (["check", "nowhere.py:VQ"], "there is no file nowhere.py"),
        (["check", f"{MINIATURES}:Rihgt"], "did you mean 'Right'"),
        (["check", RIGHT, "--kw", "dimm=4"], "no argument 'dimm'; did you mean 'dim'"),
        (["check", RIGHT, "--kw", "dim=-1"], "cannot be built"),
        (["check", RIGHT, "--kw", "dim"], "needs the form name=value"),
        (["check", RIGHT, "--kw", "dim=4", "--kw", "dim=5"], "given twice"),
        (["check", RIGHT, "--kw", "flag=False"], "write false"),
        (["check", RIGHT, "--kwargs", "[1]"], "needs a JSON object"),
        (["check", RIGHT, "--claim", "estimatr=rotation"], "did you mean 'estimator'"),
        (["check", RIGHT, "--claim", "estimator=rotatoin"], "did you mean 'rotation'"),
        (["check", "--only", "lookup.nearst"], "did you mean lookup.nearest"),
        (["check", "--json", ""], "names no file or folder"),
        (["audit", "--resume", ""], "names no file or folder"),
        (["compare", "--seed", str(2**32)], "is not in the range"),
        (["train", "digits", "--seed", str(2**32)], "is not in the range"),
        (["check", "--require", "nothing.*"], "no invariant is called 'nothing.*'"),
        (["check", "--profile", "qick"], "there are quick, merge, nightly"),
        (["check", "--fail-on", "lw"], "did you mean law"),
        (["check", "--dtype", "float65"], "did you mean 'float64'"),
        (["check", "--accept"], "--accept needs --expectations"),
        (["check", "--expectations", "none.toml"], "none.toml cannot be read"),
        (["check", "--baseline", "none.json"], "none.json cannot be read"),
        (["check", f"{MINIATURES}:Speaks"], "a tensor of its input's size is needed"),
        (["chekc"], "did you mean check"),
        (["replay", "none.json"], "none.json cannot be read"),
        (["report", MINIATURES], "is no report"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(run, arguments, words):
    code, out, err = run(*arguments)
    assert code == 2
    assert words in err
    assert "Traceback" not in err
    assert out == ""
    assert sum(line.startswith("Error: ") for line in err.splitlines()) == 1


def test_traceback_shows_where_an_error_comes_from(run):
    code, _, err = run("check", RIGHT, "--kw", "dim=-1", "--traceback")
    assert code == 2
    assert "Traceback" in err


def test_exit_codes_and_the_report(run, tmp_path):
    code, out, _ = run("check", RIGHT, "--only", "lookup.*", "--json", "deep/right.json")
    assert code == 0
    assert "exit 0" in out
    assert all(len(line) <= 100 for line in out.splitlines())
    data = json.loads((tmp_path / "deep/right.json").read_text())
    assert {"format", "vqverify", "complete", "profile", "environment", "subjects", "counts"} <= set(data)
    assert data["complete"] is True
    assert data["counts"]["passed"] == sum(r["status"] == "passed" for r in data["subjects"][0]["results"])
    assert data["subjects"][0]["identified"]["metric"]["value"] == "euclidean"


def test_a_failure_leaves_a_witness_that_replays(run, tmp_path):
    source = Path(MINIATURES).read_text()
    layer = tmp_path / "layer.py"
    layer.write_text(source)
    code, out, _ = run("check", "layer.py:AlwaysWrong", "--only", "lookup.nearest", *EUCLIDEAN, "--json", "r.json")
    assert code == 1
    assert "must hold" in out
    assert "vqverify replay r.json#" in out
    digest = json.loads((tmp_path / "r.json").read_text())["subjects"][0]["results"][0]["witness"].removeprefix(
        "witnesses/"
    )
    assert run("replay", f"r.json.witnesses/{digest}")[0] == 1
    code, out, _ = run("replay", f"r.json#{digest[:5]}")
    assert code == 1
    assert "still fails" in out
    layer.write_text(source.replace("argmax", "argmin"))
    done = python("import vqverify.cli as cli; cli.main()", "replay", f"r.json#{digest[:5]}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "passes now" in done.stdout


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": 9}', '{"format": 1, "subject": {"target": "x"}}', '{"subjects": []}']
)
def test_an_unreadable_witness_is_refused(run, tmp_path, text):
    (tmp_path / "w.json").write_text(text)
    code, _, err = run("replay", "w.json")
    assert code == 2
    assert "Traceback" not in err


def test_a_fault_of_a_row_is_exit_3_and_stops_no_other(run, row):
    def check(subject, case):
        raise ZeroDivisionError("a fault of the row")
        yield

    row("test.broken", check)
    code, out, _ = run("check", RIGHT, "--only", "test.*", "--only", "lookup.nearest")
    assert code == 3
    assert "ZeroDivisionError" in out
    assert "1 passed" in out


def test_an_interrupted_run_leaves_a_report_that_resumes(run, row, tmp_path):
    def interrupt(subject, case):
        raise KeyboardInterrupt
        yield

    row("test.interrupts", interrupt)
    select = ("--only", "lookup.nearest", "--only", "test.*", "--json", "r.json")
    code, out, err = run("check", RIGHT, *select)
    assert code == 130
    assert "interrupted" in err
    assert "not complete" in out
    data = json.loads((tmp_path / "r.json").read_text())
    assert data["complete"] is False
    assert [r["invariant"] for r in data["subjects"][0]["results"]] == ["lookup.nearest"]

    def hold(subject, case):
        return iter(())

    row("test.interrupts", hold)
    row("lookup.nearest", interrupt)  # is taken over, not run again
    assert run("check", RIGHT, *select, "--resume", "r.json")[0] == 0
    assert json.loads((tmp_path / "r.json").read_text())["complete"] is True
    code, _, err = run("check", RIGHT, *select, "--resume", "r.json", "--seed", "1")
    assert code == 2
    assert "another run" in err


def test_a_spent_budget_is_undetermined_and_not_complete(run, tmp_path):
    code, _, _ = run("check", RIGHT, "--only", "lookup.*", "--budget", "0", "--json", "r.json")
    data = json.loads((tmp_path / "r.json").read_text())
    assert code == 1
    assert data["complete"] is False
    assert {(r["status"], r["reason"]) for r in data["subjects"][0]["results"]} == {("undetermined", "budget")}


def test_strict_require_and_fail_on(run):
    nearest = ("--only", "lookup.nearest", *EUCLIDEAN)
    assert run("check", WRONG, *nearest, "--fail-on", "contract")[0] == 0
    assert run("check", RIGHT, *nearest, "--require", "lookup.nearest")[0] == 0
    assert run("check", RIGHT, *nearest, "--require", "lookup.decode")[0] == 1
    nan = (f"{MINIATURES}:GivesNaN", "--only", "rotation.angle")
    assert run("check", *nan)[0] == 0
    assert run("check", *nan, "--strict")[0] == 1


def test_baseline_and_report_tell_what_changed(run):
    nearest = ("--only", "lookup.nearest", *EUCLIDEAN)
    run("check", WRONG, *nearest, "--json", "old.json")
    code, out, _ = run("check", WRONG, *nearest, "--baseline", "old.json", "--json", "new.json")
    assert code == 1
    assert "known" in out
    code, out, _ = run("report", "new.json", "--against", "old.json", "--markdown", "new.md")
    assert (code, out) == (1, "nothing changed\n")
    data = json.loads(Path("new.json").read_text())
    data["subjects"][0]["results"][0] |= {"status": "passed", "label": None}
    Path("mended.json").write_text(json.dumps(data))
    out = run("report", "mended.json", "--against", "old.json", "--badge", "b.json")[1]
    assert "1 better" in out


def test_list(run):
    code, out, _ = run("list", "lookup.*", "--json", "rows.json")
    assert code == 0
    assert "lookup.nearest" in out
    assert "rotation" not in out
    assert json.loads(Path("rows.json").read_text())["invariants"][0]["id"].startswith("lookup.")


def test_identify(run):
    code, out, _ = run("identify", RIGHT, "--json", "what.json")
    data = json.loads(Path("what.json").read_text())
    assert code == 0
    assert data["found"]["estimator"]["value"] == "straight-through"
    assert "straight-through" in out


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("what was there")
    with pytest.raises(UnicodeEncodeError):
        report.write_atomically(path, "half of it\ud800")
    assert path.read_text() == "what was there"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_refused(run, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run("check", RIGHT, "--only", "lookup.nearest", "--html", "file/r.html")
    assert code == 2
    assert "cannot be written" in err
