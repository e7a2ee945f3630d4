"""The numeric gate: what it lets through, and what it must not."""

import math

import numpy as np
import pytest
import torch

from vqverify.bounds import holds, unit_roundoff, within


def test_margin_is_worst_ratio():
    clause = within([0.0, 0.5, -1.0], [1.0, 2.0, 4.0], "label")
    assert clause.holds
    assert clause.margin == 0.25


def test_error_above_bound_fails_and_says_by_how_much():
    clause = within(torch.tensor([1.0, 3.0]), 2.0, "label", "what")
    assert not clause.holds
    assert clause.label == "label"
    assert "3" in clause.message
    assert "2" in clause.message


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_error_that_is_not_finite_is_a_violation(value):
    clause = within([0.0, value], 1.0, "label")
    assert not clause.holds
    assert clause.label == "nonfinite"


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_bound_that_is_no_bound_is_a_fault_of_the_check(value):
    with pytest.raises(ValueError, match="bound of 'label'"):
        within(0.0, value, "label")


def test_zero_bound_demands_exactness():
    assert within(0.0, 0.0, "label").holds
    assert not within(1e-300, 0.0, "label").holds


def test_empty_error_holds():
    assert within(np.zeros(0), np.zeros(0), "label").holds


def test_exact_clause_has_no_margin():
    assert holds([1], "label", "").margin is None
    assert not holds(condition=False, label="label", message="why").holds


@pytest.mark.parametrize(
    ("dtype", "u"), [(torch.float32, 2.0**-24), (torch.float64, 2.0**-53), (torch.bfloat16, 2.0**-8)]
)
def test_unit_roundoff(dtype, u):
    assert unit_roundoff(dtype) == u
