"""Estimators that see the decoder: right ones have the gap of their theorem, and what is no estimator is refused."""

import pytest

from vqverify import check_quantizer
from vqverify.subject.target import TargetError

ROWS = ("gap.*", "estimator.consistent", "estimator.no_bypass", "honesty.traits")


def vector(f, z, q):
    return f(z) + z - q


@pytest.mark.parametrize(
    ("target", "applies"),
    [
        (
            "vqverify.reference:hessian_loss",
            {"gap.order", "gap.exact", "gap.zero_quantisation", "estimator.consistent"},
        ),
        ("vqverify.reference:exact_loss", {"gap.exact", "gap.zero_quantisation"}),
        ("vqverify.mutants.gap:hessian", {"gap.order", "gap.exact", "gap.zero_quantisation", "estimator.consistent"}),
    ],
)
def test_right_estimators_of_a_task_pass(target, applies):
    results = check_quantizer(target, role="estimator", only=ROWS).subjects[0].results
    assert {r.invariant for r in results if r.status == "passed" and r.invariant != "honesty.traits"} == applies
    assert not [
        r for r in results if r.status in {"failed", "error", "undetermined"} and r.invariant != "honesty.traits"
    ]


def test_an_estimator_of_a_task_returns_a_loss():
    with pytest.raises(TargetError, match="must return the loss of the task"):
        check_quantizer(vector, role="estimator", only=("gap.exact",))
