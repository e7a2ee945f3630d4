"""A discovered call in use: rows in, rows out, always from the same state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vqverify.bounds import Violation
from vqverify.discovery.measure import latents
from vqverify.quantizer import Domain, Quantized, Spec
from vqverify.subject import capture, state
from vqverify.subject.layer import Layer
from vqverify.subject.plan import Plan, enter, leave

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vqverify.discovery.trial import Trial


@dataclass(frozen=True)
class Look:
    """One pass: z (N, D), z_q (N, D), codes (N, L) or None; copies. `groups`: lengths of the axes of L."""

    z: Tensor
    z_q: Tensor
    codes: Tensor | None
    groups: tuple[int, ...] = ()


@dataclass
class Bench:
    """A module with a plan that is still growing.

    Attributes:
        trial: the guarded module.
        plan: what is known so far.
        dtype: of latents.
        scale: factor of generic latents with which most codes are used.
        train: passes are made in train mode, because eval raises.
    """

    trial: Trial
    plan: Plan
    dtype: torch.dtype
    scale: float = 1.0
    train: bool = False

    def reset(self) -> None:
        """Put the module back to the state that passes start from."""
        state.put_back(self.trial.base)

    def latents(self, n: int, seed: int) -> Tensor:
        """Generic latents (n, D), of a size that reaches many codes."""
        return self.scale * latents(n, self.plan.dim, self.dtype, seed)

    def look(
        self,
        z: Tensor,
        *,
        change: Callable[[], object] | None = None,
        train: bool | None = None,
        go_on: bool = False,
    ) -> Look | None:
        """One pass without gradients; None if it raised or its outputs have the wrong shape."""
        train = self.train if train is None else train
        call, n = self.plan.calls[0].at(train=train), len(z)
        returned = self.trial.run(enter(z, call.layout), train=train, change=change, go_on=go_on)
        if returned is None:
            return None
        table = dict(returned)
        try:
            z_q = leave(table[call.z_q.path], call.z_q.form, n)
            parts = [leave(table[output.path], output.form, n) for output in call.codes]
        except (Violation, KeyError):
            return None
        if z_q.shape != z.shape:
            return None
        rows = [
            (part.argmax(-1) if "K" in output.form else part).reshape(n, -1).round().long()
            for part, output in zip(parts, call.codes, strict=True)
        ]
        groups = tuple(parts[0].shape[1:]) if len(parts) == 1 else ()
        return Look(z, z_q, torch.cat(rows, dim=1) if rows else None, groups)

    def traced(self, layer: Layer, z: Tensor) -> Quantized | None:
        """A training pass with located levels, from the state that the module is in; None if it raised."""
        try:
            return layer.forward(z, train=True, trace=True)
        except Violation:
            return None

    def layer(self) -> Layer:
        """The module as a `Layer` with the plan so far."""
        plan = self.plan
        domain = Domain(plan.dim, self.dtype, tuple(call.layout for call in plan.calls))
        return Layer(Spec(""), plan, self.trial.module, domain, _no_factory)

    def record(self, z: Tensor, *, go_on: bool = False) -> list[Tensor]:
        """Every floating tensor of one pass without gradients, in order."""
        recorder = capture.Recorder()
        with recorder:
            self.trial.run(enter(z, self.plan.calls[0].layout), train=self.train, go_on=go_on)
        return recorder.tensors

    def tune(self) -> Look | None:
        """Choose the scale of latents that reaches the most codes, and make a pass with it."""
        most, best, chosen = 0, 1.0, None
        for scale in (1.0, 0.1, 10.0, 0.01):
            self.scale = scale
            look = self.look(self.latents(128, 31))
            if look is None:
                continue
            used = len((look.z_q if look.codes is None else look.codes).unique(dim=0))
            if used > 1.5 * most:
                most, best, chosen = used, scale, look
            if used >= 12:
                break
        self.scale = best
        return chosen


def _no_factory(_overrides: Mapping[str, Any], _seed: int) -> Any:
    raise AssertionError("discovery builds nothing")
