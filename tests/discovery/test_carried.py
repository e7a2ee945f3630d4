"""Codes that are sums over counts, in levels that part in what carries a graph."""

from vqverify import check_quantizer

from .carried import Carried
from .test_hostile import opened


def test_sums_over_counts_of_one_are_no_codes() -> None:
    assert {slot.transform for slot in opened(Carried).slots} == {"made"}


def test_a_right_stack_of_this_kind_passes() -> None:
    found = check_quantizer(Carried, only=["lookup.*", "estimator.*", "update.*"]).subjects[0].results
    wrong = [r for r in found if r.status in {"failed", "error"} and r.kind == "law"]
    assert not wrong, [(r.invariant, r.label, r.message or r.reason) for r in wrong]
    decided = {r.invariant for r in found if r.status == "passed"}
    assert {"lookup.forward_is_code", "lookup.nearest", "estimator.jacobian"} <= decided
