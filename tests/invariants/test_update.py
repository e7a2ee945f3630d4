"""Rows about how codebooks move: right layers pass them, what was found on real ones stays found."""

import os
import time

import pytest
import torch

from vqverify import check_quantizer
from vqverify.bounds import Violation
from vqverify.quantizer import Spec
from vqverify.subject import open_subject

SIZES = {"dim": 8, "codebook_size": 16}
R, V, M = "vqverify.reference:VectorQuantizer", "vector_quantize_pytorch:VectorQuantize", "vqverify.mutants"
LEARNT = {**SIZES, "learnable_codebook": True, "ema_update": False}


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.5)


PASSES = [
    (R, {**SIZES, "learning": "gradient", "synchronized": 0.3}, "update.synchronized"),
    (R, {**SIZES, "learning": "gradient"}, "update.gradient_codes"),
    (R, {**SIZES, "learning": "gradient", "affine": "learnable"}, "update.affine"),
    (R, {**SIZES, "learning": "gradient", "affine": "moments"}, "update.affine"),
    (R, {**SIZES, "replacement": 3}, "update.expiry"),
    (R, {**SIZES, "replacement": 2, "learning": "gradient"}, "update.expiry"),
    (R, {**SIZES, "metric": "cosine", "replacement": 2, "initialisation": "kmeans"}, "update.expiry"),
    (R, {**SIZES, "metric": "cosine", "initialisation": "kmeans"}, "update.kmeans_init"),
    (R, {**SIZES, "smoothing": 1e-3}, "update.fixed_point"),
    (R, {**SIZES, "decay": 0.9}, "update.long_run"),
    (V, SIZES, "update.fixed_point"),
    (V, SIZES, "update.long_run"),
    (V, {**SIZES, "threshold_ema_dead_code": 2}, "update.expiry"),
    (V, {**LEARNT, "threshold_ema_dead_code": 2}, "update.expiry"),
    (V, {**SIZES, "kmeans_init": True}, "update.kmeans_init"),
    (V, {**SIZES, "affine_param": True}, "update.affine"),
    (V, {**LEARNT, "in_place_codebook_optimizer": sgd, "commitment_weight": 0.0}, "update.alternating"),
    (f"{M}.update_learnt:InnerOptimiser", {"dim": 4, "n_embed": 8}, "update.alternating"),
    (f"{M}.update_hull:OnlineKMeans", {"n_features": 4, "n_clusters": 8}, "update.hull"),
    (f"{M}.update_hull:OnSphere", {"hidden": 4, "num_tokens": 8}, "honesty.traits"),
]
FINDINGS = [  # (constructor arguments, row, label): of vector-quantize-pytorch 1.32.0
    ({**LEARNT, "sync_update_v": 0.3}, "update.synchronized", "codes"),
    ({**LEARNT, "in_place_codebook_optimizer": sgd}, "update.alternating", "second gradient"),
    ({**SIZES, "use_cosine_sim": True}, "update.consistent_state", "e = m/N"),
]


def results(target, kwargs, row, **more):
    return check_quantizer(target, kwargs, only=(row,), **more).subjects[0].results


@pytest.mark.parametrize("name", ["Neighbours", "SoftShares"])
def test_codes_that_other_latents_move_too_are_not_held_to_their_own(name):
    assert {r.status for r in results(f"tests.identify.moved:{name}", {}, "update.hull")} == {"n/a"}


def test_anchors_are_no_optimiser_in_the_pass():
    found = results("tests.identify.moved:Anchors", {}, "*")
    laws = [
        (r.invariant, r.label, r.message or r.reason)
        for r in found
        if r.kind == "law" and r.status in {"failed", "error"}
    ]
    assert not laws
    assert {r.status for r in found if r.invariant in {"lookup.nearest", "loss.gradients"}} == {"passed"}


@pytest.mark.parametrize(("target", "kwargs", "row"), PASSES)
def test_right_layers_pass(target, kwargs, row):
    found = results(target, kwargs, row)
    assert [(r.status, r.label, r.message or r.reason) for r in found if r.status != "passed"] == []


@pytest.mark.parametrize(("kwargs", "row", "label"), FINDINGS)
def test_findings_stay(kwargs, row, label):
    assert label in {r.label for r in results(V, kwargs, row) if r.status == "failed"}


@pytest.mark.parametrize(
    ("kwargs", "trait", "value"),
    [
        ({**SIZES, "replacement": 5}, "lifespan", 5),
        ({**SIZES, "initialisation": "kmeans"}, "initialisation", "kmeans"),
        ({**SIZES, "learning": "gradient", "affine": "moments"}, "affine_order", "past"),
        ({**SIZES, "learning": "gradient", "affine": "moments"}, "affine_decay", 0.99),
        ({**SIZES, "learning": "gradient", "synchronized": 0.25}, "synchronized", 0.25),
        (SIZES, "affine", "none"),
        (SIZES, "alternating", False),
    ],
)
def test_traits_are_found_by_behaviour(kwargs, trait, value):
    assert open_subject(Spec(R, kwargs)).found[trait].value == value


def test_a_threshold_is_found_and_a_wrong_claim_contradicted():
    layer = open_subject(Spec(f"{M}.update_start:ReplacingLayer", {"dim": 4, "codebook_size": 8, "dead_below": 0.25}))
    assert layer.found["dead_below"].value == pytest.approx(0.25, rel=0.1)
    (threshold,) = [
        r
        for r in results(
            f"{M}.update_start:ReplacingLayer",
            {"dim": 4, "codebook_size": 8},
            "honesty.traits",
            claims={"dead_below": 2},
        )
        if r.case == "dead_below"
    ]
    assert (threshold.status, threshold.label) == ("failed", "contradicted")


def sleeps(_layer, _rank, _arguments):
    time.sleep(60)


def fails(_layer, rank, _arguments):
    raise RuntimeError(f"no luck in {rank}")


def pid(_layer, rank, arguments):
    return rank, os.getpid(), arguments


def test_processes_that_hang_are_ended():
    layer = open_subject(Spec(R, SIZES))
    from vqverify.subject.processes import together

    began = time.monotonic()
    with pytest.raises(Violation, match="hung"):
        together(layer, f"{__name__}:sleeps", None, timeout=0.5)
    assert time.monotonic() - began < 20


def test_processes_return_what_they_did_and_none_is_left():
    layer = open_subject(Spec(R, SIZES))
    (first, a, said), (second, b, _) = layer.together(f"{__name__}:pid", "hello")
    assert (first, second, said) == (0, 1, "hello")
    for gone in (a, b):
        with pytest.raises(ProcessLookupError):
            os.kill(gone, 0)


def test_an_exception_in_a_process_is_a_finding():
    with pytest.raises(Violation, match=r"no luck in \d"):
        open_subject(Spec(R, SIZES)).together(f"{__name__}:fails", None)


def test_two_processes_that_sum_are_one():
    (result,) = results(
        f"{M}.update_distributed:SummedLayer", {"dim": 4, "codebook_size": 8}, "update.distributed", profile="merge"
    )
    assert result.status == "passed", result.message or result.reason
    assert result.margin is not None
    assert result.margin > 0
