"""What a layer is expected to be: from the user, an adapter, and constructor parameters whose names the field shares.

Never from instance attributes, which a broken layer carries too. Claims are joined with what probing found,
and a claim that probing contradicts is a broken promise of its own.
"""

from __future__ import annotations

import difflib
import inspect
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vqverify.quantizer import Finding, Origin, Spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

CLAIMS = (
    "estimator", "learning", "metric", "decay", "smoothing", "smoothing_kind", "commitment_weight", "codebook_weight",
    "temperature", "beta", "loss_convention", "reduction", "replacement", "update_order", "stochastic", "dim",
    "codebook_size", "num_quantizers", "heads", "fsq_levels", "effective_precision",
)  # fmt: skip
NUMBERS = {"decay", "smoothing", "commitment_weight", "codebook_weight", "temperature", "beta"}
COUNTS = {"dim", "codebook_size", "num_quantizers", "heads"}
VALUES: dict[str, dict[str, tuple[str, ...]]] = {
    "estimator": {
        "straight-through": ("ste", "st", "identity", "straightthrough"),
        "rotation": ("rotate", "rot", "rotation-trick", "householder"),
        "hessian": (), "exact": ("double-forward",), "synchronized": ("sync", "synchronised"),
        "gumbel": ("gumbel-softmax", "gumbel-st"), "softmax": ("soft",), "sampled": ("sample",), "noise": ("nsvq", "diveq"),
        "other": (), "none": ("detach", "detached"),
    },
    "metric": {
        "euclidean": ("l2", "euclid", "mse", "squared-euclidean"), "cosine": ("cos", "cosine-similarity", "cosine-sim", "l2norm"),
        "dot": ("inner-product", "ip", "dot-product"), "sign": ("binary",), "grid": ("fsq", "scalar"),
    },
    "learning": {"ema": ("moving-average",), "gradient": ("grad", "loss", "sgd"), "decoder": (), "none": ("frozen", "fixed")},
    "smoothing_kind": {"none": (), "laplace": (), "clamp": ("clip",)},
    "update_order": {"before": (), "after": ()},
    "stochastic": {"none": (), "train": (), "eval": (), "both": ()},
    "replacement": {"none": (), "batch": ()},
    "reduction": {"mean": (), "token-mean": (), "sum": (), "batch-mean": ()},
    "loss_convention": {"V_b": (), "A_beta": (), "legacy": (), "commitment": (), "codebook": (), "none": ()},
}  # fmt: skip


class ClaimError(Exception):
    """A claim that is not one, or has a value that it cannot have; the message names what is near."""


@dataclass(frozen=True)
class _Rule:
    """Parameter names that claim a trait.

    Attributes:
        names: of the parameter, lower case.
        claim: the trait.
        value: parameter value -> claimed value, or None for no claim.
        weak: the name is shared by other things too: such a claim must only not be contradicted, even when given,
            and gives way to a strong one.
    """

    names: tuple[str, ...]
    claim: str
    value: Callable[[Any], Any]
    weak: bool = False


def _flag(yes: Any, no: Any = None) -> Callable[[Any], Any]:
    return lambda value: (yes if value else no) if isinstance(value, bool) else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _positive(value: Any) -> float | None:
    return _number(value) or None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _levels(value: Any) -> list[int] | None:
    try:
        levels = list(value)
    except TypeError:
        return None
    return levels if levels and all(_count(level) for level in levels) else None


def _word(claim: str) -> Callable[[Any], Any]:
    """A string that names one of a claim's values; other strings claim nothing."""

    def value(given: Any) -> Any:
        word = _normal_word(claim, given) if isinstance(given, str) else None
        return [word] if word and claim == "learning" else word

    return value


RULES = (
    _Rule(("estimator", "grad_estimator", "gradient_estimator"), "estimator", _word("estimator")),
    _Rule(("rotation_trick", "use_rotation_trick", "rotation"), "estimator", _flag("rotation")),
    _Rule(("rotation_trick", "use_rotation_trick"), "estimator", _flag(None, "straight-through"), weak=True),
    _Rule(("metric", "distance", "distance_type", "distance_metric"), "metric", _word("metric")),
    _Rule(
        ("use_cosine_sim", "cosine", "use_cosine", "cosine_sim", "use_l2_norm", "l2_norm", "l2norm"),
        "metric",
        _flag("cosine"),
    ),
    _Rule(
        ("use_cosine_sim", "cosine", "use_cosine", "cosine_sim"),
        "metric",
        _flag(None, "euclidean"),
        weak=True,
    ),
    _Rule(("learning", "codebook_learning"), "learning", _word("learning")),
    _Rule(("ema", "use_ema", "ema_update"), "learning", _flag(["ema"])),
    _Rule(("learnable_codebook",), "learning", _flag(["gradient"])),
    _Rule(("decay", "ema_decay", "gamma", "ema_gamma", "codebook_decay"), "decay", _positive),
    _Rule(("eps", "epsilon"), "smoothing", _positive, weak=True),
    _Rule(("smoothing", "laplace_eps"), "smoothing", _positive),
    _Rule(("smoothing", "smoothing_kind"), "smoothing_kind", _word("smoothing_kind")),
    _Rule(
        ("commitment_weight", "commitment_cost", "commitment_loss_weight", "commit_weight"),
        "commitment_weight",
        _number,
    ),
    _Rule(("codebook_weight", "codebook_cost", "codebook_loss_weight"), "codebook_weight", _number),
    _Rule(("beta",), "beta", _number),
    _Rule(("stochastic", "stochastic_sample_codes"), "stochastic", _flag("train")),
    _Rule(("temperature", "temp", "tau"), "temperature", _positive),
    _Rule(("dim", "embedding_dim", "e_dim", "embed_dim"), "dim", _count),
    _Rule(
        ("codebook_size", "num_embeddings", "n_embed", "n_e", "num_codes", "n_embeddings"),
        "codebook_size",
        _count,
    ),
    _Rule(("num_quantizers", "n_q", "n_quantizers"), "num_quantizers", _count),
    _Rule(("heads",), "heads", _count),
    _Rule(("levels", "fsq_levels"), "fsq_levels", _levels),
)


def _key(word: str) -> str:
    return word.strip().lower().replace("_", "-").replace(" ", "-")


def _normal_word(claim: str, word: str) -> str | None:
    key = _key(word)
    return next((name for name, others in VALUES[claim].items() if key in {_key(name), *others}), None)


def normalise(name: str, value: Any) -> Any:
    """A claim's value in the words of the report: `ste` is straight-through, `l2` is euclidean.

    Raises:
        ClaimError: if there is no such claim, or it cannot have that value.
    """
    if name not in CLAIMS:
        near = difflib.get_close_matches(name, CLAIMS, n=2, cutoff=0.5)
        raise ClaimError(
            f"there is no claim {name!r}; {_or(near) if near else 'known are ' + ', '.join(CLAIMS)}"
        )
    if name in VALUES:
        words = [value] if isinstance(value, str) or not isinstance(value, list | tuple) else list(value)
        known = [_normal_word(name, str(word)) for word in words]
        if not known or None in known or (len(known) > 1 and name != "learning"):
            near = difflib.get_close_matches(_key(str(value)), VALUES[name], n=1, cutoff=0.5)
            hint = f" ({_or(near)})" if near else ""
            raise ClaimError(
                f"the claim {name} must be one of {', '.join(VALUES[name])}; it was {value!r}{hint}"
            )
        return known if name == "learning" else known[0]
    checks: dict[str, tuple[Callable[[Any], Any], str]] = {
        **dict.fromkeys(NUMBERS, (_number, "a number")),
        **dict.fromkeys(COUNTS, (_count, "a positive whole number")),
        "fsq_levels": (_levels, "a list of positive whole numbers"),
    }
    convert, wanted = checks.get(name, (str, "a dtype"))
    result = convert(value)
    if result is None:
        raise ClaimError(f"the claim {name} must be {wanted}; it was {value!r}")
    return result.removeprefix("torch.") if isinstance(result, str) else result


def _or(names: list[str]) -> str:
    return "did you mean " + " or ".join(repr(name) for name in names) + "?"


def _defaults(cls: Any) -> dict[str, Any]:
    try:
        parameters = inspect.signature(cls).parameters
    except (TypeError, ValueError):
        return {}
    return {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not inspect.Parameter.empty and parameter.default is not None
    }


def read_claims(spec: Spec, cls: Any, adapter_claims: Mapping[str, Any] | None = None) -> dict[str, Finding]:
    """Everything that is claimed of a subject, the strongest source first: user, adapter, kwargs given, defaults.

    Args:
        spec: with the constructor arguments and the user's claims.
        cls: the class or factory, for the defaults of its signature.
        adapter_claims: what an adapter says.

    Raises:
        ClaimError: if the user or the adapter claims what is no claim.
    """
    claims: dict[str, Finding] = {}
    given = dict(spec.kwargs)
    defaults = {name: value for name, value in _defaults(cls).items() if name not in given}
    sources: tuple[tuple[Mapping[str, Any], Origin], ...] = ((given, "given"), (defaults, "default"))
    for weak in (False, True):
        for arguments, origin in sources:
            for name, finding in _from_arguments(arguments, origin, weak=weak):
                if finding.origin != "default" or name not in claims:
                    claims.setdefault(name, finding)
    claims |= {name: _claim(name, value, "adapter") for name, value in (adapter_claims or {}).items()}
    return claims | {name: _claim(name, value, "given") for name, value in spec.claims.items()}


def _claim(name: str, value: Any, origin: Origin) -> Finding:
    return Finding(
        normalise(name, value),
        origin,
        f"claim {name}={value!r}" if origin == "given" else f"the adapter says {name}={value!r}",
    )


def _from_arguments(
    arguments: Mapping[str, Any], origin: Origin, *, weak: bool
) -> Iterator[tuple[str, Finding]]:
    for rule in RULES:
        for parameter, value in arguments.items():
            if rule.weak != weak or parameter.lower() not in rule.names:
                continue
            claimed = rule.value(value)
            if claimed is not None:
                said = f"{'argument' if origin == 'given' else 'default'} {parameter}={value!r}"
                yield rule.claim, Finding(claimed, "default" if weak else origin, said)


def consistent(name: str, claim: Finding, found: Mapping[str, Finding]) -> bool | None:
    """Whether what was found agrees with a claim; None if it could not be determined."""
    here = found.get(name, Finding(None))
    weights = found.get("loss_coefficients", Finding(None)).value
    if name in {"beta", "commitment_weight", "codebook_weight"}:
        fits = [_weight_fits(name, claim.value, *pair) for pair in (weights or {}).values()]
        return None if None in fits or not fits else any(fits)
    if here.value is None:
        return None
    if name == "decay":
        return abs(here.value - claim.value) <= max(0.25 * (1 - claim.value), 1e-4)
    if name in NUMBERS:
        return abs(here.value - claim.value) <= 0.2 * abs(claim.value)
    if name == "learning":
        return set(claim.value) <= set(here.value)
    if name == "metric":
        return claim.value in found.get("metric_equivalent", Finding([here.value])).value
    if name == "stochastic":
        return here.value in {claim.value, "both"}
    if name == "dim":
        return claim.value in {here.value, found.get("code_dim", Finding(None)).value}
    return here.value == claim.value


def _weight_fits(name: str, claimed: float, commitment: float, codebook: float | None) -> bool | None:
    """Whether the coefficients found are what a weight, or any reading of β (T16), gives.

    The codebook's coefficient is None where the codebook takes no gradient; then nothing is known about it.
    """
    if name == "commitment_weight":
        return _close(commitment, claimed)
    if name == "codebook_weight":
        return None if codebook is None else _close(codebook, claimed)
    readings = [(claimed, 1.0), ((1 - claimed) / 2, claimed / 2), (1 - claimed, claimed)]
    readings += [] if codebook is None else [(1.0, claimed), (claimed, 0.0)]
    return any(_close(commitment, a) and (codebook is None or _close(codebook, b)) for a, b in readings)


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= 0.02 * max(abs(b), 1e-3)


def join(claims: Mapping[str, Finding], found: Mapping[str, Finding]) -> dict[str, Finding]:
    """The traits that rows select on: the claim where there is one, so that its law applies, else what was found."""
    traits = dict(found)
    for name, claim in claims.items():
        here = found.get(name, Finding(None))
        agrees = consistent(name, claim, found)
        if agrees and name in {"learning", "dim", "stochastic"}:  # a claim says less than was found
            traits[name] = replace(here, origin=claim.origin, evidence=f"{claim.evidence}; {here.evidence}")
            continue
        evidence = f"{claim.evidence}; {'found: ' + here.evidence if here.evidence else 'not probed'}"
        traits[name] = replace(
            claim, evidence=evidence, mistake=here.mistake if here.value == claim.value else None
        )
    return traits


def honesty(
    claims: Mapping[str, Finding], found: Mapping[str, Finding]
) -> Iterator[tuple[str, str, str, str]]:
    """One case for each claim: (name, status passed | failed | undetermined, label, message).

    A claim that probing contradicts fails (`contradicted`); one that was given and cannot be determined too
    (`unverifiable`); a default that cannot be determined is undetermined (`dormant` where nothing moves).
    """
    for name, claim in claims.items():
        here = found.get(name, Finding(None, evidence="not probed"))
        value = here.value if here.mistake is None else f"{here.value} ({here.mistake})"
        agrees = consistent(name, claim, found)
        if agrees:
            yield name, "passed", "", f"{claim.evidence}; found {value}: {here.evidence}"
        elif agrees is False:
            yield (
                name,
                "failed",
                "contradicted",
                f"{claim.evidence}, found {value}{_swap(name, claim, here)}: {here.evidence}",
            )
        elif claim.origin == "default":
            label = "dormant" if here.evidence.startswith("dormant") else "unknown"
            yield name, "undetermined", label, f"{claim.evidence}; {here.evidence}"
        else:
            yield (
                name,
                "failed",
                "unverifiable",
                f"{claim.evidence}, which probing cannot confirm: {here.evidence}",
            )


def _swap(name: str, claim: Finding, here: Finding) -> str:
    if (
        name == "decay"
        and here.value is not None
        and abs(1 - here.value - claim.value) < 0.25 * min(claim.value, 1 - claim.value)
    ):
        return f", which is 1 − {claim.value:g}"
    return ""


def contradictions(claims: Mapping[str, Finding], found: Mapping[str, Finding]) -> list[tuple[str, str, str]]:
    """The claims that fail: (name, label, message)."""
    return [(name, label, text) for name, status, label, text in honesty(claims, found) if status == "failed"]
