"""Gains in a gradient, in styles that hide the place where a level's latent or code is."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vqverify import check_quantizer


class GainInTheSum(nn.Module):
    """A residual stack that adds 0.5 (r − sg r) a level to the sum, and z around it: J = 2.5 I."""

    def __init__(self, dim=4, k=8, levels=3, leak=True):
        super().__init__()
        self.codebooks = nn.ParameterList([nn.Parameter(torch.randn(k, dim) / (i + 1)) for i in range(levels)])
        self.leak = leak

    def forward(self, z):
        res, total, codes, loss = z, 0.0, [], 0.0
        for codebook in self.codebooks:
            i = torch.cdist(res, codebook).argmin(-1)
            q = codebook[i]
            loss = loss + F.mse_loss(q, res.detach()) + 0.25 * F.mse_loss(res, q.detach())
            total = total + (q if self.leak else q.detach()) + 0.5 * (res - res.detach())
            res = res - q.detach()
            codes.append(i)
        return z + (total - z.detach()), torch.stack(codes, -1), loss


class GainThatTheDistanceHas(nn.Module):
    """2x + sg(q − 2x): 2x is in the expanded distance, too, and is no latent that is computed again."""

    def __init__(self, dim=4, k=8):
        super().__init__()
        self.codebook = nn.Parameter(torch.randn(k, dim))

    def forward(self, x):
        d = x.pow(2).sum(-1, keepdim=True) - 2 * x @ self.codebook.t() + self.codebook.pow(2).sum(-1)
        i = d.argmin(-1)
        q = self.codebook[i]
        loss = F.mse_loss(q, x.detach()) + 0.25 * F.mse_loss(x, q.detach())
        return 2 * x + (q - 2 * x).detach(), i, loss


def first_and_all(layer, kwargs):
    report = check_quantizer(layer, kwargs)
    bad = [r for r in report.subjects[0].results if r.status == "failed" and r.kind in {"law", "contract"}]
    assert report.exit_code == 1
    return [r.invariant for r in bad if not r.explained_by], {r.invariant for r in bad}


@pytest.mark.parametrize("leak", [True, False])
def test_a_stack_whose_estimator_stands_in_the_sum(leak):
    causes, failed = first_and_all(GainInTheSum, {"leak": leak})
    assert causes[0] == "residual.gradient"
    assert ("estimator.no_codebook_leak" in failed) == leak
    assert failed.isdisjoint({"lookup.forward_is_code", "residual.sum"})  # the value is right


def test_a_multiple_of_the_latent_is_a_gain():
    causes, failed = first_and_all(GainThatTheDistanceHas, {})
    assert causes == ["estimator.jacobian"]
    assert not any(row.startswith(("lookup.", "loss.")) for row in failed)
