"""What a script may say: how the layer of a witness is built, called and read, as expressions of plain torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from vqverify.bounds import Violation
from vqverify.case import Case, prepare
from vqverify.scripts.numerals import literal
from vqverify.subject.layer import Layer
from vqverify.subject.levels import PROBE_SEED
from vqverify.subject.plan import TOKENS, Call, Slot, fetch, sizes
from vqverify.witness import Witness


class Unscripted(Exception):  # noqa: N818  (an answer, not an error)
    """There is no script for a witness; the message is the reason."""


@dataclass(frozen=True)
class Scene:
    """A witness on its subject.

    Attributes:
        subject: the layer, opened.
        witness: what failed.
        variant: which of several ways to show it.
    """

    subject: Layer
    witness: Witness
    variant: int = 0
    name: str = ""  # of the constructor, as the script imports it

    @property
    def case(self) -> Case:
        """The witness's values."""
        return self.witness.case

    @property
    def label(self) -> str:
        """Which clause failed."""
        return self.witness.label

    @property
    def part(self) -> str:
        """Which case of the row."""
        return self.case.part or ""

    @property
    def train(self) -> bool:
        """Whether the case is of train mode; rows without a mode are checked in it."""
        return not self.part.endswith("eval")

    @property
    def n(self) -> int:
        """Number of latents."""
        return len(self.case.z)

    @property
    def dim(self) -> int:
        """D."""
        return self.subject.plan.dim

    def trait(self, name: str, default: Any = None) -> Any:
        """Value of a trait, `default` where it is unknown."""
        finding = self.subject.traits.get(name)
        return default if finding is None or finding.value is None else finding.value

    # how it is called

    def call(self, train: bool, layout: str | None = None) -> Call:
        """How a pass in this mode looks."""
        calls = self.subject.plan.calls
        return next(call for call in calls if layout in {None, call.layout}).at(train=train)

    def x(
        self, z: str = "z", *, n: int | None = None, groups: int = 1, layout: str | None = None, dim: int | None = None
    ) -> str:
        """Rows of latents in the layout that the layer takes."""
        form = layout or self.subject.plan.calls[0].layout
        n = self.n if n is None else n
        if form in {"ND", "FD"}:
            return z
        if form == "BND" and groups == 1:
            return f"{z}[None]"
        if form == "BDN" and groups == 1:
            return f"{z}.T[None]"
        tokens = [letter for letter in form if letter in TOKENS]
        if "".join(tokens) != "".join(sorted(tokens, key=TOKENS.index)) or set(form) - set(tokens) != {"D"}:
            raise Unscripted(f"its input has the unusual layout {form}")
        length = sizes(form, n, groups)
        shaped = f"{z}.reshape({', '.join(str(length[letter]) for letter in tokens)}, {dim or self.dim})"
        return shaped if form[-1] == "D" else f"{shaped}.movedim(-1, {form.index('D')})"

    def made(self, x: str, *, train: bool, layer: str = "layer", more: str = "") -> str:
        """A pass on an input, as an expression."""
        plan = self.subject.plan
        if plan.then is not None:
            raise Unscripted("a pass takes two of its methods")
        name = "" if plan.method == "__call__" else f".{plan.method}"
        extra = "".join(f", {key}={value!r}" for key, value in plan.arguments.items())
        return f"{layer}.{'train' if train else 'eval'}(){name}({x}{extra}{more})"

    def run(
        self, *, train: bool, out: str = "out", z: str = "z", n: int | None = None, layer: str = "layer", more: str = ""
    ) -> Iterator[str]:
        """A pass, seeded where the layer draws."""
        if self.draws(train):
            yield f"torch.manual_seed({self.case.seed})"
        yield f"{out} = {self.made(self.x(z, n=n), train=train, layer=layer, more=more)}"

    def draws(self, train: bool) -> bool:
        """Whether a pass in this mode is random."""
        return not self.trait("deterministic" if train else "eval_deterministic", default=False)

    # what comes back

    @cached_property
    def _returned(self) -> Mapping[bool, Any]:
        found: dict[bool, Any] = {}
        for train in (True, False):
            prepare_quietly(self.subject, self.case)
            try:
                found[train] = self.subject.forward(self.case.z, train=train, grad=False).raw
            except Violation:
                found[train] = None
        self.subject.restore()
        return found

    def _seen(self, path: tuple[str | int, ...], *, train: bool) -> Any:
        value = self._returned[train]
        return None if value is None else fetch(value, path)

    def at(self, path: tuple[str | int, ...], *, train: bool, out: str = "out") -> str:
        """What lies at a path of what a pass returned."""
        value = self._returned[train]
        for step in path:
            keyed = isinstance(step, int) or isinstance(value, Mapping)
            out += f"[{step!r}]" if keyed else f".{step}"
            if value is not None:
                value = value[step] if keyed else getattr(value, str(step))
        return out

    def z_q(self, *, train: bool, out: str = "out", layout: str | None = None) -> str:
        """Rows (N, D) of the value."""
        place = self.call(train, layout).z_q
        return rows_of(self.at(place.path, train=train, out=out), place.form, self.dim)

    def codes(self, *, train: bool, out: str = "out", layout: str | None = None) -> str:
        """Codes, (N,) of a single level, else (N, L).

        Raises:
            Unscripted: if the layer returns none.
        """
        places = self.call(train, layout).codes
        if not places:
            raise Unscripted("the layer returns no codes")
        parts = [_codes(self.at(place.path, train=train, out=out), place.form) for place in places]
        return parts[0] if len(parts) == 1 else f"torch.stack([{', '.join(parts)}], 1)"

    def k(self, *, train: bool, out: str = "out") -> str:
        """Codes of the single level, (N,), to index with."""
        found = self.codes(train=train, out=out)
        found = found if found.endswith(".reshape(-1)") else f"{found}.reshape(-1)"
        wide = self._seen(self.call(train).codes[0].path, train=train)
        return found if isinstance(wide, Tensor) and wide.dtype == torch.int64 else f"{found}.long()"

    def loss(self, *, train: bool, out: str = "out", layout: str | None = None) -> str:
        """The total loss, a scalar.

        Raises:
            Unscripted: if the layer returns none.
        """
        places = self.call(train, layout).losses
        if not places:
            raise Unscripted("the layer returns no loss")
        return " + ".join(f"{self.at(place.path, train=train, out=out)}.sum()" for place in places)

    def total(self, *, train: bool, out: str = "out", g: str = "g") -> str:
        """What a training step sends back: the task's gradient g (or none) at z_q, and the own loss."""
        if not g:
            return self.loss(train=train, out=out)
        task = f"({self.z_q(train=train, out=out)} * {g}).sum()"
        return f"{task} + {self.loss(train=train, out=out)}" if self.call(train).losses else task

    # its state

    @property
    def levels(self) -> int:
        """Number of codebooks."""
        return len(self.subject.plan.slots)

    def book(self, level: int = 0, layer: str = "layer") -> str:
        """The codebook of a level, (K, Dc).

        Raises:
            Unscripted: if it is not stored, or made of what is stored in an unknown way.
        """
        if not self.subject.plan.slots:
            raise Unscripted("the layer keeps no codebook")
        slot = self.subject.plan.slots[level]
        if slot.transform == "made":
            raise Unscripted("its codes are computed in the pass")
        stored = self.tensor(slot, layer)
        return f"F.normalize({stored}, dim=-1)" if slot.transform == "normalize" else stored

    def tensor(self, slot: Slot, layer: str = "layer") -> str:
        """A tensor of the state."""
        name = part_of(self.subject.module, slot.name, layer)
        name += "".join(f"[{index}]" for index in slot.index)
        name = f"{name}.T" if slot.transposed else name
        return name if slot.rows is None else f"{name}[:{slot.rows}]"

    def books(self, layer: str = "layer") -> str:
        """Copies of the codebooks of all levels, as a list."""
        found = [f"{self.book(level, layer)}.detach().clone()" for level in range(self.levels)]
        parts = [re.split(r"\[(\d+)\]", one) for one in found]
        for place in range(1, len(parts[0]), 2):  # one index that counts the levels
            if all(len(one) == len(parts[0]) and one[place] == str(level) for level, one in enumerate(parts)):
                template = [one[:place] + one[place + 1 :] for one in parts]
                if all(one == template[0] for one in template):
                    pieces = [f"[{x}]" if i % 2 else x for i, x in enumerate(parts[0])]
                    pieces[place] = "[i]"
                    return f"[{''.join(pieces)} for i in range({len(parts)})]"
        return f"[{', '.join(found)}]"

    def stored(self, level: int = 0) -> tuple[str, str]:
        """The parameter or buffer that holds a codebook, and what selects the codebook in it or in its gradient."""
        slot = self.subject.plan.slots[level]
        if slot.transform != "identity":
            raise Unscripted("its codes are computed from what is stored")
        whole = self.tensor(replace(slot, index=(), transposed=False, rows=None))
        part = "".join(f"[{index}]" for index in slot.index) + (".T" if slot.transposed else "")
        return whole, part if slot.rows is None else f"{part}[:{slot.rows}]"

    def plain(self) -> None:
        """Go on only where one codebook is searched with the latents as they are given.

        Raises:
            Unscripted: if there are several codebooks, or the latents are projected first.
        """
        plan = self.subject.plan
        if len(plan.slots) != 1:
            count = f"{len(plan.slots)} codebooks" if plan.slots else "no codebook"
            raise Unscripted(f"the layer has {count}; a script is written for one")
        book = self.subject.codebooks()[0]
        if book.shape[1] != self.dim:
            raise Unscripted("the latents that are compared with codes are made inside the pass")

    def ema(self) -> tuple[str, str]:
        """Counts and sums of the single codebook.

        Raises:
            Unscripted: if they were not found.
        """
        self.plain()
        if not self.subject.plan.accumulators:
            raise Unscripted("counts and sums of the moving averages were not found")
        counts, sums = self.subject.plan.accumulators[0]
        return self.tensor(counts), self.tensor(sums)

    # the beginning of the script

    def constructor(self, changed: Mapping[str, str] | None = None) -> str:
        """The layer built, with some arguments written otherwise.

        Raises:
            Unscripted: if an argument is no plain value.
        """
        spec = self.witness.spec
        for key, value in spec.kwargs.items():
            if not _plain(value):
                raise Unscripted(f"the argument {key} is no plain value")
        given = {key: repr(value) for key, value in spec.kwargs.items()} | dict(changed or {})
        made = f"{self.name}({', '.join(f'{key}={value}' for key, value in given.items())})"
        if spec.state:
            raise Unscripted("the subject has a state that is loaded from a file")
        made += f".{spec.submodule}" if spec.submodule else ""
        return f"{made}.to(torch.{spec.dtype})" if spec.dtype else made

    def warmed(self) -> Iterator[str]:
        """The passes that initialise the layer, with the latents that the harness took."""
        plan = self.subject.plan
        if not plan.warm:
            return
        n, seed = max(64, plan.min_n), PROBE_SEED + self.witness.spec.seed
        yield f"torch.manual_seed({seed})"
        rows = f"torch.randn({n}, {plan.dim})"
        once = self.made(self.x(rows, n=n), train=True)
        yield f"{once}  # its first batch" if plan.warm == 1 else f"for _ in range({plan.warm}): {once}"

    def state(self, *, trains: bool) -> Iterator[str]:
        """Codebook, accumulators and history of the witness."""
        case, plan = self.case, self.subject.plan
        for level, rows in enumerate(case.codebook or ()):
            yield f"{self.tensor(plan.slots[level])}.data.copy_({literal(rows)})"
        if case.codebook is not None and (trains or case.history):
            for (counts, sums), slot in zip(plan.accumulators, plan.slots, strict=False):
                N, E = self.tensor(counts), self.tensor(slot)
                yield f"{N}.data[{N} <= 0] = 1"
                yield f"{self.tensor(sums)}.data.copy_({E} * {N}[:, None])"
        for step, batch in enumerate(case.history):
            if self.draws(train=True):
                yield f"torch.manual_seed({case.seed + 1 + step})"
            yield self.made(self.x(literal(batch), n=len(batch)), train=True)


def part_of(module: nn.Module, name: str, layer: str = "layer") -> str:
    """A part of the layer as an expression."""
    owner: Any = module
    for part in name.split(".") if name else ():
        indexed = part.isdigit() and isinstance(owner, nn.ModuleList | nn.Sequential)
        layer += f"[{part}]" if indexed else f".{part}"
        owner = owner[int(part)] if indexed else getattr(owner, part)
    return layer


def prepare_quietly(subject: Layer, case: Case) -> None:
    """Bring a subject to where the check starts; what it raises on the way is left to the script."""
    try:
        prepare(subject, case)
    except Violation:
        subject.restore()


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_plain, value))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(value, dict):
        return all(map(_plain, value.values()))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return value is None or isinstance(value, str | int | float | bool)


def rows_of(value: str, form: str, dim: int) -> str:
    """A value of a form as rows (N, D)."""
    if form in {"ND", "FD"}:
        return value
    axis = form.index("D")
    moved = value if axis == len(form) - 1 else f"{value}.movedim({axis}, -1)"
    return f"{moved}.reshape(-1, {dim})"


def _codes(value: str, form: str) -> str:
    if "K" in form:
        value, form = f"{value}.argmax({form.index('K')})", form.replace("K", "")
    if form in {"N", "F", "NL", "FL"}:
        return value
    if form.count("L") > 1:
        raise Unscripted(f"its codes have the unusual axes {form}")
    if "L" not in form:
        return f"{value}.reshape(-1)"
    axis = form.index("L")
    moved = value if axis == len(form) - 1 else f"{value}.movedim({axis}, -1)"
    return f"{moved}.flatten(0, -2)"
