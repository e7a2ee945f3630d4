"""Scripts from end to end: composed, seen to fail in a fresh process, and shown by the doors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vqverify import cli
from vqverify.mutant import mutants
from vqverify.run import scripts
from vqverify.scripts import checked, compose
from vqverify.scripts.numerals import folded, literal

LAYER = """
import torch

class Forgetful(torch.nn.Module):
    def __init__(self, dim, size):
        super().__init__()
        self.codes = torch.nn.Parameter(torch.randn(size, dim))

    def forward(self, z):
        k = torch.cdist(z.detach(), self.codes).argmax(-1)  # the farthest code
        return z + (self.codes[k] - z).detach(), k
"""


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run the command line in an empty folder; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # a file that is written twice in a second looks the same

    def call(*arguments):
        code = cli.run([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def report(run, tmp_path):
    (tmp_path / "mine.py").write_text(LAYER)
    arguments = ["check", "mine.py:Forgetful", "--kw", "dim=3", "--kw", "size=8", "--only", "lookup.nearest"]
    code, shown, _ = run(*arguments, "--json", "r.json", "--html", "r.html", "--scripts", "bugs")
    assert code == 1, shown
    return tmp_path, shown


def test_check_writes_scripts_that_fail_by_themselves(report):
    folder, shown = report
    (file,) = (folder / "bugs").glob("*.py")
    text = file.read_text("utf-8")
    assert len(text.splitlines()) <= compose.LINES
    assert "vqverify" not in text
    done = subprocess.run([sys.executable, str(file)], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "AssertionError"
    assert "of the best one" in done.stdout
    assert "seen to fail" in shown
    data = json.loads((folder / "r.json").read_text("utf-8"))
    (result,) = (result for result in data["subjects"][0]["results"] if result["status"] == "failed")
    assert result["script"] == text
    assert result["unscripted"] is None
    assert "from mine import Forgetful" in (folder / "r.html").read_text("utf-8")


def test_the_script_of_a_mended_layer_passes_and_is_not_shown(report):
    folder, _ = report
    (file,) = (folder / "bugs").glob("*.py")
    (folder / "mine.py").write_text(LAYER.replace("argmax", "argmin"))
    done = subprocess.run([sys.executable, str(file)], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (witness,) = (folder / "r.json.witnesses").iterdir()
    replayed = subprocess.run(
        [sys.executable, "-m", "vqverify", "replay", str(witness), "--script"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert replayed.returncode == 0
    assert replayed.stdout == ""
    assert replayed.stderr.startswith("no script: written in plain torch it does not fail")


def test_replay_prints_the_script_alone(report, run):
    folder, _ = report
    (file,) = (folder / "bugs").glob("*.py")
    code, shown, _ = run("replay", "r.json#", "--script")
    assert code == 1
    assert shown == file.read_text("utf-8")


def test_a_folder_that_cannot_be_written_is_refused_and_the_report_is_kept(run, tmp_path):
    (tmp_path / "mine.py").write_text(LAYER)
    (tmp_path / "taken").write_text("")
    arguments = ["check", "mine.py:Forgetful", "--kw", "dim=3", "--kw", "size=8", "--only", "lookup.nearest"]
    code, _, said = run(*arguments, "--json", "r.json", "--scripts", "taken/bugs")
    assert code == 2
    assert "cannot be written" in said
    assert (tmp_path / "r.json").exists()


def test_a_row_without_a_script_says_so(run, tmp_path):
    mutant = mutants()["perplexity_base"]
    kwargs = [word for name, value in mutant.kwargs.items() for word in ("--kw", f"{name}={value}")]
    code, shown, _ = run("check", mutant.target, *kwargs, "--only", "metrics.perplexity", "--scripts", "bugs")
    assert code == 1
    assert "none: no script is written for the row metrics.perplexity" in " ".join(shown.split())
    assert not (tmp_path / "bugs").exists()


KEPT = sorted((Path(__file__).parents[2] / "properties" / "witnesses").glob("*.json"))
HERE = [file for file in KEPT if json.loads(file.read_text("utf-8"))["subject"]["target"].startswith("vector_quantize")]


@pytest.mark.nightly
@pytest.mark.parametrize("file", HERE, ids=lambda file: file.stem)
def test_the_kept_failures_of_an_installed_library_have_scripts(file):
    told = scripts.of_witness(json.loads(file.read_text("utf-8")))
    assert told.script is not None, told.reason
    assert "vqverify" not in told.script.text
    assert len(told.script.text.splitlines()) <= compose.LINES


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(3, 4),
        torch.full((2, 2), 0.1),
        torch.tensor([[1.5, -2.0], [0.0, 1e-30]]),
        torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
        torch.eye(9)[:3] * 2.5,
        torch.tensor([[1.0, 2.0]] * 7 + [[3.0, 4.0]] * 5),
        torch.tensor([[float("nan"), float("inf"), -float("inf")]]),
        torch.tensor([[0.1, 0.2]], dtype=torch.float64),
        torch.tensor([3, 1]),
        torch.zeros(0, 4),
    ],
)
def test_a_literal_gives_the_tensor_back_exactly(tensor):
    text = "\n".join(folded(f"x = {literal(tensor)}", 60))
    found: dict[str, torch.Tensor] = {"torch": torch}  # type: ignore[dict-item]
    exec(text, found)
    assert found["x"].dtype == tensor.dtype
    assert found["x"].shape == tensor.shape or tensor.numel() == 0
    assert torch.equal(found["x"].nan_to_num(7), tensor.nan_to_num(7)) or tensor.numel() == 0


def test_long_lines_are_broken_inside_brackets_only():
    line = 'print("one, two", f(1, 2), [3, 4, 5], "and must be", g(6, 7))'
    pieces = list(folded(line, 30))
    assert max(map(len, pieces)) <= 30
    assert len(pieces) > 2
    compile("\n".join(pieces), "x", "exec")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("raise ValueError('one\\ntwo')", "ValueError: one"),
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        ("assert False", "AssertionError"),
        ("print(1)", ""),
    ],
)
def test_a_fresh_process_tells_what_was_raised(line, named):
    ran = checked.run(f"{line}\n")
    assert ran.error == named
    assert ran.code == int(bool(named))


def test_every_failure_of_a_layer_that_raises_in_training_is_told(run, tmp_path):
    (tmp_path / "mine.py").write_text(LAYER.replace("k = ", "assert not self.training; k = "))
    only = ["--only", "interface.generators", "--only", "interface.eval_deterministic", "--only", "interface.no_alias"]
    arguments = ["check", "mine.py:Forgetful", "--kw", "dim=3", "--kw", "size=8", *only]
    code, _, shown = run(*arguments, "--json", "r.json", "--scripts", "bugs")
    assert code == 1, shown
    data = json.loads((tmp_path / "r.json").read_text("utf-8"))
    failed = [result for result in data["subjects"][0]["results"] if result["status"] == "failed"]
    assert {"interface.generators", "interface.no_alias"} <= {result["invariant"] for result in failed}
    assert all(bool(result["script"]) != bool(result["unscripted"]) for result in failed)
