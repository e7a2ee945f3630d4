"""The latents that are compared with codes, where a script can get at them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import normalize

from vqverify.scripts.scene import Scene, Unscripted, part_of, prepare_quietly

UNIT = "F.normalize({}, dim=-1)"


def latents(s: Scene) -> tuple[list[str], str]:
    """Lines before the pass, and an expression after it, for the latents that are compared with the codebook.

    Where they are not the latents given, a hook keeps what some part of the layer was given or made of them.

    Raises:
        Unscripted: if they are made inside a part of the layer.
    """
    if len(s.subject.plan.slots) != 1:
        s.plain()
    z, wanted, seen = _pass(s)
    for rows, text in ((z, "z"), (normalize(z, dim=-1), UNIT.format("z"))):
        if _same(rows, wanted):
            return [], text
    for (name, way), value in seen.items():
        for rows, text in _readings(value):
            if _same(rows, wanted):
                keep = f"kept.append({'given[0]' if way == 'given' else 'made'})"
                hook = f"{part_of(s.subject.module, name)}.register_forward_hook(lambda part, given, made: {keep})"
                return ["kept = []  # what a part of the layer is given, or makes", hook], text
    raise Unscripted("the latents that are compared with codes are made inside the pass")


def _pass(s: Scene) -> tuple[Tensor, Tensor, dict[tuple[str, str], Tensor]]:
    """Latents (N, D) of a recorded pass, what is compared with codes (N, Dc), and what its parts were given and made."""
    seen: dict[tuple[str, str], Tensor] = {}

    def keeping(name: str) -> Any:
        def keep(_: Module, given: tuple[Any, ...], made: Any) -> None:
            for way, value in (("given", given[0] if given else None), ("made", made)):
                if isinstance(value, Tensor) and value.ndim > 1 and value.is_floating_point():
                    seen.setdefault((name, way), value.detach().clone())

        return keep

    prepare_quietly(s.subject, s.case)
    handles = [part.register_forward_hook(keeping(name)) for name, part in s.subject.module.named_modules()]
    try:
        out = s.subject.forward(s.case.z, train=True, seed=s.case.seed, trace=True)
    finally:
        for handle in handles:
            handle.remove()
        s.subject.restore()
    if len(out.levels) != 1 or out.levels[0].z_c is None:
        raise Unscripted("the latents that are compared with codes could not be told")
    return out.z.rows.detach(), out.levels[0].z_c.rows.detach(), seen


def _readings(value: Tensor) -> Iterator[tuple[Tensor, str]]:
    """What a kept tensor may be as rows, with the expression for it."""
    turns = [(value, "")] + ([(value.movedim(1, -1), ".movedim(1, -1)")] if value.ndim > 2 else [])
    for turned, text in turns:
        rows = turned.reshape(-1, turned.shape[-1])
        said = f"kept[0]{text}.reshape(-1, {rows.shape[1]}).detach()"
        yield from ((rows, said), (normalize(rows, dim=-1), UNIT.format(said)))


def _same(rows: Tensor, wanted: Tensor) -> bool:
    return rows.shape == wanted.shape and torch.allclose(rows, wanted, rtol=1e-5, atol=1e-7)
