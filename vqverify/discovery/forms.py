"""Shapes with a meaning: sizes that cannot be confused, and the form that a shape has under them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vqverify.subject.plan import TOKENS, arrange, gather
from vqverify.subject.state import all_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# what layers accept, the one that serves any number of latents first: with a batch axis the field's layers
# are on their main path, and a bare (N, D) is sometimes read as N batch entries of one latent
LAYOUTS = ("BND", "BDN", "BDHW", "BHWD", "ND", "BDTHW", "BTHWD")
_PRIMES = (
    3,
    5,
    7,
    11,
    13,
    17,
    19,
    23,
    29,
    31,
    37,
    41,
    43,
    47,
    53,
    59,
    61,
    67,
    71,
    73,
    79,
    83,
    89,
    97,
    101,
    103,
    107,
)


@dataclass(frozen=True)
class Grid:
    """One layout with sizes that differ from each other, from D, and from every size in the layer.

    Attributes:
        layout: the input's form.
        dim: D.
        size: length of each token axis.
    """

    layout: str
    dim: int
    size: Mapping[str, int]

    @property
    def n(self) -> int:
        """Number of latents."""
        return math.prod(self.size[letter] for letter in self.layout if letter != "D")

    def put(self, rows: Tensor) -> Tensor:
        """Rows (N, D) as an input."""
        return arrange(rows, self.layout, self.size)

    def rows(self, value: Tensor, form: str) -> Tensor:
        """A tensor of a form, as rows."""
        return gather(value, form, {**self.size, "F": self.n, **self._merged()})

    def form(self, shape: torch.Size, features: str) -> str:
        """The form of a shape, or '' if an axis has no meaning or a token axis is missing.

        Args:
            shape: of an output.
            features: letter of an axis that holds no tokens: D (must have length D), L (any) or K (any).
        """
        names = [*self.size.items(), *self._merged().items(), ("F", self.n)]
        letters: list[str] = []
        for length in shape:
            name = next((letter for letter, size in names if size == length and letter not in letters), None)
            if name is None:
                name = "1" if length == 1 and not (features == "D" and self.dim == 1) else features
                if name == "D" and length != self.dim:
                    return ""
            letters.append(name)
        form = "".join(letters)
        return form if self._covered(form) else ""

    def _merged(self) -> dict[str, int]:
        """N for image axes that were merged into one."""
        spatial = [self.size[letter] for letter in "THW" if letter in self.size]
        return {"N": math.prod(spatial)} if len(spatial) > 1 else {}

    def _covered(self, form: str) -> bool:
        tokens = {letter for letter in form if letter in TOKENS}
        every = {letter for letter in self.layout if letter in TOKENS}
        return tokens in ({"F"}, every, {"B", "N"} & (every | {"N"}) if "N" not in every else every)


def grid(layout: str, dim: int, avoid: set[int]) -> Grid:
    """Sizes for a layout: small primes that nothing else in the layer has, nor their products."""
    taken = {*avoid, dim, 1}
    wanted = [letter for letter in layout if letter != "D"]
    size: dict[str, int] = {}
    for letter in wanted:
        least = 30 if letter == "N" else 3
        for prime in _PRIMES:
            products = {prime * math.prod(some) for some in _subsets(list(size.values()))}
            if prime >= least and dim % prime and not products & {*taken, *size.values()}:
                size[letter] = prime
                break
        else:
            size[letter] = 109 + len(size) * 4
    return Grid(layout, dim, size)


def even_grid(layout: str, dim: int) -> Grid:
    """Sizes that are powers of two, for layers that divide them."""
    return Grid(
        layout,
        dim,
        {letter: 64 if letter in "NT" else 32 if letter in "HW" else 2 for letter in layout if letter != "D"},
    )


def _subsets(values: list[int]) -> Iterator[list[int]]:
    for mask in range(2 ** len(values)):
        yield [value for bit, value in enumerate(values) if mask >> bit & 1]


def integers(module: nn.Module, factory: Callable[..., Any], kwargs: Mapping[str, Any]) -> tuple[list[int], set[int]]:
    """Every size that could be D, likeliest first, and every size that probes must avoid."""
    given = list(_ints(kwargs))
    try:
        defaults = [value.default for value in inspect.signature(factory).parameters.values()]
    except (TypeError, ValueError):
        defaults = []
    shapes = [size for tensor in all_tensors(module).values() for size in tensor.shape]
    sums = [
        math.prod(tensor.shape) for tensor in all_tensors(module).values() if tensor.ndim == 2 and tensor.numel() < 4096
    ]
    named = [value for value in _ints(defaults) if value in shapes]
    logs = [value.bit_length() - 1 for value in given if value > 1 and value & (value - 1) == 0]
    likely = [*given, *named, *shapes, *_ints(defaults), *logs]
    dims = [value for value in dict.fromkeys(likely) if 2 <= value <= 8192]
    if 1 in given:
        dims.append(1)
    return dims[:24], {*likely, *sums}


def _ints(value: Any, depth: int = 0) -> Iterator[int]:
    if isinstance(value, bool) or depth > 4:
        return
    if isinstance(value, int):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _ints(item, depth + 1)
    elif isinstance(value, list | tuple):
        if value and all(isinstance(item, int | float) for item in value):
            yield len(value)
        for item in value:
            yield from _ints(item, depth + 1)
