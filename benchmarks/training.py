"""asv: what miniature trainings come to, mean over common seeds. Lower is better, as asv wants it.

Whether a difference between two commits is one, `python -m benchmarks.trainings` judges.
"""

NAMES = [
    "texture-rotation-ema",
    "texture-straight-through-ema",
    "texture-hessian-ema",
    "texture-exact-ema",
    "texture-straight-through-gradient",
    "texture-straight-through-sync",
    "texture-straight-through-affine",
    "texture-straight-through-opt",
    "texture-rotation-ema-cosine",
    "texture-rotation-gradient-cosine",
    "spiral-straight-through-ema",
    "spiral-straight-through-ema replaced",
]
"""Written out, so that finding benchmarks imports no torch; tests hold them against `_watch.watched`."""

SEEDS = 4


def gate():
    """Functions of seeds that return curves as JSON, by training."""

    def run(name, seeds):
        from benchmarks import _watch
        from vqverify.training import folder, train

        recipe, steps = next((recipe, steps) for recipe, steps in _watch.watched() if recipe.name == name)
        return [folder.dumps(train(recipe, seed, steps=steps)) for seed in seeds]

    return {name: lambda seeds, name=name: run(name, seeds) for name in NAMES}


class Training:
    """The end of each watched training."""

    params = (NAMES,)
    param_names = ("training",)
    timeout = 900

    def setup_cache(self):
        """Train everything once; each number below picks from it."""
        try:
            from benchmarks import _watch
        except ImportError:  # a commit from before the trainings
            return {}
        found = {}
        for curve in _watch.curves(SEEDS):
            found.setdefault(curve.name, []).append((curve.values, curve.steps_per_second))
        return found

    def setup(self, found, name):
        if name not in found:
            raise NotImplementedError

    def track_reconstruction(self, found, name):
        return mean(found[name], "reconstruction")

    def track_relative_error(self, found, name):
        return mean(found[name], "relative_error")

    def track_unused(self, found, name):
        return 1 - mean(found[name], "usage")

    def track_uneven(self, found, name):
        return 1 / mean(found[name], "perplexity")

    def track_dead(self, found, name):
        return mean(found[name], "dead")

    def track_gradient_gap(self, found, name):
        return mean(found[name], "gradient_gap")

    def track_divergence(self, found, name):
        return mean(found[name], "divergence")

    def track_latent_norm(self, found, name):
        return mean(found[name], "latent_norm")

    def track_code_norm(self, found, name):
        return mean(found[name], "code_norm")

    def track_step(self, found, name):
        return min(1e3 / speed for _, speed in found[name])


def mean(runs, watched):
    return sum(values[watched][-1] for values, _ in runs) / len(runs)


for _name, _pretty, _unit in (
    ("reconstruction", "Training: reconstruction loss", "mean square"),
    ("relative_error", "Training: quantization error over variance of the latents", "share"),
    ("unused", "Training: codes that held-out latents do not use", "share"),
    ("uneven", "Training: 1 / perplexity", "1/codes"),
    ("dead", "Training: codes that training does not use", "share"),
    ("gradient_gap", "Training: gap between exact and given gradient", "share"),
    ("divergence", "Training: divergence of latents from the codebook", "squared distance"),
    ("latent_norm", "Training: norm of the latents (neither way is better)", "norm"),
    ("code_norm", "Training: norm of the codes (neither way is better)", "norm"),
    ("step", "Training: CPU time of a step, best of seeds", "ms"),
):
    _function = getattr(Training, f"track_{_name}")
    _function.pretty_name, _function.unit, _function.version = _pretty, _unit, "1"
