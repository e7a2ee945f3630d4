"""A module as a Quantizer: follows a `Plan`, seeds its passes, and turns its exceptions into violations."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import traceback
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqverify.bounds import Violation
from vqverify.quantizer import Accumulators, Domain, Finding, Level, Node, Place, Quantized, Spec, Via
from vqverify.subject import capture, made, processes, state
from vqverify.subject.bare import BareEstimator
from vqverify.subject.plan import Call, Decoder, Plan, Slot, enter, fetch, leave, pass_of
from vqverify.subject.randomness import forked

PACKAGE = Path(__file__).parents[1]
SUBJECTS = {"reference", "mutants"}  # layers of our own, which may be wrong
_UNSEEN: Any = object()
DRAWS = 24  # passes tried for one that drops given levels: of L patterns, each one comes in one of L passes
PROBE_SEED = 0x5EED0000  # far from the small seeds with which layers are built: a probe must not equal a codebook


@contextmanager
def guarded(doing: str) -> Generator[None]:
    """Turn whatever a layer raises into `Violation("raised")`; what it prints or warns is swallowed."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Violation:
        raise
    except (Exception, SystemExit) as error:
        if _ours(error):
            raise
        text = str(error).strip().splitlines()
        raise Violation("raised", f"{doing} raised {type(error).__name__}: {text[0] if text else ''}"[:300]) from error


def _ours(error: BaseException) -> bool:
    """Whether the harness itself raised: a defect here must not pass for one of the layer."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = Path(last.filename)
    here = where.is_relative_to(PACKAGE) and where.relative_to(PACKAGE).parts[0] not in SUBJECTS
    between = last.name == "__torch_function__"  # the recorder stands between a layer and torch
    return here and where.name != "bare.py" and not between


@dataclass(eq=False)
class Layer:
    """A built module behind the `Quantizer` protocol; see there for the methods."""

    spec: Spec
    plan: Plan
    module: nn.Module
    domain: Domain
    factory: Callable[[Mapping[str, Any], int], nn.Module]
    claims: dict[str, Finding] = field(default_factory=dict[str, Finding])
    found: dict[str, Finding] = field(default_factory=dict[str, Finding])
    traits: dict[str, Finding] = field(default_factory=dict[str, Finding])
    built: bool = False  # it came built, alone or inside a model: another construction takes no arguments
    copyable: bool = True  # restore by snapshot was shown to equal a fresh construction
    _fresh: state.Snapshot | None = None
    _located: dict[bool, capture.Located | None] = field(default_factory=dict[bool, Any])
    _located_again: dict[tuple[bool, int, int, tuple[int, ...]], Any] = field(default_factory=dict[Any, Any])

    @property
    def arguments(self) -> dict[str, Any]:
        if self.built:
            return {}
        parameters = inspect.signature(type(self.module).__init__).parameters
        defaults = {name: value.default for name, value in list(parameters.items())[1:]}
        return defaults | dict(self.spec.kwargs)

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
        call = self._call(layout).at(train=train)
        n = len(z)
        leaf = z.detach().clone().requires_grad_(grad)
        before = self.codebooks() if trace else ()
        record = trace and bool(before) and not self._plain(train=train)
        recorder = capture.Recorder()
        self.module.train(train)
        with (
            guarded(f"{'a train' if train else 'an eval'} pass on {n} latents"),
            forked(seed),
            torch.set_grad_enabled(grad),
        ):
            x = enter(leaf, call.layout, groups).to(self.device)
            with recorder if record else contextlib.nullcontext():
                invoke = functools.partial(
                    pass_of(self.module, self.plan.method, self.plan.then), **self.plan.arguments
                )
                raw = invoke(x) if via is None else via(invoke, x)
            recorder.note(raw)
        if trace and train and self._alternating:  # it steps its codes first, then quantises (001 eq. 17-18)
            before = self.codebooks()
        return self._canonical(raw, call, leaf, groups, before, recorder, train=train, trace=trace)

    @property
    def _alternating(self) -> bool:
        finding = self.traits.get("alternating")
        return finding is not None and bool(finding.value)

    def _canonical(
        self,
        raw: Any,
        call: Call,
        leaf: Tensor,
        groups: int,
        before: tuple[Tensor, ...],
        recorder: capture.Recorder,
        *,
        train: bool,
        trace: bool,
    ) -> Quantized:
        n, dim = leaf.shape
        value = _tensor(raw, call.z_q.path)
        if leave(value, call.z_q.form, n, groups).shape != leaf.shape:
            raise Violation("shape", f"z_q of shape {tuple(value.shape)} for latents of shape {(n, dim)}")
        z_q = Node(value, lambda t: leave(t, call.z_q.form, n, groups).cpu())
        codes = self._codes(raw, call, n, groups)
        losses = tuple(_tensor(raw, output.path).cpu() for output in call.losses)
        total = sum((loss.sum() for loss in losses), start=torch.zeros((), dtype=leaf.dtype)) if losses else None
        z = Node(leaf, lambda t: t)
        levels: tuple[Level, ...] = ()
        if trace and codes is not None and before and leaf.requires_grad:
            plain = self._plain(train=train)
            levels = (Level(z, z_q),) if plain else self._levels(recorder.tensors, leaf, before, codes, train=train)
        return Quantized(z, z_q, codes, total, losses, levels, before, raw)

    def _codes(self, raw: Any, call: Call, n: int, groups: int) -> Tensor | None:
        if not call.codes:
            return None
        parts = [_rows_of_codes(_tensor(raw, output.path), output.form, n, groups) for output in call.codes]
        codes = torch.cat(parts, dim=1).detach()
        return codes if not codes.is_floating_point() else codes.round().long()

    def _levels(
        self, record: list[Tensor], leaf: Tensor, before: tuple[Tensor, ...], codes: Tensor, *, train: bool
    ) -> tuple[Level, ...]:
        located, dropped = self._located.get(train), _dropped(codes)
        if located is None or dropped or not located.fits(record):  # the state may have changed what carries a graph
            key = train, len(record), len(capture.attached(record)), dropped
            located = self._located_again.get(key, _UNSEEN)
            if located is _UNSEEN:
                located = self._located_again[key] = self._locate(train=train, dropped=dropped)
        if located is not None and not located.fits(record):
            located = None
        return () if located is None else capture.read(record, leaf, located, [e.shape[1] for e in before])

    def _plain(self, *, train: bool) -> bool:
        """Whether passes need no record: the layer searches its input and returns its codes as they are."""
        if train not in self._located:
            self._located[train] = self._locate(train=train)
        located = self._located[train]
        return located is not None and located.plain

    def _locate(self, *, train: bool, dropped: tuple[int, ...] = ()) -> capture.Located | None:
        """Locate the levels on generic latents, so that no drawn input can mislead the search.

        Where a pass drops levels at random, one is made that drops just these.
        """
        saved, modes = state.take(self.module), self.module.training
        n = 2 * self.domain.dim + 13
        books = self.codebooks()
        generator = torch.Generator().manual_seed(PROBE_SEED)
        z = torch.randn(n, self.domain.dim, generator=generator).to(self.domain.dtype)
        if books[0].shape[1] == self.domain.dim:
            picks = torch.randint(len(books[0]), (n,), generator=generator)
            spread = books[0].std().clamp_min(1e-3)
            z = books[0][picks].to(z) + 0.6 * spread * z
        leaf, call = z.requires_grad_(), self._call(None).at(train=train)
        try:
            for seed in range(11, 11 + DRAWS):
                state.put_back(saved)
                recorder = capture.Recorder()
                with guarded("a recorded pass"), forked(seed):
                    self.module.train(train)
                    x = enter(leaf, call.layout).to(self.device)
                    with recorder:
                        raw = pass_of(self.module, self.plan.method, self.plan.then)(x, **self.plan.arguments)
                    recorder.note(raw)
                    codes = self._codes(raw, call, n, 1)
                    if codes is None:
                        return None
                    if _dropped(codes) != dropped:
                        continue
                    located = capture.locate(recorder.tensors, leaf, codes, books)
                    if located is None:  # a layer that quantises after its update returns codes of the new codebook
                        located = capture.locate(recorder.tensors, leaf, codes, self.codebooks())
                    return self._judged(located, recorder, leaf, raw, call)
        except Violation:
            pass
        finally:
            state.put_back(saved)
            self.module.train(modes)
        return None

    def _judged(
        self, located: capture.Located | None, recorder: capture.Recorder, leaf: Tensor, raw: Any, call: Call
    ) -> capture.Located | None:
        """Note on a located pass whether it is plain."""
        if located is None or len(located.levels) != 1:
            return located
        (level,) = capture.read(recorder.tensors, leaf, located, [leaf.shape[1]])
        z_q = leave(_tensor(raw, call.z_q.path), call.z_q.form, len(leaf)).cpu()
        return replace(located, plain=capture.is_plain(level, leaf, z_q))

    def _call(self, layout: str | None) -> Call:
        if layout is None:
            return self.plan.calls[0]
        return next(call for call in self.plan.calls if call.layout == layout)

    def vjp(self, out: Quantized, g: Tensor, src: Place = "z_q", dst: Place = "z") -> Tensor:
        source, target = _node(out, src), _node(out, dst)
        with guarded("backward"):
            rows = source.rows
            return target.to_rows(capture.pull(rows, target.tensor, g.to(rows)))

    def grad(self, z: Tensor, f: Callable[[Tensor], Tensor], *, seed: int = 0) -> Tensor:
        """Gradient that z (N, D) receives from a decoder and loss f: rows (N, D) -> scalar, in train mode."""
        if isinstance(self.module, BareEstimator) and self.module.of_task:
            leaf = z.detach().clone().requires_grad_()
            with guarded("the loss of a task"), forked(seed):
                return capture.pull(self.module.loss(f, leaf), leaf, torch.ones((), dtype=z.dtype))
        out = self.forward(z, train=True, seed=seed)
        with guarded("backward"):
            return capture.pull(f(out.z_q.rows), out.z.tensor, torch.ones((), dtype=z.dtype))

    def raw(self, z: Tensor, *, train: bool) -> Any:
        """A pass with no fork and no seed: for the statement that generators are left alone."""
        self.module.train(train)
        with guarded("a pass"):
            x = enter(z, self.plan.calls[0].layout).to(self.device)
            return pass_of(self.module, self.plan.method, self.plan.then)(x, **self.plan.arguments)

    def codebook_gradients(self, value: Tensor) -> tuple[Tensor, ...]:
        found: list[Tensor] = []
        for slot, rows in zip(self.plan.slots, self.codebooks() if self._made else self.plan.slots, strict=True):
            if slot.transform == "made":
                found.append(torch.zeros_like(cast("Tensor", rows)))
                continue
            with guarded("backward"):
                pulled = capture.pull(value, state.tensor_at(self.module, slot.name), torch.ones_like(value)).cpu()
                found.append(_part(pulled, slot))
        return tuple(found)

    def stored_gradient(self, level: int, rows: Tensor) -> Tensor:
        slot = self.plan.slots[level]
        if slot.transform != "normalize":
            return rows
        stored = _view(self.module, slot).detach().cpu().to(rows)
        size = stored.norm(dim=1, keepdim=True).clamp_min(1e-12)
        unit = stored / size
        return (rows - unit * (rows * unit).sum(1, keepdim=True)) / size

    def codebooks(self) -> tuple[Tensor, ...]:
        if self._made:
            return self._computed()
        return tuple(_effective(slot, _view(self.module, slot).detach().clone().cpu()) for slot in self.plan.slots)

    @property
    def device(self) -> str:
        """Where the layer computes; every number outside it is on the CPU."""
        return self.spec.device or "cpu"

    @property
    def _made(self) -> bool:
        return any(slot.transform == "made" for slot in self.plan.slots)

    def _computed(self) -> tuple[Tensor, ...]:
        """Codes that are read from an eval pass on fixed latents."""
        saved, recorder, call = state.take(self.module), capture.Recorder(), self._call(None)
        n = max(32, self.plan.min_n)
        z = torch.randn(n, self.domain.dim, generator=torch.Generator().manual_seed(0x5EED2000)).to(self.domain.dtype)
        try:
            with guarded("an eval pass"), forked(0), torch.no_grad():
                self.module.eval()
                with recorder:
                    raw = pass_of(self.module, self.plan.method, self.plan.then)(
                        enter(z, call.layout).to(self.device), **self.plan.arguments
                    )
                codes = cast("Tensor", self._codes(raw, call, n, 1))
        finally:
            state.put_back(saved)
        found: list[Tensor] = []
        for level, slot in enumerate(self.plan.slots):
            rows = made.find(
                [tensor.cpu() for tensor in recorder.tensors], codes, level, *cast("tuple[int, int]", slot.shape)
            )
            if rows is None:
                raise Violation("state", f"a pass no longer computes the codes of level {level} from {slot.name}")
            found.append(rows)
        return tuple(found)

    @torch.no_grad()
    def set_codebook(self, codebook: Sequence[Tensor]) -> None:
        if self._made:
            return  # codes that are computed cannot be set; `settable` finds that nothing moved
        for slot, rows in zip(self.plan.slots, codebook, strict=True):
            _view(self.module, slot).data.copy_(rows)
        for (counts, sums), slot in zip(self.plan.accumulators, self.plan.slots, strict=False):
            size, rows = _view(self.module, counts).data, _view(self.module, slot)
            size.copy_(torch.where(size > 0, size, torch.ones_like(size)))
            _view(self.module, sums).data.copy_(rows.to(size) * size[:, None])

    def accumulators(self) -> tuple[Accumulators, ...]:
        return tuple(
            Accumulators(
                _view(self.module, counts).detach().clone().cpu(), _view(self.module, sums).detach().clone().cpu()
            )
            for counts, sums in self.plan.accumulators
        )

    @torch.no_grad()
    def set_accumulators(self, accumulators: Sequence[Accumulators]) -> None:
        for (counts, sums), wanted in zip(self.plan.accumulators, accumulators, strict=True):
            _view(self.module, counts).data.copy_(wanted.counts)
            _view(self.module, sums).data.copy_(wanted.sums)

    @property
    def decoders(self) -> tuple[str, ...]:
        return tuple(decoder.method for decoder in self.plan.decoders)

    def decode(self, codes: Tensor, method: str) -> Tensor:
        decoder: Decoder = next(found for found in self.plan.decoders if found.method == method)
        n = len(codes)
        shaped = enter(
            codes.reshape(n, *(decoder.levels or codes.shape[1:] * ("L" in decoder.codes_form))), decoder.codes_form
        )
        with guarded(f"{method}(codes)"), torch.no_grad():
            value = getattr(self.module, method)(shaped.to(self.device))
        if not isinstance(value, Tensor):
            raise Violation("decode", f"{method} returned {type(value).__name__}, expected a tensor")
        return leave(value, decoder.output_form, n).cpu()

    def snapshot(self) -> Any:
        return state.take(self.module)

    def restore(self, state_: Any = None) -> None:
        if state_ is not None:
            state.put_back(state_)
        elif self.copyable and self._fresh is not None:
            state.put_back(self._fresh)
        else:
            self.module = self.factory({}, self.spec.seed)
            self.warm_up()

    def warm_up(self) -> None:
        """Run the passes that initialise the layer, and remember the state after them as fresh."""
        generator = torch.Generator().manual_seed(PROBE_SEED + self.spec.seed)
        for step in range(self.plan.warm):
            z = torch.randn(max(64, self.plan.min_n), self.domain.dim, generator=generator).to(self.domain.dtype)
            self.forward(z, train=True, seed=step)
        self.module.eval()
        self._fresh = state.take(self.module)

    def state(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone().cpu() for name, tensor in state.named_state(self.module).items()}

    def build(self, overrides: Mapping[str, Any] | None = None, seed: int | None = None, *, warm: bool = True) -> Layer:
        spec = replace(
            self.spec, kwargs={**self.spec.kwargs, **(overrides or {})}, seed=self.spec.seed if seed is None else seed
        )
        twin = replace(self, spec=spec).over(self.factory(overrides or {}, spec.seed))
        if warm:
            twin.warm_up()
        return twin

    def together(self, work: str, arguments: Any) -> list[Any]:
        return processes.together(self, work, arguments)

    def over(self, module: nn.Module) -> Layer:
        return replace(self, module=module, _fresh=None, _located={}, _located_again={})


def _dropped(codes: Tensor) -> tuple[int, ...]:
    """Levels that have no code for any latent."""
    return tuple(torch.nonzero((codes < 0).all(0)).flatten().tolist()) if len(codes) and int(codes.min()) < 0 else ()


def _rows_of_codes(value: Tensor, form: str, n: int, groups: int) -> Tensor:
    rows = leave(value, form, n, groups).cpu()
    rows = rows.argmax(-1) if "K" in form else rows
    return rows.flatten(1) if rows.ndim > 1 else rows.unsqueeze(1)


def _tensor(raw: Any, path: tuple[str | int, ...]) -> Tensor:
    value = fetch(raw, path)
    if not isinstance(value, Tensor):
        raise Violation("output", f"expected a tensor at {path or 'the output'}, got {type(value).__name__}")
    return value


def _node(out: Quantized, place: Place) -> Node:
    if isinstance(place, str):
        return out.z if place == "z" else out.z_q
    kind, level = place
    node = out.levels[level].z_c if kind == "z_c" else out.levels[level].q_c
    if node is None:
        raise Violation("detached", f"the latent of level {level} has no place in the graph")
    return node


def _view(module: nn.Module, slot: Slot) -> Tensor:
    try:
        return _part(state.tensor_at(module, slot.name), slot)
    except (KeyError, IndexError):
        raise Violation("state", f"the tensor {slot.name}{list(slot.index)} is gone from the layer's state") from None


def _part(tensor: Tensor, slot: Slot) -> Tensor:
    tensor = tensor[slot.index] if slot.index else tensor
    return tensor.t() if slot.transposed else tensor


def _effective(slot: Slot, rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=-1) if slot.transform == "normalize" else rows
