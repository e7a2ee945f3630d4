import math
from dataclasses import replace

import numpy as np
import pytest

from vqverify.training import WATCHED, Curve, judge
from vqverify.training.judge import adjusted, flips

SEEDS = 10


def curves(rng, *, seeds=SEEDS, shift=0.0, name="made", watched="perplexity"):
    found = []
    for seed in range(seeds):
        values = {one: tuple(1 + 0.1 * rng.standard_normal(4)) for one in WATCHED}
        values[watched] = tuple(x + shift for x in values[watched])
        found.append(Curve(name, seed, (1, 2, 3, 4), values))
    return found


def test_identical_curves_are_unchanged():
    a = curves(np.random.default_rng(0))
    judged = judge(a, a)
    assert judged.verdict == "unchanged"
    assert judged.p_value == 1
    assert judged.changed == ()


def test_a_shift_is_named_with_its_direction():
    a, b = curves(np.random.default_rng(0)), curves(np.random.default_rng(1), shift=-1.0)
    judged = judge(a, b)
    assert judged.verdict == "worse"
    assert {row.watched for row in judged.changed} == {"perplexity"}
    assert judge(b, a).verdict == "better"
    norms = judge(a, curves(np.random.default_rng(1), shift=1.0, watched="code_norm"))
    assert norms.verdict == "moved"


def test_the_margin_does_not_count():
    a = curves(np.random.default_rng(0))
    b = [replace(c, values={k: tuple(1.0005 * x for x in v) for k, v in c.values.items()}) for c in a]
    assert judge(a, b).verdict == "unchanged"
    assert judge(a, b, margin=1e-4).verdict != "unchanged"


def test_numbers_that_are_not_finite_are_a_change():
    a = curves(np.random.default_rng(0))
    b = [replace(c, values=c.values | {"divergence": (math.nan,) * 4}) for c in a]
    judged = judge(a, b)
    assert judged.verdict == "worse"
    assert {row.watched for row in judged.changed} == {"finite"}


def test_false_alarms_stay_below_the_level():
    # exchangeable pairs: the exact level of a rejection at 20/512 is known, its count over 100 trials binomial
    rng = np.random.default_rng(0)
    level, trials = 20 / 512, 100
    alarms = sum(judge(curves(rng), curves(rng), level=level).verdict != "unchanged" for _ in range(trials))
    most = level * trials + 4 * math.sqrt(trials * level)
    assert alarms <= most


def test_adjusted_p_values_are_exact_for_one_series():
    d = np.array([[3.0, 1.0, 2.0, 0.5]])
    totals = np.abs(np.array([d[0] @ signs for signs in flips(4)]))
    assert adjusted(d)[0] == (totals >= d.sum() - 1e-9).mean() == 1 / 8


def test_more_seeds_than_can_be_enumerated_are_sampled():
    drawn = flips(20)
    assert len(drawn) == 1 << 14
    assert (drawn[0] == 1).all()
    assert adjusted(np.ones((1, 20)))[0] == pytest.approx(1 / (1 << 14))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda b: b[:-1], "the same seeds"),
        (lambda b: [replace(c, name="other") for c in b], "the same trainings"),
        (lambda b: [*b, b[0]], "occurs twice"),
        (lambda b: [replace(c, steps=(5, 6, 7, 8)) for c in b], "at the same steps"),
        (lambda _: [], "the same trainings"),
    ],
)
def test_curves_that_do_not_pair_are_refused(change, said):
    a = curves(np.random.default_rng(0))
    with pytest.raises(ValueError, match=said):
        judge(a, change(a))


def test_a_level_that_the_seeds_cannot_reach_is_refused():
    a = curves(np.random.default_rng(0), seeds=4)
    with pytest.raises(ValueError, match="level must lie in"):
        judge(a, a)
