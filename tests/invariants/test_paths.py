"""What new releases of a library get wrong, row by row: found, and found alone."""

import pytest

from vqverify import check_quantizer

SIZES = {"dim": 8, "codebook_size": 16}
VQ = "vector_quantize_pytorch:VectorQuantize"


def failed(kwargs, only, target=VQ):
    results = check_quantizer(target, {**SIZES, **kwargs}, only=only).subjects[0].results
    assert not [r for r in results if r.status == "error"]
    return {(r.invariant, r.case, r.label) for r in results if r.status == "failed"}


def test_a_learnable_codebook_is_moved_by_the_task_where_the_encoder_is_frozen():
    kwargs = {"learnable_codebook": True, "ema_update": False}
    rows = ("estimator.no_codebook_leak", "estimator.zero_loss_weight", "loss.gradient_of_value")
    assert failed(kwargs, rows) == {("estimator.no_codebook_leak", "frozen encoder", "leak")}


def test_the_entropy_of_the_mean_use_is_not_taken_over_the_batch():
    kwargs = {"codebook_diversity_loss_weight": 1.0}
    found = failed(kwargs, ("loss.closed_forms",))
    assert found == {("loss.closed_forms", "codebook_diversity_loss_weight", "all codes")}


@pytest.mark.parametrize("kwargs", [{"orthogonal_reg_weight": 1.0}, {"use_cosine_sim": True}])
def test_right_regularisers_and_spheres_pass(kwargs):
    assert not failed(kwargs, ("loss.closed_forms", "lookup.cosine_*", "lookup.equivariance", "lookup.tie_stable"))
