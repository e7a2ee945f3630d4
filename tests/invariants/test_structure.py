"""Rows of stacks and scalar quantizers: right layers of several styles pass, findings on real ones stay."""

import math

import pytest
import torch
from torch import nn

from vqverify import check_quantizer
from vqverify.mutants.scalar import ScalarLayer

SIZES = {"dim": 8, "codebook_size": 16, "num_quantizers": 3}
LIBRARY = "vector_quantize_pytorch"
ROWS = ["residual.*", "fsq.*"]


class OneEstimatorAround(nn.Module):
    """Codes of detached residuals added up, and one straight-through around the sum; levels in a ModuleList."""

    def __init__(self, dim=8, num_codes=16, n_q=3):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(num_codes, dim) for _ in range(n_q))

    def forward(self, z):
        rest, total, codes, loss = z, 0.0, [], 0.0
        for table in self.tables:
            index = torch.cdist(rest.detach(), table.weight.expand(len(z), -1, -1)).argmin(-1)
            q = table(index)
            loss = loss + (q - rest.detach()).square().mean() + 0.25 * (rest - q.detach()).square().mean()
            rest, total = rest - q.detach(), total + q
            codes.append(index)
        return z + (total - z).detach(), torch.stack(codes, -1), loss


class SigmoidScalar(nn.Module):
    """Levels 0 … L − 1 by a sigmoid, scaled to [0, 1]: neither the paper's bound nor its level set."""

    def __init__(self, levels):
        super().__init__()
        self.levels = torch.tensor(levels)

    def forward(self, z):
        top = (self.levels - 1).to(z)
        scaled = torch.sigmoid(2 * z) * top * 2 - top  # symmetric: −(L − 1) … L − 1 in steps of 2
        grid = ((scaled + top) / 2).round()
        z_q = (scaled + (2 * grid - top - scaled).detach()) / top
        strides = torch.tensor([math.prod(self.levels[i + 1 :].tolist()) for i in range(len(self.levels))])
        return z_q, (grid.long() * strides).sum(-1)


RIGHT = [
    ("vqverify.reference:ResidualVQ", SIZES),
    ("vqverify.reference:ResidualVQ", {**SIZES, "estimator": "rotation", "learning": "gradient"}),
    ("vqverify.mutants.residual:StackLayer", SIZES),
    (OneEstimatorAround, {}),
    ("vqverify.reference:FSQ", {"levels": [8, 5, 5, 5]}),
    ("vqverify.mutants.scalar:ScalarLayer", {"levels": [7, 2, 4]}),
    (f"{LIBRARY}:FSQ", {"levels": [8, 6, 5]}),
    (f"{LIBRARY}:FSQ", {"levels": [8, 5, 2], "preserve_symmetry": True, "noise_dropout": 0.5}),
    (f"{LIBRARY}:FSQ", {"levels": [8, 5, 5], "dim": 16}),
    (f"{LIBRARY}:FSQ", {"levels": [8, 5], "bound_hard_clamp": True}),
    (SigmoidScalar, {"levels": [8, 5, 3]}),
]


def results(target, kwargs, only=ROWS):
    return check_quantizer(target, kwargs, only=only).subjects[0].results


@pytest.mark.parametrize(("target", "kwargs"), RIGHT)
def test_right_layers_pass(target, kwargs):
    found = results(target, kwargs)
    wrong = [r for r in found if r.status in {"failed", "error"}]
    assert not wrong, [(r.invariant, r.case, r.label, r.message or r.reason) for r in wrong]
    assert any(r.status == "passed" for r in found)


def test_the_librarys_stack_counts_the_identity_once_a_level():
    found = results(f"{LIBRARY}:ResidualVQ", {**SIZES, "rotation_trick": False})
    (failed,) = [r for r in found if r.status == "failed"]
    assert (failed.invariant, failed.label) == ("residual.gradient", "gain")
    assert "3 times the law" in failed.message


def test_the_librarys_rotation_stack_sums_the_jacobians_of_detached_residuals():
    found = results(f"{LIBRARY}:ResidualVQ", SIZES)
    assert {(r.invariant, r.label) for r in found if r.status == "failed"} == {("residual.gradient", "composition")}


def test_attaching_the_whole_gradient_mends_the_librarys_stack():
    found = results(f"{LIBRARY}:ResidualVQ", {**SIZES, "rotation_trick": False, "quant_grad_frac": 1.0})
    assert {r.status for r in found if r.invariant == "residual.gradient"} == {"passed"}


def test_an_epsilon_that_adds_levels_is_found():
    class Wide(ScalarLayer):
        eps = 0.3  # (L − 1) ε ≥ 1, T36: so does the library's FSQ(levels=[1003, ...]), whose ε is 10⁻³

    found = results(Wide, {"levels": [8, 5]}, ["fsq.bijection"])
    assert {(r.status, r.label) for r in found} == {("failed", "level too many")}


def test_scalar_rows_do_not_apply_to_a_plain_layer():
    found = results("vqverify.reference:VectorQuantizer", {"dim": 8, "codebook_size": 16})
    assert {r.status for r in found} == {"n/a"}
