"""The tables of `benchmarks/` that are about trainings."""

import importlib
import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import _mutated, _watch, training, trainings
from vqverify.mutant import mutants
from vqverify.mutants import base, loss, rotation
from vqverify.training import WATCHED


def test_asv_names_what_is_watched():
    assert [recipe.name for recipe, _ in _watch.watched()] == training.NAMES


def test_every_number_of_asv_is_explained():
    tracks = [getattr(training.Training, name) for name in vars(training.Training) if name.startswith("track_")]
    assert len(tracks) >= 10
    for track in tracks:
        assert track.pretty_name.startswith("Training: ")
        assert track.unit
        assert track.version == "1"


def test_a_commit_from_before_the_trainings_is_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "benchmarks._watch", None)
    monkeypatch.delattr(importlib.import_module("benchmarks"), "_watch")
    one = training.Training()
    assert one.setup_cache() == {}
    with pytest.raises(NotImplementedError):
        one.setup({}, training.NAMES[0])


def test_curves_survive_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(_watch, "watched", lambda: [(_watch.Recipe("spiral", "straight-through"), 4)])
    found = _watch.curves(2)
    _watch.save(found, tmp_path / "curves.json")
    assert _watch.load(tmp_path / "curves.json") == found
    assert set(found[0].values) == set(WATCHED)


@pytest.mark.parametrize(
    ("content", "said"), [("{}", "holds no curves"), ("[", "Expecting value"), ('{"curves": [1]}', "no curve")]
)
def test_a_file_without_curves_is_refused(tmp_path, content, said):
    (tmp_path / "bad").write_text(content)
    with pytest.raises(ValueError, match=said):
        _watch.load(tmp_path / "bad")


def test_mutants_have_right_counterparts():
    wrong = set(_mutated.kinds().values())
    found = {name: _mutated.counterpart(mutant) for name, mutant in mutants().items() if mutant.role == "layer"}
    assert not wrong & set(found.values())
    assert found["silent_straight_through"] is base.RotationLayer
    assert found["loss_after_patch"] is base.DictLayer
    assert found["loss_halved"].__name__ == "_EmaLoss"
    assert set(found) >= _mutated.BESIDES
    assert sum(one is None for one in found.values()) < len(found) / 5


def test_a_pair_starts_from_the_same_codes():
    z = torch.randn(50, 8)
    pair = []
    for kind in (rotation.Silent, base.RotationLayer, base.ImageLayer):
        torch.manual_seed(0)
        pair.append(_mutated.layer(kind, {}, 8, 32).builder()(z))
    assert torch.equal(pair[0].table, pair[1].table)
    assert torch.equal(pair[0].total, pair[1].table)
    assert torch.equal(pair[2].embedding.weight, pair[1].table)


def test_sizes_follow_the_names_of_the_field():
    assert _mutated.layer(loss.WeightsExchanged, {"dim": 8, "num_codes": 16}, 2, 128).size == 128
    levels = _mutated.layer(_mutated.kinds()["fsq_unoffset"], {"levels": [8, 5, 5]}, 8, 32)
    assert levels.size == math.prod(levels.arguments["levels"])
    assert len(levels.arguments["levels"]) == 8


@pytest.mark.nightly
def test_a_silent_estimator_is_seen_and_harmless_mutants_are_not():
    comparison = trainings.Comparison()
    judged, change = comparison.judged(mutants()["silent_straight_through"], 0)
    assert judged.verdict != "unchanged"
    assert abs(change) < trainings.SUBTLE
    assert comparison.judged(mutants()["rotation_unguarded"], 0) == trainings.IDENTICAL
    rounding, _ = comparison.judged(mutants()["rotation_one_plus_cosine"], 0)
    assert rounding.verdict == "unchanged"


@pytest.mark.nightly
@pytest.mark.parametrize(
    "name",
    [
        "absorbs_nan",
        "closure_over_self",
        "compiles_without_update",
        "ema_setter_forgets",
        "returns_buffer",
        "reuses_output",
        "reads_storage",
        "chunk_forgets_rest",
    ],
)
def test_a_mutant_that_trains_as_the_right_layer_is_identical_whatever_was_trained_before(name):
    comparison = trainings.Comparison()
    clamps = trainings.sized(_mutated.kinds()["clamps_in_place"], {}, 1)
    trainings.train_with(clamps, [0], 1)
    assert comparison.judged(mutants()[name], 1) == trainings.IDENTICAL
