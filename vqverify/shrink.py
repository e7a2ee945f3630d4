"""Smaller cases that still fail: one shrinker for what corners, mass and search found.

Hypothesis shrinks only what it drew, so the cases are shrunk here: history, rows, then entries towards 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from vqverify.case import Case

Fails = Callable[[Case], bool]


class _Budget:
    """Counts the re-runs of one shrinking."""

    def __init__(self, fails: Fails, most: int) -> None:
        self._fails, self._left = fails, most

    def __call__(self, case: Case) -> bool:
        if self._left <= 0:
            return False
        self._left -= 1
        return self._fails(case)

    @property
    def spent(self) -> bool:
        return self._left <= 0


def shrink(case: Case, fails: Fails, *, min_n: int = 1, most: int = 400) -> Case:
    """The smallest case found that still fails.

    Args:
        case: a failing case.
        fails: whether a case fails with the same label; must be deterministic.
        min_n: smallest number of latents that the layer takes.
        most: how many re-runs this may cost.
    """
    test = _Budget(fails, most)
    while not test.spent:
        before = case
        for step in (_simpler_state, _fewer_rows, _fewer_entries, _rounder_entries):
            case = step(case, test, min_n)
        if case is before or _same(case, before):
            break
    return case


def _same(a: Case, b: Case) -> bool:
    return (
        a.size() == b.size()
        and len(a.z) == len(b.z)
        and len(a.history) == len(b.history)
        and all(torch.equal(x, y) for x, y in zip((a.z, a.g, *a.history), (b.z, b.g, *b.history), strict=True))
    )


def _simpler_state(case: Case, test: Fails, min_n: int) -> Case:
    """The layer as built, no history, seed 0: whatever of it the failure does not need."""
    del min_n
    for simpler in (_as_built, _no_history, _seed_zero):
        candidate = simpler(case)
        if candidate is not case and test(candidate):
            case = candidate
    index = 0
    while index < len(case.history):
        shorter = replace(case, history=case.history[:index] + case.history[index + 1 :])
        if test(shorter):
            case = shorter
        else:
            index += 1
    return case


def _as_built(case: Case) -> Case:
    return case if case.codebook is None else replace(case, codebook=None)


def _no_history(case: Case) -> Case:
    return replace(case, history=()) if case.history else case


def _seed_zero(case: Case) -> Case:
    return replace(case, seed=0) if case.seed else case


def _fewer_rows(case: Case, test: Fails, min_n: int) -> Case:
    keep = _minimise(list(range(len(case.z))), lambda rows: len(rows) >= min_n and test(_take(case, rows)))
    case = _take(case, keep)
    for index in range(len(case.history)):
        case = _fewer_history_rows(case, index, test, min_n)
    return case


def _fewer_history_rows(case: Case, index: int, test: Fails, min_n: int) -> Case:
    batch = case.history[index]

    def with_rows(rows: list[int]) -> Case:
        return replace(case, history=(*case.history[:index], batch[rows], *case.history[index + 1 :]))

    return with_rows(_minimise(list(range(len(batch))), lambda rows: len(rows) >= min_n and test(with_rows(rows))))


def _take(case: Case, rows: list[int]) -> Case:
    return replace(case, z=case.z[rows], g=case.g[rows])


def _minimise(items: list[int], good: Callable[[list[int]], bool]) -> list[int]:
    """Leave out as many items as possible, in halves, then quarters, then one by one."""
    chunk = max(1, len(items) // 2)
    while True:
        index = 0
        while index < len(items):
            fewer = items[:index] + items[index + chunk :]
            if fewer != items and good(fewer):
                items = fewer
            else:
                index += chunk
        if chunk == 1:
            return items
        chunk //= 2


def _tensors(case: Case) -> Iterator[tuple[Tensor, Callable[[Tensor], Case]]]:
    yield case.z, lambda t: replace(case, z=t)
    yield case.g, lambda t: replace(case, g=t)
    for index, batch in enumerate(case.history):
        yield batch, lambda t, i=index: replace(case, history=(*case.history[:i], t, *case.history[i + 1 :]))
    for index, table in enumerate(case.codebook or ()):
        yield (
            table,
            lambda t, i=index: replace(case, codebook=(*(case.codebook or ())[:i], t, *(case.codebook or ())[i + 1 :])),
        )


def _entrywise(case: Case, attempt: Callable[[Tensor, Callable[[Tensor], Case]], Tensor]) -> Case:
    for position in range(len(list(_tensors(case)))):
        tensor, rebuild = list(_tensors(case))[position]
        case = rebuild(attempt(tensor, rebuild))
    return case


def _fewer_entries(case: Case, test: Fails, min_n: int) -> Case:
    del min_n

    def attempt(tensor: Tensor, rebuild: Callable[[Tensor], Case]) -> Tensor:
        places = torch.nonzero(tensor.flatten()).flatten().tolist()

        def kept(some: list[int]) -> Tensor:
            flat = torch.zeros_like(tensor).flatten()
            flat[some] = tensor.flatten()[some]
            return flat.reshape(tensor.shape)

        return kept(_minimise(places, lambda some: test(rebuild(kept(some))))) if places else tensor

    return _entrywise(case, attempt)


def _rounder_entries(case: Case, test: Fails, min_n: int) -> Case:
    del min_n

    def attempt(tensor: Tensor, rebuild: Callable[[Tensor], Case]) -> Tensor:
        for place in torch.nonzero(tensor.flatten()).flatten().tolist()[:24]:
            value = float(tensor.flatten()[place])
            for simple in (1.0, -1.0, 2.0, float(round(value)), float(f"{value:.1g}"), float(f"{value:.2g}")):
                if simple == value:
                    break
                if simple == 0 or abs(simple) > abs(value) * 2:
                    continue
                changed = tensor.clone()
                changed.view(-1)[place] = simple
                if test(rebuild(changed)):
                    tensor = changed
                    break
        return tensor

    return _entrywise(case, attempt)
