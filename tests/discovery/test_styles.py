"""Discovery settles every style without an adapter, and names do not matter."""

from __future__ import annotations

import inspect
import random
import re
import textwrap
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from vqverify.discovery import discover
from vqverify.quantizer import Spec
from vqverify.subject import open_subject
from vqverify.subject.state import all_tensors
from vqverify.subject.target import construct

from . import styles
from .expected import WANTED, Want, found, wanted

if TYPE_CHECKING:
    from vqverify.subject.plan import Plan


def opened(cls: Any, kwargs: dict[str, Any], seed: int = 0) -> Plan:
    module = construct(cls, kwargs, seed)
    return discover(module, cls, kwargs, dtype=torch.float32)


@pytest.mark.parametrize("want", WANTED, ids=lambda want: want.cls.__name__)
@pytest.mark.parametrize("seed", [0, 3, 20])
def test_every_style_is_settled(want: Want, seed: int) -> None:
    plan = opened(want.cls, want.kwargs, seed)
    assert found(plan) == wanted(want)
    assert {"layout", "z_q", "codes", "loss", "codebook", "accumulators", "decoders", "warm", "min_n"} <= set(
        plan.evidence
    )


@pytest.mark.parametrize("want", WANTED, ids=lambda want: want.cls.__name__)
def test_the_module_is_given_back_as_it_came(want: Want) -> None:
    module = construct(want.cls, want.kwargs, 0)
    before = {name: (id(tensor), tensor.detach().clone()) for name, tensor in all_tensors(module).items()}
    discover(module, want.cls, want.kwargs, dtype=torch.float32)
    after = all_tensors(module)
    assert list(after) == list(before)
    assert all(
        id(after[name]) == identity and torch.equal(after[name], value) for name, (identity, value) in before.items()
    )
    assert module.training


def renamed(cls: type[nn.Module]) -> tuple[Any, dict[str, str]]:
    """The class with every attribute and public method of its own under a meaningless name."""
    source = textwrap.dedent(inspect.getsource(cls))
    known = set(dir(nn.Module)) | {"training"}
    names = [
        *re.findall(r"self\.(\w+)", source),
        *re.findall(r"def (\w+)", source),
        *re.findall(r'register_buffer\("(\w+)"', source),
    ]
    own = sorted({name for name in names if name not in known and not name.startswith("__")})
    table = {name: f"x{index}y" for index, name in enumerate(random.Random(4).sample(own, len(own)))}
    for name, other in table.items():
        source = re.sub(rf'(self\.|def |register_buffer\("){name}\b', rf"\g<1>{other}", source)
    namespace = dict(vars(styles))
    exec(compile(source.replace("from __future__ import annotations", ""), "<renamed>", "exec"), namespace)
    return namespace[cls.__name__], table


def shuffled(cls: Any) -> tuple[Any, Any]:
    """The class with the outermost container of its output turned round, and the change of a path by that."""

    def turn(value: Any) -> Any:
        if isinstance(value, dict):
            return {f"k{index}": item for index, item in enumerate(reversed(value.values()))}
        if isinstance(value, Tensor) or not isinstance(value, tuple):
            return value
        return tuple(reversed(value))

    class Turned(cls):  # type: ignore[misc]
        pass

    entry = next(
        name
        for name in ("forward", *vars(cls))
        if name in vars(cls) and (name == "forward" or inspect.isfunction(vars(cls)[name]))
    )
    if entry == "__init__":
        entry = next(name for name in vars(cls) if inspect.isfunction(vars(cls)[name]) and not name.startswith("__"))
    old = getattr(cls, entry)
    setattr(Turned, entry, lambda self, x: turn(old(self, x)))
    Turned.__init__.__signature__ = inspect.signature(cls.__init__)  # type: ignore[attr-defined]
    return Turned, turn


def values(module: nn.Module, plan: Plan) -> list[Tensor]:
    tensors = all_tensors(module)
    slots = [*plan.slots, *(slot for pair in plan.accumulators for slot in pair)]
    return [tensors[slot.name][slot.index] for slot in slots]


@pytest.mark.parametrize("want", WANTED, ids=lambda want: want.cls.__name__)
def test_names_and_the_order_of_outputs_change_no_conclusion(want: Want) -> None:
    plain_module = construct(want.cls, want.kwargs, 0)
    plain = discover(plain_module, want.cls, want.kwargs, dtype=torch.float32)
    cls, table = renamed(want.cls)
    cls, _ = shuffled(cls)
    module = construct(cls, want.kwargs, 0)
    plan = discover(module, cls, want.kwargs, dtype=torch.float32)
    for field in ("dim", "warm", "sphere", "min_n"):
        assert getattr(plan, field) == getattr(plain, field), field
    for a, b in zip(plain.calls, plan.calls, strict=True):
        assert (a.layout, a.z_q.form) == (b.layout, b.z_q.form)
        assert [output.form for output in a.codes] == [output.form for output in b.codes]
        assert len(a.losses) == len(b.losses)
    assert [slot.transform for slot in plan.slots] == [slot.transform for slot in plain.slots]
    assert {table.get(decoder.method, decoder.method) for decoder in plain.decoders} == {
        decoder.method for decoder in plan.decoders
    }
    for a, b in zip(values(plain_module, plain), values(module, plan), strict=True):
        assert torch.equal(a, b)


def test_train_mode_may_return_something_else() -> None:
    plan = opened(styles.TwoFaced, {})
    train = plan.calls[0].at(train=True)
    assert (train.z_q.path, train.codes[0].path, [output.path for output in train.losses]) == (
        (2,),
        (1,),
        [(0,)],
    )
    layer = open_subject(Spec("TwoFaced"), obj=styles.TwoFaced)
    z = torch.randn(5, 6)
    assert layer.forward(z).loss is None
    assert layer.forward(z, train=True).loss is not None
    assert torch.equal(layer.forward(z).codes, layer.forward(z, train=True).codes)
