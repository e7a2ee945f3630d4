"""Codes and losses among the outputs, by type, shape and gradient; the order of a tuple means nothing."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from vqverify.discovery.measure import scale_of
from vqverify.subject.plan import Output
from vqverify.subject.state import all_tensors

if TYPE_CHECKING:
    from vqverify.discovery.forms import Grid
    from vqverify.discovery.layouts import Candidate
    from vqverify.discovery.trial import Path, Trial


def code_rows(where: Grid, value: Tensor, form: str) -> Tensor:
    """Codes as rows (N, L), one-hot codes as indices."""
    rows = where.rows(value, form)
    rows = rows.argmax(-1) if "K" in form else rows
    return rows.reshape(where.n, -1).round().long()


def find_codes(found: Candidate) -> tuple[tuple[Output, ...], str]:
    """Outputs that hold the codes, and the evidence.

    Integers with one entry a latent (and a level) are codes if z_q is a function of them; failing integers,
    one-hot rows and floats with whole values are tried. If no choice makes z_q a function, the integers
    are taken as they are: that the codes do not say what z_q is, is then a finding.
    """
    where = found.grid
    whole = [
        (path, value) for path, value in found.returned if not value.is_floating_point() and value.dtype != torch.bool
    ]
    marked = _marks(where, whole)
    spelt = {output.path for group in marked for output, _ in group}
    groups = _families(where, [(path, value) for path, value in whole if path not in spelt], "L")
    kind = "integers"
    if marked and not groups:
        groups, kind = marked, "one-hot rows"
    if not groups:
        floats = [
            (path, value)
            for path, value in found.returned
            if value.is_floating_point()
            and value.ndim
            and path != found.z_q.path
            and bool((value == value.round()).all())
        ]
        groups = _marks(where, floats)
        kind = "one-hot rows"
        if not groups:
            groups = [g for g in _families(where, floats, "L") if all(int(v.max()) > 0 for _, v in g)]
            kind = "floats with whole values"
    if not groups:
        return (), "no output has one whole number a latent: codes are not returned"
    z_q = where.rows(dict(found.returned)[found.z_q.path], found.z_q.form)
    choices = [*groups, list(itertools.chain(*groups))] if len(groups) > 1 else groups
    for group in choices:
        codes = torch.cat([code_rows(where, value, output.form) for output, value in group], dim=1)
        if is_function(codes, z_q):
            shape = tuple(group[0][1].shape)
            text = f"{kind} of shape {shape}, {codes.shape[1]} a latent; z_q is a function of them"
            return tuple(output for output, _ in group), text
    group = groups[0]
    return tuple(output for output, _ in group), f"{kind}, one entry a latent; z_q is NOT a function of them"


def is_function(codes: Tensor, z_q: Tensor) -> bool:
    """Whether latents with equal codes (N, L) have equal z_q (N, D)."""
    _, inverse = codes.unique(dim=0, return_inverse=True)
    first = torch.full((int(inverse.max()) + 1,), -1, dtype=torch.long)
    for row, group in enumerate(inverse.tolist()):
        if first[group] < 0:
            first[group] = row
    gap = (z_q - z_q[first[inverse]]).abs().nan_to_num(0.0)
    return bool((gap <= 1e-3 * scale_of(z_q)).all())


def _families(where: Grid, values: list[tuple[Path, Tensor]], letter: str) -> list[list[tuple[Output, Tensor]]]:
    """Outputs that can hold codes; tensors of one shape side by side in a list are one a level."""
    fitting = [
        (Output(path, form), value)
        for path, value in values
        for form in [where.form(value.shape, letter)]
        if form and form.count(letter) <= (2 if letter == "L" else 1) and (letter == "L" or letter in form)
    ]
    families: dict[object, list[tuple[Output, Tensor]]] = {}
    for output, value in fitting:
        inside = len(output.path) > 1 and isinstance(output.path[-1], int)
        families.setdefault((output.path[:-1], output.form, value.shape) if inside else output.path, []).append(
            (output, value)
        )
    return list(families.values())


def _marks(where: Grid, values: list[tuple[Path, Tensor]]) -> list[list[tuple[Output, Tensor]]]:
    """Outputs that are one-hot rows."""
    hot = [(path, v) for path, v in values if v.numel() > where.n and bool(((v == 0) | (v == 1)).all())]
    return [g for g in _families(where, hot, "K") if all(_is_one_hot(where, v, o.form) for o, v in g)]


def _is_one_hot(where: Grid, value: Tensor, form: str) -> bool:
    return bool((where.rows(value, form).sum(-1) == 1).all())


def find_losses(trial: Trial, found: Candidate, taken: set[Path]) -> tuple[tuple[Output, ...], str]:
    """Outputs that are losses: float, small, and a gradient reaches z or a weight from them in train mode.

    A total that is returned beside its parts would count them twice: it is recognised by its gradient, a
    positive combination of theirs, and taken alone; of parts in a container of their own any combination will do
    (an entropy that is subtracted). A tensor of which the gradients add up to 0 is a distribution, and no loss.
    """
    where = found.grid
    leaf = found.x.clone().requires_grad_()
    returned = trial.run(where.put(leaf), train=True, grad=True) or trial.run(where.put(leaf), grad=True)
    if returned is None:
        return (), f"no pass with gradients could be made: {trial.error}"
    weights = [t for t in all_tensors(trial.module).values() if t.requires_grad and t.is_leaf and t.numel() > 1]
    holders = {path[:-1] for path in taken}
    outputs: list[Output] = []
    gradients: list[Tensor] = []
    metrics: list[Path] = []
    for path, value in returned:
        if path in taken or not value.is_floating_point() or not _loss_like(where, value):
            continue
        gradient = _gradient(value, [leaf, *weights])
        if gradient is None or _is_distribution(value, gradient, [leaf, *weights]):
            metrics.append(path)
        else:
            outputs.append(Output(path, "L" * value.ndim))
            gradients.append(gradient)
    kept = _without_parts(gradients, [output.path[:-1] for output in outputs], holders)
    text = (
        f"{len(outputs)} output(s) from which a gradient reaches z or a weight"
        if outputs
        else "no output has a gradient"
    )
    if len(kept) < len(outputs):
        text += f"; {len(outputs) - len(kept)} of them are already in the total"
    if metrics:
        text += f"; without gradient, so metrics: {', '.join('.'.join(map(str, path)) for path in metrics)}"
    return tuple(outputs[index] for index in kept), text


def _loss_like(where: Grid, value: Tensor) -> bool:
    """A scalar, a few numbers (one a level or a batch entry), or one a latent; not features of latents."""
    form = where.form(value.shape, "L")
    return value.numel() <= 64 or bool(form and "L" not in form)


def _gradient(value: Tensor, leaves: list[Tensor]) -> Tensor | None:
    if not value.requires_grad:
        return None
    try:
        grads = torch.autograd.grad(value.sum(), leaves, retain_graph=True, allow_unused=True)
    except RuntimeError:
        return None
    reached = cast("tuple[Tensor | None, ...]", grads)
    if not any(grad is not None for grad in reached):
        return None
    parts = [torch.zeros_like(leaf) if grad is None else grad for grad, leaf in zip(reached, leaves, strict=True)]
    return torch.cat([part.detach().reshape(-1).double() for part in parts])


def _is_distribution(value: Tensor, summed: Tensor, leaves: list[Tensor]) -> bool:
    """Whether the entries move while their sum, whose gradient is given, stays: mean probabilities, as of codes."""
    if value.numel() == 1:
        return False
    alone = _gradient(value.flatten()[:1], leaves)
    return alone is not None and bool(alone.any()) and float(summed.norm()) <= 1e-4 * float(alone.norm())


def _without_parts(gradients: list[Tensor], homes: list[Path], holders: set[Path]) -> list[int]:
    """Indices of losses to add up: a total that is a combination of others stands for them.

    Args:
        gradients: of each loss.
        homes: the container of each.
        holders: containers of z_q and codes: what lies beside these is no breakdown of a total.
    """
    keep = list(range(len(gradients)))
    if len(keep) < 2 or any(not gradient.isfinite().all() for gradient in gradients):
        return keep
    for total in range(len(gradients)):
        others = [index for index in keep if index != total]
        for size in range(len(others), 0, -1):
            for some in itertools.islice(itertools.combinations(others, size), 32):
                basis = torch.stack([gradients[index] for index in some], dim=1)
                if bool((basis.norm(dim=0) == 0).any()) or not gradients[total].any():
                    continue
                weights = torch.linalg.lstsq(basis, gradients[total][:, None]).solution[:, 0]
                rest = (basis @ weights - gradients[total]).norm()
                apart = all(homes[index] not in {homes[total], *holders} for index in some)
                fits = bool((weights > 1e-6).all()) or (apart and bool((weights.abs() > 1e-6).all()))
                if fits and rest <= 1e-4 * gradients[total].norm():
                    return [index for index in keep if index not in some]
    return keep
