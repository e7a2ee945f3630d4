"""A start from the first batch: what the first training passes change, and later ones do not."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vqverify.subject import state
from vqverify.subject.plan import enter

if TYPE_CHECKING:
    from vqverify.discovery.bench import Bench


def find_warm(bench: Bench, *, leaked: bool) -> tuple[int, str]:
    """Training passes that initialise the layer: something changes in the first one and never again.

    Flags that go up in later passes (one level a pass) are waited for. Leaves the bench based on the state
    after these passes.
    """
    bench.reset()
    seen = [_values(bench.trial.module)]
    raised: list[str] = []
    while len(seen) < 4 or (_flags(seen[-2], seen[-1]) and len(seen) < 20):
        if not _pass(bench, len(seen) - 1):
            return 0, f"a training pass raised {bench.trial.error}"
        seen.append(_values(bench.trial.module))
        raised += _flags(seen[-2], seen[-1])
    once = [name for name in seen[0] if _moved(seen[:4], name) == (True, False, False)]
    once = _always(bench, once) if once else []
    late = [step for step in range(1, len(seen)) if _flags(seen[step - 1], seen[step])]
    if not once and not leaked and not late:
        return 0, "nothing changes in the first training pass alone"
    passes = max([1, *late])
    names = ", ".join(list(dict.fromkeys([*once, *raised]))[:3])
    bench.reset()
    for step in range(passes):
        _pass(bench, step)
    bench.trial.module.eval()
    bench.trial.base = state.take(bench.trial.module)
    if not names:
        return passes, "latents mix until a training pass was made"
    return (
        passes,
        f"{names} change in the first {'training pass' if passes == 1 else f'{passes} passes'} alone",
    )


def _always(bench: Bench, names: list[str]) -> list[str]:
    """Those that move in the first pass alone with other seeds, too: a pass may leave a level out at random."""
    for steps in ((3, 1, 2), (5, 4, 6), (9, 8, 7)):
        bench.reset()
        seen = [_values(bench.trial.module)]
        for step in steps:
            if not _pass(bench, step):
                return names
            seen.append(_values(bench.trial.module))
        names = [name for name in names if _moved(seen, name) == (True, False, False)]
        if not names:
            break
    return names


def _pass(bench: Bench, step: int) -> bool:
    """One of the passes that `Layer.warm_up` makes too, from the state in which the module is."""
    x = enter(bench.latents(64, 80 + step), bench.plan.calls[0].layout)
    return bench.trial.run(x, train=True, go_on=True, seed=step) is not None


def _flags(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """Names of single truth values that went from off to on."""
    return [name for name, value in after.items() if _truth(before.get(name)) is False and _truth(value) is True]


def _truth(value: object) -> bool | None:
    if isinstance(value, Tensor) and value.numel() == 1 and float(value) in {0.0, 1.0}:
        return bool(value)
    return value if isinstance(value, bool) else None


def _values(module: nn.Module) -> dict[str, object]:
    found: dict[str, object] = {name: tensor.detach().clone() for name, tensor in state.all_tensors(module).items()}
    for prefix, child in module.named_modules():
        for name, value in vars(child).items():
            if name != "training" and (value is None or isinstance(value, bool | int | float)):
                found[f"{prefix}.{name}"] = value
    return found


def _moved(seen: list[dict[str, object]], name: str) -> tuple[bool, ...]:
    return tuple(not _same(a.get(name), b.get(name)) for a, b in pairwise(seen))


def _same(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
    return type(a) is type(b) and a == b
