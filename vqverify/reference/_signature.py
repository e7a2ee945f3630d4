"""Why a small layer need not pay for reading a signature on every call."""

from __future__ import annotations

import inspect
from typing import TypeVar

from torch.autograd import Function

F = TypeVar("F", bound=Function)


def signed(function: type[F]) -> type[F]:
    """Keep the signature of an autograd function's ``forward``: ``apply`` reads it anew each time (60 µs)."""
    forward = function.forward
    forward.__signature__ = inspect.signature(forward)  # pyright: ignore[reportFunctionMemberAccess]
    return function
