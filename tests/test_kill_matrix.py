"""A suite that can fail: every wrong quantizer is rejected through the front door by a row that names its mistake."""

import pytest

from vqverify import check_quantizer
from vqverify.invariant import registry
from vqverify.mutant import Mutant, mutants

CONTROLS = {
    "EmaLayer": {"dim": 4, "codebook_size": 8},
    "RotationLayer": {"dim": 4, "codebook_size": 8},
    "ImageLayer": {"embedding_dim": 4, "num_embeddings": 8},
    "DictLayer": {"dim": 4, "codebook_size": 8},
}


@pytest.mark.parametrize("mutant", mutants().values(), ids=lambda mutant: mutant.name)
def test_mutant_is_rejected_by_a_row_that_names_it(mutant: Mutant):
    report = check_quantizer(
        mutant.target,
        mutant.kwargs,
        only=mutant.names,
        profile=mutant.profile,
        fail_on=("law", "contract", "limit", "hardening"),
    )
    failed = [result for result in report.subjects[0].results if result.status == "failed"]
    shown = [(result.invariant, result.case, result.status, result.reason) for result in report.subjects[0].results]
    assert failed, f"{mutant.mistake}: {shown}"
    assert report.exit_code == 1
    for result in failed:
        assert result.witness in report.witnesses


@pytest.mark.parametrize("mutant", mutants().values(), ids=lambda mutant: mutant.name)
def test_mutant_is_listed_by_the_rows_that_it_names(mutant: Mutant):
    rows = registry()
    assert set(mutant.names) <= set(rows)
    assert any(mutant.name in rows[id_].mutants for id_ in mutant.names)


@pytest.mark.parametrize("row", registry().values(), ids=lambda row: row.id)
def test_row_names_mutants_that_exist(row):
    assert set(row.mutants) <= set(mutants())


@pytest.mark.parametrize("row", registry().values(), ids=lambda row: row.id)
def test_row_is_documented(row):
    assert row.statement.endswith(".")
    assert row.source
    assert row.hint


@pytest.mark.parametrize(("name", "kwargs"), CONTROLS.items())
def test_right_layers_that_mutants_start_from_pass_everything(name, kwargs):
    report = check_quantizer(f"vqverify.mutants.base:{name}", kwargs)
    wrong = [
        (result.invariant, result.case, result.label, result.message or result.reason)
        for result in report.subjects[0].results
        if result.status in {"failed", "error"} and result.kind in {"law", "contract"}
    ]
    assert not wrong
    assert report.exit_code == 0
