"""Layers that are wrong still get a plan, so that the rows that name what is wrong can run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from vqverify.bounds import Violation
from vqverify.discovery import DiscoveryError, discover
from vqverify.discovery.trial import told
from vqverify.quantizer import Spec
from vqverify.subject import open_subject
from vqverify.subject.target import construct

from . import hostile

if TYPE_CHECKING:
    from vqverify.subject.plan import Plan


def opened(cls: Any) -> Plan:
    return discover(construct(cls, {}, 0), cls, {}, dtype=torch.float32)


@pytest.mark.parametrize(
    "name",
    [
        "Constant",
        "RaisesInTrain",
        "RaisesInEval",
        "Nan",
        "Hidden",
        "Reseeds",
        "Soft",
        "Shifted",
        "Argmax",
        "Noisy",
        "WrongDecoder",
    ],
)
def test_a_wrong_layer_gets_its_call(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    plan = opened(getattr(hostile, name))
    call = plan.calls[0]
    assert (plan.dim, call.layout, call.z_q.path) == (6, "BND", (0,))
    assert [(output.path, output.form) for output in call.codes] == [((1,), "BN")]
    assert [output.path for output in call.losses] == [(2,)]
    assert [slot.name for slot in plan.slots] == ([] if name == "Constant" else ["book"])
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")


@pytest.mark.parametrize("name", ["RaisesAlways", "Exits"])
def test_a_layer_that_raises_on_every_call_gets_a_guess(name: str) -> None:
    plan = opened(getattr(hostile, name))
    assert plan.dim == 6
    assert "every call raised" in plan.evidence["call"]
    assert ("out of luck" if name == "RaisesAlways" else "SystemExit") in plan.evidence["call"]


def test_it_is_opened_and_raises_a_violation_when_used() -> None:
    layer = open_subject(Spec("RaisesAlways"), obj=hostile.RaisesAlways)
    with pytest.raises(Violation, match="out of luck"):
        layer.forward(torch.randn(5, 6))


def test_evidence_says_what_is_odd() -> None:
    assert "NOT piecewise constant" in opened(hostile.Soft).evidence["z_q"]
    assert "NOT a function" in opened(hostile.Soft).evidence["codes"]
    assert "NOT finite" in opened(hostile.Nan).evidence["z_q"]
    assert "no input changes" in opened(hostile.Constant).evidence["layout"]
    assert "two equal calls differ" in opened(hostile.Hidden).evidence["z_q"]
    assert "another number" in opened(hostile.Shifted).evidence["codebook"]


def test_decoders_that_are_wrong_are_listed() -> None:
    plan = opened(hostile.WrongDecoder)
    assert {(decoder.method, decoder.output_form) for decoder in plan.decoders} == {
        ("decode", "BND"),
        ("explode", "BND"),
    }
    assert "layout BDN" in plan.evidence["decoders"]
    assert "after it looked the codes up" in plan.evidence["decoders"]


def test_a_decoder_that_permutes_bits_is_one() -> None:
    (decoder,) = opened(hostile.WrongBits).decoders
    assert decoder.method == "decode"


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("NeedsCondition", "condition"),
        ("CodesAlone", "codes without a z_q"),
        ("LogitsIn", r"of shape \(.*, 6\), .* for latents of shape \(.*, 16\) in train mode"),
        ("EvenOnly", "takes BND with B=2, N=64 but not any number of latents .*multiple of 4"),
    ],
)
def test_what_cannot_be_settled_prints_the_adapter(name: str, word: str) -> None:
    with pytest.raises(DiscoveryError, match=word) as caught:
        opened(getattr(hostile, name))
    head, _, template = str(caught.value).partition("\n")
    assert head.endswith(":")
    compile(template, "adapter", "exec")


def test_what_no_adapter_could_settle_is_said_in_one_sentence() -> None:
    with pytest.raises(DiscoveryError) as caught:
        opened(hostile.NoOutput)
    assert str(caught.value) == (
        "NoOutput returned a tensor of shape (), float32 for latents of shape (5, 31, 6): "
        "a tensor of its input's size is needed, to be z_q"
    )


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (None, "None"),
        ("a" * 50, f"the str '{'a' * 29}…"),
        ((torch.zeros(2), None), "a tuple (a tensor of shape (2,), float32; None)"),
        ({"z": [1]}, "a dict (z: a list)"),
    ],
)
def test_what_was_returned_is_told(returned: object, words: str) -> None:
    assert told(returned) == words


def test_global_generators_are_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    opened(hostile.Reseeds)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_simple_arguments_are_guessed() -> None:
    plan = opened(hostile.NeedsMore)
    assert set(plan.arguments) == {"rate", "bandwidth"}
    assert "rate, bandwidth, guessed" in plan.evidence["arguments"]
