"""`vqverify compare`: itself, a mutant, another library, another precision, another process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from vqverify.cli import group, run

REFERENCE = "vqverify.reference:VectorQuantizer"
SIZES = ["--kw", "dim=3", "--kw", "codebook_size=4"]
THIRD_PARTY = "vector_quantize_pytorch:VectorQuantize"
ALIKE = ["--kw-a", "decay=0.8", "--kw-a", "commitment_weight=1.0"]


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


def test_another_library() -> None:
    code, said = compared(REFERENCE, THIRD_PARTY, *ALIKE, "--only", "value,codes,gradient")
    assert code in {0, 1}, said
    if code == 1:  # eval passes of that library have no gradient: the only thing in which they differ
        assert "gradient in eval" in said
        assert "gradient in train" not in said


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


BAD = [
    ([REFERENCE], "compare needs B"),
    ([REFERENCE, REFERENCE, "--kw-b", "dim=5"], "A takes latents of D = 3, B of D = 5"),
    ([REFERENCE, REFERENCE, "--kw-b", "codebook_size=5"], "the codebooks of A have shapes"),
    ([REFERENCE, REFERENCE, "--only", "valeu"], "did you mean value"),
    ([REFERENCE, "--python-b", "/nowhere/python"], "cannot be started"),
    ([REFERENCE, "nowhere:Layer"], "there is no module 'nowhere'"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=lambda value: str(value)[:30])
def test_bad_commands_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", *words, *SIZES]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
