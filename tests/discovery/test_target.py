"""Bad targets and bad kwargs: one clear sentence, near names, no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from vqverify.quantizer import Spec
from vqverify.subject import open_subject
from vqverify.subject.target import TargetError, construct, load, package_of

FILE = """
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class Out:
    x: int = 0

class Mine(nn.Module):
    def __init__(self, dim: int = 4):
        super().__init__()
        self.book = nn.Parameter(torch.randn(6, dim))

    def forward(self, z):
        ids = torch.cdist(z, self.book[None]).argmin(-1)
        return z + (self.book[ids] - z).detach(), ids

class Broken(Mine):
    def __init__(self):
        raise ValueError("cannot be made")

def make(size: int):
    return Mine(size)

def number():
    return 3

constant = 3

def rotate(z, q):
    return z + (q - z).detach()

def refuses(z, q):
    raise RuntimeError("not like this")
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "my_layers.py"
    path.write_text(FILE)
    (tmp_path / "bad_import.py").write_text("import no_such_thing\n")
    (tmp_path / "bad_syntax.py").write_text("def f(:\n")
    return str(path)


@pytest.mark.parametrize(
    ("target", "kwargs", "sentence"),
    [
        ("Mine", {}, "target 'Mine' has no class: write package.module:Class or ./file.py:Class"),
        ("{file}:Mino", {}, "has no 'Mino'; did you mean 'Mine'?"),
        ("{file}:constant", {}, "is an int; a class or a function is needed"),
        ("{dir}/my_layer.py:Mine", {}, "there is no file {dir}/my_layer.py; did you mean 'my_layers.py'?"),
        (
            "{dir}/bad_import.py:Mine",
            {},
            "cannot be imported: ModuleNotFoundError: No module named 'no_such_thing'",
        ),
        ("{dir}/bad_syntax.py:Mine", {}, "cannot be imported: SyntaxError"),
        ("vqverify.no_part:Mine", {}, "vqverify has no module 'no_part'"),
        ("no_such_package:Mine", {}, "there is no module 'no_such_package'; is it installed?"),
        ("{file}:Mine", {"dims": 3}, "Mine has no argument 'dims'; did you mean 'dim'?"),
        ("{file}:make", {}, "make needs 'size': add --kw size=..."),
        ("{file}:Broken", {}, "Broken() cannot be built: ValueError: cannot be made"),
        ("{file}:number", {}, "number() gave an int; a torch.nn.Module is needed"),
        (
            "vector_quantize_pytorch:ResidualVQ",
            {"dim": 8, "num_quantizers": 2, "codebook_size": 8, "decai": 1},
            "decai",
        ),
    ],
)
def test_one_sentence_says_what_was_given_and_what_is_needed(
    file: str, target: str, kwargs: dict[str, object], sentence: str
) -> None:
    places = {"file": file, "dir": str(Path(file).parent)}
    with pytest.raises(TargetError) as caught:
        open_subject(Spec(target.format(**places), kwargs))
    assert sentence.format(**places) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_is_the_same_class_each_time(file: str) -> None:
    assert load(f"{file}:Mine") is load(f"{file}:Mine")


def test_construction_is_seeded_and_leaves_the_generators_alone(file: str) -> None:
    import torch

    before = torch.random.get_rng_state()
    first, second, other = (construct(load(f"{file}:Mine"), {}, seed) for seed in (1, 1, 2))
    assert torch.equal(first.book, second.book)
    assert not torch.equal(first.book, other.book)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_factory_builds_with_its_arguments(file: str) -> None:
    layer = open_subject(Spec(f"{file}:make", {"size": 5}))
    assert layer.domain.dim == 5


def test_where_a_class_comes_from(file: str) -> None:
    import vector_quantize_pytorch

    assert package_of(vector_quantize_pytorch.VectorQuantize) == (
        "vector-quantize-pytorch",
        vector_quantize_pytorch_version(),
    )
    assert package_of(load("vqverify.subject.bare:BareEstimator"))[0] == "vqverify"
    assert package_of(load(f"{file}:Mine")) is None


def vector_quantize_pytorch_version() -> str:
    from importlib.metadata import version

    return version("vector-quantize-pytorch")
