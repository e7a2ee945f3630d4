"""The levels of a pass: located once on latents of our own, then read from every pass that is like it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vqverify.bounds import Violation
from vqverify.quantizer import Level
from vqverify.subject import capture, state
from vqverify.subject.guards import guarded
from vqverify.subject.plan import enter, leave, tensor_in
from vqverify.subject.randomness import forked

if TYPE_CHECKING:
    from vqverify.subject.layer import Layer

DRAWS = 24  # passes tried for one that drops given levels: of L patterns, each one comes in one of L passes
PROBE_SEED = 0x5EED0000  # far from the small seeds with which layers are built: a probe must not equal a codebook
_UNSEEN: Any = object()


@dataclass
class Levels:
    """What is known of where the levels of a layer's passes are.

    Attributes:
        usual: in train and in eval, whatever the pass.
        unusual: in passes that are made otherwise: with levels dropped, or more of them in the graph.
    """

    usual: dict[bool, capture.Located | None] = field(default_factory=dict[bool, Any])
    unusual: dict[tuple[bool, int, tuple[str, ...], tuple[int, ...]], Any] = field(default_factory=dict[Any, Any])

    def read(
        self,
        layer: Layer,
        record: list[Tensor],
        leaf: Tensor,
        before: tuple[Tensor, ...],
        codes: Tensor,
        *,
        train: bool,
    ) -> tuple[Level, ...]:
        """The levels of a recorded pass; none if it is like no other."""
        located, dropped = self._usual(layer, train=train), _dropped(codes)
        if located is None or dropped or not located.fits(record):  # the state may have changed what carries a graph
            key = train, len(record), capture.steps(record), dropped
            located = self.unusual.get(key, _UNSEEN)
            if located is _UNSEEN:
                located = self.unusual[key] = _locate(layer, train=train, dropped=dropped)
            if located is not None and located.attached is not None and located.steps != key[2]:
                located = None  # as many tensors in the graph, at another level
        if located is not None and not located.fits(record):
            located = None
        return () if located is None else capture.read(record, leaf, located, [e.shape[1] for e in before])

    def plain(self, layer: Layer, *, train: bool) -> bool:
        """Whether passes need no record: the layer searches its input and returns its codes as they are."""
        located = self._usual(layer, train=train)
        return located is not None and located.plain

    def _usual(self, layer: Layer, *, train: bool) -> capture.Located | None:
        if train not in self.usual:
            self.usual[train] = _locate(layer, train=train, start=layer.fresh)
        return self.usual[train]


def _locate(layer: Layer, *, train: bool, dropped: tuple[int, ...] = (), start: Any = None) -> capture.Located | None:
    """Locate the levels on generic latents, so that no drawn input can mislead the search.

    Where a pass drops levels at random, one is made that drops just these. Nor can a state: the search starts from
    `start` if that is given, and not from codes that are all about to be replaced, say.
    """
    saved, modes = state.take(layer.module), layer.module.training
    start = saved if start is None else start
    state.put_back(start)
    n = 2 * layer.domain.dim + 13
    books = layer.codebooks()
    leaf, call = _generic(layer, n, books[0]).requires_grad_(), layer.call(None).at(train=train)
    try:
        for seed in range(11, 11 + DRAWS):
            state.put_back(start)
            recorder = capture.Recorder()
            with guarded("a recorded pass"), forked(seed):
                layer.module.train(train)
                x = enter(leaf, call.layout).to(layer.device)
                with recorder:
                    raw = layer.invoke(x)
                recorder.note(raw)
                codes = layer.codes_of(raw, call, n)
                if codes is None:
                    return None
                if _dropped(codes) != dropped:
                    continue
                located = capture.locate(recorder.tensors, leaf, codes, books)
                if located is None:  # a layer that quantises after its update returns codes of the new codebook
                    located = capture.locate(recorder.tensors, leaf, codes, layer.codebooks())
                if located is None or len(located.levels) != 1:
                    return located
                (level,) = capture.read(recorder.tensors, leaf, located, [leaf.shape[1]])
                z_q = leave(tensor_in(raw, call.z_q.path), call.z_q.form, n).cpu()
                return replace(located, plain=capture.is_plain(level, leaf, z_q))
    except Violation:
        pass
    finally:
        state.put_back(saved)
        layer.module.train(modes)
    return None


def _generic(layer: Layer, n: int, book: Tensor) -> Tensor:
    """Latents (n, D) in general position, around the codes where these are of their width."""
    generator = torch.Generator().manual_seed(PROBE_SEED)
    z = torch.randn(n, layer.domain.dim, generator=generator).to(layer.domain.dtype)
    if book.shape[1] != layer.domain.dim:
        return z
    picks = torch.randint(len(book), (n,), generator=generator)
    return book[picks].to(z) + 0.6 * book.std().clamp_min(1e-3) * z


def _dropped(codes: Tensor) -> tuple[int, ...]:
    """Levels that have no code for any latent."""
    return tuple(torch.nonzero((codes < 0).all(0)).flatten().tolist()) if len(codes) and int(codes.min()) < 0 else ()
