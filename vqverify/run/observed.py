"""What one pass of a layer shows, here or in another interpreter: `python -m vqverify.run.observed` is the other end.

The other interpreter needs torch, NumPy and the layer's library; it speaks JSON, a line a pass.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vqverify.bounds import Violation
from vqverify.case import Case, prepare
from vqverify.quantizer import Spec
from vqverify.subject import capture, open_subject
from vqverify.subject.layer import Layer
from vqverify.subject.target import TargetError, package_of
from vqverify.witness import decode, encode


@dataclass(frozen=True)
class Observation:
    """One pass.

    Attributes:
        z_q: (N, D).
        codes: (N, L), or None.
        loss: a scalar, or None.
        gradient: Jᵀg from z_q to z, (N, D).
        loss_gradient: of the loss at z, (N, D), or None.
        codebook_gradients: of the loss at each codebook that is stored as it is, (K, Dc); () where one is not.
        codebooks, counted: codebooks, and EMA counts and sums, after the pass.
        raised: what the layer raised; the rest is empty then.
    """

    z_q: Tensor | None = None
    codes: Tensor | None = None
    loss: Tensor | None = None
    gradient: Tensor | None = None
    loss_gradient: Tensor | None = None
    codebook_gradients: tuple[Tensor, ...] = ()
    codebooks: tuple[Tensor, ...] = ()
    counted: tuple[Tensor, ...] = ()
    raised: str = ""


class Side(Protocol):
    """A layer that can be observed."""

    @property
    def settable(self) -> bool:
        """Whether its codebook can be written."""
        ...

    @property
    def own(self) -> tuple[Tensor, ...]:
        """Its codebooks as built."""
        ...

    @property
    def dim(self) -> int:
        """D."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of its latents."""
        ...

    def observe(self, case: Case, *, train: bool) -> Observation:
        """A pass from the state of a case, in the side's own precision."""
        ...


@dataclass
class Here:
    """A layer in this process; `compiled` puts a compiler around its pass."""

    layer: Layer
    compiled: bool = False
    _call: Callable[..., Any] | None = None
    own: tuple[Tensor, ...] = field(default=())

    def __post_init__(self) -> None:
        self.own = self.layer.codebooks()

    @property
    def settable(self) -> bool:
        """Whether its codebook can be written."""
        return bool(self.layer.traits["settable"].value)

    @property
    def dim(self) -> int:
        """D."""
        return self.layer.domain.dim

    @property
    def dtype(self) -> torch.dtype:
        """Of its latents."""
        return self.layer.domain.dtype

    def observe(self, case: Case, *, train: bool) -> Observation:
        """A pass from the state of a case, in the side's own precision."""
        dtype = self.dtype
        history = tuple(batch.to(dtype) for batch in case.history)
        case = replace(case, z=case.z.to(dtype), g=case.g.to(dtype), history=history)
        try:
            with _compiling() if self.compiled else nullcontext():
                return self._observed(case, train=train)
        except Violation as violation:
            return Observation(raised=violation.message)

    def _observed(self, case: Case, *, train: bool) -> Observation:
        layer = self.layer
        prepare(layer, case)
        out = layer.forward(case.z, train=train, seed=case.seed, via=self._compiled if self.compiled else None)
        gradient = layer.vjp(out, case.g).clone()
        of_loss, of_codes = None, ()
        if out.loss is not None:
            if self.compiled:  # a compiled backward may write the second gradient of a pass over the first
                prepare(layer, case)
                out = layer.forward(case.z, train=train, seed=case.seed, via=self._compiled)
            assert out.loss is not None
            of_loss = capture.pull(out.loss, out.z.tensor, torch.ones_like(out.loss))
            if not self.compiled and all(slot.transform == "identity" for slot in layer.plan.slots):
                of_codes = layer.codebook_gradients(out.loss)
        counted = tuple(t for held in layer.accumulators() for t in (held.counts, held.sums))
        loss = None if out.loss is None else out.loss.detach()
        books = layer.codebooks()
        return Observation(out.z_q.rows.detach(), out.codes, loss, gradient, of_loss, of_codes, books, counted)

    def _compiled(self, invoke: Callable[..., Any], x: Tensor) -> Any:
        if self._call is None:
            self._call = torch.compile(invoke)
        return self._call(x)


@contextmanager
def _compiling() -> Generator[None]:
    """Backward keeps what it reads, as `capture.pull` asks of it.

    Without the compiler's remarks on what it could not capture: it runs that as it is.
    """
    from torch._functorch import config

    log = logging.getLogger("torch._dynamo")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with config.patch(donated_buffer=False):
            yield
    finally:
        log.setLevel(level)


class There:
    """A layer in another interpreter, which is asked line by line."""

    def __init__(self, python: str, spec: Spec) -> None:
        """Start the interpreter and open the layer there.

        Raises:
            TargetError: if it does not start, or the layer cannot be opened in it.
        """
        self._python = python
        root = str(Path(__file__).parents[2])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, str(Path.cwd())])}
        try:
            self._process = subprocess.Popen(  # noqa: S603  (the interpreter that the user names)
                [python, "-m", "vqverify.run.observed"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
            )  # fmt: skip
        except OSError as error:
            raise TargetError(f"--python-b {python} cannot be started: {error.strerror}") from error
        opened = self._ask(asdict(spec))
        if "refused" in opened:
            raise TargetError(f"in {python}: {opened['refused']}")
        self.settable, self.dim = bool(opened["settable"]), int(opened["dim"])
        self.dtype: torch.dtype = getattr(torch, opened["dtype"])
        self.own = tuple(decode(book) for book in opened["own"])
        self.version = str(opened["version"])

    def observe(self, case: Case, *, train: bool) -> Observation:
        """A pass over there."""
        tensors = {"z": case.z, "g": case.g, "codebook": case.codebook, "history": case.history}
        return _read(self._ask({"seed": case.seed, "train": train, **{k: _put(v) for k, v in tensors.items()}}))

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        try:
            self._process.stdin.write(json.dumps(question, default=repr) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())
        except (OSError, ValueError):
            said = self._process.stderr.read().strip().split("\n")[-1][:200]
            raise TargetError(f"{self._python} stopped: {said or 'it said nothing'}") from None

    def close(self) -> None:
        """End the interpreter."""
        self._process.kill()
        self._process.communicate()


def _put(value: Tensor | Sequence[Tensor] | None) -> Any:
    if value is None:
        return None
    return encode(value) if isinstance(value, Tensor) else [encode(tensor) for tensor in value]


def _read(data: Mapping[str, Any]) -> Observation:
    if "refused" in data:
        raise TargetError(str(data["refused"]))

    def one(name: str) -> Tensor | None:
        return None if data[name] is None else decode(data[name])

    names = ("codebook_gradients", "codebooks", "counted")
    pulled, books, counted = (tuple(decode(value) for value in data[name]) for name in names)
    tensors = (one("z_q"), one("codes"), one("loss"), one("gradient"), one("loss_gradient"))
    return Observation(*tensors, pulled, books, counted, data["raised"])


def _serve() -> None:
    """Answer on what was standard output, so that nothing a layer prints gets between."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    side: Here | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if side is None:
                side = Here(open_subject(Spec(**asked)))
                found = package_of(type(side.layer.module))
                answer: dict[str, Any] = {
                    "settable": side.settable,
                    "dim": side.dim,
                    "dtype": str(side.dtype).removeprefix("torch."),
                    "own": _put(side.own),
                    "version": " ".join(found) if found else "",
                }
            else:
                books = None if asked["codebook"] is None else tuple(decode(book) for book in asked["codebook"])
                history = tuple(decode(batch) for batch in asked["history"])
                case = Case(decode(asked["z"]), decode(asked["g"]), asked["seed"], books, history)
                seen = side.observe(case, train=asked["train"])
                answer = {name: value if name == "raised" else _put(value) for name, value in vars(seen).items()}
        except TargetError as error:
            answer = {"refused": str(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    _serve()
