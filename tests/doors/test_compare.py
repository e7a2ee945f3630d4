"""`vqverify compare`: itself, a mutant, another library, another precision, another process."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from vqverify.case import Case
from vqverify.cli import group, run
from vqverify.mutant import mutants
from vqverify.quantizer import Spec
from vqverify.run.compare import again
from vqverify.run.observed import Here
from vqverify.subject import open_subject

REFERENCE = "vqverify.reference:VectorQuantizer"
SIZES = ["--kw", "dim=3", "--kw", "codebook_size=4"]
THIRD_PARTY = "vector_quantize_pytorch:VectorQuantize"
ALIKE = ["--kw-a", "decay=0.8", "--kw-a", "commitment_weight=1.0", "--kw-a", "smoothing=1e-5"]
EARLY = "vqverify.mutants.base:EmaLayer"
LATE = f"{Path(__file__).parents[1] / 'miniatures.py'}:LastOfEqual"


def compared(*words: str, to: Path | None = None) -> tuple[int, str]:
    more = ["--json", str(to)] if to else []
    found = CliRunner().invoke(group, ["compare", *words, *SIZES, *more], standalone_mode=False)
    assert found.exception is None, found.output
    return found.return_value, found.output


def test_a_layer_is_like_itself() -> None:
    code, said = compared(REFERENCE, REFERENCE)
    assert code == 0, said
    assert "no difference in" in said
    assert "value 0, gradient 0" in said


def test_the_smallest_difference_is_found_and_replayed(tmp_path: Path) -> None:
    """Straight-through and rotation agree in value, codes, loss and state; one latent tells them apart."""
    code, said = compared(REFERENCE, "--kw-b", "estimator=straight-through", to=tmp_path / "found.json")
    assert code == 1, said
    data: dict[str, Any] = json.loads((tmp_path / "found.json").read_text())
    assert {one["label"] for one in data["differences"]} == {"gradient"}
    program = data["differences"][0]["witness"]
    values = next(step for step in program["operations"] if step["op"] == "check")
    assert values["z"]["shape"] == [1, 3]
    assert sum(value != 0 for value in values["z"]["values"] + values["g"]["values"]) <= 3
    (tmp_path / "witness.json").write_text(json.dumps(program))
    assert run(["replay", str(tmp_path / "witness.json")]) == 1
    program["against"]["spec"]["kwargs"]["estimator"] = "rotation"
    (tmp_path / "witness.json").write_text(json.dumps(program))
    assert run(["replay", str(tmp_path / "witness.json")]) == 0


def test_another_decay_is_another_state() -> None:
    code, said = compared(REFERENCE, "--kw-b", "decay=0.9", "--only", "state")
    assert code == 1
    assert "state in train" in said


def test_another_library(tmp_path: Path) -> None:
    """A training step of the reference is one of vector-quantize-pytorch; in eval that gives no loss and no gradient."""
    code, said = compared(REFERENCE, THIRD_PARTY, *ALIKE, to=tmp_path / "found.json")
    assert code == 1, said
    found = json.loads((tmp_path / "found.json").read_text())
    differ = {(one["mode"], one["label"]) for one in found["differences"]}
    assert differ == {("eval", "gradient"), ("eval", "loss"), ("eval", "loss gradient")}
    assert set(found["deviations"]) == {"value", "gradient", "state", "loss"}


def test_another_library_differs_where_it_is_told_to(tmp_path: Path) -> None:
    code, said = compared(REFERENCE, THIRD_PARTY, *ALIKE, "--kw-b", "rotation_trick=false", to=tmp_path / "found.json")
    assert code == 1, said
    found = json.loads((tmp_path / "found.json").read_text())
    assert ("train", "gradient") in {(one["mode"], one["label"]) for one in found["differences"]}


def test_a_step_with_equally_near_codes_is_no_difference() -> None:
    """Whichever of two equally near codes a step of the history took, what follows from it is not judged."""
    farthest = mutants()["argmax_lookup"].target
    a, late, wrong = (open_subject(Spec(target, {"dim": 2, "codebook_size": 4})) for target in (EARLY, LATE, farthest))
    books = (torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 9.0], [0.0, -9.0]]),)
    tie, clear = torch.zeros(1, 2), torch.tensor([[0.5, 0.0]])
    case = Case(clear, clear, codebook=books, history=(tie,), part="train")
    assert not again(a, Here(late), case, ("value", "codes"))
    assert again(a, Here(wrong), replace(case, history=(clear,)), ("value", "codes"))


def test_lower_precision_is_no_difference() -> None:
    code, said = compared(REFERENCE, "--dtype-b", "bfloat16")
    assert code == 0, said


def test_another_interpreter() -> None:
    code, said = compared(REFERENCE, "--kw-b", "decay=0.9", "--python-b", sys.executable, "--only", "state")
    assert code == 1, said
    assert f"in{sys.executable}" in "".join(said.split())


@pytest.mark.nightly
def test_a_compiled_layer_is_like_itself() -> None:
    code, said = compared(REFERENCE, "--compile")
    assert code == 0, said


@pytest.mark.nightly
def test_two_releases_of_one_library(tmp_path: Path) -> None:
    """An old release straight-through, the new one with the rotation trick: the gradient in train, and nothing else."""
    old = tmp_path / "old"
    venv.create(old, with_pip=True)
    python = str(old / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", f"torch=={torch.__version__.partition('+')[0]}", "numpy"]
    subprocess.run([*install, "vector-quantize-pytorch==1.14.0"], check=True, timeout=900)
    code, said = compared(THIRD_PARTY, "--python-b", python, "--kw-a", "rotation_trick=false")
    assert code == 0, said
    code, said = compared(THIRD_PARTY, "--python-b", python, to=tmp_path / "found.json")
    assert code == 1, said
    found = json.loads((tmp_path / "found.json").read_text())
    assert {(one["mode"], one["label"]) for one in found["differences"]} == {("train", "gradient")}


BAD = [
    ([REFERENCE], "compare needs B"),
    ([REFERENCE, REFERENCE, "--kw-b", "dim=5"], "A takes latents of D = 3, B of D = 5"),
    ([REFERENCE, REFERENCE, "--kw-b", "codebook_size=5"], "the codebooks of A have shapes"),
    ([REFERENCE, REFERENCE, "--only", "valeu"], "did you mean value"),
    ([REFERENCE, "--python-b", "/nowhere/python"], "cannot be started"),
    ([REFERENCE, "nowhere:Layer"], "there is no module 'nowhere'"),
    ([REFERENCE, "--device-b", "nowhere"], "--device nowhere cannot be used here"),
    ([REFERENCE, "--dtype-b", "float12"], "'float12' is no floating dtype of torch"),
    ([REFERENCE, "--compile", "--python-b", sys.executable], "--compile and --python-b do not go together"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=lambda value: str(value)[:30])
def test_bad_commands_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", *words, *SIZES]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the device is there")
def test_a_device_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", REFERENCE, "--device-b", "cuda", *SIZES]) == 2
    assert "--device cuda cannot be used here" in " ".join(capsys.readouterr().err.split())


LEARNT = """
import torch, torch.nn.functional as F

class Learnt(torch.nn.Module):
    def __init__(self, dim, size):
        super().__init__()
        self.codes = torch.nn.Parameter(torch.randn(size, dim))

    def forward(self, z):
        k = torch.cdist(z.detach(), self.codes.detach()).argmin(-1)
        q = self.codes[k]
        loss = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
        return z + (q - z).detach(), k, loss

class Attached(Learnt):
    def forward(self, z):
        z_q, k, loss = super().forward(z)
        q = self.codes[k]
        return z_q, k, loss + 0.25 * (F.mse_loss(q, z.detach()) - F.mse_loss(q, z.detach()).detach())
"""


def test_what_the_loss_sends_the_codes_is_compared(tmp_path: Path) -> None:
    """A commitment that is not detached from the codes: value, codes, loss and the latents' gradient are the same."""
    (tmp_path / "learnt.py").write_text(LEARNT)
    words = [f"{tmp_path / 'learnt.py'}:Learnt", "--kw", "dim=3", "--kw", "size=4", "--json", str(tmp_path / "r.json")]
    alike = CliRunner().invoke(group, ["compare", words[0], *words], standalone_mode=False)
    assert alike.return_value == 0, alike.output
    found = CliRunner().invoke(
        group, ["compare", words[0].replace(":Learnt", ":Attached"), *words], standalone_mode=False
    )
    assert found.return_value == 1, found.output
    data = json.loads((tmp_path / "r.json").read_text())
    assert {one["label"] for one in data["differences"]} == {"codebook gradient"}
