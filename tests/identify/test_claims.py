"""Claims: where they come from, which one counts, and how they are judged against findings."""

from __future__ import annotations

from typing import Any

import pytest

from vqverify.quantizer import Finding, Spec
from vqverify.subject.claims import ClaimError, consistent, contradictions, honesty, join, normalise, read_claims


class Layer:
    def __init__(
        self,
        dim: int,
        codebook_size: int,
        decay: float = 0.99,
        rotation_trick: bool | None = None,
        use_cosine_sim: bool = False,
        **kwargs: Any,
    ) -> None:
        self.rotation_trick = True  # attributes claim nothing


def _claims(kwargs: dict[str, Any], adapter: dict[str, Any] | None = None, **claims: Any) -> dict[str, tuple[Any, str]]:
    found = read_claims(Spec("m:Layer", kwargs, claims), Layer, adapter)
    return {name: (finding.value, finding.origin) for name, finding in found.items()}


def test_given_arguments_and_defaults_claim_and_attributes_do_not() -> None:
    assert _claims({"dim": 4, "codebook_size": 8, "commitment_weight": 0.5}) == {
        "dim": (4, "given"),
        "codebook_size": (8, "given"),
        "commitment_weight": (0.5, "given"),  # through **kwargs
        "decay": (0.99, "default"),
        "metric": ("euclidean", "default"),
    }


@pytest.mark.parametrize(
    ("kwargs", "name", "want"),
    [
        ({"rotation_trick": True}, "estimator", ("rotation", "given")),
        ({"rotation_trick": False}, "estimator", ("straight-through", "default")),
        ({"estimator": "STE"}, "estimator", ("straight-through", "given")),
        ({"estimator": "my own"}, "estimator", None),
        ({"rotation_trick": False, "estimator": "gumbel_softmax"}, "estimator", ("gumbel", "given")),
        ({"use_cosine_sim": True}, "metric", ("cosine", "given")),
        ({"metric": "l2"}, "metric", ("euclidean", "given")),
        ({"decay": 0}, "decay", None),
        ({"ema_decay": 0.9}, "decay", (0.9, "given")),
        ({"eps": 1e-5}, "smoothing", (1e-5, "default")),
        ({"ema_update": True}, "learning", (["ema"], "given")),
        ({"levels": (8, 5, 5)}, "fsq_levels", ([8, 5, 5], "given")),
        ({"levels": 3}, "fsq_levels", None),
        ({"commitment_cost": True}, "commitment_weight", None),
        ({"beta": 0.25}, "beta", (0.25, "given")),
    ],
)
def test_names_that_the_field_shares(kwargs: dict[str, Any], name: str, want: tuple[Any, str] | None) -> None:
    assert _claims(kwargs).get(name, None if want is None else "absent") == want


def test_user_over_adapter_over_arguments() -> None:
    kwargs = {"decay": 0.9, "rotation_trick": True}
    assert _claims(kwargs, {"decay": 0.1})["decay"] == (0.1, "adapter")
    assert _claims(kwargs, {"decay": 0.1}, decay=0.5)["decay"] == (0.5, "given")
    assert _claims(kwargs, estimator="st")["estimator"] == ("straight-through", "given")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("estimater", "rotation", "did you mean 'estimator'"),
        ("colour", 1, "known are estimator"),
        ("estimator", "rotatoin", "did you mean 'rotation'"),
        ("decay", 7, "must be a number from 0 to 1; it was 7"),
        ("decay", "fast", "must be a number from 0 to 1; it was 'fast'"),
        ("heads", 0, "must be a positive whole number"),
        ("fsq_levels", 5, "must be a list"),
    ],
)
def test_wrong_claims_are_told_what_is_needed(name: str, value: Any, said: str) -> None:
    with pytest.raises(ClaimError, match=said):
        normalise(name, value)


def test_learning_is_a_list() -> None:
    assert normalise("learning", "ema") == ["ema"]
    assert normalise("learning", ["ema", "sgd"]) == ["ema", "gradient"]


CLAIM = {"decay": Finding(0.99, "given", "argument decay=0.99")}
DEFAULT = {"decay": Finding(0.99, "default", "default decay=0.99")}


@pytest.mark.parametrize(
    ("claims", "found", "status", "label"),
    [
        (CLAIM, Finding(0.9901), "passed", ""),
        (CLAIM, Finding(0.01), "failed", "contradicted"),
        (CLAIM, Finding(None, evidence="no codes"), "failed", "unverifiable"),
        (DEFAULT, Finding(0.01), "failed", "contradicted"),
        (DEFAULT, Finding(None, evidence="no codes"), "undetermined", "unknown"),
        (DEFAULT, Finding(None, evidence="dormant: nothing moves"), "undetermined", "dormant"),
    ],
)
def test_verdicts(claims: dict[str, Finding], found: Finding, status: str, label: str) -> None:
    ((name, got, why, message),) = honesty(claims, {"decay": found})
    assert (name, got, why) == ("decay", status, label)
    assert "decay=0.99" in message
    assert [case[:2] for case in contradictions(claims, {"decay": found})] == [("decay", label)] * (status == "failed")


def test_swapped_decay_is_named() -> None:
    ((_, _, message),) = contradictions(CLAIM, {"decay": Finding(0.01)})
    assert "1 − 0.99" in message


@pytest.mark.parametrize(
    ("pair", "fits"),
    [
        ((0.25, 1.0), True),  # V_b
        ((1.0, 0.25), True),  # legacy
        ((0.375, 0.125), True),  # A_β
        ((0.25, None), True),  # the codebook takes no gradient
        ((1.0, None), False),
        ((0.0, 1.0), False),
    ],
)
def test_beta_is_contradicted_only_if_no_convention_fits(pair: tuple[float, float | None], fits: bool) -> None:
    found = {"loss_coefficients": Finding({"mean": pair})}
    assert consistent("beta", Finding(0.25, "given"), found) is fits


@pytest.mark.parametrize(
    ("pair", "status"), [((0.9, 0.1), "undetermined"), ((0.1, 0.9), "passed"), ((0.5, 0.9), "failed")]
)
def test_beta_and_its_rest_the_other_way_round_are_as_meant_or_exchanged(
    pair: tuple[float, float], status: str
) -> None:
    found = {"loss_coefficients": Finding({"mean": pair}), "beta": Finding(pair[0] / pair[1])}
    ((_, judged, label, _),) = honesty({"beta": Finding(0.9, "given")}, found)
    assert judged == status
    assert (label == "ambiguous") is (status == "undetermined")


@pytest.mark.parametrize(("levels", "fits"), [(1, False), (2, False), (3, True)])
def test_a_stack_may_take_the_mean_over_its_levels(levels: int, fits: bool) -> None:
    found = {"loss_coefficients": Finding({"mean": (0.25 / 3, 1 / 3)}), "num_quantizers": Finding(levels)}
    assert consistent("commitment_weight", Finding(0.25, "given"), found) is fits
    assert consistent("codebook_weight", Finding(1.0, "given"), found) is fits


def test_no_loss_is_a_loss_of_weight_0() -> None:
    found = {"loss": Finding(value=False), "loss_coefficients": Finding(None)}
    assert consistent("commitment_weight", Finding(0.0, "given"), found) is True
    assert consistent("commitment_weight", Finding(0.25, "given"), found) is None


@pytest.mark.parametrize(("used", "fits"), [(16, True), (9, None), (17, False)])
def test_codes_used_bound_the_size_of_a_hidden_codebook(used: int, fits: bool | None) -> None:
    found = {"codebook_size": Finding(None), "codes_used": Finding(used)}
    assert consistent("codebook_size", Finding(16, "given"), found) is fits


def test_metric_that_cannot_be_told_apart_is_not_contradicted() -> None:
    found = {"metric": Finding("cosine"), "metric_equivalent": Finding(["cosine", "euclidean"])}
    assert consistent("metric", Finding("euclidean"), found) is True
    assert consistent("metric", Finding("dot"), found) is False


def test_rows_select_on_the_claim_and_keep_the_mistake() -> None:
    claims = {"estimator": Finding("rotation", "given", "said"), "learning": Finding(["ema"], "given", "said")}
    found = {
        "estimator": Finding("rotation", mistake="transposed", evidence="seen"),
        "learning": Finding(["ema", "gradient"], evidence="seen"),
        "structure": Finding("plain", evidence="seen"),
    }
    traits = join(claims, found)
    assert (traits["estimator"].value, traits["estimator"].mistake) == ("rotation", "transposed")
    assert traits["learning"].value == ["ema", "gradient"]
    assert traits["structure"].origin == "identified"
    silent = join(claims, {**found, "estimator": Finding("straight-through", evidence="seen")})
    assert (silent["estimator"].value, silent["estimator"].mistake) == ("rotation", None)
