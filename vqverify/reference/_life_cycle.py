"""What a layer owes to the machinery around it: casts, and passes that run twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


def recomputing() -> bool:
    """Return whether this pass runs inside a backward: activation checkpointing runs it a second time."""
    return torch._C._current_graph_task_id() != -1  # noqa: SLF001  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]


def keep_wide(module: nn.Module, before: dict[str, Tensor]) -> None:
    """After a cast, put back what fell below float32, on the module's new device.

    Args:
        module: the module that was cast.
        before: its buffers, by name, as they were.
    """
    for name, value in before.items():
        moved = getattr(module, name)
        if moved.dtype != torch.promote_types(moved.dtype, torch.float32):
            setattr(module, name, value.to(moved.device))
