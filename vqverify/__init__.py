"""Property-based verification of vector-quantization layers in PyTorch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vqverify._version import __version__

if TYPE_CHECKING:
    from vqverify.api import check_quantizer
    from vqverify.bounds import Violation, within
    from vqverify.invariant import Invariant
    from vqverify.pytest_plugin import parametrize_with_invariants
    from vqverify.quantizer import Domain, Finding, Quantized, Quantizer, Spec
    from vqverify.report import Report, Result
    from vqverify.subject import open_subject
    from vqverify.witness import Witness

_HOME = {
    "Domain": "quantizer", "Finding": "quantizer", "Invariant": "invariant", "Quantized": "quantizer",
    "Quantizer": "quantizer", "Report": "report", "Result": "report", "Spec": "quantizer",
    "Violation": "bounds", "Witness": "witness", "check_quantizer": "api", "open_subject": "subject",
    "parametrize_with_invariants": "pytest_plugin", "within": "bounds",
}  # fmt: skip

__all__ = [
    "Domain", "Finding", "Invariant", "Quantized", "Quantizer", "Report", "Result", "Spec", "Violation",
    "Witness", "__version__", "check_quantizer", "open_subject", "parametrize_with_invariants", "within",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import public names on use, so that `vqverify --help` answers before torch is loaded."""
    if name not in _HOME:
        raise AttributeError(f"module 'vqverify' has no attribute {name!r}")
    return getattr(import_module(f"vqverify.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
