"""Nothing that must hold fails on a right layer, however unusual its sizes, precision and style are."""

import pytest

from vqverify import check_quantizer
from vqverify.quantizer import Spec
from vqverify.subject import open_subject

R, U = "vqverify.reference:VectorQuantizer", "tests.identify.unusual"
MUST = {"law", "contract"}  # a limit of floating-point numbers may be met by a right layer
V = "vector_quantize_pytorch:VectorQuantize"
SYNC = {"dim": 4, "codebook_size": 8, "learning": "gradient", "affine": "moments", "synchronized": 0.5}
HEADS = {"dim": 8, "codebook_size": 16, "heads": 2, "threshold_ema_dead_code": 2}
CIRCLE = {"dim": 2, "codebook_size": 8, "metric": "cosine"}
LAYERS = [  # (target, kwargs, rows that once failed)
    (R, {**CIRCLE, "estimator": "straight-through"}, ("honesty.*", "estimator.*", "gap.*", "update.*")),
    (R, CIRCLE, ("estimator.*", "rotation.*", "update.ema_law")),
    (f"{U}:Kept", {}, ("update.*", "lookup.equivariance")),
    (f"{U}:Kept", {"half": "float16", "eps": 0.0}, ("update.*", "lookup.equivariance")),
    (f"{U}:Kept", {"half": "float32", "n_embed": 3, "clamp": True}, ("update.*",)),
    (f"{U}:Kept", {"half": "float32", "n_embed": 2}, ("update.*",)),
    (f"{U}:SharedResidual", {}, ("residual.*",)),
    (f"{U}:Lines", {}, ("fsq.*", "honesty.*", "product.*")),
    (f"{U}:Directions", {}, ("lookup.*",)),
    (f"{U}:Scaled", {}, ("interface.precision",)),
    (f"{U}:Scaled", {"double": True, "scale": 1.0}, ("interface.shapes", "interface.runs")),
    (f"{U}:AroundTheSum", {}, ("lookup.*", "residual.*", "estimator.*", "gap.*", "loss.*")),
    (f"{U}:SearchesTwiceTheLatent", {}, ("lookup.*", "estimator.*", "gap.*", "loss.*")),
    ("tests.discovery.styles:Signs", {}, ("loss.*", "lfq.*", "honesty.*", "interface.regroup")),
    ("tests.discovery.styles:Watched", {}, ("update.*",)),
    (f"{U}:Lent", {}, ("loss.*", "update.*", "interface.accumulates")),
    (f"{U}:Between", {}, ("lookup.*", "interface.precision")),
    (f"{U}:Renumbered", {}, ("loss.trains",)),
    (f"{U}:Debiased", {}, ("update.*", "honesty.*")),
    ("tests.identify.weighed:WithEntropy", {}, ("loss.*", "estimator.*", "honesty.*", "lookup.*")),
    ("tests.identify.weighed:Convex", {}, ("loss.*", "honesty.*", "update.*")),
    ("tests.identify.weighed:BetweenDirections", {}, ("loss.*", "honesty.*", "estimator.*")),
    (R, SYNC, ("honesty.*", "update.*")),
    (V, HEADS, ("update.expiry", "interface.batch_independence")),
]


@pytest.mark.parametrize(("target", "kwargs", "rows"), LAYERS)
def test_no_alarm_on_a_right_layer(target, kwargs, rows):
    found = check_quantizer(target, kwargs, only=rows).subjects[0].results
    assert any(result.status == "passed" for result in found)
    wrong = [(r.invariant, r.label, r.message) for r in found if r.status in {"failed", "error"} and r.kind in MUST]
    assert wrong == []


@pytest.mark.parametrize(("clamp", "kind"), [(True, "clamp"), (False, "laplace")])
@pytest.mark.parametrize("size", [2, 3, 16])
def test_smoothing_of_few_codes_is_told_apart(size, clamp, kind):
    found = open_subject(Spec(f"{U}:Kept", {"n_embed": size, "clamp": clamp, "half": "float32", "eps": 1e-4})).found
    assert found["smoothing_kind"].value == kind
    assert found["smoothing"].value == pytest.approx(1e-4, rel=0.02)
