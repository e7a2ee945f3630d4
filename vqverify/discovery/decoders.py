"""Public methods that turn codes into z_q, recognised by what they return; wrong ones are listed too."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vqverify.discovery.codespace import effective
from vqverify.discovery.measure import scale_of
from vqverify.discovery.trial import leaves
from vqverify.subject import capture
from vqverify.subject.plan import TOKENS, Call, Decoder, arrange, enter, sizes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vqverify.discovery.bench import Bench, Look

FORMS = ("BN", "NL", "BNL", "N", "LN", "LBN", "BLN", "BHW", "BHWL", "BLHW", "N1", "B1N", "BN1")
ELSEWHERE = "gives values of z_q at other places"
OUTPUTS = ("ND", "BND", "BDN", "BHWD", "BDHW", "DN")


def public_methods(module: nn.Module, required: int) -> Iterator[str]:
    """Methods of the class that `torch.nn.Module` has not, with this many arguments without a default."""
    for name in dir(type(module)):
        method = getattr(type(module), name, None)
        if name.startswith("_") or hasattr(nn.Module, name) or not inspect.isfunction(method):
            continue
        parameters = list(inspect.signature(method).parameters.values())[1:]
        needed = [
            p for p in parameters if p.default is p.empty and p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}
        ]
        forced = [p for p in parameters if p.default is p.empty and p.kind is p.KEYWORD_ONLY]
        if len(needed) == required and not forced:
            yield name


def find_decoders(bench: Bench, look: Look) -> tuple[tuple[Decoder, ...], str]:
    """Methods whose output is z_q; also those that come close, permute it, or raise after the lookup.

    Every method is called from the same state, which is put back.
    """
    if look.codes is None:
        return (), "codes are not returned, so there is nothing to decode"
    found: list[Decoder] = []
    exact: list[Decoder] = []
    notes: list[str] = []
    for name in public_methods(bench.trial.module, 1):
        if name == bench.plan.method or (bench.plan.then and name == bench.plan.then.method):
            continue
        result = _try(bench, look, name)
        if result is not None:
            found.append(result[0])
            notes.append(f"{name} {result[1]}")
            exact += [result[0]] if result[2] else []
    bench.reset()
    found, more = _in_layout(found, exact, bench.plan.calls[0])
    return tuple(found), "; ".join(notes) + more or "no public method of one argument turns codes into z_q"


def _in_layout(found: list[Decoder], exact: list[Decoder], call: Call) -> tuple[list[Decoder], str]:
    """Hold decoders to z_q's layout where none of them keeps it; else another layout is a helper's choice."""
    own = {output.form for output in call.codes}
    comparable = [d for d in exact if d.codes_form in own and _tokens(d.codes_form) == _tokens(call.z_q.form)]
    turned = [decoder for decoder in comparable if decoder.output_form != call.z_q.form]
    if not turned or len(turned) < len(comparable):
        return found, ""
    names = ", ".join(decoder.method for decoder in turned)
    return (
        [replace(d, output_form=call.z_q.form) if d in turned else d for d in found],
        f"; {names} in the layout {turned[0].output_form}, while z_q is {call.z_q.form}",
    )


def _tokens(form: str) -> set[str]:
    return {letter for letter in form if letter in TOKENS}


def _try(bench: Bench, look: Look, name: str) -> tuple[Decoder, str, bool] | None:
    assert look.codes is not None
    call = bench.plan.calls[0]
    own = [output.form for output in call.codes if len(call.codes) == 1 and "K" not in output.form]
    groups = look.groups if len(call.codes) == 1 else ()
    weaker: tuple[Decoder, str, bool] | None = None
    for form in dict.fromkeys([*own, *FORMS]):
        levels = groups if form.count("L") == len(groups) else (look.codes.shape[1],) if form.count("L") == 1 else ()
        if form.count("L") != len(levels) or math.prod(levels) != look.codes.shape[1]:
            continue
        shaped = enter(look.codes.reshape(-1, *levels), form)
        bench.reset()
        bench.trial.module.eval()
        recorder = capture.Recorder()
        with recorder:
            returned = bench.trial.guarded(name, shaped.clone())
        if returned is None:
            if weaker is None and form in own and _looked_up(bench, look, recorder.tensors):
                weaker = (
                    Decoder(name, form, call.z_q.form, levels),
                    f"raises {bench.trial.error} after it looked the codes up",
                    False,
                )
            continue
        for path, value in leaves(returned[0]):  # beside z_q DAC returns what it projected, and the codes
            if not value.is_floating_point() or value.numel() != look.z_q.numel():
                continue
            decoder = Decoder(name, form, call.z_q.form, levels, path)
            judged = _judged(look, value, decoder)
            if judged is None and form in own and _is_part(look, value, call.z_q.form):
                looked = _looked_up(bench, look, recorder.tensors)
                judged = (decoder, "looks the codes up and gives a part of z_q", False) if looked else None
            if judged is not None and judged[2]:
                return judged
            if weaker is None and judged is not None:
                weaker = judged
                if form in own and judged[1] == ELSEWHERE:
                    # it takes the codes as forward returns them: that another form suits it would hide the mistake
                    return weaker
    return weaker


def _judged(look: Look, value: Tensor, decoder: Decoder) -> tuple[Decoder, str, bool] | None:
    """What a tensor that a method made of codes is to z_q, and whether it is z_q; None if nothing."""
    own = decoder.output_form
    if (form := _matching(look, value, 1e-3, own)) is not None:
        return replace(decoder, output_form=form), f"gives z_q for codes {decoder.codes_form}", True
    if (form := _matching(look, value, 0.35, own)) is not None:
        return replace(decoder, output_form=form), "gives roughly z_q, not exactly", False
    if (form := _proportional(look, value, own)) is not None:
        return replace(decoder, output_form=form), "gives a multiple of z_q", False
    alone = not decoder.path  # one tensor of several may be latents
    if alone and _same_values(look.z_q, value) and _tells_codes(look, value):
        return replace(decoder, output_form=_expected(own, value)), ELSEWHERE, False
    return None


def _matching(look: Look, value: Tensor, tolerance: float, own: str) -> str | None:
    """Output form under which a tensor is z_q, within a relative tolerance."""
    spread = (look.z_q - look.z_q.mean(0)).norm() if tolerance > 0.01 else look.z_q.norm()
    for form in dict.fromkeys((own, *OUTPUTS)):
        want = _arranged(look, form)
        if want.shape == value.shape and float((value - want).norm()) <= tolerance * max(float(spread), 1e-12):
            return form
    return None


def _arranged(look: Look, form: str) -> Tensor:
    """z_q in another form."""
    n, dim = look.z_q.shape
    return arrange(look.z_q, form, {**sizes(form, n, 1), "D": dim})


def _proportional(look: Look, value: Tensor, own: str) -> str | None:
    """Output form under which a tensor is a constant times z_q."""
    want = _arranged(look, own)
    if want.shape != value.shape:
        return None
    factor = (value * want).sum() / want.square().sum().clamp_min(1e-30)
    return own if float((value - factor * want).norm()) <= 1e-3 * float(value.norm()) and float(factor) > 0 else None


def _is_part(look: Look, value: Tensor, own: str) -> bool:
    """Whether a tensor goes with z_q as a sum over some of its levels does, and no function of other codes."""
    want = _arranged(look, own)
    if want.shape != value.shape:
        return False
    together = torch.stack([value.flatten(), want.flatten()]).double().corrcoef()[0, 1]
    return bool(together > 0.3)  # by chance about (ND)^-½, 0.04


def _expected(form: str, value: Tensor) -> str:
    """z_q's own form, or one with the tensor's number of axes."""
    return form if len(form) == value.ndim else next((known for known in OUTPUTS if len(known) == value.ndim), form)


def _same_values(a: Tensor, b: Tensor) -> bool:
    """Whether the entries of b are entries of a, and not all one."""
    first, second = a.unique(), b.reshape(-1).to(a)
    place = torch.searchsorted(first, second).clamp(max=len(first) - 1)
    gaps = torch.stack([(second - first[at.clamp(min=0)]).abs() for at in (place, place - 1)]).amin(0)
    known = gaps <= 1e-4 * scale_of(a)
    return len(second.unique()) > 1 and float(known.double().mean()) > 0.95


def _tells_codes(look: Look, value: Tensor) -> bool:
    """Whether codes that differ get rows that differ, as a bound of the latents, say, does not give them."""
    assert look.codes is not None
    dim = look.z_q.shape[1]
    rows = (value if value.shape[-1] == dim or value.ndim < 2 else value.movedim(1, -1)).reshape(-1, dim)
    return len(rows.unique(dim=0)) > 0.4 * len(look.codes.unique(dim=0))


def _looked_up(bench: Bench, look: Look, record: list[Tensor]) -> bool:
    assert look.codes is not None
    for level, slot in enumerate(bench.plan.slots):
        book = effective(bench, slot).to(look.z_q)
        want = book[look.codes[:, level].clamp(0, len(book) - 1)]
        for tensor in record:
            if tensor.numel() == want.numel() and tensor.shape[-1] == want.shape[1]:
                rows = tensor.detach().reshape(want.shape)
                if torch.allclose(rows.to(want), want, rtol=1e-4, atol=1e-6):
                    return True
    return False
