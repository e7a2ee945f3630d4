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
from vqverify.subject import inside, state
from vqverify.subject.bare import BareEstimator, BareLookup, bare_plan
from vqverify.subject.layer import Layer
from vqverify.subject.target import TargetError, check_arguments, construct, load, suggest

if TYPE_CHECKING:
    from vqverify.subject.plan import Plan

BARE: Mapping[str, type[nn.Module]] = {"estimator": BareEstimator, "lookup": BareLookup}
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
    if spec.role != "layer" and (spec.submodule or spec.state):
        raise TargetError(f"--submodule and --state are for a layer, not for --as {spec.role}")
    _available(spec.device)
    adapter = _adapter(spec, target)
    factory = make_factory(spec, target)
    module = factory({}, spec.seed)
    dtype = _dtype(spec.dtype) or _own_dtype(module)
    plan = _plan(spec, target, adapter, module)
    domain = Domain(
        dim=plan.dim,
        dtype=dtype,
        layouts=tuple(call.layout for call in plan.calls),
        min_n=plan.min_n,
        codebook="sphere" if plan.sphere else "free",
        latents=inside.load_latents(spec.latents, plan.dim, plan.calls[0].layout, dtype) if spec.latents else None,
    )
    built = bool(spec.submodule) or getattr(target, "built", False)
    layer = Layer(spec, plan, module, domain, factory, built=built)
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
    loaded: dict[str, torch.Tensor] = {}

    def factory(overrides: Mapping[str, Any], seed: int) -> nn.Module:
        kwargs = {**spec.kwargs, **overrides}
        dtype = _dtype(kwargs.pop("_dtype", spec.dtype))
        if spec.role != "layer":
            bare = BARE[spec.role]
            _known_arguments(bare, kwargs)
            module = construct(bare, {spec.role: target, **kwargs}, seed)
        else:
            module = construct(target, kwargs, seed)
        if spec.state:
            if not loaded:
                inside.load_state(module, spec.state)
                loaded.update({name: value.clone() for name, value in module.state_dict().items()})
            module.load_state_dict(loaded)
        if spec.submodule:
            module = inside.submodule(module, spec.submodule)
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
    if isinstance(module, BareEstimator | BareLookup):
        _sound(module, spec)
        return bare_plan(module.codebook.shape[1])
    if adapter is not None:
        return adapter.plan(module, spec.kwargs)
    from vqverify.discovery import discover

    if spec.dtype is not None or spec.device is not None:
        # how a layer is called does not depend on its precision or place, and probes need small rounding
        module = make_factory(replace(spec, dtype=None, device=None), target)({}, spec.seed)
    return discover(module, target, spec.kwargs, dtype=_own_dtype(module))


def _own_dtype(module: nn.Module) -> torch.dtype:
    """Of latents for a layer as it was built: float64 where all that it holds is, weights or codes among it."""
    held = [tensor for tensor in state.all_tensors(module).values() if tensor.is_floating_point()]
    double = all(tensor.dtype == torch.float64 for tensor in held) and any(tensor.ndim > 1 for tensor in held)
    return torch.float64 if double else torch.float32


def _sound(module: BareEstimator | BareLookup, spec: Spec) -> None:
    """Refuse a wrong function: (z, q) must give a tensor of their shape, (f, z, q) a scalar, (z, codebook) codes."""
    book = module.codebook.cpu().float()
    q = book[:3]
    z = (q + 1).requires_grad_()
    try:
        if isinstance(module, BareLookup):
            value = cast("object", module.lookup(z.detach(), book))
        else:
            value = cast("object", module.estimator(*[_squares] * module.of_task, z, q))
    except TypeError as error:
        given = "(z, codebook)" if isinstance(module, BareLookup) else "(f, z, q)" if module.of_task else "(z, q)"
        raise TargetError(f"{spec.target} was called with {given} and raised {error}") from error
    except Exception:  # noqa: BLE001  (what a function raises on its domain is a finding, not a wrong target)
        return
    shown = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
    if isinstance(module, BareLookup):
        if not isinstance(value, torch.Tensor) or value.shape != q.shape[:1] or value.is_floating_point():
            shown = f"{value.dtype} {shown}" if isinstance(value, torch.Tensor) else shown
            raise TargetError(
                f"{spec.target} must return codes, integers ({len(q)},) for z {tuple(q.shape)}; it returned {shown}"
            )
        return
    if module.of_task:
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            raise TargetError(f"{spec.target} must return the loss of the task f, a scalar; it returned {shown}")
        return
    if not isinstance(value, torch.Tensor) or value.shape != q.shape:
        raise TargetError(f"{spec.target} must return z_q of the shape of z, {tuple(q.shape)}; it returned {shown}")


def _squares(rows: torch.Tensor) -> torch.Tensor:
    return rows.square().sum()


def _describe(layer: Layer, target: Any, adapter_claims: Mapping[str, Any]) -> None:
    """Claims, findings, and both joined."""
    from vqverify.identify import identify
    from vqverify.subject.claims import join, read_claims

    if layer.spec.submodule:  # the arguments are the model's, and need not be the layer's
        layer.claims = read_claims(replace(layer.spec, kwargs={}), lambda: None, adapter_claims)
    else:
        layer.claims = read_claims(layer.spec, target, adapter_claims)
    layer.found = identify(layer)
    layer.traits = join(layer.claims, layer.found)


def _available(device: str | None) -> None:
    if device is None:
        return
    try:
        torch.zeros(1, device=device).add_(1)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).strip().split("\n")[0][:120]
        raise TargetError(f"--device {device} cannot be used here: {first}") from error


def _known_arguments(bare: type[nn.Module], kwargs: Mapping[str, Any]) -> None:
    role = "estimator" if bare is BareEstimator else "lookup"
    for key in kwargs:
        if key not in {"dim", "codebook_size"}:
            raise TargetError(f"a bare {role} has no argument {key!r}{suggest(key, ('dim', 'codebook_size'))}")
    check_arguments(bare, {role: None, **kwargs})


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
