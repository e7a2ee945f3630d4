"""Rows of stochastic layers: right draws pass at every temperature, wrong ones are told from them."""

import pytest
import torch
from torch import nn

from vqverify import check_quantizer

SIZES = {"dim": 8, "codebook_size": 16}
MUTANTS = "vqverify.mutants.stochastic"
LIBRARY = "vector_quantize_pytorch:VectorQuantize"


class Multinomial(nn.Module):
    """torch.multinomial from softmax(−d/τ), codes in both modes drawn, nothing declared but a kwarg."""

    def __init__(self, dim=8, codebook_size=16, tau=2.0):
        super().__init__()
        self.register_buffer("codes", torch.randn(codebook_size, dim))
        self.tau = tau

    def forward(self, z):
        flat = z.flatten(0, -2)
        p = (-torch.cdist(flat, self.codes).square() / self.tau).softmax(-1)
        index = torch.multinomial(p.detach(), 1).squeeze(1)
        q = self.codes[index]
        return (flat + (q - flat).detach()).view(z.shape), index.view(z.shape[:-1])


class SoftByName(nn.Module):
    """A soft quantizer that says so: its argmax codes are a report."""

    def __init__(self, dim=8, codebook_size=16, estimator="softmax"):
        super().__init__()
        self.codes = nn.Parameter(torch.randn(codebook_size, dim))
        self.estimator = estimator

    def forward(self, z):
        d = (z.unsqueeze(-2) - self.codes).square().sum(-1)
        return (-d).softmax(-1) @ self.codes, d.argmin(-1)


class SoftByArgument(nn.Module):
    """Gumbel-softmax of logits, soft in training because an argument says so (karpathy/deep-vector-quantization)."""

    def __init__(self, dim=8, codebook_size=16, straight_through=False):
        super().__init__()
        self.logits, self.codes = nn.Linear(dim, codebook_size), nn.Parameter(torch.randn(codebook_size, dim))
        self.straight_through = straight_through

    def forward(self, z):
        logits = self.logits(z)
        one_hot = torch.eye(len(self.codes)).to(z)[logits.argmax(-1)]
        if self.training:
            one_hot = nn.functional.gumbel_softmax(logits, hard=False)
        return one_hot @ self.codes, one_hot.argmax(-1)


RIGHT = [
    (f"{MUTANTS}:SamplingLayer", {**SIZES, "temperature": 0.1}),
    (f"{MUTANTS}:SamplingLayer", {**SIZES, "temperature": 3.0}),
    (f"{MUTANTS}:GumbelLayer", {"num_hiddens": 8, "n_embed": 16, "temperature": 0.7}),
    ("vqverify.reference:GumbelVQ", {**SIZES, "temperature": 0.5}),
    ("vqverify.reference:VectorQuantizer", SIZES),
    (LIBRARY, {**SIZES, "stochastic_sample_codes": True, "sample_codebook_temp": 0.5}),
    (LIBRARY, {**SIZES, "stochastic_sample_codes": True, "straight_through": True, "rotation_trick": False}),
    (LIBRARY, {**SIZES, "heads": 2, "codebook_dim": 4}),
    (Multinomial, {}),
    (SoftByName, {}),
    (SoftByArgument, {}),
]


def results(target, kwargs, only):
    return check_quantizer(target, kwargs, only=only).subjects[0].results


@pytest.mark.parametrize(("target", "kwargs"), RIGHT)
def test_right_layers_pass(target, kwargs):
    wrong = [r for r in results(target, kwargs, ["stochastic.*"]) if r.status in {"failed", "error"}]
    assert not wrong, [(r.invariant, r.case, r.label, r.message or r.reason) for r in wrong]


@pytest.mark.parametrize(
    ("target", "kwargs"),
    [RIGHT[0], RIGHT[2], RIGHT[3], RIGHT[5], RIGHT[8]],
)
def test_the_law_was_tested_and_its_power_is_stated(target, kwargs):
    found = results(target, kwargs, ["stochastic.distribution"])
    assert {r.status for r in found} == {"passed"}
    assert all("off by 0.05" in r.effect for r in found)


def test_each_mode_that_draws_is_a_case():
    assert [r.case for r in results(Multinomial, {}, ["stochastic.distribution"])] == ["train", "eval"]
    assert [r.case for r in results(*RIGHT[0], ["stochastic.distribution"])] == ["train"]


def test_a_layer_that_says_soft_owes_no_hard_code():
    (found,) = results(SoftByName, {}, ["stochastic.hard"])
    assert found.status == "n/a"


@pytest.mark.parametrize(("promise", "cases"), [(False, {"eval"}), (True, {"train", "eval"})])
def test_a_relaxation_is_held_to_what_its_argument_says(promise, cases):
    found = results(SoftByArgument, {"straight_through": promise}, ["stochastic.hard", "lookup.code_determines"])
    assert {r.case for r in found if r.status != "n/a"} == cases
    wrong = {(r.invariant, r.case) for r in found if r.status == "failed"}
    assert wrong == ({("stochastic.hard", "train"), ("lookup.code_determines", "train")} if promise else set())


def test_an_undeclared_soft_layer_that_returns_codes_is_caught():
    found = results(SoftByName, {"estimator": "fast"}, ["stochastic.hard"])
    assert {(r.case, r.label) for r in found} == {("train", "mixture"), ("eval", "mixture")}


def test_a_wrong_temperature_is_found_through_its_kwarg_alone():
    class Off(Multinomial):
        def __init__(self, dim=8, codebook_size=16, tau=2.0):
            super().__init__(dim, codebook_size, 1.5 * tau)

    (first, _) = results(Off, {"tau": 1.0}, ["stochastic.distribution"])
    assert (first.status, first.label) == ("failed", "law")
    assert "expected" in first.message
