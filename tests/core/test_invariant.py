"""Selection and applicability: absence is derived from hypotheses, never decided by hand."""

from dataclasses import replace

import pytest

from vqverify.invariant import UnknownInvariantError, applicability, invariant, registry, select
from vqverify.quantizer import Finding

ROW = next(iter(registry().values()))


def judge(needs, **traits):
    found = {name: value if isinstance(value, Finding) else Finding(value) for name, value in traits.items()}
    return applicability(replace(ROW, needs=needs), found)


def test_every_need_met():
    assert (
        judge(("codes", "estimator=rotation|straight-through"), codes=True, estimator="rotation").verdict == "applies"
    )


def test_other_value_is_not_applicable_with_its_evidence():
    verdict = judge(("estimator=rotation",), estimator=Finding("straight-through", evidence="residual 1e-8"))
    assert verdict.verdict == "n/a"
    assert "residual 1e-8" in verdict.reason


def test_unknown_trait_is_undetermined_and_not_green():
    verdict = judge(("estimator=rotation",), estimator=Finding(None, evidence="nothing fits"))
    assert verdict.verdict == "undetermined"
    assert "nothing fits" in verdict.reason
    assert judge(("decay",)).verdict == "undetermined"


def test_not_applicable_wins_over_undetermined():
    assert judge(("decay", "codes"), codes=False).verdict == "n/a"


def test_exclusion_needs_knowledge():
    assert judge(("estimator!=noise",), estimator=Finding(None)).verdict == "applies"
    assert judge(("estimator!=noise",), estimator="noise").verdict == "n/a"


def test_list_valued_traits_and_negation():
    assert judge(("learning=ema",), learning=["gradient", "ema"]).verdict == "applies"
    assert judge(("!decode",), decode=False).verdict == "applies"
    assert judge(("!decode",), decode=True).verdict == "n/a"


def test_select_by_pattern():
    assert {row.id.partition(".")[0] for row in select(["rotation.*"])} == {"rotation"}
    assert not any(row.id == "rotation.angle" for row in select(["rotation.*"], ["*.angle"]))


def test_unknown_pattern_suggests_near_ids():
    with pytest.raises(UnknownInvariantError, match=r"rotation\.angle"):
        select(["rotation.angel"])


def test_an_id_is_registered_once():
    with pytest.raises(ValueError, match="twice"):
        invariant(ROW.id, source="")(ROW.check)
