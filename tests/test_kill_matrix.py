"""A suite that can fail: every wrong quantizer is rejected through the front door by a row that names its mistake."""

import pytest

from vqverify import check_quantizer
from vqverify.invariant import registry
from vqverify.mutant import Mutant, mutants
from vqverify.run import audit

CONTROLS = {
    "base:EmaLayer": {"dim": 4, "codebook_size": 8},
    "base:RotationLayer": {"dim": 4, "codebook_size": 8},
    "base:ImageLayer": {"embedding_dim": 4, "num_embeddings": 8},
    "base:DictLayer": {"dim": 4, "codebook_size": 8},
    "update_learnt:SyncLayer": {"dim": 4, "codebook_size": 8},
    "update_learnt:InnerOptimiser": {"dim": 4, "n_embed": 8},
    "update_affine:MomentLayer": {"dim": 4, "codebook_size": 8},
    "update_affine:ReplacingMoments": {"dim": 4, "codebook_size": 8},
    "update_affine:LearntLayer": {"dim": 4, "codebook_size": 8},
    "update_start:KMeansLayer": {"dim": 4, "codebook_size": 8},
    "update_start:ReplacingLayer": {"dim": 4, "codebook_size": 8},
    "update_start:AgingLayer": {"dim": 4, "codebook_size": 8},
    "lookup:ProjectedCosine": {"dim": 6, "codebook_size": 8},
    "lookup_cells:OptionalHalf": {"dim": 4, "codebook_size": 8},
    "entropy:SignEntropy": {"dim": 4},
    "entropy:OrthogonalLayer": {"dim": 4, "codebook_size": 8},
    "residual_scales:GridStack": {"levels": [5, 5, 5]},
    "cosine:CosineLayer": {"dim": 4, "codebook_size": 8},
}


@pytest.mark.parametrize("mutant", mutants().values(), ids=lambda mutant: mutant.name)
def test_mutant_is_rejected_by_a_row_that_names_it(mutant: Mutant):
    report = check_quantizer(
        mutant.target,
        mutant.kwargs,
        only=mutant.names,
        profile=mutant.profile,
        role=mutant.role,
        fail_on=("law", "contract", "limit", "hardening"),
    )
    verdict = audit.judge(mutant, report.subjects[0])
    failed = [result for result in report.subjects[0].results if result.status == "failed"]
    shown = [(result.invariant, result.case, result.status, result.reason) for result in report.subjects[0].results]
    assert verdict.named, f"{mutant.mistake}: {shown}"
    assert not verdict.fault
    assert report.exit_code == 1
    for result in failed:
        assert result.witness in report.witnesses


def test_rows_and_mutants_name_each_other():
    rows, wrong = registry(), mutants()
    for mutant in wrong.values():
        assert set(mutant.names) <= set(rows), mutant.name
        assert any(mutant.name in rows[id_].mutants for id_ in mutant.names), mutant.name
    for row in rows.values():
        assert set(row.mutants) <= set(wrong), row.id
    assert not [row.id for row in rows.values() if not row.mutants]


def test_every_row_is_documented():
    for row in registry().values():
        assert row.statement.endswith("."), row.id
        assert row.source, row.id
        assert row.hint, row.id


@pytest.mark.parametrize(("name", "kwargs"), CONTROLS.items())
def test_right_layers_that_mutants_start_from_pass_everything(name, kwargs):
    report = check_quantizer(f"vqverify.mutants.{name}", kwargs)
    wrong = [
        (result.invariant, result.case, result.label, result.message or result.reason)
        for result in report.subjects[0].results
        if result.status in {"failed", "error"} and result.kind in {"law", "contract"}
    ]
    assert not wrong
    assert report.exit_code == 0
