"""Are two sets of trainings the same? One exact test over seeds, with a stated rate of false alarms.

The pairs are (before, after) at one seed, with common random numbers. Under the null, that after is before or differs
from it by chance alone, the sign of a seed's differences is as likely plus as minus, in all watched numbers together.
So every one of the 2ⁿ flips of the seeds' signs was equally likely, and the largest statistic over all watched numbers
is compared with its own distribution over the flips (Westfall and Young's maximum, step down left out): the
probability of calling any number changed is at most the level, without an assumption on distributions and however
the numbers depend on each other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vqverify.training.measure import WATCHED
from vqverify.training.run import Curve

LEVEL = 0.01
MARGIN = 1e-3
MOST_FLIPS = 1 << 14
"""Beyond, as many random flips are drawn; the test stays valid."""

Array = NDArray[np.float64]
Key = tuple[str, str, str]

SUMMARIES: Mapping[str, Callable[[Curve, str], float]] = {
    "first": Curve.first,
    "mean": Curve.mean,
    "final": Curve.final,
}
"""What of a curve is compared: its first point, where a pair has not drifted apart; its mean; and its end."""


@dataclass(frozen=True)
class Row:
    """One watched number of one training.

    Attributes:
        training: name of the recipe.
        watched: a name of :data:`vqverify.training.measure.WATCHED`, or ``"finite"``: the share of finite numbers.
        summary: of :data:`SUMMARIES`.
        before: mean over seeds.
        after: mean over seeds.
        p_value: adjusted for all rows of the judgement.
        change: ``"worse"``, ``"better"``, ``"moved"`` (where neither way is worse), or ``"unchanged"``.
    """

    training: str
    watched: str
    summary: str
    before: float
    after: float
    p_value: float
    change: str


@dataclass(frozen=True)
class Judgement:
    """What a judge says.

    Attributes:
        verdict: ``"worse"`` if any number is; else ``"moved"``, ``"better"``, or ``"unchanged"``.
        p_value: the smallest of the rows.
        level: the probability of any false alarm, at most.
        seeds: number of pairs.
        rows: every watched number, the most significant first.
    """

    verdict: str
    p_value: float
    level: float
    seeds: int
    rows: tuple[Row, ...]

    @property
    def changed(self) -> tuple[Row, ...]:
        """The rows that changed."""
        return tuple(row for row in self.rows if row.change != "unchanged")


def judge(
    before: Iterable[Curve],
    after: Iterable[Curve],
    *,
    level: float = LEVEL,
    margin: float = MARGIN,
    watch: Iterable[str] = WATCHED,
) -> Judgement:
    """Tell whether trainings changed, over pairs with one seed.

    Args:
        before: curves of one or more recipes, each from the same seeds.
        after: curves of the same recipes and seeds.
        level: the probability of calling identical layers different, at most; n seeds allow no less than 2/2ⁿ.
        margin: a relative difference of means that does not count: rounding that changes no training.
        watch: the names to compare.

    Returns:
        The verdict over all recipes and watched numbers together.

    Raises:
        ValueError: if the curves do not pair up, or ``level`` is out of what so many seeds allow.
    """
    watch = tuple(watch)
    first, second = _by_recipe(before), _by_recipe(after)
    seeds = _common_seeds(first, second)
    if not 2 ** (1 - len(seeds)) <= level < 1:
        raise ValueError(f"level must lie in [2/2^{len(seeds)}, 1) with {len(seeds)} seeds; it was {level:g}")
    pairs: dict[Key, tuple[Array, Array]] = {}
    for name, curves in first.items():
        a, b = ([side[seed] for seed in seeds] for side in (curves, second[name]))
        for one in watch:
            for summary, of in SUMMARIES.items():
                x, y = (np.array([of(curve, one) for curve in side]) for side in (a, b))
                sound = bool(np.isfinite(x).all() and np.isfinite(y).all())
                if sound:
                    pairs[name, one, summary] = (x, y)
        pairs[name, "finite", "final"] = (_finite(a), _finite(b))
    differences = np.stack([_beyond(x, y, margin) for x, y in pairs.values()])
    p_values = adjusted(differences)
    rows = [_row(key, x, y, float(p), level) for (key, (x, y)), p in zip(pairs.items(), p_values, strict=True)]
    rows.sort(key=lambda row: row.p_value)
    changes = {row.change for row in rows}
    verdict = next((one for one in ("worse", "moved", "better") if one in changes), "unchanged")
    return Judgement(verdict, rows[0].p_value, level, len(seeds), tuple(rows))


def adjusted(differences: Array) -> Array:
    """Return p-values (S,) of S series of n paired differences (S, n), adjusted by the maximum over the series.

    The statistic is |Σ d| / √(n Σ d²), between 0 and 1; it is 1 where all differences are equal. A p-value is the
    share of sign flips whose largest statistic is at least the series' own.
    """
    scale = np.abs(differences).max(1, keepdims=True)
    unit = np.divide(differences, scale, out=np.zeros_like(differences), where=scale > 0)
    size = np.sqrt(differences.shape[1] * np.square(unit).sum(1, keepdims=True))
    shares = np.divide(unit, size, out=np.zeros_like(unit), where=size > 0)
    largest = np.abs(flips(differences.shape[1]) @ shares.T).max(1)
    mine = np.abs(shares.sum(1))
    # an observed statistic is one of the flips': rounding must not make it larger than itself
    return np.array([float((largest >= one - 1e-9).mean()) for one in mine])


def flips(n: int) -> Array:
    """Return sign vectors (F, n): all with a leading +1 (the statistic is even), or a sample of them with identity."""
    if n - 1 <= math.log2(MOST_FLIPS):
        return np.array([(1.0, *signs) for signs in itertools.product((1.0, -1.0), repeat=n - 1)])
    drawn = np.random.default_rng(0).choice([-1.0, 1.0], size=(MOST_FLIPS, n))
    drawn[0] = 1
    return drawn


def _beyond(x: Array, y: Array, margin: float) -> Array:
    """Differences, less the margin that does not count."""
    difference = y - x
    slack = margin * max(float(np.abs(x).mean()), float(np.abs(y).mean()))
    return np.sign(difference) * np.maximum(np.abs(difference) - slack, 0)


def _row(key: Key, x: Array, y: Array, p_value: float, level: float) -> Row:
    training, watched, summary = key
    change = "unchanged"
    if p_value <= level:
        worse = WATCHED[watched].worse if watched in WATCHED else -1
        sign = worse * np.sign(y.mean() - x.mean())
        change = "worse" if sign > 0 else "better" if sign < 0 else "moved"
    return Row(training, watched, summary, float(x.mean()), float(y.mean()), p_value, change)


def _finite(curves: Iterable[Curve]) -> Array:
    return np.array([np.isfinite(list(curve.values.values())).mean() for curve in curves])


def _by_recipe(curves: Iterable[Curve]) -> dict[str, dict[int, Curve]]:
    found: dict[str, dict[int, Curve]] = {}
    for curve in curves:
        seeds = found.setdefault(curve.name, {})
        if curve.seed in seeds:
            raise ValueError(f"seed {curve.seed} of {curve.name!r} occurs twice")
        seeds[curve.seed] = curve
    return found


def _common_seeds(first: Mapping[str, Mapping[int, Curve]], second: Mapping[str, Mapping[int, Curve]]) -> list[int]:
    if set(first) != set(second) or not first:
        raise ValueError(f"before and after must hold the same trainings; they hold {list(first)} and {list(second)}")
    all_seeds = {tuple(sorted(seeds)) for side in (first, second) for seeds in side.values()}
    if len(all_seeds) != 1:
        raise ValueError(f"every training must have the same seeds before and after; they were {sorted(all_seeds)}")
    steps = {name: {c.steps for side in (first, second) for c in side[name].values()} for name in first}
    for name, found in steps.items():
        if len(found) != 1:
            raise ValueError(f"the curves of {name!r} must be measured at the same steps; they were at {sorted(found)}")
    return list(all_seeds.pop())
