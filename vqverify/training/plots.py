"""Pictures of a run: its curves, and what it reconstructs. Needs matplotlib (the extra ``train``)."""

from __future__ import annotations

import io
from typing import Any

from vqverify.training.data import MissingPackageError
from vqverify.training.measure import WATCHED
from vqverify.training.run import Curve, Run

SHOWN = 12


def require() -> None:
    """Do nothing if matplotlib is installed.

    Raises:
        MissingPackageError: if it is not.
    """
    _figure(1, 1)


def curves(curve: Curve) -> bytes:
    """Return a PNG: one small plot a watched number, over steps."""
    columns = 4
    names = list(WATCHED)
    figure = _figure(14, 8)
    axes = list(figure.subplots(-(-len(names) // columns), columns, squeeze=False).flat)
    for axis, name in zip(axes, names, strict=False):
        axis.plot(curve.steps, curve.values[name], marker=".")
        axis.set_title(name.replace("_", " "), fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    figure.suptitle(f"{curve.name}, seed {curve.seed}")
    return _png(figure)


def reconstructions(run: Run) -> bytes:
    """Return a PNG: held-out images above their reconstructions, or points and where they go."""
    points = run.data.held_out.ndim == 3
    x, x_hat = run.reconstruct(1024 if points else SHOWN)
    if points:
        figure = _figure(6, 6)
        axis = figure.subplots()
        axis.scatter(*x.flatten(0, 1).T.numpy(), s=3, alpha=0.4, label="held out")
        axis.scatter(*x_hat.flatten(0, 1).T.numpy(), s=12, marker="x", label="reconstructed")
        axis.set_aspect("equal")
        axis.legend(fontsize=8)
        return _png(figure)
    figure = _figure(SHOWN, 2.4)
    axes = figure.subplots(2, len(x))
    for row, images in zip(axes, (x, x_hat), strict=True):
        for axis, image in zip(row, images, strict=True):
            pixels = image.clamp(0, 1).permute(1, 2, 0).numpy()
            axis.imshow(pixels, cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
    figure.suptitle("held-out examples, and below them their reconstructions", fontsize=10)
    return _png(figure)


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingPackageError("matplotlib", "a plot") from None
    # without pyplot: no display is looked for, and no figure stays behind
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Any) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    return content.getvalue()
