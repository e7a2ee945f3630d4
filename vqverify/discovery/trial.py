"""Calling a stranger's module: seeded, guarded, always from the same state, and looking at all it returns."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vqverify.subject import state
from vqverify.subject.plan import Second, pass_of
from vqverify.subject.randomness import forked

Path = tuple[str | int, ...]


def leaves(returned: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor of what a layer returned, with its path, through tuples, lists, mappings and objects."""
    if isinstance(returned, Tensor):
        yield path, returned
    elif len(path) > 4 or isinstance(returned, nn.Module | str):
        return
    elif isinstance(returned, Mapping):
        for key, value in returned.items():
            yield from leaves(value, (*path, key))
    elif isinstance(returned, tuple | list):
        for index, value in enumerate(returned):
            yield from leaves(value, (*path, index))
    elif dataclasses.is_dataclass(returned):
        for field in dataclasses.fields(returned):
            yield from leaves(getattr(returned, field.name), (*path, field.name))
    elif hasattr(returned, "__dict__"):
        for name, value in vars(returned).items():
            yield from leaves(value, (*path, name))


def _real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def told(returned: Any, depth: int = 0) -> str:
    """What a layer returned, in few words."""
    if isinstance(returned, Tensor):
        return f"a tensor of shape {tuple(returned.shape)}, {str(returned.dtype).removeprefix('torch.')}"
    if returned is None or isinstance(returned, bool | int | float | str):
        text = repr(returned)
        return f"the {type(returned).__name__} {text[:30]}{'…' * (len(text) > 30)}" if returned is not None else text
    items = (
        [f"{key}: {told(value, 1)}" for key, value in list(returned.items())[:4]]
        if isinstance(returned, Mapping)
        else [told(value, 1) for value in returned[:4]]
        if isinstance(returned, tuple | list)
        else []
    )
    name = type(returned).__name__
    return f"a {name} ({'; '.join(items)})" if items and not depth else f"a {name}"


@dataclasses.dataclass
class Trial:
    """A module that is put back before each call.

    Attributes:
        module: the subject.
        method: the method that makes a pass.
        then: the method that makes z_q of what the first returns, if there must be one.
        arguments: what it needs besides the latents.
        origin: the state in which the module came.
        base: the state that each call starts from.
        error: what the last call raised, '' if it did not.
        calls, raised: how many there were.
        integers: some call returned a tensor of integers.
        arrays: some call returned numbers that could be z_q in another shape.
        returned: what the first call that did not raise was given and returned, in words.
    """

    module: nn.Module
    method: str = "__call__"
    then: Second | None = None
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    origin: state.Snapshot = dataclasses.field(init=False)
    base: state.Snapshot = dataclasses.field(init=False)
    error: str = ""
    calls: int = 0
    raised: int = 0
    integers: bool = False
    arrays: bool = False
    returned: str = ""

    def __post_init__(self) -> None:
        self.base = self.origin = state.take(self.module)

    def run(
        self,
        x: Tensor,
        *,
        train: bool = False,
        grad: bool = False,
        seed: int = 1,
        change: Callable[[], object] | None = None,
        go_on: bool = False,
    ) -> list[tuple[Path, Tensor]] | None:
        """Every tensor that one call returns, by path; None if it raised. The state after it can be seen.

        Args:
            x: the input.
            train: train or eval mode.
            grad: leave the tensors in the graph; else they are copies.
            seed: of the global generators.
            change: what to do to the module's state before the call.
            go_on: start from the state in which the last call left the module.
        """
        if not go_on:
            state.put_back(self.base)
        if change is not None:
            with torch.no_grad():
                change()
        self.module.train(train)
        returned = self.guarded(pass_of(self.module, self.method, self.then), x, grad=grad, seed=seed, **self.arguments)
        if returned is None:
            return None
        found = list(leaves(returned[0]))
        self.integers |= any(not _real(tensor) and tensor.numel() > 1 for _, tensor in found)
        self.arrays |= any(tensor.is_floating_point() and tensor.numel() > 1 for _, tensor in found)
        self.returned = self.returned or f"{told(returned[0])} for latents of shape {tuple(x.shape)}"
        return found if grad else [(path, tensor.detach().clone()) for path, tensor in found]

    def guarded(
        self, method: str | Callable[..., Any], *args: Any, grad: bool = False, seed: int = 1, **more: Any
    ) -> tuple[Any] | None:
        """What a method returns, in a tuple; None if it raised."""
        self.calls += 1
        self.error = ""
        try:
            with (
                contextlib.redirect_stdout(io.StringIO()),
                warnings.catch_warnings(),
                forked(seed),
                torch.set_grad_enabled(grad),
            ):
                warnings.simplefilter("ignore")
                call = getattr(self.module, method) if isinstance(method, str) else method
                return (call(*args, **more),)  # a tuple: a method may return None
        except (Exception, SystemExit) as error:  # noqa: BLE001  (a stranger's code may raise anything)
            text = str(error).strip().splitlines()
            self.error = f"{type(error).__name__}: {text[0] if text else ''}"[:200]
            self.raised += 1
            return None

    def close(self) -> None:
        """Put the module back as it came."""
        state.put_back(self.origin)
