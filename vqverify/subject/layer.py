"""A module as a Quantizer: follows a `Plan`, seeds its passes, and turns its exceptions into violations."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from vqverify.bounds import Violation
from vqverify.quantizer import Accumulators, Domain, Finding, Level, Node, Place, Quantized, Spec, Via
from vqverify.subject import capture, made, processes, state, tables
from vqverify.subject.bare import BareEstimator
from vqverify.subject.guards import guarded
from vqverify.subject.levels import PROBE_SEED, Levels
from vqverify.subject.plan import Call, Decoder, Plan, enter, leave, pass_of, tensor_in
from vqverify.subject.randomness import forked
from vqverify.subject.target import TargetError


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
    _levels: Levels = field(default_factory=Levels)

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
        call = self.call(layout).at(train=train)
        n = len(z)
        leaf = z.detach().clone().requires_grad_(grad)
        before = self.codebooks() if trace else ()
        record = trace and bool(before) and not self._levels.plain(self, train=train)
        recorder = capture.Recorder()
        self.module.train(train)
        with (
            guarded(f"{'a train' if train else 'an eval'} pass on {n} latents"),
            forked(seed),
            torch.set_grad_enabled(grad),
        ):
            x = enter(leaf, call.layout, groups).to(self.device)
            with recorder if record else contextlib.nullcontext():
                raw = self.invoke(x) if via is None else via(self.invoke, x)
            recorder.note(raw)
        alternating = self.traits.get("alternating")
        if trace and train and alternating is not None and alternating.value:
            before = self.codebooks()  # it steps its codes first, then quantises (001 eq. 17-18)
        return self._canonical(raw, call, leaf, groups, before, recorder, train=train, trace=trace)

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
        value = tensor_in(raw, call.z_q.path)
        if leave(value, call.z_q.form, n, groups).shape != leaf.shape:
            raise Violation("shape", f"z_q of shape {tuple(value.shape)} for latents of shape {(n, dim)}")
        z_q = Node(value, lambda t: leave(t, call.z_q.form, n, groups).cpu())
        codes = self.codes_of(raw, call, n, groups)
        losses = tuple(tensor_in(raw, output.path).cpu() for output in call.losses)
        total = sum((loss.sum() for loss in losses), start=torch.zeros((), dtype=leaf.dtype)) if losses else None
        z = Node(leaf, lambda t: t)
        levels: tuple[Level, ...] = ()
        if trace and codes is not None and before and leaf.requires_grad:
            levels = (
                (Level(z, z_q),)
                if self._levels.plain(self, train=train)
                else self._levels.read(self, recorder.tensors, leaf, before, codes, train=train)
            )
        as_ = tuple(tensor_in(raw, output.path).dtype for output in call.codes if "K" not in output.form)
        return Quantized(z, z_q, codes, total, losses, levels, before, raw, as_, (call.layout, call.z_q.form))

    def invoke(self, x: Tensor, **arguments: Any) -> Any:
        """Call the layer as the plan says, on an input in its layout; ``arguments`` come after the plan's."""
        return pass_of(self.module, self.plan.method, self.plan.then)(x, **{**self.plan.arguments, **arguments})

    def codes_of(self, raw: Any, call: Call, n: int, groups: int = 1) -> Tensor | None:
        """The codes (N, L) that a pass returned; None if it returns none."""
        if not call.codes:
            return None
        parts = [_rows_of_codes(tensor_in(raw, output.path), output.form, n, groups) for output in call.codes]
        codes = torch.cat(parts, dim=1).detach()
        return codes if not codes.is_floating_point() else codes.round().long()

    def call(self, layout: str | None) -> Call:
        """How to pass latents in that layout; in the plan's first, if None."""
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
            return self.invoke(enter(z, self.plan.calls[0].layout).to(self.device))

    def codebook_gradients(self, value: Tensor) -> tuple[Tensor, ...]:
        found: list[Tensor] = []
        for slot, rows in zip(self.plan.slots, self.codebooks() if self._made else self.plan.slots, strict=True):
            if slot.transform == "made":
                found.append(torch.zeros_like(cast("Tensor", rows)))
                continue
            with guarded("backward"):
                pulled = capture.pull(value, state.tensor_at(self.module, slot.name), torch.ones_like(value)).cpu()
                found.append(slot.of(pulled))
        return tuple(found)

    def stored_gradient(self, level: int, rows: Tensor) -> Tensor:
        return tables.stored_gradient(self.module, self.plan.slots[level], rows)

    def codebooks(self) -> tuple[Tensor, ...]:
        if self._made:
            return self._computed()
        return tuple(tables.codes(self.module, slot) for slot in self.plan.slots)

    @property
    def device(self) -> str:
        """Where the layer computes; every number outside it is on the CPU."""
        return self.spec.device or "cpu"

    @property
    def _made(self) -> bool:
        return any(slot.transform == "made" for slot in self.plan.slots)

    def _computed(self) -> tuple[Tensor, ...]:
        """Codes that are read from an eval pass on fixed latents."""
        saved, recorder, call = state.take(self.module), capture.Recorder(), self.call(None)
        n = max(32, self.plan.min_n)
        z = torch.randn(n, self.domain.dim, generator=torch.Generator().manual_seed(0x5EED2000)).to(self.domain.dtype)
        try:
            with guarded("an eval pass"), forked(0), torch.no_grad():
                self.module.eval()
                with recorder:
                    raw = self.invoke(enter(z, call.layout).to(self.device))
                codes = cast("Tensor", self.codes_of(raw, call, n))
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

    def set_codebook(self, codebook: Sequence[Tensor]) -> None:
        if not self._made:  # codes that are computed cannot be set; `settable` finds that nothing moved
            learning = self.traits.get("learning")
            moved = learning is not None and "gradient" in (learning.value or ())
            tables.set_codes(self.module, self.plan, codebook, moved=moved)

    def accumulators(self) -> tuple[Accumulators, ...]:
        return tables.accumulators(self.module, self.plan)

    def set_accumulators(self, accumulators: Sequence[Accumulators]) -> None:
        tables.set_accumulators(self.module, self.plan, accumulators)

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
            returned = getattr(self.module, method)(shaped.to(self.device))
        return leave(tensor_in(returned, decoder.path), decoder.output_form, n).cpu()

    def snapshot(self) -> Any:
        return state.take(self.module)

    @property
    def fresh(self) -> Any:
        """The state that `restore` puts back; None before the layer is warm, and where it is built anew instead."""
        return self._fresh if self.copyable else None

    def restore(self, state_: Any = None) -> None:
        if state_ is not None:
            state.put_back(state_)
        elif self.fresh is not None:
            state.put_back(self.fresh)
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
        try:
            twin = replace(self, spec=spec).over(self.factory(overrides or {}, spec.seed))
        except TargetError as error:
            if overrides:
                raise Violation("refused", str(error)) from error
            raise
        if warm:
            twin.warm_up()
        return twin

    def together(self, work: str, arguments: Any) -> list[Any]:
        return processes.together(self, work, arguments)

    def over(self, module: nn.Module) -> Layer:
        return replace(self, module=module, _fresh=None, _levels=Levels())


def _rows_of_codes(value: Tensor, form: str, n: int, groups: int) -> Tensor:
    rows = leave(value, form, n, groups).cpu()
    rows = rows.argmax(-1) if "K" in form else rows
    return rows.flatten(1) if rows.ndim > 1 else rows.unsqueeze(1)


def _node(out: Quantized, place: Place) -> Node:
    if isinstance(place, str):
        return out.z if place == "z" else out.z_q
    kind, level = place
    node = out.levels[level].z_c if kind == "z_c" else out.levels[level].q_c
    if node is None:
        raise Violation("detached", f"the latent of level {level} has no place in the graph")
    return node
