"""What a layer declares against what it does: shown by the law of the trait."""

from __future__ import annotations

from collections.abc import Iterator

from vqverify.scripts import estimator, update
from vqverify.scripts.registry import script
from vqverify.scripts.scene import Scene, Unscripted


@script("honesty.traits", variants=2, stated=False)
def traits(s: Scene) -> Iterator[str]:
    """The law of the trait that is declared."""
    claim = s.subject.claims.get(s.part)
    if s.label != "contradicted" or claim is None:
        raise Unscripted("the layer shows nothing that decides it")
    match s.part:
        case "estimator":
            first, *rest = estimator.jacobian(s)
            yield f"z, g = torch.randn(2, {s.n}, {s.dim})"
            yield from (first, *rest)
        case "decay":
            yield from update.ema_is_commitment(s)
        case "replacement" | "dead_below":
            yield from update.expiry(s)
        case "synchronized":
            yield from update.synchronized(s)
        case other:
            raise Unscripted(f"no script is written for the trait {other}")
