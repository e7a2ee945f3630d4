"""One training, step by step: the same curve bit for bit for the same recipe and seed, on one machine.

Randomness is a function of (seed, step): nothing that a layer draws changes the batches of later steps, and two layers
with one seed see common random numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vqverify.reference import attach_gradient, exact_gradient, hessian_gradient
from vqverify.training import measure
from vqverify.training.layers import Adapted
from vqverify.training.measure import WATCHED
from vqverify.training.models import parameters
from vqverify.training.recipes import TASKS, Recipe

Builder = Callable[[Tensor], nn.Module]
"""Builds a layer, given latents (N, D) of the untrained network, from which it may take its first codes."""

INTERVALS = 8
"""Measurements of a run, unless said otherwise."""


@dataclass(frozen=True)
class Curve:
    """What a run measured.

    Attributes:
        name: of the recipe.
        seed: of the run.
        steps: at which it was measured.
        values: a number a step for each name of :data:`vqverify.training.measure.WATCHED`.
        steps_per_second: steps of training a second of CPU time (one thread), without measurements; not part of what
            is compared.
    """

    name: str
    seed: int
    steps: tuple[int, ...]
    values: dict[str, tuple[float, ...]]
    steps_per_second: float = field(default=float("nan"), compare=False)

    def first(self, watched: str) -> float:
        """Return the first measurement."""
        return self.values[watched][0]

    def final(self, watched: str) -> float:
        """Return the last measurement."""
        return self.values[watched][-1]

    def mean(self, watched: str) -> float:
        """Return the mean over the measurements."""
        return float(np.mean(self.values[watched]))


class Run:
    """A training that can be advanced, saved and resumed.

    Attributes:
        step: how many steps were made.
        every: steps between measurements.
    """

    def __init__(
        self,
        recipe: Recipe,
        seed: int,
        *,
        every: int,
        layer: Builder | None = None,
        size: int | None = None,
    ) -> None:
        """Build the model and the layer from the seed.

        Args:
            recipe: what is trained.
            seed: of everything random.
            every: steps between measurements, at least 1.
            layer: builds another layer than the recipe's; it takes latents (B, N, D) of the task's D.
            size: K of that layer; the recipe's K if None.
        """
        self.recipe, self.seed, self.every, self.step = recipe, seed, every, 0
        self.task = TASKS[recipe.task]
        self.data = self.task.data()
        with one_thread(), torch.random.fork_rng(devices=[]):
            _seed(seed, 0)
            self.model = self.task.model(self.task.dim)
            with torch.no_grad():
                z = measure.latents(self.model, self.data.train[: self.task.batch], cosine=self.cosine)
            _seed(seed, 0, 1)
            inner = layer(z.reshape(-1, self.task.dim)) if layer else recipe.layer()
            self.layer = Adapted(inner, size or recipe.arguments()["codebook_size"])
        self.layer.train()
        self._model_optimizer = _adam(parameters(self.model), self.task.rate)
        self._code_optimizer = _adam(parameters(self.layer), self.task.rate)
        self._measured: dict[str, list[float]] = {name: [] for name in WATCHED}
        self._steps: list[int] = []
        self._loss, self._used = 0.0, torch.zeros(self.layer.size, dtype=torch.int64)
        self._seconds = 0.0

    @property
    def cosine(self) -> bool:
        """Whether latents are compared by their directions."""
        return self.recipe.metric == "cosine"

    def advance(self, steps: int) -> None:
        """Make so many steps."""
        with one_thread(), torch.random.fork_rng(devices=[]):
            for _ in range(steps):
                start = time.process_time()
                self.step += 1
                due = self.step % self.every == 0
                _seed(self.seed, self.step)
                gap = self._train(measure_gap=due)
                self._seconds += time.process_time() - start
                if due:
                    _seed(self.seed, self.step, 1)
                    self._measure(gap)

    def curve(self) -> Curve:
        """Return what was measured so far."""
        speed = self.step / self._seconds if self._seconds else float("nan")
        values = {name: tuple(numbers) for name, numbers in self._measured.items()}
        return Curve(self.recipe.name, self.seed, tuple(self._steps), values, speed)

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on, for ``torch.save``."""
        return {
            "recipe": self.recipe.name,
            "seed": self.seed,
            "every": self.every,
            "step": self.step,
            "model": self.model.state_dict(),
            "layer": self.layer.state_dict(),
            "optimizers": [one.state_dict() if one else None for one in self._optimizers()],
            "measured": self._measured,
            "steps": self._steps,
            "loss": self._loss,
            "used": self._used,
            "seconds": self._seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state of a run with the same recipe, seed and interval.

        Raises:
            ValueError: if it is of another run.
        """
        for name, mine in (("recipe", self.recipe.name), ("seed", self.seed), ("every", self.every)):
            if state[name] != mine:
                raise ValueError(f"the checkpoint is of a run with {name} {state[name]!r}; this one has {mine!r}")
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.layer.load_state_dict(state["layer"])
        for one, saved in zip(self._optimizers(), state["optimizers"], strict=True):
            if one:
                one.load_state_dict(saved)
        self._measured, self._steps = state["measured"], state["steps"]
        self._loss, self._used, self._seconds = state["loss"], state["used"], state["seconds"]

    @torch.no_grad()
    def reconstruct(self, count: int) -> tuple[Tensor, Tensor]:
        """Return held-out examples and their reconstructions, the first ``count``."""
        x = self.data.held_out[:count]
        self.layer.eval()
        x_hat = self.model.decode(self.layer(measure.latents(self.model, x, cosine=self.cosine)).z_q)
        self.layer.train()
        return x, x_hat

    def _optimizers(self) -> tuple[torch.optim.Adam | None, torch.optim.Adam | None]:
        return self._model_optimizer, self._code_optimizer

    def _train(self, *, measure_gap: bool) -> float:
        """Make one step; return the relative gap of the encoder's gradient, if asked for."""
        data = self.data.train
        # the batch is drawn first: what the layer draws comes after
        x = data[torch.randint(len(data), (self.task.batch,))]
        if self.recipe.alternates:
            self._code_step(x)
        z = measure.latents(self.model, x, cosine=self.cosine)
        if not z.requires_grad:
            z = z.detach().requires_grad_()
        out = self.layer(z)

        def f(point: Tensor) -> Tensor:
            return (self.model.decode(point) - x).square().mean()

        task = f(out.z_q)
        loss = task + out.loss
        corrected = self.recipe.estimator in {"hessian", "exact"}
        gap = 0.0
        if corrected or measure_gap:
            (given,) = torch.autograd.grad(task, z, retain_graph=True, materialize_grads=True)
            wanted = given
            if corrected:
                exact = self.recipe.estimator == "exact"
                wanted = exact_gradient(f, z) if exact else hessian_gradient(f, z, out.z_q)
                loss = attach_gradient(loss, z, wanted - given)
            if measure_gap:
                gap = _relative_gap(exact_gradient(f, z), wanted)
        self._backward(task, loss)
        self._loss += float(loss.detach())
        self._used += measure.used(out.codes, self.layer.size)
        return gap

    def _backward(self, task: Tensor, loss: Tensor) -> None:
        """Step the optimizers; in alternation the codes see the task alone, and only if they are synchronized."""
        if self._model_optimizer:
            self._model_optimizer.zero_grad()
        if self._code_optimizer:
            self._code_optimizer.zero_grad()
        synchronized: tuple[Tensor, ...] = ()
        codes = parameters(self.layer)
        if self.recipe.alternates and task.requires_grad:
            synchronized = torch.autograd.grad(task, codes, retain_graph=True, materialize_grads=True)
        loss.backward()
        if self._model_optimizer:
            self._model_optimizer.step()
        if not self._code_optimizer:
            return
        if self.recipe.alternates:
            if not any(bool(g.any()) for g in synchronized):
                return
            for code, gradient in zip(codes, synchronized, strict=True):
                code.grad = gradient
        self._code_optimizer.step()

    def _code_step(self, x: Tensor) -> None:
        """Step the codes on fixed latents, by their own loss (001 eq. 17)."""
        assert self._code_optimizer is not None, "alternation is for codes that take gradients"
        with torch.no_grad():
            z = measure.latents(self.model, x, cosine=self.cosine)
        self._code_optimizer.zero_grad()
        self.layer(z).loss.backward()
        self._code_optimizer.step()

    def _measure(self, gap: float) -> None:
        numbers = measure.held_out(self.model, self.layer, self.data.held_out, cosine=self.cosine)
        numbers |= {
            "training_loss": self._loss / self.every,
            "dead": float((self._used == 0).sum()) / self.layer.size,
            "gradient_gap": gap,
        }
        for name, value in numbers.items():
            self._measured[name].append(value)
        self._steps.append(self.step)
        self._loss, self._used = 0.0, torch.zeros_like(self._used)


def train(
    recipe: Recipe,
    seed: int = 0,
    *,
    steps: int | None = None,
    layer: Builder | None = None,
    size: int | None = None,
) -> Curve:
    """Train from a seed and return the curve, measured at :data:`INTERVALS` even distances (at every step if fewer).

    Args:
        recipe: what is trained.
        seed: of everything random.
        steps: how many, at least 1; the task's if None.
        layer: builds another layer than the recipe's.
        size: K of that layer.

    Raises:
        MissingPackageError: if the task's data are in a package that is not installed.
        ValueError: if ``steps`` is below 1.
    """
    steps = TASKS[recipe.task].steps if steps is None else steps
    if steps < 1:
        raise ValueError(f"steps must be at least 1; it was {steps}")
    run = Run(recipe, seed, every=max(1, steps // INTERVALS), layer=layer, size=size)
    run.advance(steps)
    return run.curve()


@contextmanager
def one_thread() -> Generator[None]:
    """Run torch on one thread: sums in one order, whatever the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _seed(*parts: int) -> None:
    """Seed torch's CPU generator with a digest of the parts."""
    digest = np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]
    torch.default_generator.manual_seed(int(digest) >> 1)


def _adam(params: list[nn.Parameter], rate: float) -> torch.optim.Adam | None:
    return torch.optim.Adam(params, lr=rate, fused=True) if params else None


def _relative_gap(exact: Tensor, given: Tensor) -> float:
    gap = torch.linalg.vector_norm(exact - given, dim=-1).mean()
    size = torch.linalg.vector_norm(exact, dim=-1).mean()
    return float(gap / size) if bool(size > 0) else 0.0
