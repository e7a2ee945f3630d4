"""Softmax weights over the codes, read from the graph behind z_q (theory T30)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from vqverify.quantizer import Quantized


def relaxed_weights(out: Quantized, size: int) -> Iterator[Tensor]:
    """Softmax weights over the codes in the graph behind z_q, (N, K), last first."""
    for node in softmaxes(out.z_q.tensor.grad_fn):
        rows = code_axis_last(node, node._saved_result, size)  # noqa: SLF001  (autograd's documented attribute)
        if rows is not None:
            yield rows


def code_axis_last(node: Any, value: Tensor, size: int) -> Tensor | None:
    """A tensor shaped as a softmax's result, (N, K); None if its axis has another length than K."""
    axis = node._saved_dim  # noqa: SLF001
    axis = axis - 2**64 if axis >= 2**63 else axis
    return value.movedim(axis, -1).reshape(-1, size) if value.shape[axis] == size else None


def softmaxes(root: Any) -> Iterator[Any]:
    """The softmax operations in the graph behind a tensor, last first."""
    seen: set[Any] = set()
    queue = [root]
    while queue:
        node = queue.pop(0)
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().startswith("SoftmaxBackward"):
            yield node
        queue.extend(parent for parent, _ in node.next_functions)
