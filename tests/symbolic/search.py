"""A search for inputs that break a stated bound, and what its cases are made of."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import sympy as sp

from vqverify.symbolic import catalogue

U, EPS = 2.0**-24, 2.0**-53
FIRST_ORDER = 1.01  # the bounds are first order in u
TIGHT, ROUNDING, ANY = 0.99, 1e-3, 0.0  # how near to the bound the search has to come
CASES = {}
USED = set()


@dataclass(frozen=True)
class Case:
    """Rows of `size` numbers become cases; `ratio` is error / bound; `attacks` names the bounds: (theorem, name)."""

    ratio: Callable
    size: int
    floor: float
    attacks: frozenset


def case(size, floor, *attacks):
    def register(ratio):
        CASES[ratio.__name__] = Case(ratio, size, floor, frozenset(attacks))
        return ratio

    return register


@cache
def _function(theorem, name):
    one = catalogue.derivation(theorem)
    formula = sp.sympify(one.tolerances[name] if name in one.tolerances else one.stated[name])
    symbols = sorted(formula.free_symbols, key=str)
    return [str(symbol) for symbol in symbols], sp.lambdify(symbols, formula)


def bound(theorem, name, **values):
    """A stated formula, or a tolerance, of a derivation at float64 arguments."""
    USED.add((theorem, name))
    names, function = _function(theorem, name)
    return function(*(values[one] for one in names))


def climb(ratio, size, *, seed=0, population=200, rounds=40, scale=4.0):
    """The largest ratio error / bound found over rows of `size` numbers; `ratio` maps (M, size) to (M,)."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(population, size)) * np.exp(rng.uniform(-scale, scale, size=(population, 1)))
    best = 0.0
    with np.errstate(all="ignore"):
        for _ in range(rounds):
            values = np.nan_to_num(np.asarray(ratio(rows), dtype=float), nan=0.0, posinf=np.inf)
            best = max(best, float(values.max()))
            elite = rows[np.argsort(values)[-population // 8 :]]
            children = elite[rng.integers(len(elite), size=population - len(elite))]
            step = np.exp(rng.uniform(-16, 0, size=(len(children), 1)))
            mask = rng.random(children.shape) < rng.uniform(0.1, 1.0, size=(len(children), 1))
            noise = rng.normal(size=children.shape) * np.abs(children).max(axis=1, keepdims=True)
            moved = children + step * noise * mask
            mirrored = np.where(rng.random(children.shape) < 0.05, -children, moved)
            rows = np.concatenate([elite, mirrored])
    return best


def parts(rows, *shapes):
    """Cut rows into arrays (M, *shape)."""
    cut, start = [], 0
    for shape in shapes:
        size = int(np.prod(shape))
        cut.append(rows[:, start : start + size].reshape(len(rows), *shape))
        start += size
    return cut


def f32(*arrays):
    """The float32 values nearest to the arrays, in float64: exact inputs for both computations."""
    found = [np.asarray(array, dtype=np.float32).astype(np.float64) for array in arrays]
    return found if len(found) > 1 else found[0]


def single(*arrays):
    return [np.asarray(array, dtype=np.float32) for array in arrays]


def total(array, axis=-1):
    """A sequential float32 sum."""
    return np.cumsum(array, axis=axis, dtype=np.float32).take(-1, axis=axis)


def dot32(x, y):
    return total(x * y)


def norm(array):
    return np.sqrt((array * array).sum(axis=-1))


def rotate32(e, q, x, *, transposed):
    """The form of T5, every operation rounded to float32."""
    e, q, x = single(e, q, x)
    e_norm, q_norm = np.sqrt(dot32(e, e)), np.sqrt(dot32(q, q))
    u, v = e / e_norm[:, None], q / q_norm[:, None]
    s = u + v
    w = s / np.sqrt(dot32(s, s))[:, None]
    first, second = (v, u) if transposed else (u, v)
    two = np.float32(2)
    y = x - two * w * dot32(w, x)[:, None] + two * second * dot32(first, x)[:, None]
    return (q_norm / e_norm)[:, None] * y


def geometry(e, q, least=1e-3):
    """Norms, sigma, and which rows are inside the hypotheses, sigma above `least`."""
    e_norm, q_norm = norm(e), norm(q)
    sigma = norm(e / e_norm[:, None] + q / q_norm[:, None])
    sizes = (e_norm > 1e-6) & (q_norm > 1e-6) & (e_norm < 1e6) & (q_norm < 1e6)
    return e_norm, q_norm, sigma, sizes & (sigma > least)
