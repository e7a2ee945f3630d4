"""Which sizes and axes a layer takes, and which output is z_q.

A wrong layout often runs (`view(-1, D)` always divides) and returns the right shape. LOCALITY tells: when one
latent is replaced, only its own place in the output may change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqverify.discovery.forms import LAYOUTS, Grid, grid
from vqverify.discovery.measure import differs, latents, pull_sum, scale_of
from vqverify.discovery.trial import Path, Trial
from vqverify.subject import state
from vqverify.subject.plan import Output

if TYPE_CHECKING:
    from collections.abc import Iterator

NUDGE = 1e-3  # relative change of a latent that moves z_e and leaves a code alone
Returned = list[tuple[Path, Tensor]]


@dataclass(frozen=True)
class Candidate:
    """One layout that gave an output of the input's size.

    Attributes:
        grid: layout and sizes.
        x: the input that was used, rows (N, D).
        returned: every tensor of that pass.
        z_q: the output taken for z_q.
        train: the pass was made in train mode, because eval raised.
        leak: share of other latents' places that changed with one latent.
        spill: share of them that changed by a fifth of the output's size: what a wrong layout does, while
            batch statistics and hidden state leak everywhere, but little.
        reach: share of replaced latents whose own place changed.
        constant: share of latents whose z_q stays under a tiny change of z.
        attached: a gradient reaches z from it in train mode.
        trains: a pass in train mode works too.
        codes: number of integer outputs with one entry a latent.
        steady: some of them keep every entry but that of a latent which is replaced. A layer that works on each
            coordinate alone returns the right z_q under any layout; its codes tell which one it reads.
        repeats: two equal calls from one state and seed give the same.
        reshapes: a training pass gives a tensor of the state another shape. A layer that takes its codes from the first
            batch accepts any D; its empty codebook says which one it was built for.
        warm: judged after training passes, because latents leaked before them.
    """

    grid: Grid
    x: Tensor
    returned: Returned
    z_q: Output
    train: bool
    leak: float
    spill: float
    reach: float
    constant: float
    attached: bool
    trains: bool
    codes: int
    steady: bool
    repeats: bool
    reshapes: bool = False
    warm: bool = False

    @property
    def finite(self) -> bool:
        """No entry of z_q is NaN or infinite."""
        return bool(dict(self.returned)[self.z_q.path].isfinite().all())

    def faults(self) -> tuple[float, ...]:
        """What is wrong with a reading of one layout before or after training, the worst first."""
        return not self.finite, self.reach == 0, self.spill, self.leak, self.constant < 0.9, not self.steady

    def rank(self) -> tuple[object, ...]:
        """Sorts the likeliest reading first; the order of layouts breaks ties."""
        return (
            round(self.spill, 1),
            "1" in self.z_q.form,
            self.reach == 0,
            self.constant < 0.9,
            not self.attached,
        )


def candidates(trial: Trial, dims: list[int], avoid: set[int], dtype: torch.dtype) -> Iterator[Candidate]:
    """Every (D, layout) under which the layer returns something of the input's size."""
    for dim in dims:
        for layout in LAYOUTS:
            found = read(trial, grid(layout, dim, avoid), dtype)
            if found is not None:
                yield found


def read(trial: Trial, where: Grid, dtype: torch.dtype) -> Candidate | None:
    """Try one layout; None if the layer refuses it or returns nothing of the input's size.

    A layer that takes its codebook from the first batch mixes all latents in it, and one that computes with what only
    training fills (`torch.empty`) may return anything: where latents leak or nothing sound comes back, the layout is
    judged again after two training passes.
    """
    found = _read(trial, where, dtype)
    if found is None or (not found.leak and found.finite and found.reach):
        return found
    cold = trial.base
    for step in range(2):
        x = where.put(latents(where.n, where.dim, dtype, 20 + step))
        if trial.run(x, train=True, go_on=step > 0) is None:
            return found
    trial.base = state.take(trial.module)
    try:
        again = _read(trial, where, dtype)
    finally:
        trial.base = cold
    return found if again is None or again.faults() >= found.faults() else replace(again, warm=True)


def read_in_train(trial: Trial, like: Candidate) -> Candidate | None:
    """The same layout in train mode, if something else comes back there; None if not, or if it raises."""
    returned = trial.run(like.grid.put(like.x), train=True)
    if returned is None or _shapes(returned) == _shapes(like.returned):
        return None
    return _read(trial, like.grid, like.x.dtype, train=True)


def _shapes(returned: Returned) -> list[tuple[Path, torch.Size]]:
    return [(path, value.shape if value.numel() > 64 else torch.Size()) for path, value in returned]


def _read(trial: Trial, where: Grid, dtype: torch.dtype, *, train: bool = False) -> Candidate | None:
    x = latents(where.n, where.dim, dtype, 3)
    returned = trial.run(where.put(x), train=train)
    if returned is None and not train:
        train = True
        returned = trial.run(where.put(x), train=True)
    if returned is None:
        return None
    outputs = [
        Output(path, form)
        for path, value in returned
        if value.is_floating_point() and value.numel() == x.numel()
        for form in [where.form(value.shape, "D")]
        if form.count("D") == 1
    ]
    if not outputs:
        return None
    codes = [
        Output(path, form)
        for path, value in returned
        if not value.is_floating_point() and value.dtype != torch.bool
        for form in [where.form(value.shape, "L")]
        if form
    ]
    leaks, spill, reach = _locality(trial, where, x, returned, [*outputs, *codes], train=train)
    leak = leaks[: len(outputs)]
    constant = _constancy(trial, where, x, returned, outputs, train=train)
    attached, trains = _attached(trial, where, x, outputs)
    reshapes = _reshaped(trial)
    table = dict(returned)

    def order(index: int) -> tuple[object, ...]:
        value = table[outputs[index].path]
        hot = bool(((value == 0) | (value == 1)).all())
        same = torch.equal(where.rows(value, outputs[index].form), x)
        return (
            leak[index] > 0,
            spill[index] > 0,
            hot and len(outputs) > 1,
            same,
            constant[index] < 0.9,
            not attached[index],
            index,
        )

    best = min(range(len(outputs)), key=order)
    again = dict(trial.run(where.put(x), train=train) or ()).get(outputs[best].path)
    repeats = (
        again is not None
        and again.shape == table[outputs[best].path].shape
        and not differs(again, table[outputs[best].path], 0.0).any()
    )
    return Candidate(
        where,
        x,
        returned,
        outputs[best],
        train,
        leak[best],
        spill[best],
        reach[best],
        constant[best],
        attached[best],
        trains,
        len(codes),
        0.0 in leaks[len(outputs) :],
        repeats,
        reshapes,
    )


def _reshaped(trial: Trial) -> bool:
    """Whether a tensor of the state has another shape after the last call than the module came with."""
    after = {name: value.shape for name, value in state.all_tensors(trial.module).items()}
    state.put_back(trial.origin)
    before = {name: value.shape for name, value in state.all_tensors(trial.module).items() if value.numel()}
    return any(after.get(name, shape) != shape for name, shape in before.items())


def _locality(
    trial: Trial, where: Grid, x: Tensor, before: Returned, outputs: list[Output], *, train: bool
) -> tuple[list[float], list[float], list[float]]:
    leak, spill, reach = ([0.0] * len(outputs) for _ in range(3))
    picks = (where.n // 2, 1, where.n - 2)
    old = dict(before)
    for step, token in enumerate(picks):
        moved = x.clone()
        moved[token] = -2 * x[token] + latents(1, where.dim, x.dtype, 50 + step)[0]
        after = trial.run(where.put(moved), train=train)
        new = dict(after or ())
        for index, output in enumerate(outputs):
            if output.path not in new or new[output.path].shape != old[output.path].shape:
                leak[index] = spill[index] = 1.0
                continue
            was, now = (where.rows(table[output.path], output.form).to(x.dtype) for table in (old, new))
            changed, much = (differs(was, now, share * scale_of(was)) for share in (1e-4, 0.2))
            reach[index] += float(changed[token]) / len(picks)
            changed[token] = much[token] = False
            leak[index] = max(leak[index], float(changed.double().mean()))
            spill[index] = max(spill[index], float(much.double().mean()))
    return leak, spill, reach


def _constancy(
    trial: Trial, where: Grid, x: Tensor, before: Returned, outputs: list[Output], *, train: bool
) -> list[float]:
    step = NUDGE * x.abs() * torch.sign(latents(len(x), where.dim, x.dtype, 9))
    after = dict(trial.run(where.put(x + step), train=train) or ())
    found: list[float] = []
    for output in outputs:
        was = where.rows(dict(before)[output.path], output.form)
        if output.path not in after or after[output.path].shape != dict(before)[output.path].shape:
            found.append(0.0)
            continue
        moved = (where.rows(after[output.path], output.form) - was).norm(dim=1).nan_to_num(0.0)
        # relative to the output's own size: a soft mixture of small codes moves as little as they are
        gain = min(max(scale_of(was) / scale_of(x), 0.02), 1.0)
        found.append(float((moved <= 0.05 * gain * step.norm(dim=1)).double().mean()))
    return found


def _attached(trial: Trial, where: Grid, x: Tensor, outputs: list[Output]) -> tuple[list[bool], bool]:
    leaf = x.clone().requires_grad_()
    every = trial.run(where.put(leaf), train=True, grad=True)
    returned = dict(every or ())
    found: list[bool] = []
    for output in outputs:
        value = returned.get(output.path)
        grad = pull_sum(value, leaf)
        found.append(grad is not None and bool(grad.any()))
    return found, every is not None
