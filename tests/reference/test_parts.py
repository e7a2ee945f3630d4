"""The optional parts: replacement, k-means, sampling, affine maps, synchronized and alternating updates."""

import itertools
import math

import pytest
import torch
from torch import nn

from vqverify.reference import (
    GroupedVQ,
    LearnableAffine,
    Learner,
    MomentAffine,
    ProjectedCosineVQ,
    Replacement,
    ResidualVQ,
    SimVQ,
    VectorQuantizer,
    alternate,
    beta_of_commitment,
    code_statistics,
    code_step,
    codebook_loss,
    commitment_loss,
    frozen,
    interpolated_loss,
    kmeans,
    memoryless_update,
    nearest_codes,
    nearest_codes_lower_precision,
    sample_codes,
    straight_through,
    warm_up,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# losses


@pytest.mark.parametrize("weight", [0.25, 1 / 9, 1.0])
def test_loss_conventions_convert(weight):
    z, q = torch.randn(2, 5, 3, dtype=torch.float64).requires_grad_().unbind()
    z, q = z.detach().requires_grad_(), q.detach().requires_grad_()
    beta = beta_of_commitment(weight)
    assert math.isclose(beta, 1 / (1 + weight))
    legacy = codebook_loss(z, q) + weight * commitment_loss(z, q)
    ours = 2 * (1 + weight) * interpolated_loss(z, q, beta)
    assert torch.allclose(legacy, ours)
    for a, b in zip(torch.autograd.grad(legacy, (z, q)), torch.autograd.grad(ours, (z, q)), strict=True):
        assert torch.allclose(a, b)


def test_commitment_moves_only_latents_and_codebook_only_codes():
    z, q = (torch.randn(5, 3).requires_grad_() for _ in range(2))
    assert torch.autograd.grad(commitment_loss(z, q), (z, q), allow_unused=True)[1] is None
    assert torch.autograd.grad(codebook_loss(z, q), (z, q), allow_unused=True)[0] is None


def test_sum_is_the_mean_times_the_elements():
    z, q = torch.randn(2, 5, 3)
    keep = torch.tensor([True, True, False, True, False])
    for loss in (commitment_loss, codebook_loss):
        assert torch.allclose(loss(z, q, reduction="sum"), 15 * loss(z, q))
        assert torch.allclose(loss(z, q, keep, reduction="sum"), 9 * loss(z, q, keep))
    layer = VectorQuantizer(3, 4, reduction="sum", commitment_weight=2.0)
    out = layer(z)
    assert torch.allclose(out.loss, 2 * (z - out.z_q).square().sum())
    with pytest.raises(ValueError, match="reduction must be one of 'mean', 'sum'; it was 'max'"):
        commitment_loss(z, q, reduction="max")


# learning without memory


def test_memoryless_step_is_gradient_descent_on_the_mean_loss():
    codes = torch.randn(4, 3, dtype=torch.float64)
    z, index = torch.randn(10, 3, dtype=torch.float64), torch.randint(0, 3, (10,))
    batch = code_statistics(z, index, 4)
    moved = memoryless_update(codes, batch, 0.1)
    expected = codes.clone()
    for k in index.unique():
        expected[k] = codes[k] - 0.1 * (codes[k] - z[index == k].mean(0))
    assert torch.allclose(moved, expected)
    assert torch.equal(moved[3], codes[3])
    layer = VectorQuantizer(3, 4, learning="memoryless", decay=0.9)
    before, z = layer.codebook.clone(), torch.randn(10, 3)
    out = layer(z)
    assert torch.equal(layer.codebook, memoryless_update(before, code_statistics(z, out.codes, 4), 1 - 0.9))
    assert set(layer.state_dict()) == {"codebook"}


# replacement


def test_lifespan_replaces_a_code_after_that_many_unused_steps():
    layer = VectorQuantizer(2, 3, replacement=5)
    layer.set_codebook(torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]]))
    z = torch.tensor([[1.0, 1.0], [1.5, 1.0], [2.0, 1.0]])
    for _ in range(4):
        layer(z)
        assert layer.codebook[1:].tolist() == [[100, 0], [0, 100]]
    layer(z)
    fresh = {tuple(row) for row in layer.codebook[1:].tolist()}
    assert len(fresh) == 2
    assert fresh <= {tuple(row) for row in z.tolist()}
    assert torch.equal(layer.sums[1:], layer.codebook[1:])
    assert layer.counts[1:].tolist() == [1, 1]
    assert layer.age[1:].tolist() == [0, 0]


def test_threshold_replaces_rare_codes_and_keeps_used_ones():
    layer = VectorQuantizer(2, 2, replacement=Replacement(lifespan=0, threshold=0.5), decay=0.5)
    layer.set_codebook(torch.tensor([[0.0, 0.0], [100.0, 0.0]]))
    layer(torch.ones(8, 2))
    assert layer.codebook[1].tolist() == [100, 0]
    layer(torch.ones(8, 2))
    assert layer.codebook[1].tolist() == [1, 1]


def test_replaced_codes_are_never_padding_and_stay_on_the_sphere():
    layer = VectorQuantizer(2, 8, replacement=1, metric="cosine")
    z = torch.tensor([[3.0, 4.0], [float("nan"), 0.0]])
    layer(z, mask=torch.tensor([True, False]))
    assert torch.allclose(layer.codebook.norm(dim=1), torch.ones(8))
    used = int(layer.eval()(z[:1]).codes) if layer.codebook.isfinite().all() else None
    close = (layer.codebook - torch.tensor([0.6, 0.8])).abs().amax(1) < 1e-6
    assert used is not None
    assert close.sum() >= 7


def test_replacement_in_a_learnt_codebook_leaves_the_gradient_right():
    layer = VectorQuantizer(2, 6, learning="gradient", replacement=1, affine="learnable")
    before = layer.codebook.detach().clone()
    z = torch.randn(3, 2)
    out = layer(z)
    out.loss.backward()
    difference = z - before[out.codes]
    expected = torch.zeros(6, 2).index_add_(0, out.codes, -2 * difference / 6)
    assert torch.allclose(layer.codebook.grad, expected, atol=1e-6)
    assert not torch.equal(layer.codebook, before)


def test_replaced_codes_are_latents_in_use_whatever_the_affine_map():
    layer = VectorQuantizer(2, 6, learning="gradient", replacement=1, affine="learnable")
    with torch.no_grad():
        layer.affine.scale.fill_(1.5)
        layer.affine.bias.copy_(torch.tensor([[3.0, -5.0]]))
    z = torch.randn(6, 2)
    layer(z[:1].repeat(6, 1) + 0.01 * z)
    gaps = torch.cdist(layer.effective_codebook(), z[:1] + 0.01 * z).amin(1)
    assert (gaps < 1e-5).sum() >= 5

    layer = VectorQuantizer(2, 64, learning="gradient", replacement=1, affine="moments")
    layer.eval()
    layer.affine.observe(100 + 7 * torch.randn(64, 2))
    used = layer.effective_codebook().detach()
    z = torch.cat([used[:62] + 0.01, torch.tensor([[98.0, 101.0], [103.0, 99.0]])])
    layer.train()(z)
    gaps = torch.cdist(layer.effective_codebook(), z).amin(1)
    assert gaps.max() < 5, "with raw latents in the table codes are in use some 30 away"


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"replacement": 0}, "replacement must be an int of at least 1; it was 0"),
        ({"replacement": 5, "learning": "none"}, "replacement must be None with learning='none'"),
        ({"learning": "gradient", "smoothing": 1e-5}, "smoothing must be 0 with learning='gradient'"),
        ({"codebook_weight": 1.0}, "codebook_weight must be None with learning='ema'"),
        ({"synchronized": 0.5}, "synchronized must be 0 with learning='ema'"),
        ({"affine": "learnable"}, "affine must be 'none' with learning='ema'"),
        (
            {"affine": "learnable", "learning": "gradient", "metric": "cosine"},
            "affine must be 'none' with met",
        ),
        ({"affine": "shared"}, "affine must be one of 'learnable', 'moments', 'none'"),
        ({"temperature": -1.0}, "temperature must be a number in"),
        ({"initialisation": "k-means"}, "initialisation must be one of"),
    ],
)
def test_senseless_layers_say_why(kwargs, words):
    with pytest.raises(ValueError, match=words):
        VectorQuantizer(4, 8, **kwargs)


def test_senseless_parts_say_why():
    with pytest.raises(ValueError, match="lifespan must be at least 1"):
        Replacement(lifespan=0)
    with pytest.raises(ValueError, match="threshold must be 0 with learning='gradient'"):
        Learner("gradient", replacement=Replacement(threshold=1.0))
    with pytest.raises(ValueError, match="groups must divide the number of codes, 5; it was 2"):
        LearnableAffine(3, groups=2)(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="z must hold at least one latent"):
        kmeans(torch.zeros(0, 2), 3)


# k-means


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_kmeans_centres_are_means_and_the_objective_never_rises(metric):
    z = torch.randn(300, 3)
    found = kmeans(z, 7, iterations=100, metric=metric)
    assert (found.objective.diff() <= 1e-6 * found.objective[0]).all()
    rows = torch.nn.functional.normalize(z) if metric == "cosine" else z
    index = nearest_codes(rows, found.codebook)
    assert torch.equal(torch.bincount(index, minlength=7).float(), found.counts)
    for k in index.unique():
        mean = rows[index == k].mean(0)
        mean = mean / mean.norm() if metric == "cosine" else mean
        assert torch.allclose(found.codebook[k], mean, atol=1e-5)


def test_kmeans_with_more_codes_than_data_repeats_the_data():
    z = torch.tensor([[1.0], [2.0], [3.0]])
    found = kmeans(z, 5)
    assert set(found.codebook.flatten().tolist()) == {1, 2, 3}
    assert found.counts.sum() == 3
    assert found.objective[-1] == 0


def test_kmeans_start_happens_once_in_training_only():
    layer = VectorQuantizer(3, 4, initialisation="kmeans", decay=1.0)
    first = layer.codebook.clone()
    layer.eval()
    layer(torch.randn(20, 3))
    assert torch.equal(layer.codebook, first)
    layer.train()
    z = torch.randn(20, 3)
    layer(z, mask=torch.zeros(20, dtype=torch.bool))
    assert torch.equal(layer.codebook, first)
    layer(z)
    started = layer.codebook.clone()
    means = torch.stack([z[layer(z).codes == k].mean(0) for k in range(4)])
    assert torch.allclose(started, means, atol=1e-5)
    assert torch.equal(layer.sums, started * layer.counts[:, None])
    layer(torch.randn(20, 3))
    assert torch.equal(layer.codebook, started)
    again = VectorQuantizer(3, 4, initialisation="kmeans", decay=1.0)
    again.load_state_dict(layer.state_dict())
    again(torch.randn(20, 3))
    assert torch.equal(again.codebook, started)


def test_repeated_kmeans_activates_every_code():
    layer = VectorQuantizer(3, 16)
    z = torch.randn(200, 3) + 20
    assert len(layer.eval()(z).codes.unique()) < 8
    layer.set_codebook(kmeans(z, layer.codebook_size).codebook)
    assert len(layer(z).codes.unique()) == 16


# sampling


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_samples_follow_the_law_of_squared_distances(temperature):
    codes, z = torch.randn(5, 2), torch.randn(1, 2)
    drawn = sample_codes(z.expand(40_000, 2), codes, temperature, generator=torch.Generator().manual_seed(1))
    expected = torch.softmax(-(z - codes).square().sum(1) / temperature, 0) * 40_000
    observed = torch.bincount(drawn, minlength=5)
    large = expected >= 5
    # chi-square with at most 4 degrees of freedom: 23.5 is exceeded with probability 1e-4
    assert ((observed - expected) ** 2 / expected)[large].sum() < 23.5


def test_cold_samples_are_nearest_and_a_seed_repeats():
    z, codes = torch.randn(50, 3), torch.randn(8, 3)
    assert torch.equal(sample_codes(z, codes, 1e-30), nearest_codes(z, codes))
    a, b = (sample_codes(z, codes, 1.0, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)
    layer = VectorQuantizer(3, 8, temperature=5.0)
    layer.set_codebook(codes)
    assert not torch.equal(layer(z).codes, nearest_codes(z, codes))
    layer.eval()
    layer.set_codebook(codes)
    assert torch.equal(layer(z).codes, nearest_codes(z, codes))


def test_warm_up_is_a_ramp():
    assert [warm_up(i, 4, 2.0, 0.0) for i in (0, 1, 4, 9)] == [2.0, 1.5, 0.0, 0.0]


# affine maps


def test_learnable_affine_moves_unused_codes_too():
    layer = VectorQuantizer(2, 8, learning="gradient", affine=LearnableAffine(2, rate=0.5, groups=2))
    before = layer.effective_codebook().detach()
    assert torch.equal(before, layer.codebook)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    out = layer(torch.randn(6, 2))
    out.loss.backward()
    unused = sorted(set(range(8)) - set(out.codes.tolist()))
    assert (layer.codebook.grad[unused] == 0).all()
    optimizer.step()
    assert torch.equal(layer.codebook.detach()[unused], before[unused])
    group = torch.arange(8) // 4
    touched = set((out.codes // 4).tolist())
    moved = (layer.effective_codebook().detach() != before).any(1)
    for k in unused:
        assert bool(moved[k]) == (int(group[k]) in touched)


def test_affine_gradients_are_those_of_the_theorem():
    affine = LearnableAffine(3, rate=2.0)
    x = torch.randn(5, 3, requires_grad=True)
    g = torch.randn(5, 3)
    nn.init.normal_(affine.scale)
    by_x, by_s, by_b = torch.autograd.grad(affine(x), (x, affine.scale, affine.bias), g)
    assert torch.allclose(by_x, (1 + 2 * affine.scale) * g)
    assert torch.allclose(by_s[0], 2 * (g * x).sum(0), atol=1e-5)
    assert torch.allclose(by_b[0], 2 * g.sum(0), atol=1e-5)


def test_moment_affine_matches_the_moments_of_the_latents():
    affine = MomentAffine(3, decay=0.0)
    codes = torch.randn(50, 3) * 5 + 2
    assert torch.equal(affine(codes), codes)
    z = torch.randn(1000, 3) * torch.tensor([1.0, 2.0, 3.0]) - 7
    affine.observe(z)
    c = affine(codes)
    assert torch.allclose(c.mean(0), z.mean(0), atol=1e-4)
    assert torch.allclose(c.std(0, correction=0), z.std(0, correction=0), rtol=1e-4)
    assert torch.allclose(affine(c), c, atol=1e-4)


def test_moving_variance_contains_the_variance_of_batch_means():
    """Batches of +1 and -1 in turn have true variance 1; the mean of batch variances is 0 (T26)."""
    affine = MomentAffine(1, decay=0.99)
    for i in range(4000):
        affine.observe(torch.full((8, 1), 1.0 if i % 2 else -1.0))
    assert affine.variance.item() == pytest.approx(1, abs=0.01)


def test_moment_affine_layer_ignores_padding():
    layer = VectorQuantizer(2, 4, learning="gradient", affine="moments")
    z = torch.randn(10, 2)
    z[5:] = float("nan")
    layer(z, mask=torch.arange(10) < 5)
    assert torch.allclose(layer.affine.mean, z[:5].mean(0), atol=1e-6)


# synchronized and alternating updates


def test_synchronized_codes_receive_nu_times_the_task_gradient():
    layer = VectorQuantizer(3, 4, learning="gradient", synchronized=0.3, codebook_weight=0.0).eval()
    z = torch.randn(10, 3, requires_grad=True)
    g = torch.randn(10, 3)
    out = layer(z)
    assert torch.equal(out.z_q, layer.codebook[out.codes])
    plain = VectorQuantizer(3, 4, learning="gradient").eval()
    plain.load_state_dict(layer.state_dict())
    (expected,) = torch.autograd.grad(plain(z).z_q, z, g)
    received, codes = torch.autograd.grad(out.z_q, (z, layer.codebook), g)
    assert torch.equal(received, expected)
    assert torch.allclose(codes, torch.zeros(4, 3).index_add_(0, out.codes, 0.3 * g))


def test_synchronized_step_is_the_corrected_equation_21():
    """q' = (1-η)q + ηz - η²g for ν = η, where η is the rate of SGD on the codebook term ½|z - q|² (T23)."""
    eta = 0.1
    q = nn.Parameter(torch.randn(1, 3, dtype=torch.float64))
    layer = VectorQuantizer(
        3, 1, estimator="straight-through", learning="gradient", synchronized=eta, codebook_weight=1.5
    ).double()
    layer.set_codebook(q.detach())
    z, g = torch.randn(2, 1, 3, dtype=torch.float64)
    out = layer(z)
    # codebook_weight·mean over D = 3 elements is ½|z - q|²; the layer's commitment moves z alone
    ((out.z_q * g).sum() + out.loss).backward()
    moved = layer.codebook.detach() - eta * layer.codebook.grad
    assert torch.allclose(moved, (1 - eta) * q + eta * z - eta**2 * g)


@pytest.mark.parametrize("rate", [0.5, 1.0, 2.0])
def test_code_steps_never_raise_the_objective(rate):
    z, codes = torch.randn(200, 3, dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)
    value = torch.inf
    for _ in range(20):
        now = (z - codes[nearest_codes(z, codes)]).square().sum().item()
        assert now <= value * (1 + 1e-12)
        value, codes = now, code_step(codes, z, rate)


def test_alternation_moves_one_block_at_a_time():
    encoder = nn.Linear(4, 3)
    layer = VectorQuantizer(3, 8, learning="gradient", estimator="straight-through")
    optimizer = torch.optim.SGD([*encoder.parameters(), *layer.parameters()], lr=0.1)
    x = torch.randn(50, 4)
    seen = []

    def task():
        optimizer.zero_grad()
        before = layer.codebook.detach().clone()
        out = layer(encoder(x))
        (out.z_q.square().mean() + out.loss).backward()
        optimizer.step()
        seen.append(torch.equal(layer.codebook, before) and layer.codebook.grad is None)

    weight, codes = encoder.weight.detach().clone(), layer.codebook.detach().clone()
    alternate(layer.codebook, lambda: encoder(x), task, inner=3, outer=0)
    assert torch.equal(encoder.weight, weight)
    assert not torch.equal(layer.codebook, codes)
    alternate(layer.codebook, lambda: encoder(x), task, inner=1, outer=2)
    assert seen == [True, True]
    assert not torch.equal(encoder.weight, weight)
    assert layer.codebook.requires_grad


def test_frozen_gives_back_what_it_took_even_after_an_error():
    p = nn.Parameter(torch.zeros(1))

    def fail():
        with frozen([p]):
            assert not p.requires_grad
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert p.requires_grad


# lower precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("offset", [0.0, 300.0, 1e5])
def test_lower_precision_is_exact_and_says_where_it_sufficed(dtype, offset):
    z, codes = torch.randn(300, 4) + offset, torch.randn(32, 4) + offset
    index, proved = nearest_codes_lower_precision(z, codes, dtype)
    assert torch.equal(index, nearest_codes(z, codes))
    assert proved.float().mean() > (0.5 if offset == 0 else -1)
    half = torch.cdist(z.to(dtype).double(), codes.to(dtype).double()).argmin(1)
    assert torch.equal(half[proved], index[proved])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lower_precision_takes_overflow_and_single_codes(dtype):
    z, codes = torch.randn(70, 4), torch.randn(9, 4)
    _, proved = nearest_codes_lower_precision(z, codes[:1], dtype)
    assert proved.all()
    z[::7], codes[::4] = z[::7] * 1e6, codes[::4] * 1e6  # beyond float16
    index, _ = nearest_codes_lower_precision(z, codes, dtype)
    assert torch.equal(index, nearest_codes(z, codes))
    with pytest.raises(ValueError, match="z must be finite"):
        nearest_codes_lower_precision(z * float("inf"), codes, dtype)


def test_half_precision_does_add_imprecision():
    """The example of T29: exact distances 2 and 3, in float16 both numbers are even."""
    z, codes = torch.tensor([[2049.0]]), torch.tensor([[2051.0], [2046.0]])
    half = (z.half() - codes.half()).abs().argmin()
    assert half.item() == 1
    index, proved = nearest_codes_lower_precision(z, codes, torch.float16)
    assert index.item() == 0
    assert not proved.item()


# every combination


CHOICES = {
    "estimator": ["rotation", "straight-through", lambda z, q: q + (z - z.detach())],
    "metric": ["euclidean", "cosine"],
    "learning": ["ema", "memoryless", "gradient", "none"],
    "smoothing": [0.0, 1e-3],
    "temperature": [0.0, 0.7],
    "synchronized": [0.0, 0.3],
    "affine": ["none", "learnable", "moments"],
    "replacement": [None, 2, Replacement(lifespan=0, threshold=0.3)],
    "initialisation": ["normal", "kmeans"],
}


def sensible(*, learning, metric, smoothing, synchronized, affine, replacement, **_):
    gradient = learning == "gradient"
    return not (
        (smoothing and (learning != "ema" or metric == "cosine"))
        or (synchronized and not gradient)
        or (affine != "none" and (not gradient or metric == "cosine"))
        or (replacement and learning == "none")
        or (isinstance(replacement, Replacement) and learning != "ema")
    )


def test_every_combination_works_or_says_why():
    works = 0
    z = torch.randn(4, 5, 3)
    for values in itertools.product(*CHOICES.values()):
        kwargs = dict(zip(CHOICES, values, strict=True))
        if not sensible(**kwargs):
            with pytest.raises(ValueError, match="must be"):
                VectorQuantizer(3, 6, **kwargs)
            continue
        works += 1
        layer = VectorQuantizer(3, 6, **kwargs)
        for _ in range(3):
            before = layer.effective_codebook().detach().clone()
            x = z.clone().requires_grad_()
            out = layer(x, mask=torch.rand(4, 5) > 0.2)
            (out.z_q.square().sum() + out.loss).backward()
            assert x.grad.isfinite().all()
            kept = out.codes >= 0
            if kwargs["initialisation"] == "normal":
                assert torch.equal(out.z_q[kept], before[out.codes[kept]])
        layer.eval()
        assert torch.equal(layer.decode(layer(z).codes), layer(z).z_q)
        assert all(value.isfinite().all() for value in layer.state_dict().values())
    assert works > 300


def test_codes_that_were_set_are_not_overwritten_by_the_first_batch():
    layer = VectorQuantizer(2, 3, initialisation="kmeans", learning="none")
    codes = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    layer.set_codebook(codes)
    layer(torch.randn(20, 2))
    assert torch.equal(layer.codebook, codes)


def test_a_centre_whose_directions_cancel_stays_on_the_sphere():
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert kmeans(z, 1, metric="cosine").codebook.norm(dim=1).item() == 1


def test_broken_codes_are_never_drawn():
    codes = torch.tensor([[float("nan"), 0.0], [float("inf"), 0.0], [0.0, 0.0]])
    assert (sample_codes(torch.zeros(50, 2), codes, 1.0) == 2).all()


def test_a_ramp_ends_where_it_was_told_to():
    assert all(warm_up(7, 7, start / 10, 0.3) == 0.3 for start in range(10))


def test_every_layer_with_an_estimator_takes_a_function():
    for build in (VectorQuantizer, ResidualVQ, GroupedVQ, SimVQ, ProjectedCosineVQ):
        seen = []

        def estimator(z, q, seen=seen):
            seen.append(z.shape)
            return straight_through(z, q)

        build(4, 6, estimator=estimator)(torch.randn(5, 4))
        assert seen
