"""The door for Python: check a layer, get a report."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vqverify.quantizer import Spec
from vqverify.run.request import Request, RequestError, seed_for
from vqverify.run.runner import check

if TYPE_CHECKING:
    from torch import nn

    from vqverify.report import Report


def check_quantizer(
    target: str | Callable[..., Any] | nn.Module,
    kwargs: Mapping[str, Any] | None = None,
    *,
    claims: Mapping[str, Any] | None = None,
    role: Literal["layer", "estimator", "lookup"] = "layer",
    adapter: str | None = None,
    submodule: str | None = None,
    state: Path | str | None = None,
    latents: Path | str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    profile: str = "quick",
    seed: int | None = None,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    require: Sequence[str] = (),
    fail_on: Sequence[str] = ("law", "contract"),
    strict: bool = False,
    expectations: Path | str | None = None,
) -> Report:
    """Check a layer against every statement that applies to it.

    Args:
        target: `pkg.mod:Class`, `file.py:Class`, a class, a factory, a function, or a module already built.
        kwargs: constructor arguments.
        claims: what the layer says it is, as `{"estimator": "rotation"}`.
        role: `layer`, `estimator` for a function (z, q) -> z_q, or `lookup` for (z, codebook) -> codes.
        adapter: `mod:obj` that says how to call the layer, where discovery is not enough.
        submodule: where the layer is in the model that the target builds: `encoder.vq`.
        state: file of a state_dict to load into what the target builds.
        latents: .npy file of latents (N, D) that the layer meets in use.
        dtype: to cast the layer to, and to give it latents in.
        device: to move the layer to.
        profile: quick, merge or nightly.
        seed: of construction and search; by default 0 (drawn anew for nightly, see `report.profile`).
        only: shell patterns of row ids to check.
        skip: shell patterns of row ids to leave out.
        require: patterns of rows that must apply and pass.
        fail_on: kinds whose failures fail the run.
        strict: undetermined rows fail the run.
        expectations: file of expected failures.

    Returns:
        The report; `report.exit_code` is 0 when everything that must hold does.

    Raises:
        TargetError: if the target cannot be imported, built or called.
        ClaimError: if a claim is unknown.
        UnknownInvariantError: if a pattern names no row.
    """
    spec, obj = subject_of(target, kwargs, claims=claims, role=role, adapter=adapter, seed=seed_for(profile, seed))
    spec = replace(
        spec,
        submodule=submodule,
        state=str(state) if state else None,
        latents=str(latents) if latents else None,
        dtype=dtype,
        device=device,
    )
    request = Request(
        spec,
        profile,
        tuple(only),
        tuple(skip),
        tuple(require),
        tuple(fail_on),
        strict,
        expectations=Path(expectations) if expectations else None,
    )
    return check(request, obj=obj)


def subject_of(
    target: str | Callable[..., Any] | nn.Module,
    kwargs: Mapping[str, Any] | None,
    *,
    claims: Mapping[str, Any] | None,
    role: Literal["layer", "estimator", "lookup"],
    adapter: str | None,
    seed: int,
) -> tuple[Spec, Any]:
    """A spec, and the object to open in its place where the target is no name.

    Raises:
        RequestError: if an argument is of a wrong kind.
    """
    from torch import nn

    if not (isinstance(target, str) or callable(target)):
        raise RequestError(f"target is {target!r}; a class, function, built module or 'file.py:Class' is needed")
    _must_map("kwargs", kwargs)
    _must_map("claims", claims)
    name = target if isinstance(target, str) else _name(target)
    spec = Spec(name, dict(kwargs or {}), dict(claims or {}), role, adapter, seed)
    if isinstance(target, str):
        return spec, None
    return spec, _Built(target) if isinstance(target, nn.Module) and role == "layer" else target


def _must_map(argument: str, value: object) -> None:
    if not (value is None or isinstance(value, Mapping)):
        raise RequestError(f"{argument} is {value!r}; a mapping of names to values is needed")


class _Built:
    """A module already built, as a factory of copies: a check never touches the user's own."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.built = True
        self.__name__ = type(module).__name__
        self.__module__ = type(module).__module__

    def __call__(self) -> nn.Module:
        return copy.deepcopy(self._module)


def _name(target: Any) -> str:
    """`module:qualname`, so that a witness can be replayed where the name can be imported."""
    named = target if hasattr(target, "__qualname__") else type(target)
    return f"{named.__module__}:{named.__qualname__}"
