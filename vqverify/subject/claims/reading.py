"""Where claims come from: the user, an adapter, arguments given, and defaults."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from vqverify.quantizer import Finding, Origin, Spec
from vqverify.subject.claims.rules import RULES
from vqverify.subject.claims.words import normalise

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def _defaults(cls: Any) -> dict[str, Any]:
    try:
        parameters = inspect.signature(cls).parameters
    except (TypeError, ValueError):
        return {}
    return {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not inspect.Parameter.empty and parameter.default is not None
    }


def read_claims(spec: Spec, cls: Any, adapter_claims: Mapping[str, Any] | None = None) -> dict[str, Finding]:
    """Everything that is claimed of a subject, the strongest source first: user, adapter, kwargs given, defaults.

    Args:
        spec: with the constructor arguments and the user's claims.
        cls: the class or factory, for the defaults of its signature.
        adapter_claims: what an adapter says.

    Raises:
        ClaimError: if the user or the adapter claims what is no claim.
    """
    claims: dict[str, Finding] = {}
    given = dict(spec.kwargs)
    defaults = {name: value for name, value in _defaults(cls).items() if name not in given}
    sources: tuple[tuple[Mapping[str, Any], Origin], ...] = ((given, "given"), (defaults, "default"))
    for weak in (False, True):
        for arguments, origin in sources:
            for name, finding in _from_arguments(arguments, origin, weak=weak):
                if finding.origin != "default" or name not in claims:
                    claims.setdefault(name, finding)
    claims |= {name: _claim(name, value, "adapter") for name, value in (adapter_claims or {}).items()}
    return claims | {name: _claim(name, value, "given") for name, value in spec.claims.items()}


def _claim(name: str, value: Any, origin: Origin) -> Finding:
    return Finding(
        normalise(name, value),
        origin,
        f"claim {name}={value!r}" if origin == "given" else f"the adapter says {name}={value!r}",
    )


def _from_arguments(arguments: Mapping[str, Any], origin: Origin, *, weak: bool) -> Iterator[tuple[str, Finding]]:
    for rule in RULES:
        for parameter, value in arguments.items():
            if rule.weak != weak or parameter.lower() not in rule.names:
                continue
            claimed = rule.value(value)
            if claimed is not None:
                said = f"{'argument' if origin == 'given' else 'default'} {parameter}={value!r}"
                yield rule.claim, Finding(claimed, "default" if weak else origin, said)
