"""The words of claims: their names, the values that each may have, and other spellings of these."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

CLAIMS = (
    "estimator", "learning", "metric", "decay", "smoothing", "smoothing_kind", "commitment_weight", "codebook_weight",
    "temperature", "beta", "loss_convention", "reduction", "replacement", "update_order", "stochastic", "dim",
    "codebook_size", "num_quantizers", "heads", "fsq_levels", "effective_precision", "synchronized",
    "lifespan", "dead_below", "initialisation", "affine",
)  # fmt: skip
NUMBERS = {
    "decay",
    "smoothing",
    "commitment_weight",
    "codebook_weight",
    "temperature",
    "beta",
    "synchronized",
    "dead_below",
}
SHARES = {"decay"}  # numbers from 0 to 1
COUNTS = {"dim", "codebook_size", "num_quantizers", "heads", "lifespan"}
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
    "affine": {"none": (), "moments": (), "learnable": ("learnt",)},
    "initialisation": {"kmeans": ("k-means",), "data": (), "none": ()},
    "reduction": {"mean": (), "token-mean": (), "sum": (), "batch-mean": ()},
    "loss_convention": {"V_b": (), "A_beta": (), "legacy": (), "commitment": (), "codebook": (), "none": ()},
}  # fmt: skip


class ClaimError(Exception):
    """A claim that is not one, or has a value that it cannot have; the message names what is near."""


def number(value: Any) -> float | None:
    """A number; None for anything else, a bool too."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def positive(value: Any) -> float | None:
    """A number but 0, which customarily switches an option off."""
    return number(value) or None


def share(value: Any) -> float | None:
    """A number from 0 to 1."""
    found = number(value)
    return found if found is not None and 0 <= found <= 1 else None


def count(value: Any) -> int | None:
    """A positive whole number."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def levels_(value: Any) -> list[int] | None:
    """A list of positive whole numbers."""
    try:
        levels = list(value)
    except TypeError:
        return None
    return levels if levels and all(count(level) for level in levels) else None


def _key(word: str) -> str:
    return word.strip().lower().replace("_", "-").replace(" ", "-")


def normal_word(claim: str, word: str) -> str | None:
    """The value that a word names, whatever its spelling; None if it names none."""
    key = _key(word)
    return next((name for name, others in VALUES[claim].items() if key in {_key(name), *others}), None)


def normalise(name: str, value: Any) -> Any:
    """A claim's value in the words of the report: `ste` is straight-through, `l2` is euclidean.

    Raises:
        ClaimError: if there is no such claim, or it cannot have that value.
    """
    if name not in CLAIMS:
        near = difflib.get_close_matches(name, CLAIMS, n=2, cutoff=0.5)
        raise ClaimError(f"there is no claim {name!r}; {_or(near) if near else 'known are ' + ', '.join(CLAIMS)}")
    if name in VALUES:
        words = [value] if isinstance(value, str) or not isinstance(value, list | tuple) else list(value)
        known = [normal_word(name, str(word)) for word in words]
        if not known or None in known or (len(known) > 1 and name != "learning"):
            near = difflib.get_close_matches(_key(str(value)), VALUES[name], n=1, cutoff=0.5)
            hint = f" ({_or(near)})" if near else ""
            raise ClaimError(f"the claim {name} must be one of {', '.join(VALUES[name])}; it was {value!r}{hint}")
        return known if name == "learning" else known[0]
    checks: dict[str, tuple[Callable[[Any], Any], str]] = {
        **dict.fromkeys(NUMBERS, (number, "a number")),
        **dict.fromkeys(SHARES, (share, "a number from 0 to 1")),
        **dict.fromkeys(COUNTS, (count, "a positive whole number")),
        "fsq_levels": (levels_, "a list of positive whole numbers"),
    }
    convert, wanted = checks.get(name, (str, "a dtype"))
    result = convert(value)
    if result is None:
        raise ClaimError(f"the claim {name} must be {wanted}; it was {value!r}")
    return result.removeprefix("torch.") if isinstance(result, str) else result


def _or(names: list[str]) -> str:
    return "did you mean " + " or ".join(repr(name) for name in names) + "?"
