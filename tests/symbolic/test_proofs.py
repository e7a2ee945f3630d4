"""Every theorem and every erratum of the theory page holds when it is executed."""

import json

import pytest
from click.testing import CliRunner

from vqverify.symbolic import catalogue


def test_the_page_is_covered():
    theorems = [int(one.theorem[1:]) for one in catalogue.derivations()]
    assert sorted(set(theorems)) == list(range(1, 38))
    assert len(catalogue.errata()) == 34


@pytest.mark.parametrize("one", catalogue.derivations(), ids=lambda one: one.id)
def test_theorem_holds(one):
    proof = one.prove()
    assert proof.holds, proof.failed
    assert one.hypotheses is not None
    assert one.source


@pytest.mark.parametrize("one", catalogue.errata(), ids=lambda one: one.id)
def test_erratum_is_proved(one):
    proof = one.prove()
    assert proof.holds, proof.failed


def test_the_command_writes_its_results(tmp_path):
    from vqverify.cli.prove import command

    path = tmp_path / "proofs.json"
    done = CliRunner().invoke(command, ["--only", "T2", "--json", str(path)])
    assert done.exit_code == 0, done.output
    data = json.loads(path.read_text("utf-8"))
    assert "rotation.angle" in json.dumps(data)
