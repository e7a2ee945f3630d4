import math

import pytest
import torch
from torch import nn

from vqverify.reference import VectorQuantizer, exact_gradient, hessian_gradient, nearest_codes
from vqverify.training import TASKS, WATCHED, Adapted, Recipe, Run, UnknownRecipeError, judge, named, recipes, train
from vqverify.training.layers import UnreadableLayerError

QUICK = [recipe for recipe in recipes().values() if recipe.task in {"texture", "spiral"} or recipe == Recipe("mixture")]


@pytest.mark.parametrize("recipe", QUICK, ids=lambda recipe: recipe.name)
def test_every_method_trains(recipe):
    curve = train(recipe, steps=2)
    assert curve.steps == (1, 2)
    assert set(curve.values) == set(WATCHED)
    assert all(math.isfinite(x) for numbers in curve.values.values() for x in numbers)


@pytest.mark.parametrize("task", ["photographs", "digits"])
def test_packaged_data_train(task):
    assert train(Recipe(task), steps=2).final("reconstruction") > 0


def test_training_learns():
    curve = train(Recipe("texture"), steps=160)
    assert curve.final("reconstruction") < 0.8 * curve.first("reconstruction")


def test_the_curve_is_a_function_of_recipe_and_seed():
    recipe = named("texture-rotation-ema").with_changes("replaced", replacement=2)
    first = train(recipe, 3, steps=16)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert train(recipe, 3, steps=16) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert train(recipe, 4, steps=16) != first


def test_what_a_layer_draws_does_not_change_later_batches():
    class Drawing(VectorQuantizer):
        def forward(self, z, mask=None):
            torch.rand(7)
            return super().forward(z, mask)

    recipe = Recipe("texture").with_changes("no k-means", initialisation="normal")
    assert train(recipe, steps=8, layer=lambda _: Drawing(**recipe.arguments())) == train(recipe, steps=8)


def test_a_layer_that_writes_into_its_latents_leaves_the_data_alone():
    class Writing(VectorQuantizer):
        def forward(self, z, mask=None):
            z.data.zero_()
            return super().forward(z, mask)

    for task in ("texture", "spiral"):
        recipe = Recipe(task, "straight-through")
        before = [part.clone() for part in (TASKS[task].data().train, TASKS[task].data().held_out)]
        run = Run(recipe, 0, every=1, layer=lambda _, recipe=recipe: Writing(**recipe.arguments()))
        run.advance(2)
        run.reconstruct(4)
        assert torch.equal(run.data.train, before[0])
        assert torch.equal(run.data.held_out, before[1])


@pytest.mark.parametrize("name", ["texture-rotation-ema", "texture-straight-through-affine-opt-sync"])
def test_a_resumed_run_repeats_bit_for_bit(name):
    recipe = named(name)
    whole = Run(recipe, 0, every=3)
    whole.advance(14)
    half = Run(recipe, 0, every=3)
    half.advance(7)
    resumed = Run(recipe, 0, every=3)
    resumed.restore(half.state())
    resumed.advance(7)
    assert resumed.curve() == whole.curve()
    for mine, theirs in zip(resumed.layer.state_dict().values(), whole.layer.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_checkpoint_of_another_run_is_refused():
    state = Run(Recipe("texture"), 0, every=3).state()
    with pytest.raises(ValueError, match="with seed 0; this one has 1"):
        Run(Recipe("texture"), 1, every=3).restore(state)


@pytest.mark.parametrize("estimator", ["straight-through", "exact", "hessian"])
def test_the_encoder_gets_the_gradient_that_is_said(estimator):
    recipe = Recipe("texture", estimator)
    run, seen = Run(recipe, 0, every=9), []

    def encode(x, inner=run.model.encode):
        seen.append(x)
        return inner(x)

    run.model.encode = encode
    run.advance(1)
    given = [p.grad for p in run.model.encoder.parameters()]

    model, x = Run(recipe, 0, every=9).model, seen[0]
    z = model.encode(x)
    codes = run.layer.inner._before
    q = codes[nearest_codes(z, codes)]

    def f(point):
        return (model.decode(point) - x).square().mean()

    def gradient(point):
        return exact_gradient(f, point.detach())

    wanted = {"straight-through": gradient(q), "exact": gradient(z), "hessian": hessian_gradient(f, z.detach(), q)}
    commitment = 0.25 * 2 * (z - q) / z.numel()
    cotangent = wanted[estimator] + commitment.detach()
    expected = torch.autograd.grad(z, list(model.encoder.parameters()), cotangent)
    for a, b in zip(given, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_the_gap_is_that_of_the_estimator():
    gaps = {
        name: train(Recipe("texture", name), steps=8).first("gradient_gap") for name in ("exact", "hessian", "rotation")
    }
    assert gaps["exact"] == 0
    assert 0 < gaps["hessian"] < gaps["rotation"]


def test_alternation_leaves_the_codes_alone_in_the_task_step():
    run = Run(Recipe("texture", "straight-through", "opt"), 0, every=9)
    run.advance(1)
    x = run.data.train[:32]
    before = run.layer.inner.codebook.detach().clone()
    run._code_step = lambda _: None
    run.advance(1)
    assert torch.equal(run.layer.inner.codebook.detach(), before)
    with torch.no_grad():
        assert not torch.equal(run.model.encode(x), Run(run.recipe, 0, every=9).model.encode(x))


class Tuple(nn.Module):
    """(loss, z_q, perplexity, codes) of images."""

    def __init__(self):
        super().__init__()
        self.layer = VectorQuantizer(3, 4, channel_first=True)

    def forward(self, z):
        if z.ndim != 4:
            raise ValueError("images")
        z_q, codes, loss = self.layer(z)
        return loss, z_q, z.new_ones(()), codes


def test_layers_are_read_by_shape():
    z = torch.randn(2, 5, 3, requires_grad=True)
    direct = Adapted(VectorQuantizer(3, 4), 4).eval()
    images = Adapted(Tuple(), 4).eval()
    images.inner.layer.set_codebook(direct.inner.codebook)
    mapping = Adapted(nn.Identity(), 4)
    for a, b in zip(images(z), direct(z), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(images.codebook(z, z), direct.codebook(z, z))
    assert torch.equal(mapping(z).z_q, z)
    assert (mapping(z).codes == -1).all()


def test_a_layer_that_returns_no_latents_is_refused():
    with pytest.raises(UnreadableLayerError, match=r"shape \(2, 5, 3\)"):
        Adapted(nn.Flatten(0), 4)(torch.randn(2, 5, 3))


def test_what_a_layer_refuses_is_said():
    class Refusing(nn.Module):
        def forward(self, z):
            raise ValueError(f"no {z.ndim} axes")

    with pytest.raises(ValueError, match="no 3 axes"):
        Adapted(Refusing(), 4)(torch.randn(2, 5, 3))


def test_unknown_names_are_refused_with_near_ones():
    with pytest.raises(UnknownRecipeError, match="did you mean digits"):
        named("digts")
    assert {named(task).task for task in TASKS} == set(TASKS)


def test_a_recipe_of_unknown_parts_is_refused():
    for given, said in (({"task": "mnist"}, "task must be one of photographs"), ({"metric": "l1"}, "it was 'l1'")):
        with pytest.raises(UnknownRecipeError, match=said):
            Recipe(**{"task": "texture", **given})
    with pytest.raises(ValueError, match="steps must be at least 1; it was 0"):
        train(Recipe("texture"), steps=0)


@pytest.mark.nightly
def test_other_seeds_raise_no_alarm_and_a_silent_estimator_does():
    from vqverify.training import Curve

    def curves(estimator, seeds):
        found = [train(Recipe("texture", estimator), seed, steps=240) for seed in seeds]
        return [Curve("texture", i, c.steps, c.values) for i, c in enumerate(found)]

    first, second = curves("rotation", range(10)), curves("rotation", range(10, 20))
    assert judge(first, second).verdict == "unchanged"
    assert judge(first, curves("straight-through", range(10))).verdict == "worse"
