"""Which rows have a script, and how each is written: functions (scene) -> lines, by the id of the row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module

from vqverify.scripts.scene import Scene

Body = Callable[[Scene], Iterator[str]]
ROOMS = ("lookup", "estimator", "loss", "update", "discrete", "passes", "interface", "honesty")


@dataclass(frozen=True)
class Written:
    """How a row's failure is shown in plain torch.

    Attributes:
        body: the lines after the latents `z` and cotangents `g` were written down.
        variants: in how many ways it may be shown; the first that fails is taken.
        warm: whether the layer is in the state after its first passes.
        stated: whether the codebook and the history of the witness are written first.
    """

    body: Body
    variants: int = 1
    warm: bool = True
    stated: bool = True


_WRITTEN: dict[str, Written] = {}


def script(*ids: str, variants: int = 1, warm: bool = True, stated: bool = True) -> Callable[[Body], Body]:
    """Register how the failures of some rows are written.

    Raises:
        ValueError: if a row has a script already.
    """

    def register(body: Body) -> Body:
        for id_ in ids:
            if id_ in _WRITTEN:
                raise ValueError(f"the row {id_!r} has two scripts")
            _WRITTEN[id_] = Written(body, variants, warm, stated)
        return body

    return register


def written() -> dict[str, Written]:
    """Every row that has a script."""
    for room in ROOMS:
        import_module(f"vqverify.scripts.{room}")
    return _WRITTEN
