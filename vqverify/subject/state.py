"""Snapshot and restore of a module in place: cheaper than deepcopy, and some layers cannot be copied.

What counts as state: parameters, buffers (persistent or not), plain attributes, containers, training flags,
and anything with a state_dict, an optimizer inside included.
"""

from __future__ import annotations

import collections
import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

DEEPEST = 3  # nested containers that are looked into
_MODULE_TABLES = ("_parameters", "_buffers", "_modules")


@dataclass(frozen=True)
class _SavedTensor:
    tensor: Tensor
    value: Tensor
    requires_grad: bool


@dataclass(frozen=True)
class _SavedDict:
    holder: Any
    value: Any


@dataclass(frozen=True)
class Snapshot:
    """The state of a module at one moment; opaque, and only for the module it was taken from."""

    tables: tuple[tuple[dict[str, Any], dict[str, Any]], ...]
    tensors: tuple[_SavedTensor, ...]
    containers: tuple[tuple[Any, Any], ...]
    holders: tuple[_SavedDict, ...]


def take(module: nn.Module) -> Snapshot:
    """Copy the values of everything that a pass may change."""
    tables: list[tuple[dict[str, Any], dict[str, Any]]] = []
    tensors: dict[int, _SavedTensor] = {}
    containers: list[tuple[Any, Any]] = []
    holders: list[_SavedDict] = []

    def keep(value: Any, depth: int = 0) -> None:
        if isinstance(value, Tensor):
            if id(value) not in tensors:
                tensors[id(value)] = _SavedTensor(value, value.detach().clone(), value.requires_grad)
        elif isinstance(value, dict) and depth < DEEPEST:
            containers.append((value, copy.copy(value)))
            for item in value.values():
                keep(item, depth + 1)
        elif isinstance(value, list | set | collections.deque) and depth < DEEPEST:
            containers.append((value, copy.copy(value)))
            for item in value:
                keep(item, depth + 1)
        elif not isinstance(value, nn.Module) and hasattr(value, "load_state_dict"):
            holders.append(_SavedDict(value, copy.deepcopy(_state_dict(value))))

    for child in module.modules():
        for table in (child.__dict__, *(child.__dict__[name] for name in _MODULE_TABLES)):
            tables.append((table, dict(table)))
            for name, value in list(table.items()):
                if name not in _MODULE_TABLES:
                    keep(value)
    return Snapshot(tuple(tables), tuple(tensors.values()), tuple(containers), tuple(holders))


def _state_dict(holder: Any) -> Any:
    """State of an optimizer or the like."""
    return holder.state_dict()


@torch.no_grad()
def put_back(snapshot: Snapshot) -> None:
    """Restore the same objects with the values that they had; gradients are cleared."""
    for table, entries in snapshot.tables:
        if list(table) != list(entries) or any(table[name] is not value for name, value in entries.items()):
            table.clear()
            table.update(entries)
    for container, entries in snapshot.containers:
        container.clear()
        (container.update if isinstance(container, dict | set) else container.extend)(entries)
    for saved in snapshot.tensors:
        _write(saved)
    for held in snapshot.holders:
        held.holder.load_state_dict(copy.deepcopy(held.value))


def _write(saved: _SavedTensor) -> None:
    tensor = saved.tensor
    if tensor.is_leaf and tensor.grad is not None:
        tensor.grad = None
    if tensor.grad_fn is not None:
        tensor.detach_()
    if tensor.shape != saved.value.shape or tensor.dtype != saved.value.dtype or tensor.is_inference():
        tensor.data = saved.value.clone()
    else:
        tensor.data.copy_(saved.value)
    if tensor.is_leaf and tensor.requires_grad != saved.requires_grad:
        tensor.requires_grad_(saved.requires_grad)


def named_state(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by qualified name (not copies)."""
    found = dict(module.named_parameters(remove_duplicate=False))
    found |= dict(module.named_buffers(remove_duplicate=False))
    return found


def all_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers, and tensors kept as plain attributes, by qualified name."""
    found = named_state(module)
    for prefix, child in module.named_modules():
        for name, value in child.__dict__.items():
            if isinstance(value, Tensor):
                found.setdefault(f"{prefix}.{name}" if prefix else name, value)
    return found


def tensor_at(module: nn.Module, name: str) -> Tensor:
    """One tensor of :func:`all_tensors` by its qualified name, without listing them all.

    Raises:
        KeyError: if there is none.
    """
    *path, last = name.split(".")
    for part in path:
        module = module.__dict__["_modules"][part]
    for table in (module.__dict__["_parameters"], module.__dict__["_buffers"], module.__dict__):
        if isinstance(found := table.get(last), Tensor):
            return found
    raise KeyError(name)
