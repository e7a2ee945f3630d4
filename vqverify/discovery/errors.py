"""What cannot be settled, said in one sentence, with the adapter that would settle it."""

from __future__ import annotations

from vqverify.subject.target import TargetError

_TEMPLATE = """
from vqverify.subject.plan import Call, Output, Plan, Slot

class Adapter:
    @staticmethod
    def plan(module, kwargs):
        call = Call("BND", z_q=Output((0,), "BND"), codes=(Output((1,), "BN"),), losses=(Output((2,)),))
        return Plan(dim={dim}, calls=(call,), slots=(Slot("codebook"),), method="__call__")
"""


class DiscoveryError(TargetError):
    """No call of the layer gives a z_q. The message ends with the adapter to fill in, where one could help."""


def undiscovered(reason: str, dim: int | None) -> DiscoveryError:
    """The error, with a template to save as my_adapter.py and name with `--adapter my_adapter:Adapter`."""
    return DiscoveryError(
        f"{reason}; say how to call it in an adapter (--adapter my_adapter:Adapter):\n"
        + _TEMPLATE.format(dim=dim or "...")
    )
