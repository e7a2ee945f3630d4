"""How rare codes are kept alive: smoothing of the counts, and replacement."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vqverify.identify.learning import bincounts
from vqverify.identify.probes import Findings, Probe, Step, Unknown, attempt, dormant, latents_at, relative
from vqverify.quantizer import Accumulators, Finding

NAMES = ("smoothing", "smoothing_kind", "smoothing_stored", "replacement")
SHOWN = NAMES[:3]
RARE, AGED, SHOWS = 1e-6, 3, 1e-2  # counts at which smoothing shows; passes; what rounding does not explain
FITS, EXACT = 0.2, 0.02  # how far a curve may lie off: as it is, and multiplied by what nothing explains
FEW = 3  # codes: too few for a curve of one step
SIZES = torch.logspace(-9, -2, 22, dtype=torch.float64).tolist()  # of all counts, in as many steps, makes one of few


@attempt()
def ageing(probe: Probe) -> Findings:
    """Whether counts and sums are all that an update knows: the same ones lead to the same codes, however many steps on.

    Averages that are divided by 1 − γᵗ (Sonnet's, Adam's) are not the counts and sums of theorem 17, nor are codes that
    change by their age in other ways: what the statements say of accumulators is not said of these.
    """
    layer = probe.layer
    if not layer.plan.accumulators:
        return {}

    def rare(passes: int) -> Step:
        def prepare() -> None:
            for _ in range(passes):
                layer.forward(probe.lone, train=True, seed=probe.seed, grad=False)
            layer.set_codebook(books)
            held = zip(layer.accumulators(), books, strict=False)
            layer.set_accumulators([Accumulators(torch.full_like(a.counts, RARE), RARE * e) for a, e in held])

        return probe.step(probe.lone, prepare)

    layer.restore()
    books = layer.codebooks()
    young, old = rare(0), rare(AGED)
    for level, (first, second) in enumerate(zip(young.recounted, old.recounted, strict=True)):
        same = (first.counts == second.counts) & (first.sums == second.sums).all(1)
        a, b = young.after[level].double()[same], old.after[level].double()[same]
        if len(a) and relative(a - b, a) > SHOWS:
            text = f"the same counts and sums lead to other codes {AGED} passes later: they are not all that is kept"
            return {"accumulators": Finding(False, evidence=text)}
    return {}


@attempt(*NAMES)
def smoothing(probe: Probe) -> Findings:
    """N̂ = m'/c' as a function of N', from a step with counts from 1e-9 to 1: none, Laplace or clamp, and ε."""
    layer = probe.layer
    crowded, idle = probe.crowded, ""
    if not layer.plan.accumulators:
        idle = "no accumulators were found"
    elif all(torch.equal(a, b) for a, b in zip(crowded.before, crowded.after, strict=True)):
        idle = "no training pass moves the codebook"
    if idle:
        return dict.fromkeys(NAMES, dormant(idle))
    if aged := ageing(probe):
        raise Unknown(aged["accumulators"].evidence)

    def counted(least: float, most: float) -> Step:
        def prepare() -> None:
            ends = math.log10(least), math.log10(most)
            wanted: list[Accumulators] = []
            for held, e in zip(layer.accumulators(), layer.codebooks(), strict=False):
                sizes = torch.logspace(*ends, len(e), dtype=torch.float64).to(held.counts)
                wanted.append(Accumulators(sizes, sizes[:, None] * e.to(sizes)))
            layer.set_accumulators(wanted)

        return probe.step(probe.lone, prepare)

    few = len(crowded.before[0]) <= FEW
    step = counted(1e-9, 1e-7 if few else 1.0)  # one unused code must be a rare one
    old, new, c = step.counted[0], step.recounted[0], step.after[0].double()
    unused = torch.stack(bincounts(step, layer, 0)).sum(0) == 0
    if not bool(unused.any()):
        raise Unknown("every code received a latent")
    few = few or int(unused.sum()) <= FEW  # codes that are drawn may leave no more
    found = _replaced(step, unused)
    if found["replacement"].value == "batch":
        return found | dict.fromkeys(SHOWN, dormant("rare codes are replaced before smoothing shows"))
    smoothed = _smoothed(old.counts, new.counts, unused)
    m, size = new.sums.double()[unused], (old if smoothed else new).counts.double()[unused]
    estimate = _divisor(m, c[unused])
    if probe.layer.plan.sphere or relative(m - estimate[:, None] * c[unused], m) > 0.1:
        return found | dict.fromkeys(SHOWN, dormant("codes are normalised after the update"))
    text = "counts of unused codes more than doubled" if smoothed else "counts of unused codes did not grow"
    return (
        found
        | {"smoothing_stored": Finding(smoothed, evidence=text)}
        | _curve(
            *(_points([counted(s, s) for s in SIZES], unused, kept=smoothed) if few else (estimate, size)),
            float(new.counts.double().sum()),
            len(c),
        )
    )


def _divisor(m: Tensor, c: Tensor) -> Tensor:
    """N̂ of m' = N̂ c', by least squares a code."""
    return (m * c).sum(1) / c.square().sum(1).clamp_min(1e-300)


def _points(steps: list[Step], unused: Tensor, *, kept: bool) -> tuple[Tensor, Tensor]:
    """N̂ and N' of the codes that no step used, (steps · codes,) each."""
    estimates = [_divisor(s.recounted[0].sums.double()[unused], s.after[0].double()[unused]) for s in steps]
    sizes = [(s.counted if kept else s.recounted)[0].counts.double()[unused] for s in steps]
    return torch.cat(estimates), torch.cat(sizes)


def _smoothed(old: Tensor, new: Tensor, unused: Tensor) -> bool:
    """Whether smoothed counts were written back (then N' is taken as γN, γ near 1)."""
    grown = new.double()[unused] > 2 * old.double()[unused]
    return bool(grown.any())


def _curve(estimate: Tensor, size: Tensor, total: float, k: int) -> Findings:
    order = size.argsort()
    size, estimate = size[order], estimate[order]
    if relative((estimate - size) / size, torch.ones_like(size)) < 0.05:
        none = f"m'/c' = N' down to N' = {float(size[0]):.1g}"
        return {"smoothing": Finding(0.0, evidence=none), "smoothing_kind": Finding("none", evidence=none)}
    floor = float(estimate[0])
    off = _misfits(estimate, size, total, k)
    kind = min(off, key=lambda name: off[name])
    if max(off.values()) < 1e-2:
        raise Unknown(f"m'/c' is {floor:.3g} from N' = {float(size[0]):.1g} to {float(size[-1]):.1g}: too few sizes")
    if off[kind] < FITS:
        value = floor if kind == "clamp" else _laplace(floor, float(size[0]), total, k)
        text = f"m'/c' falls from 1 at N' = 1 to {floor:.3g} at N' = {float(size[0]):.1g}, as {kind} does with ε = {value:.3g}"
        return {
            "smoothing": Finding(float(f"{value:.3g}"), evidence=text),
            "smoothing_kind": Finding(kind, evidence=text),
        }
    gain = float(estimate[-1] / size[-1])  # of the fullest code, which a small ε leaves alone
    if gain > 0 and min(_misfits(estimate / gain, size, total, k).values()) < EXACT:
        mistake = f"the codes are {1 / gain:.4g} times their sums over counts"
        found = _curve(estimate / gain, size, total, k)
        return {name: replace(finding, mistake=mistake) for name, finding in found.items()}
    raise Unknown(f"m'/c' at N' = {float(size[0]):.1g} is {floor:.3g}: neither none, Laplace nor clamp")


def _misfits(estimate: Tensor, size: Tensor, total: float, k: int) -> dict[str, float]:
    """How far, relatively, N̂ lies off each kind of smoothing whose ε its least value tells; sizes ascend."""
    floor = float(estimate[0])
    epsilon = _laplace(floor, float(size[0]), total, k)
    shapes = {
        "clamp": torch.maximum(size, torch.full_like(size, floor)),
        "laplace": (size + epsilon) * total / (total + k * epsilon),
    }
    return {kind: float(((estimate - want) / want).abs().max()) for kind, want in shapes.items()}


def _laplace(floor: float, size: float, total: float, k: int) -> float:
    """ε of floor = (N + ε) T / (T + Kε)."""
    return max(0.0, (floor - size) / (1 - k * floor / total)) if total > k * floor else floor


def _replaced(step: Step, unused: Tensor) -> Findings:
    """Whether codes that nothing chose became latents of the batch."""
    e = step.after[0].double()[unused]
    try:
        z = latents_at(step.out, 0).double()
    except Unknown:
        return {"replacement": Finding(None, evidence="code space was not located")}
    near = torch.cdist(e, z).amin(1) <= 1e-4 * z.norm(dim=1).mean()
    if e.shape[1] > 1:  # raw latents among codes on the sphere are a known mistake
        near |= (F.normalize(e, dim=1) @ F.normalize(z, dim=1).t()).amax(1) >= 1 - 1e-8
    share = float(near.double().mean())
    text = f"{share:.0%} of the codes with counts from 1e-9 to 1 and no latent became latents of the batch"
    return {"replacement": Finding("batch" if share > 0.2 else "none", evidence=text)}
