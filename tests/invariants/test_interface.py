"""Interface rows: silent on right layers in strangers' styles, and right about vector-quantize-pytorch."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vqverify.engine import Job, run
from vqverify.examples import PROFILES
from vqverify.invariant import registry
from vqverify.quantizer import Spec
from vqverify.subject import open_subject

IDS = tuple(id_ for id_ in registry() if id_.startswith("interface."))


def results(target, kwargs, ids=IDS, profile="quick"):
    obj = None if isinstance(target, str) else target
    spec = Spec(target if isinstance(target, str) else f"tests:{target.__name__}", kwargs)
    subject = open_subject(spec, obj=obj)
    return run(Job(spec, ids, PROFILES[profile]), lambda _: subject).results


def wrong(found, kinds=("law", "contract", "limit", "hardening")):
    return {
        (result.invariant.removeprefix("interface."), result.case, result.label): result.message or result.reason
        for result in found
        if result.status == "error" or (result.status == "failed" and result.kind in kinds)
    }


class Cosine(nn.Module):
    """(B, T, D), unit codes as a Parameter, a dict out; loss and value live on the sphere."""

    def __init__(self, width=6, entries=12):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(entries, width))

    def forward(self, x):
        u, e = F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1)
        ids = (u @ e.t()).argmax(-1)
        q = e[ids]
        loss = (u.detach() - q).square().sum(-1).mean() + 0.25 * (u - q.detach()).square().sum(-1).mean()
        return {"z_q": u + (q - u).detach(), "ids": ids, "vq_loss": loss}


class ChannelsFirst(nn.Module):
    """(B, C, T), Laplace-smoothed EMA on buffers that are replaced and not written; codes first."""

    def __init__(self, bins=10, features=5, momentum=0.9):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("codes", torch.randn(bins, features))
        self.register_buffer("n", torch.ones(bins))
        self.register_buffer("m", self.codes.clone())

    def forward(self, x):
        rows = x.transpose(1, 2).reshape(-1, x.shape[1])
        ids = torch.cdist(rows, self.codes).argmin(-1)
        q = F.embedding(ids, self.codes)
        if self.training:
            with torch.no_grad():
                hot = F.one_hot(ids, len(self.codes)).to(rows)
                self.n = self.n * self.momentum + hot.sum(0) * (1 - self.momentum)
                self.m = self.m * self.momentum + hot.t() @ rows * (1 - self.momentum)
                total = self.n.sum()
                size = (self.n + 1e-5) / (total + len(self.n) * 1e-5) * total
                self.codes = self.m / size[:, None]
        out = (rows + (q - rows).detach()).reshape(x.shape[0], -1, x.shape[1]).transpose(1, 2)
        return ids.reshape(x.shape[0], -1), out, F.mse_loss(rows, q)


class TwoLevels(nn.Module):
    """Two residual levels of nn.Embedding, straight-through once around the stack; image input."""

    def __init__(self, channels=4, size=9):
        super().__init__()
        self.books = nn.ModuleList([nn.Embedding(size, channels) for _ in range(2)])

    def forward(self, image):
        z = image.permute(0, 2, 3, 1)
        left, total, loss, codes = z, torch.zeros_like(z), z.new_zeros(()), []
        for book in self.books:
            with torch.no_grad():
                codes.append((left[..., None, :] - book.weight).square().sum(-1).argmin(-1))
            q = book(codes[-1])
            loss = loss + F.mse_loss(q, left.detach()) + 0.25 * F.mse_loss(left, q.detach())
            left, total = left - q.detach(), total + q.detach()
        return (z + (total - z).detach()).permute(0, 3, 1, 2), torch.stack(codes, -1), loss


class Signs(nn.Module):
    """One bit a channel, the index from the bits; no codebook, no loss."""

    def __init__(self, bits=5):
        super().__init__()
        self.register_buffer("powers", 2 ** torch.arange(bits), persistent=False)

    def forward(self, x):
        bits = x > 0
        q = torch.where(bits, 1.0, -1.0).to(x)
        return x + (q - x).detach(), (bits * self.powers).sum(-1)


class Sampled(nn.Module):
    """Samples its codes in train from softmax(-d), takes the nearest in eval."""

    def __init__(self, dim=4, size=8):
        super().__init__()
        self.table = nn.Parameter(torch.randn(size, dim))

    def forward(self, z):
        d = (z[..., None, :] - self.table).square().sum(-1)
        codes = torch.distributions.Categorical(logits=-d.detach()).sample() if self.training else d.argmin(-1)
        q = self.table[codes]
        return z + (q - z).detach(), codes, F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())


RIGHT = [
    ("vqverify.reference:VectorQuantizer", {"dim": 8, "codebook_size": 16}),
    (
        "vqverify.reference:VectorQuantizer",
        {"dim": 8, "codebook_size": 16, "learning": "gradient", "estimator": "straight-through"},
    ),
    (
        "vqverify.reference:VectorQuantizer",
        {"dim": 8, "codebook_size": 16, "metric": "cosine", "channel_first": True},
    ),
    ("vqverify.reference:ResidualVQ", {"dim": 8, "codebook_size": 16, "num_quantizers": 3}),
    ("vqverify.reference:FSQ", {"levels": [8, 5, 5, 5]}),
    ("vqverify.reference:ProjectedCosineVQ", {"dim": 8, "codebook_size": 16, "codebook_dim": 4}),
    ("vqverify.reference:GumbelVQ", {"dim": 8, "codebook_size": 16}),
    (Cosine, {}),
    (ChannelsFirst, {}),
    (TwoLevels, {}),
    (Signs, {}),
    (Sampled, {}),
]


@pytest.mark.parametrize(("target", "kwargs"), RIGHT, ids=lambda value: str(value)[-40:])
def test_right_layers_keep_every_contract(target, kwargs):
    found = results(target, kwargs)
    assert not wrong(found, ("law", "contract", "limit"))
    assert sum(result.status == "passed" for result in found) > 20


def test_the_reference_is_hardened_and_compiles():
    target, kwargs = RIGHT[0]
    hard = [id_ for id_ in IDS if registry()[id_].kind == "hardening" or registry()[id_].hardening]
    found = results(target, kwargs, tuple(hard), "merge")
    assert not wrong(found)
    assert {"interface.compiled", "interface.checkpointed"} <= {r.invariant for r in found if r.status == "passed"}


def test_findings_on_vector_quantize_pytorch():
    """Real ones, each read in the source of 1.32.0."""
    found = wrong(results("vector_quantize_pytorch:VectorQuantize", {"dim": 8, "codebook_size": 16}))
    assert {(name, case) for name, case, _ in found} == {
        ("no_alias", "loss"),  # in eval the loss is the buffer self.zero
        ("precision", "float64"),  # x = x.float()
        ("empty_and_single", "empty/train"),  # mse over nothing
        ("nonfinite_contained", "nan/train"),  # NaN times the zeros of one-hot rows
        ("nonfinite_contained", "inf/train"),
        ("mask", "nan/train"),
        ("rejects_bad_input", "dim"),  # einsum broadcasts width 1
        ("rejects_bad_input", "integer"),  # quantize.type(int64)
        ("rejects_bad_input", "codes of get_codes_from_indices"),  # -2 wraps around
        ("rejects_bad_input", "codes of get_output_from_indices"),
    }


def test_first_call_of_kmeans_in_eval_is_found():
    kwargs = {"dim": 8, "codebook_size": 16, "kmeans_init": True}
    found = wrong(results("vector_quantize_pytorch:VectorQuantize", kwargs, ("interface.eval_pure",)))
    assert {case for _, case, _ in found} == {"first call"}


def test_masked_loss_of_cosine_is_found_in_the_wrong_space():
    kwargs = {"dim": 8, "codebook_size": 16, "use_cosine_sim": True}
    found = wrong(results("vector_quantize_pytorch:VectorQuantize", kwargs, ("interface.mask",)), ("contract",))
    assert {(case, label) for _, case, label in found} == {
        ("ones", "loss"),
        ("part/train", "loss"),
        ("part/train", "gradient"),
    }


def test_hardening_cases_and_profiles_are_reported_as_such():
    found = results("vqverify.reference:GumbelVQ", {"dim": 4, "codebook_size": 8})
    kinds = {(result.invariant, result.case): result.kind for result in found}
    assert kinds["interface.empty_and_single", "empty/eval"] == "hardening"
    assert kinds["interface.empty_and_single", "single/eval"] == "contract"
    compiled = next(result for result in found if result.invariant == "interface.compiled")
    assert compiled.status == "n/a"
    assert "nightly" in (compiled.reason or "")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_a_tensor_left_behind_is_found():
    target = "vqverify.mutants.interface_lifecycle:LeftBehind"
    assert wrong(results(target, {"dim": 4, "codebook_size": 8}, ("interface.device_moves",)))
    assert not wrong(
        results("vqverify.reference:VectorQuantizer", {"dim": 4, "codebook_size": 8}, ("interface.device_moves",))
    )


def test_margins_of_relations_are_finite():
    found = results("vqverify.reference:ResidualVQ", {"dim": 4, "codebook_size": 8}, ("interface.row_permutation",))
    assert all(result.margin is not None and math.isfinite(result.margin) for result in found)
