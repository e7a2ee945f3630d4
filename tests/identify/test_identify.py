"""Every layer is what its code says, over construction seeds; nothing is concluded where nothing can be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.identify.expected import LIBRARY, MUTANTS, REFERENCE, SMALL, STACK, STRANGERS, Row
from vqverify.identify import identify
from vqverify.quantizer import Finding, Spec
from vqverify.subject import open_subject
from vqverify.subject.claims import honesty
from vqverify.subject.layer import Layer

SEEDS = 5
ROTATION, OURS = "vqverify.reference:VectorQuantizer", "tests.identify.strangers"


def _open(target: str, kwargs: dict[str, Any], seed: int = 0, **claims: Any) -> Layer:
    return open_subject(Spec(target, kwargs, claims, seed=seed))


def _agrees(found: Any, want: Any, name: str) -> bool:
    if isinstance(want, float) and found is not None:
        return abs(found - want) <= (0.2 if name == "temperature" else 0.02) * max(abs(want), 1e-12)
    return found == want


def _wrong(found: dict[str, Finding], want: dict[str, Any]) -> dict[str, Any]:
    got = {name: found["estimator"].mistake if name == "mistake" else found[name].value for name in want}
    return {name: value for name, value in got.items() if not _agrees(value, want[name], name)}


def _failed(layer: Layer) -> list[str]:
    return [name for name, status, _, _ in honesty(layer.claims, layer.found) if status == "failed"]


def _name(value: Any) -> str:
    return value.rpartition(":")[2] if isinstance(value, str) else ""


@pytest.mark.parametrize(("target", "kwargs", "want"), [*REFERENCE, *LIBRARY, *STRANGERS], ids=_name)
def test_layer_is_what_its_code_says(target: str, kwargs: dict[str, Any], want: dict[str, Any]) -> None:
    for seed in range(SEEDS):
        layer = _open(target, kwargs, seed)
        assert not _wrong(layer.found, want), f"seed {seed}"
        assert not _failed(layer), f"seed {seed}"


@pytest.mark.parametrize(("target", "kwargs", "want"), MUTANTS, ids=_name)
def test_mutant_is_rotation_with_its_mistake(target: str, kwargs: dict[str, Any], want: dict[str, Any]) -> None:
    for seed in range(SEEDS):
        layer = _open(target, kwargs, seed)
        assert not _wrong(layer.found, want), f"seed {seed}"
        assert _failed(layer) == (["estimator"] if target.endswith("Silent") else []), f"seed {seed}"


def test_every_finding_has_its_evidence() -> None:
    for target, kwargs, _ in [REFERENCE[0], REFERENCE[4], LIBRARY[0], STRANGERS[0]]:
        found = _open(target, kwargs).found
        assert [name for name, finding in found.items() if not finding.evidence] == []


def test_one_estimator_around_a_stack() -> None:
    finding = _open(f"{OURS}:RVQ", STACK).found["estimator"]
    assert finding.value == "straight-through"
    assert "around the stack" in finding.evidence


def test_commitment_is_zero_only_where_no_latent_gets_a_gradient() -> None:
    layer = _open(f"{OURS}:Detached", STACK)
    assert layer.found["commitment_weight"].value == 0.0
    assert _failed(layer) == ["commitment_weight"]


@pytest.mark.parametrize(("grows", "want"), [(False, 0.9), (True, None)])
def test_decay_without_counts_is_confirmed_at_two_sizes(grows: bool, want: float | None) -> None:
    found = _open(f"{OURS}:Leaky", {**SMALL, "grows": grows}).found["decay"]
    assert found.value is None if want is None else _agrees(found.value, want, "decay")


@pytest.mark.parametrize("size", [{"dim": 8, "codebook_size": 16}, {"dim": 256, "codebook_size": 64}])
def test_decay_of_hidden_accumulators_is_unknown(size: dict[str, int]) -> None:
    layer = _open("vector_quantize_pytorch:VectorQuantize", size)
    hidden = replace(layer, plan=replace(layer.plan, accumulators=()))
    assert identify(hidden)["decay"].value is None


@pytest.mark.parametrize(("factor", "failed"), [(1.0, []), (0.5, ["commitment_weight"])])
def test_weight_of_the_whole_loss_is_a_reading_of_its_name(factor: float, failed: list[str]) -> None:
    assert _failed(_open(f"{OURS}:WholeLoss", {**SMALL, "factor": factor})) == failed


@pytest.mark.parametrize("weight", [0.0, 0.25, 2.0])
def test_commitment_among_other_terms_is_what_its_weight_adds(weight: float) -> None:
    layer = _open("tests.discovery.styles:Signs", {"commitment_cost": weight})
    assert _agrees(layer.found["commitment_weight"].value, weight, "commitment_weight")
    assert layer.found["loss_coefficients"].value is None
    assert _failed(layer) == []
    assert _failed(_open("tests.discovery.styles:Signs", {}, commitment_weight=0.5)) == ["commitment_weight"]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_temperature_of_drawn_codes(temperature: float) -> None:
    layer = _open(ROTATION, {**SMALL, "temperature": temperature})
    assert abs(layer.found["temperature"].value - temperature) < 0.1 * temperature
    assert _failed(layer) == []


def test_wrong_temperature_is_contradicted() -> None:
    layer = _open(ROTATION, {**SMALL, "temperature": 1.0}, temperature=2.0)
    assert _failed(layer) == ["temperature"]


def test_temperature_of_another_term_is_not_held_against_a_layer() -> None:
    layer = _open("vqverify.reference:LFQ", {"dim": 5, "temperature": 2.0})
    cases = {name: (status, label) for name, status, label, _ in honesty(layer.claims, layer.found)}
    assert cases["temperature"] == ("undetermined", "dormant")


def test_laws_of_drawn_codes_that_cannot_be_told_apart_are_all_named() -> None:
    layer = _open("vector_quantize_pytorch:VectorQuantize", {**SMALL, "stochastic_sample_codes": True})
    assert any(abs(t - 1.0) < 0.2 for t in layer.found["temperature_equivalent"].value)


@pytest.mark.parametrize("row", [REFERENCE[0], STRANGERS[0]], ids=lambda row: _name(row[0]))
def test_layer_is_left_as_built(row: Row) -> None:
    layer = _open(row[0], row[1])
    before = layer.state()
    identify(layer)
    after = layer.state()
    assert all(before[name].equal(after[name]) for name in before)


SMALLEST = [
    (
        {"dim": 1, "codebook_size": 4, "estimator": "straight-through"},
        {"estimator": "straight-through", "smoothing": 0.0},
    ),
    ({"dim": 1, "codebook_size": 4}, {"estimator": "rotation", "mistake": None, "decay": 0.99}),
    ({"dim": 2, "codebook_size": 2, "smoothing": 1e-3}, {"estimator": "rotation", "smoothing": 1e-3}),
    ({"dim": 4, "codebook_size": 1}, {"estimator": "rotation", "learning": ["ema"], "decay": 0.99}),
]


@pytest.mark.parametrize(("kwargs", "want"), SMALLEST, ids=lambda value: "-".join(map(str, value.values())))
def test_smallest_sizes(kwargs: dict[str, Any], want: dict[str, Any]) -> None:
    for seed in range(SEEDS):
        layer = _open(ROTATION, kwargs, seed)
        assert not _wrong(layer.found, want), f"seed {seed}"
        assert not _failed(layer), f"seed {seed}"
