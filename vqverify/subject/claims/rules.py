"""Constructor parameters whose names the field shares, and what each claims."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vqverify.subject.claims.words import count, levels_, normal_word, number, positive

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Rule:
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


def _positive(yes: Any) -> Callable[[Any], Any]:
    return lambda value: yes if positive(value) else None


def _word(claim: str) -> Callable[[Any], Any]:
    """A string that names one of a claim's values; other strings claim nothing."""

    def value(given: Any) -> Any:
        word = normal_word(claim, given) if isinstance(given, str) else None
        return [word] if word and claim == "learning" else word

    return value


RULES = (
    Rule(("estimator", "grad_estimator", "gradient_estimator"), "estimator", _word("estimator")),
    Rule(("rotation_trick", "use_rotation_trick", "rotation"), "estimator", _flag("rotation")),
    Rule(("rotation_trick", "use_rotation_trick"), "estimator", _flag(None, "straight-through"), weak=True),
    Rule(("directional_reparam",), "estimator", _flag("noise")),
    Rule(("metric", "distance", "distance_type", "distance_metric"), "metric", _word("metric")),
    Rule(
        ("use_cosine_sim", "cosine", "use_cosine", "cosine_sim", "use_l2_norm", "l2_norm", "l2norm"),
        "metric",
        _flag("cosine"),
    ),
    Rule(
        ("use_cosine_sim", "cosine", "use_cosine", "cosine_sim"),
        "metric",
        _flag(None, "euclidean"),
        weak=True,
    ),
    Rule(("learning", "codebook_learning"), "learning", _word("learning")),
    Rule(("ema", "use_ema", "ema_update"), "learning", _flag(["ema"])),
    Rule(("learnable_codebook",), "learning", _flag(["gradient"])),
    Rule(
        ("replacement", "lifespan", "threshold_ema_dead_code", "dead_below"),
        "replacement",
        _positive("batch"),
        weak=True,
    ),
    Rule(("replacement", "lifespan"), "lifespan", count, weak=True),
    Rule(("threshold_ema_dead_code", "dead_below"), "dead_below", positive, weak=True),
    Rule(("kmeans_init", "use_kmeans_init"), "initialisation", _flag("kmeans"), weak=True),
    Rule(("initialisation", "codebook_init"), "initialisation", _word("initialisation"), weak=True),
    Rule(("affine_param",), "affine", _flag("moments"), weak=True),
    Rule(("affine",), "affine", _word("affine"), weak=True),
    Rule(("synchronized", "sync_update_v", "sync_nu"), "synchronized", positive),
    Rule(("decay", "ema_decay", "gamma", "ema_gamma", "codebook_decay"), "decay", positive),
    Rule(("eps", "epsilon"), "smoothing", positive, weak=True),
    Rule(("smoothing", "laplace_eps"), "smoothing", positive),
    Rule(("smoothing", "smoothing_kind"), "smoothing_kind", _word("smoothing_kind")),
    Rule(
        ("commitment_weight", "commitment_cost", "commitment_loss_weight", "commit_weight"),
        "commitment_weight",
        number,
    ),
    Rule(("codebook_weight", "codebook_cost", "codebook_loss_weight"), "codebook_weight", number),
    Rule(("beta",), "beta", number),
    Rule(("stochastic", "stochastic_sample_codes"), "stochastic", _flag("train")),
    Rule(("temperature", "temp", "tau"), "temperature", positive),
    Rule(("dim", "embedding_dim", "e_dim", "embed_dim"), "dim", count),
    Rule(
        ("codebook_size", "num_embeddings", "n_embed", "n_e", "num_codes", "n_embeddings"),
        "codebook_size",
        count,
    ),
    Rule(("num_quantizers", "n_q", "n_quantizers"), "num_quantizers", count),
    Rule(("heads",), "heads", count),
    Rule(("levels", "fsq_levels"), "fsq_levels", levels_),
)
