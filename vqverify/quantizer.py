"""The thing under test, behind one small protocol.

A pass returns `Quantized`. Statements about lookup and estimator hold in *code space*: where the layer
compares latents with codes, after a projection, a normalisation or a split into levels. Every conclusion
about a layer is a `Finding` with its evidence and its origin.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

T = TypeVar("T")
Origin = Literal["given", "default", "adapter", "identified"]
Via = Callable[
    [Callable[..., Any], Tensor], Any
]  # how a pass is made: (the layer's method, its input) -> what it returns
Place = Literal["z", "z_q"] | tuple[Literal["z_c", "q_c"], int]


@dataclass(frozen=True)
class Finding:
    """One conclusion about a layer. A value of None means unknown.

    Attributes:
        value: the conclusion; None where probing could not decide.
        origin: who says so.
        evidence: the measurement or the kwarg behind it.
        mistake: for a family found with a known mistake (rotation `transposed`), the mistake.
    """

    value: Any
    origin: Origin = "identified"
    evidence: str = ""
    mistake: str | None = None


@dataclass(frozen=True)
class Domain:
    """What a layer accepts; strategies draw from it.

    Attributes:
        dim: D, the length of one latent.
        dtype: of latents that the layer takes as built.
        layouts: input layouts found to work, the one that checks use first (`ND`, `BND`, `BDN`, `BDHW`, ...).
        min_n: the smallest number of latents that works.
        radius: largest magnitude drawn.
        codebook: where codes may be put: `free`, or `sphere` (unit rows).
        latents: latents (N, D) that the layer meets in use, where the user gave some.
    """

    dim: int
    dtype: torch.dtype = torch.float32
    layouts: tuple[str, ...] = ("ND",)
    min_n: int = 1
    radius: float = 2.0**20
    codebook: Literal["free", "sphere"] = "free"
    latents: Tensor | None = None


@dataclass(frozen=True)
class Node:
    """A tensor of the recorded graph together with its reading as rows, one latent a row."""

    tensor: Tensor
    to_rows: Callable[[Tensor], Tensor]

    @property
    def rows(self) -> Tensor:
        """The values, (N, Dc), attached to the graph."""
        return self.to_rows(self.tensor)


@dataclass(frozen=True)
class Level:
    """One search of a pass, in code space: latent z_c and code q_c (after the estimator), (N, Dc) each.

    z_c is None where it cannot be told: a later level of a pass that is not attached to a graph.
    """

    z_c: Node | None
    q_c: Node


@dataclass(frozen=True)
class Quantized:
    """What one pass returned, in canonical shape.

    Attributes:
        z: Node of the input leaf, rows (N, D).
        z_q: Node of the output, rows (N, D).
        codes: (N, L) integers, L levels or heads, −1 = dropped; None if the layer returns none.
        loss: total loss, a scalar attached to the graph; None if there is none.
        losses: the same, a tensor for each output that holds a loss.
        levels: one `Level` a level where capture located it (only with trace=True), else empty.
        codebook: one (K, Dc) tensor a level, copied BEFORE the pass; empty if not readable.
        raw: what the layer returned, untouched.
        codes_as: dtypes of the outputs that were read as codes, one-hot rows left out.
        forms: axes of the input and of z_q, one letter each (`BDHW`).
    """

    z: Node
    z_q: Node
    codes: Tensor | None
    loss: Tensor | None
    losses: tuple[Tensor, ...] = ()
    levels: tuple[Level, ...] = ()
    codebook: tuple[Tensor, ...] = ()
    raw: Any = None
    codes_as: tuple[torch.dtype, ...] = ()
    forms: tuple[str, str] = ("ND", "ND")


@dataclass(frozen=True)
class Accumulators:
    """EMA state of one level: counts N (K,) and sums m (K, Dc)."""

    counts: Tensor
    sums: Tensor


@dataclass(frozen=True)
class Spec:
    """How to build a subject again, in this process or another: plain data.

    Attributes:
        target: `pkg.mod:Class`, `file.py:Class`, or empty for a callable handed in.
        kwargs: constructor arguments.
        claims: what the user says the layer is (`estimator` → `rotation`).
        role: `layer`, `estimator` for a bare function (z, q) -> z_q, or `lookup` for (z, codebook) -> codes.
        adapter: `mod:obj` of an adapter, if one was named.
        seed: construction seed.
        dtype, device: where it is to run, None = as built.
        submodule: where the layer is in the model that the target builds: `encoder.vq`.
        state: file of a state_dict to load into what the target builds.
        latents: .npy file of latents that the layer meets in use.
    """

    target: str
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    claims: Mapping[str, Any] = field(default_factory=dict[str, Any])
    role: Literal["layer", "estimator", "lookup"] = "layer"
    adapter: str | None = None
    seed: int = 0
    dtype: str | None = None
    device: str | None = None
    submodule: str | None = None
    state: str | None = None
    latents: str | None = None

    @property
    def name(self) -> str:
        """What reports call the subject: `VectorQuantize(dim=8, codebook_size=16)`."""
        args = ", ".join(f"{key}={value!r}" for key, value in self.kwargs.items())
        built = f"{self.target.rpartition(':')[2] or self.target}({args})"
        return f"{built}.{self.submodule}" if self.submodule else built


class CannotOpenError(Exception):
    """The target cannot be built by its name in another process."""


class Quantizer(Protocol):
    """A subject, ready to be checked. Every exception of the layer inside comes out as a `Violation`."""

    spec: Spec
    domain: Domain
    module: torch.nn.Module

    @property
    def traits(self) -> Mapping[str, Finding]:
        """Claims and findings, joined: `estimator`, `decay`, `codes`, `levels`, `stochastic`, ..."""
        ...

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The constructor's arguments, as given or by default (`inspect.Parameter.empty` where neither).

        What `build` may override: none for a layer that came already built, alone or inside a model.
        """
        ...

    @property
    def claims(self) -> Mapping[str, Finding]:
        """What is expected, before it was compared with what probing found."""
        ...

    @property
    def found(self) -> Mapping[str, Finding]:
        """What probing found."""
        ...

    def forward(
        self,
        z: Tensor,
        *,
        train: bool = False,
        seed: int = 0,
        trace: bool = False,
        grad: bool = True,
        groups: int = 1,
        layout: str | None = None,
        via: Via | None = None,
    ) -> Quantized:
        """One pass over latents z (N, D), with the global generators forked and seeded with `seed`.

        Args:
            z: latents, (N, D).
            train: train or eval mode.
            seed: of every global generator during the pass.
            trace: record the graph and locate the levels.
            grad: whether z needs a gradient.
            groups: split the N latents into that many batch entries (must divide N).
            layout: one of `domain.layouts`; the first by default.
            via: makes the call in an unusual way: another memory format, a mask, autocast, a compiler.

        Raises:
            Violation: if the layer raises, or returns what makes no sense.
        """
        ...

    def vjp(self, out: Quantized, g: Tensor, src: Place = "z_q", dst: Place = "z") -> Tensor:
        """Jᵀg from one place of a pass to an earlier one; rows (N, Dc) like `dst`; zeros if detached."""
        ...

    def grad(self, z: Tensor, f: Callable[[Tensor], Tensor], *, seed: int = 0) -> Tensor:
        """Gradient that z (N, D) receives through a decoder and loss f: rows (N, D) -> scalar, in train mode."""
        ...

    def raw(self, z: Tensor, *, train: bool) -> Any:
        """A pass with no fork and no seed, as a user makes it: for what a layer does to the generators."""
        ...

    def codebook_gradients(self, value: Tensor) -> tuple[Tensor, ...]:
        """Gradient of a scalar with respect to each level's stored codebook, (K, Dc); zeros if none flows."""
        ...

    def stored_gradient(self, level: int, rows: Tensor) -> Tensor:
        """A gradient of effective codes (K, Dc) as the stored ones receive it: through their normalisation, if any."""
        ...

    def codebooks(self) -> tuple[Tensor, ...]:
        """The effective codebook now, a (K, Dc) copy a level; empty if not readable."""
        ...

    def set_codebook(self, codebook: Sequence[Tensor]) -> None:
        """Write the codebook, and the accumulators coherently with it (m = N·e, T18)."""
        ...

    def accumulators(self) -> tuple[Accumulators, ...]:
        """EMA state now, copies, a level each; empty if there is none or none was found."""
        ...

    def set_accumulators(self, accumulators: Sequence[Accumulators]) -> None:
        """Write the EMA state, a level each, and leave the codebook as it is."""
        ...

    def decode(self, codes: Tensor, method: str) -> Tensor:
        """z_q rows (N, D) that a public decode method gives for codes (N, L)."""
        ...

    @property
    def decoders(self) -> tuple[str, ...]:
        """Names of the public decode methods that were found."""
        ...

    def snapshot(self) -> Any:
        """The whole state of the layer, opaque."""
        ...

    def restore(self, state: Any = None, /) -> None:
        """Back to a snapshot; None: as built and warmed up."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Every parameter and buffer by name, copies: for comparisons."""
        ...

    def build(
        self, overrides: Mapping[str, Any] | None = None, seed: int | None = None, *, warm: bool = True
    ) -> Quantizer:
        """A second construction, with changed kwargs, seed or dtype (`_dtype`); same plan and findings.

        Args:
            overrides: kwargs that differ.
            seed: of the construction.
            warm: run the passes that initialise the layer; without them it is in the state before its first call.

        Raises:
            Violation: `refused`, if the layer cannot be built with the overrides.
        """
        ...

    def together(self, work: str, arguments: Any) -> list[Any]:
        """What `module:function` returns, called with (subject, rank, arguments) in each of two joined processes.

        Raises:
            Violation: `hung`, `raised`.
            CannotOpenError: if the target cannot be built by its name.
        """
        ...

    def over(self, module: torch.nn.Module) -> Quantizer:
        """The same way of use for another module of the kind: a copy, a cast."""
        ...


def place(subject: Quantizer, q: Tensor) -> None:
    """Put the code q (Dc,) into every row of every level: any pair (z, q) can be reached this way."""
    subject.set_codebook([q.to(e).expand_as(e).clone() for e in subject.codebooks()])


def per_subject(make: Callable[[Quantizer], T]) -> Callable[[Quantizer], T]:
    """Make something once for each subject, and keep it for as long as the subject lives."""
    made: WeakKeyDictionary[Quantizer, T] = WeakKeyDictionary()

    @functools.wraps(make)
    def kept(subject: Quantizer) -> T:
        if subject not in made:
            made[subject] = make(subject)
        return made[subject]

    return kept
