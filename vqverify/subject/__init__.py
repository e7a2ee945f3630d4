"""From a Spec to a subject that is ready to be checked; works in any process, from the Spec alone."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from vqverify import adapters
from vqverify.bounds import Violation
from vqverify.quantizer import Domain, Spec
from vqverify.subject import state
from vqverify.subject.bare import BareEstimator, bare_plan
from vqverify.subject.layer import Layer
from vqverify.subject.target import TargetError, check_arguments, construct, load, suggest

if TYPE_CHECKING:
    from vqverify.subject.plan import Plan

Factory = Callable[[Mapping[str, Any], int], nn.Module]


def open_subject(spec: Spec, *, obj: Any = None) -> Layer:
    """Load, build, discover and identify a subject.

    Args:
        spec: what to open.
        obj: the class, factory or function itself, where there is no target to import.

    Returns:
        A layer as built and warmed up, with its claims and findings.

    Raises:
        TargetError: if it cannot be imported, built or called; the message is for the user.
    """
    with _one_thread():
        return _open(spec, load(spec.target) if obj is None else obj)


@contextmanager
def _one_thread() -> Generator[None]:
    """Hundreds of tiny passes: a second thread would only wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _open(spec: Spec, target: Any) -> Layer:
    adapter = _adapter(spec, target)
    factory = make_factory(spec, target)
    module = factory({}, spec.seed)
    dtype = _dtype(spec.dtype) or torch.float32
    plan = _plan(spec, target, adapter, module)
    domain = Domain(
        dim=plan.dim,
        dtype=dtype,
        layouts=tuple(call.layout for call in plan.calls),
        min_n=plan.min_n,
        codebook="sphere" if plan.sphere else "free",
    )
    layer = Layer(spec, plan, module, domain, factory)
    try:
        layer.warm_up()
        layer.copyable = restores(layer)
    except Violation:  # a layer that raises is a finding: interface.runs reports it
        layer.module = factory({}, spec.seed)
        layer.plan = replace(plan, warm=0)
        layer.warm_up()
    _describe(layer, target, adapters.claims_of(adapter))
    return layer


def make_factory(spec: Spec, target: Any) -> Factory:
    """A function (overrides, seed) -> module; the override `_dtype` names a dtype to cast to."""

    def factory(overrides: Mapping[str, Any], seed: int) -> nn.Module:
        kwargs = {**spec.kwargs, **overrides}
        dtype = _dtype(kwargs.pop("_dtype", spec.dtype))
        if spec.role == "estimator":
            _known_arguments(kwargs)
            module = construct(BareEstimator, {"estimator": target, **kwargs}, seed)
        else:
            module = construct(target, kwargs, seed)
        if dtype is not None:
            module = module.to(dtype)
        return module if spec.device is None else module.to(spec.device)

    return factory


def restores(layer: Layer) -> bool:
    """Whether a snapshot really gives the warmed layer back: same tensors, same results, after two steps."""
    z = torch.randn(max(32, layer.plan.min_n), layer.plan.dim, generator=torch.Generator().manual_seed(1)).to(
        layer.domain.dtype
    )

    def look() -> list[torch.Tensor]:
        tensors = [tensor.detach().clone() for tensor in state.all_tensors(layer.module).values()]
        with torch.no_grad():
            tensors.append(layer.forward(z, grad=False).z_q.rows.detach().clone())
        layer.restore()
        return tensors

    try:
        before = look()
        for seed in range(2):
            layer.forward(z, train=True, seed=seed)
        layer.restore()
        after = look()
    except Violation:
        layer.restore()
        return True
    return len(before) == len(after) and all(
        a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, after, strict=True)
    )


def _adapter(spec: Spec, target: Any) -> Any | None:
    if spec.adapter is None:
        return adapters.installed(target)
    adapter = load(spec.adapter)
    if isinstance(adapter, type):
        adapter = adapter()
    if not callable(getattr(adapter, "plan", None)):
        raise TargetError(f"adapter {spec.adapter} has no method plan(module, kwargs)")
    return adapter


def _plan(spec: Spec, target: Any, adapter: Any | None, module: nn.Module) -> Plan:
    if isinstance(module, BareEstimator):
        _sound(module, spec)
        return bare_plan(module.codebook.shape[1])
    if adapter is not None:
        return adapter.plan(module, spec.kwargs)
    from vqverify.discovery import discover

    if spec.dtype is not None or spec.device is not None:
        # how a layer is called does not depend on its precision or place, and probes need small rounding
        module = make_factory(replace(spec, dtype=None, device=None), target)({}, spec.seed)
    return discover(module, target, spec.kwargs, dtype=torch.float32)


def _sound(module: BareEstimator, spec: Spec) -> None:
    """Refuse a function that is no estimator: (z, q) must give a tensor of their shape, (f, z, q) a scalar."""
    q = module.codebook[:3]
    given, task = ("(f, z, q)", [_squares]) if module.of_task else ("(z, q)", [])
    try:
        value = cast("object", module.estimator(*task, (q + 1).requires_grad_(), q))
    except TypeError as error:
        raise TargetError(f"{spec.target} was called with {given} and raised {error}") from error
    except Exception:  # noqa: BLE001  (what an estimator raises on its domain is a finding, not a wrong target)
        return
    if module.of_task:
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            shown = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise TargetError(f"{spec.target} must return the loss of the task f, a scalar; it returned {shown}")
        return
    if not isinstance(value, torch.Tensor) or value.shape != q.shape:
        shown = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise TargetError(f"{spec.target} must return z_q of the shape of z, {tuple(q.shape)}; it returned {shown}")


def _squares(rows: torch.Tensor) -> torch.Tensor:
    return rows.square().sum()


def _describe(layer: Layer, target: Any, adapter_claims: Mapping[str, Any]) -> None:
    """Claims, findings, and both joined."""
    from vqverify.identify import identify
    from vqverify.subject.claims import join, read_claims

    layer.claims = read_claims(layer.spec, target, adapter_claims)
    layer.found = identify(layer)
    layer.traits = join(layer.claims, layer.found)


def _known_arguments(kwargs: Mapping[str, Any]) -> None:
    for key in kwargs:
        if key not in {"dim", "codebook_size"}:
            raise TargetError(f"a bare estimator has no argument {key!r}{suggest(key, ('dim', 'codebook_size'))}")
    check_arguments(BareEstimator, {"estimator": None, **kwargs})


def _dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        floats = [
            key for key, value in vars(torch).items() if isinstance(value, torch.dtype) and value.is_floating_point
        ]
        raise TargetError(f"{name!r} is no floating dtype of torch{suggest(name, floats)}")
    return found
