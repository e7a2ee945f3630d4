"""Adapters say how to call layers that discovery cannot settle; `Adapter` is their shape."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from vqverify.subject.plan import Plan


class Adapter(Protocol):
    """What `--adapter mod:obj` names. `claims` (trait → value) and `matches` are optional."""

    def plan(self, module: nn.Module, kwargs: Mapping[str, Any]) -> Plan:
        """How to call a module that was built with these kwargs."""
        ...


def claims_of(adapter: Any) -> dict[str, Any]:
    """What an adapter says that the layer is; empty if it says nothing."""
    return dict(getattr(adapter, "claims", None) or {})


def installed(factory: Any) -> Any | None:
    """The first adapter of the entry-point group `vqverify.adapters` whose `matches(factory)` is true."""
    for entry in importlib.metadata.entry_points(group="vqverify.adapters"):
        adapter = entry.load()
        if adapter.matches(factory):
            return adapter
    return None
