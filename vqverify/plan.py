"""How to call a layer: the value that discovery or an adapter produces, and that `Layer` follows.

Shapes are written as *forms*, one letter an axis: B batch, N latents of a batch entry, H and W image axes,
T time, D features, L levels, F all latents flattened, 1 a singleton. `BDHW` is the image layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

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
        transform: what the layer makes of a stored row before it is a code.
    """

    name: str
    index: tuple[int, ...] = ()
    transposed: bool = False
    transform: Literal["identity", "normalize"] = "identity"


@dataclass(frozen=True)
class Call:
    """One accepted input layout with the forms of what comes back."""

    layout: str
    z_q: Output
    codes: tuple[Output, ...] = ()  # several outputs: one a level
    losses: tuple[Output, ...] = ()


@dataclass(frozen=True)
class Decoder:
    """A public method that turns codes back into z_q, with the forms that it takes and gives."""

    method: str
    codes_form: str
    output_form: str


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
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    warm: int = 0
    min_n: int = 1
    sphere: bool = False
    evidence: Mapping[str, str] = field(default_factory=dict[str, str])


def sizes(form: str, n: int, groups: int) -> dict[str, int]:
    """Length of each axis letter for n latents in `groups` batch entries (H carries the latents of an image)."""
    each = n // groups if "B" in form else n
    long = next((letter for letter in "NHTW" if letter in form), None)
    found = {letter: 1 for letter in form}
    found |= {"B": groups, "F": n, "1": 1}
    if long is not None:
        found[long] = each
    return found


def enter(z: Tensor, layout: str, groups: int = 1) -> Tensor:
    """Arrange rows (N, D) as a layer's input of the given layout."""
    size = sizes(layout, len(z), groups)
    tokens = [letter for letter in TOKENS if letter in layout]
    shaped = z.reshape(*(size[letter] for letter in tokens), z.shape[1])
    order = [*tokens, "D"]
    return shaped.permute(*(order.index(letter) for letter in layout))


def leave(value: Tensor, form: str, n: int, groups: int = 1) -> Tensor:
    """Read a tensor of the given form as rows: (N, D), (N, L) or (N,), whatever axes it has.

    Raises:
        Violation: `shape`, if the tensor is not of that form for n latents.
    """
    size = sizes(form, n, groups)
    known = {letter: size[letter] for letter in form if letter not in "DL"}
    for letter, length in zip(form, value.shape, strict=False):
        if letter in "DL":
            known[letter] = length
    if value.ndim != len(form) or tuple(value.shape) != tuple(known[letter] for letter in form):
        want = "(" + ", ".join(f"{letter}={known.get(letter, '?')}" for letter in form) + ")"
        raise Violation("shape", f"expected an output of shape {want}, got {tuple(value.shape)}")
    order = sorted(range(len(form)), key=lambda axis: (TOKENS + "1LD").index(form[axis]))
    rows = value.permute(*order)
    return rows.reshape(n, *(known[form[axis]] for axis in order if form[axis] in "LD"))


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
