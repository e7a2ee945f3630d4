"""How to call a layer: the value that discovery or an adapter produces, and that `Layer` follows.

Shapes are written as *forms*, one letter an axis: B batch, N latents of a batch entry, H and W image axes,
T time, D features, L levels (twice where groups hold levels), K the axis of a one-hot code, F all latents
flattened, 1 a singleton. `BDHW` is the image layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from vqverify.bounds import Violation

TOKENS = "BTNHWF"  # in canonical order: the order in which rows of (N, D) run through an input


@dataclass(frozen=True)
class Output:
    """One tensor of what a layer returns: where it is and what its axes are."""

    path: tuple[str | int, ...]
    form: str = ""


@dataclass(frozen=True)
class Slot:
    """Where one level's (K, Dc) tensor lives in the module's state.

    Attributes:
        name: qualified name of the parameter, buffer or tensor attribute.
        index: leading indices to it (a stacked codebook of heads or levels).
        transposed: stored as (Dc, K).
        transform: what the layer makes of a stored row before it is a code; `made`: something unknown, so that the
            codes are read from a pass and cannot be set.
        shape: (K, Dc) of the codes, for `made`.
        rows: K, where rows of padding follow the codes (`nn.Embedding` with a padding_idx).
    """

    name: str
    index: tuple[int, ...] = ()
    transposed: bool = False
    transform: Literal["identity", "normalize", "made"] = "identity"
    shape: tuple[int, int] | None = None
    rows: int | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """This part (K, Dc) of the stored tensor, sharing its memory."""
        tensor = tensor[self.index] if self.index else tensor
        return (tensor.t() if self.transposed else tensor)[: self.rows]


@dataclass(frozen=True)
class Call:
    """One accepted input layout with the forms of what comes back.

    Attributes:
        layout: form of the input.
        z_q, codes, losses: the outputs; several codes are one a level.
        in_train: the call in train mode, if something else comes back there.
    """

    layout: str
    z_q: Output
    codes: tuple[Output, ...] = ()
    losses: tuple[Output, ...] = ()
    in_train: Call | None = None

    def at(self, *, train: bool) -> Call:
        """The call in that mode."""
        return self.in_train if train and self.in_train is not None else self


@dataclass(frozen=True)
class Decoder:
    """A public method that turns codes back into z_q, with the forms that it takes and gives.

    Attributes:
        method: its name.
        codes_form: form of its argument.
        output_form: form of what it returns.
        levels: lengths of the axes of levels in its argument; they multiply to L.
        path: where z_q is in what it returns.
    """

    method: str
    codes_form: str
    output_form: str
    levels: tuple[int, ...] = ()
    path: tuple[str | int, ...] = ()


@dataclass(frozen=True)
class Second:
    """The method that makes z_q of what the first one returned, where a layer has no method that does both.

    Attributes:
        method: its name.
        swapped: it wants the first two axes of the codes the other way round.
    """

    method: str
    swapped: bool = False


def pass_of(module: nn.Module, method: str, then: Second | None) -> Callable[..., Any]:
    """The callable that makes a pass; with a second method it returns (z_q, codes)."""
    first = getattr(module, method)
    if then is None:
        return first
    second = getattr(module, then.method)

    def both(*args: Any, **arguments: Any) -> tuple[Any, Any]:
        codes = first(*args, **arguments)
        return second(codes.transpose(0, 1) if then.swapped else codes), codes

    return both


@dataclass(frozen=True)
class Plan:
    """Everything that is needed to use a layer as a quantizer.

    Attributes:
        dim: D.
        calls: accepted layouts, the one to use first.
        slots: the codebook, one slot a level; empty if none is stored.
        accumulators: EMA counts and sums, a pair a level; empty if none.
        decoders: public decode methods.
        method: name of the method that makes a pass.
        then: the method that makes z_q of the codes, where `method` returns codes alone.
        arguments: fixed keyword arguments of a pass.
        warm: training passes that initialise the layer (k-means at the first batch).
        min_n: smallest number of latents.
        sphere: the codebook's rows are kept at norm 1.
        evidence: what each conclusion rests on, by field.
    """

    dim: int
    calls: tuple[Call, ...]
    slots: tuple[Slot, ...] = ()
    accumulators: tuple[tuple[Slot, Slot], ...] = ()
    decoders: tuple[Decoder, ...] = ()
    method: str = "__call__"
    then: Second | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    warm: int = 0
    min_n: int = 1
    sphere: bool = False
    evidence: Mapping[str, str] = field(default_factory=dict[str, str])


def sizes(form: str, n: int, groups: int) -> dict[str, int]:
    """Length of each axis letter for n latents in `groups` batch entries; an image is as square as n allows."""
    each = n // groups if "B" in form else n
    long = next((letter for letter in "NHTW" if letter in form), None)
    found = dict.fromkeys(form, 1)
    found |= {"B": groups, "F": n, "1": 1}
    if long is not None:
        found[long] = each
    if long == "H" and "W" in form:
        found["W"] = next(width for width in range(max(1, math.isqrt(each)), 0, -1) if each % width == 0)
        found["H"] = each // found["W"]
    return found


def arrange(rows: Tensor, form: str, size: Mapping[str, int]) -> Tensor:
    """Give rows (N, ...) the axes of a form; `size` says how long each token axis is.

    The axes of `rows` after the first are those of the letters D, L and K in the form, in its order.
    """
    order = [
        *(letter for letter in TOKENS if letter in form),
        *(letter for letter in form if letter not in TOKENS + "1"),
    ]
    shaped = rows.reshape(*(size[letter] for letter in TOKENS if letter in form), *rows.shape[1:])
    axes: list[int] = []
    for letter in form.replace("1", ""):
        axes.append(next(axis for axis, name in enumerate(order) if name == letter and axis not in axes))
    shaped = shaped.permute(*axes)
    for axis, letter in enumerate(form):
        shaped = shaped.unsqueeze(axis) if letter == "1" else shaped
    return shaped


def gather(value: Tensor, form: str, size: Mapping[str, int]) -> Tensor:
    """Read a tensor of a form as rows (N, ...), the axes D, L and K of the form after the first.

    Raises:
        Violation: `shape`, if the tensor is not of that form.
    """
    size = {**size, "1": 1}
    want = tuple(length if letter in "DLK" else size[letter] for letter, length in zip(form, value.shape, strict=False))
    if value.ndim != len(form) or tuple(value.shape) != want:
        known = "(" + ", ".join(letter if letter in "DLK" else f"{letter}={size[letter]}" for letter in form) + ")"
        raise Violation("shape", f"expected an output of shape {known}, got {tuple(value.shape)}")
    order = sorted(range(len(form)), key=lambda axis: (TOKENS + "1LDK").index(form[axis]))
    kept = [value.shape[axis] for axis in order if form[axis] in "LDK"]
    n = math.prod(value.shape[axis] for axis in order if form[axis] in TOKENS)
    return value.permute(*order).reshape(n, *kept)


def enter(z: Tensor, layout: str, groups: int = 1) -> Tensor:
    """Arrange rows (N, D) as a layer's input of the given layout."""
    return arrange(z, layout, sizes(layout, len(z), groups))


def leave(value: Tensor, form: str, n: int, groups: int = 1) -> Tensor:
    """Read a tensor of the given form as rows: (N, D), (N, L) or (N,), whatever axes it has.

    Raises:
        Violation: `shape`, if the tensor is not of that form for n latents.
    """
    return gather(value, form, sizes(form, n, groups))


def fetch(returned: Any, path: tuple[str | int, ...]) -> Any:
    """Follow a path of keys, positions and attributes into what a layer returned.

    Raises:
        Violation: `output`, if there is nothing at that path.
    """
    value = returned
    for step in path:
        try:
            value = value[step] if isinstance(step, int) or isinstance(value, Mapping) else getattr(value, step)
        except (LookupError, TypeError, AttributeError):
            raise Violation("output", f"nothing at {'.'.join(map(str, path))} of what the layer returned") from None
    return value


def tensor_in(raw: Any, path: tuple[str | int, ...]) -> Tensor:
    """Return the tensor at a path of what a layer returned.

    Raises:
        Violation: if something else is there.
    """
    value = fetch(raw, path)
    if not isinstance(value, Tensor):
        raise Violation("output", f"expected a tensor at {path or 'the output'}, got {type(value).__name__}")
    return value
