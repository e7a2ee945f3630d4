"""`vqverify matrix`: many layers, one page; what one of them does costs its own cells only."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vqverify import cli
from vqverify.render import matrix as page
from vqverify.report import from_json
from vqverify.run import matrix
from vqverify.run.request import RequestError

MINIATURES = Path(__file__).parents[1] / "miniatures.py"
LAYERS = f"""
[right]
target = "{MINIATURES}:Right"
documented = {{ metric = "l2", learning = "ema", fsq_levels = [3] }}
[wrong]
target = "{MINIATURES}:AlwaysWrong"
claims = {{ metric = "euclidean" }}
[dies]
target = "{MINIATURES}:Dies"
[absent]
target = "no_such_package:Layer"
"""
ROWS = ("--only", "lookup.nearest", "--only", "estimator.detached")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matrix")
    (folder / "layers.toml").write_text(LAYERS)
    files = [f"--{kind}={folder / f'page.{kind}'}" for kind in ("json", "html", "markdown")]
    code = cli.run(["matrix", str(folder / "layers.toml"), *ROWS, "--resume", str(folder / "kept"), *files])
    return code, folder, from_json(json.loads((folder / "page.json").read_text()))


def by_name(report):
    return {subject.label: subject for subject in report.subjects}


def statuses(subject):
    return {result.invariant: result.status for result in subject.results}


def test_the_worst_code_decides(ran):
    code, _, report = ran
    codes = {name: subject.exit_code for name, subject in by_name(report).items()}
    assert codes == {"right": 0, "wrong": 1, "dies": 3, "absent": 2}
    assert code == report.exit_code == 2
    assert not report.complete


def test_layers_keep_their_order_and_their_cells(ran):
    report = ran[2]
    assert [subject.label for subject in report.subjects] == ["right", "wrong", "dies", "absent"]
    found = by_name(report)
    assert statuses(found["right"])["lookup.nearest"] == "passed"
    assert statuses(found["wrong"])["lookup.nearest"] == "failed"
    assert set(statuses(found["dies"]).values()) == {"error"}
    assert "exit code 7" in found["dies"].results[0].reason
    assert "no module 'no_such_package'" in found["absent"].results[0].reason


def test_documentation_is_compared_with_what_is_found(ran):
    said = by_name(ran[2])["right"].documented
    assert {trait: item["agrees"] for trait, item in said.items()} == {
        "metric": True, "learning": False, "fsq_levels": None,
    }  # fmt: skip
    assert said["learning"]["documented"] == ["ema"]


def test_every_cell_that_fails_leads_to_its_witness(ran):
    _, folder, report = ran
    html, markdown = ((folder / f"page.{kind}").read_text() for kind in ("html", "markdown"))
    subject = by_name(report)["wrong"]
    cell = page.cells(subject)["lookup.nearest"]
    assert cell.status == "failed"
    for text in (f'href="#{cell.anchor}"', f'id="{cell.anchor}"', f"#{cell.results[0].witness}"):
        assert text in html
    assert f"(#{cell.anchor})" in markdown
    assert f'<a id="{cell.anchor}"></a>' in markdown
    assert "http" not in html.replace("https://", "")


def test_a_later_run_goes_on(ran, capsys):
    _, folder, _ = ran
    kept = folder / "kept" / "wrong.json"
    data = json.loads(kept.read_text())
    assert data["complete"]
    data["subjects"][0]["results"][0]["message"] = "taken over"
    kept.write_text(json.dumps(data))
    words = ["matrix", str(folder / "layers.toml"), *ROWS, "--resume", str(folder / "kept"), "--pick", "wrong"]
    assert cli.run([*words, "--json", str(folder / "again.json")]) == 1
    assert "taken over" in (folder / "again.json").read_text()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names no layer"),
        ("[a]", "needs target"),
        ("a = 1", "needs target"),
        ('["a/b"]\ntarget = "x:Y"', "a name is"),
        ('[a]\ntarget = "x:Y"\nkwarg = {}', "kwarg is no field"),
        ('[a]\ntarget = "x:Y"\nkwargs = 3', "kwargs must be a table"),
        ('[a]\ntarget = "x:Y"\nrole = "lookup"', "role must be"),
        ('[a]\ntarget = "x:Y"\ndocumented = { estimator = "magic" }', "must be one of"),
        ("[a", "not TOML"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path, text, says):
    file = tmp_path / "layers.toml"
    file.write_text(text)
    with pytest.raises(RequestError, match=says):
        matrix.load(file, 0)


def test_a_pattern_that_picks_nothing_is_refused(tmp_path, capsys):
    (tmp_path / "layers.toml").write_text(LAYERS)
    assert cli.run(["matrix", str(tmp_path / "layers.toml"), "--pick", "nothing"]) == 2
    assert "no layer that nothing names" in capsys.readouterr().err
    assert cli.run(["matrix", str(tmp_path / "none.toml")]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("how", "timeout", "status", "said"),
    [
        pytest.param("loops", "5", "error", "timed out after 5 s", marks=pytest.mark.nightly),
        ("crashes", "300", "error", "the process died (exit code -11)"),
        ("exits", "300", "error", "called sys.exit(0)"),
        pytest.param(
            "grows",
            "300",
            "error",
            "allocate memory",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux bounds it"),
        ),
        pytest.param("hoards", "300", "error", "allocate memory", marks=pytest.mark.nightly),
    ],
)
def test_whatever_a_layer_does_is_a_row_that_says_so(tmp_path, how, timeout, status, said):
    (tmp_path / "layers.toml").write_text(f'[hostile]\ntarget = "{MINIATURES}:Hostile"\nkwargs = {{ how = "{how}" }}\n')
    file = tmp_path / "page.json"
    words = ["--only", "interface.runs", "--timeout", timeout, "--jobs", "1", "--json", str(file)]
    code = cli.run(["matrix", str(tmp_path / "layers.toml"), *words])
    (subject,) = from_json(json.loads(file.read_text())).subjects
    found = next(result for result in subject.results if result.status not in {"passed", "n/a"})
    assert (code, found.status) == ({"error": 3, "failed": 1}[status], status)
    assert said in (found.reason or "") + (found.message or "")


SHOUTS = """
import os
import torch

class Shouts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.codes = torch.nn.Parameter(torch.randn(8, 4))

    def forward(self, z):
        os.write(1, b"SHOUTED")
        os.write(2, b"SHOUTED")
        k = torch.cdist(z.detach(), self.codes).argmin(-1)
        return z + (self.codes[k] - z).detach(), k
"""


def test_what_a_layer_writes_past_sys_stdout_is_dropped(tmp_path):
    (tmp_path / "mine.py").write_text(SHOUTS)
    (tmp_path / "layers.toml").write_text('[shouts]\ntarget = "mine.py:Shouts"\n')
    command = [sys.executable, "-m", "vqverify", "matrix", "layers.toml", "--only", "lookup.nearest"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SHOUTED" not in done.stdout + done.stderr
    assert "1 passed" in done.stdout
