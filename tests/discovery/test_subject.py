"""From a Spec to a layer: bare estimators, adapters, dtypes, seeds, other processes."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from vqverify.bounds import Violation
from vqverify.quantizer import Spec
from vqverify.subject import open_subject, restores
from vqverify.subject.target import TargetError

from . import styles
from .test_target import FILE

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "estimators.py"
    path.write_text(FILE)
    return str(path)


def test_a_bare_function_is_a_layer_with_one_level(file: str) -> None:
    layer = open_subject(Spec(f"{file}:rotate", {"dim": 3, "codebook_size": 5}, role="estimator"))
    z = torch.randn(7, 3)
    out = layer.forward(z, trace=True)
    (book,) = layer.codebooks()
    assert book.shape == (5, 3)
    assert out.codes is not None
    assert torch.equal(out.codes[:, 0], torch.cdist(z.double(), book.double()).argmin(1))
    assert len(out.levels) == 1
    assert torch.equal(layer.vjp(out, torch.ones(7, 3)), torch.ones(7, 3))


def test_a_bare_function_that_raises_is_a_violation(file: str) -> None:
    layer = open_subject(Spec(f"{file}:refuses", role="estimator"))
    with pytest.raises(Violation, match="not like this"):
        layer.forward(torch.randn(3, 4))


def test_a_bare_function_has_two_arguments(file: str) -> None:
    with pytest.raises(TargetError, match="a bare estimator has no argument 'size'"):
        open_subject(Spec(f"{file}:rotate", {"size": 3}, role="estimator"))


class NeedsRate(styles.Named):
    def forward(self, x: torch.Tensor, rate: int) -> Any:
        return rate, self.quantize(x)


def test_an_adapter_says_how_to_call(tmp_path: Path) -> None:
    path = tmp_path / "rate.py"
    path.write_text(
        "from vqverify.subject.plan import Call, Output, Plan, Slot\n"
        "class Rate:\n"
        "    def plan(self, module, kwargs):\n"
        "        call = Call('BND', Output((1, 0), 'BND'), (Output((1, 1), 'BN'),), (Output((1, 2)),))\n"
        "        return Plan(6, (call,), slots=(Slot('book'),), arguments={'rate': 3})\n"
    )
    layer = open_subject(Spec("NeedsRate", adapter=f"{path}:Rate"), obj=NeedsRate)
    assert layer.forward(torch.randn(4, 6)).codes is not None
    with pytest.raises(TargetError, match="has no method plan"):
        open_subject(Spec("NeedsRate", adapter="vqverify.bounds:within"), obj=NeedsRate)


def test_restored_is_fresh() -> None:
    for cls in (styles.Transposed, styles.LossFirst, styles.LevelsFirst):
        kwargs: dict[str, Any] = {
            styles.Transposed: {"dim": 6, "n_embed": 16},
            styles.LossFirst: {"num_embeddings": 16, "embedding_dim": 6},
        }.get(cls, {})
        layer = open_subject(Spec(cls.__name__, kwargs), obj=cls)
        assert layer.copyable
        assert restores(layer)


def test_dtype_and_seed_are_part_of_the_spec() -> None:
    spec = Spec("vqverify.reference:VectorQuantizer", {"dim": 4, "codebook_size": 8}, dtype="float64")
    layer = open_subject(spec)
    assert layer.domain.dtype is torch.float64
    assert layer.codebooks()[0].dtype is torch.float64
    assert not torch.equal(layer.codebooks()[0], layer.build(seed=1).codebooks()[0])
    with pytest.raises(TargetError, match="'floot64' is no floating dtype of torch; did you mean 'float64'"):
        open_subject(Spec(spec.target, spec.kwargs, dtype="floot64"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_the_way_to_call_does_not_depend_on_precision(dtype: str) -> None:
    spec = Spec("vqverify.reference:ResidualVQ", {"dim": 4, "codebook_size": 8, "num_quantizers": 2})
    layer = open_subject(replace(spec, dtype=dtype))
    assert layer.plan == open_subject(spec).plan
    assert layer.forward(torch.randn(5, 4).to(layer.domain.dtype)).z_q.tensor.dtype is layer.domain.dtype


def test_another_process_needs_the_spec_alone() -> None:
    spec = Spec("vqverify.reference:VectorQuantizer", {"dim": 4, "codebook_size": 8})
    assert pickle.loads(pickle.dumps(open_subject)) is open_subject
    program = (
        "import pickle, sys, vqverify.subject as s\n"
        "layer = s.open_subject(pickle.loads(sys.stdin.buffer.read()))\n"
        "sys.stdout.buffer.write(pickle.dumps((layer.plan, layer.codebooks()[0].tolist())))"
    )
    done = subprocess.run([sys.executable, "-c", program], input=pickle.dumps(spec), capture_output=True, check=True)
    plan, book = pickle.loads(done.stdout)
    here = open_subject(spec)
    assert plan == here.plan
    assert book == here.codebooks()[0].tolist()
