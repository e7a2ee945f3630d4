"""The tensors of a pass, in the order in which its operations took or made them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


class Recorder(TorchFunctionMode):
    """Keeps every floating tensor that goes into or comes out of an operation, in order of appearance."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []
        self._seen: set[int] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") != "__get__":
            self.note((args, kwargs, result))
        return result

    def note(self, value: Any) -> None:
        """Record the floating tensors inside nested tuples, lists, dicts and dataclasses."""
        if isinstance(value, Tensor):
            if id(value) not in self._seen and value.is_floating_point():
                self._seen.add(id(value))
                self.tensors.append(value)
        elif isinstance(value, tuple | list):
            for item in value:
                self.note(item)
        elif isinstance(value, dict):
            for item in value.values():
                self.note(item)
        elif hasattr(value, "__dataclass_fields__"):
            self.note(vars(value) if hasattr(value, "__dict__") else ())
