import sys

import pytest
import torch

from vqverify import cli
from vqverify.training import TASKS, MissingPackageError, data, plots


@pytest.mark.parametrize("task", TASKS)
def test_data_are_the_same_in_every_call_and_none_is_in_both_parts(task):
    make = TASKS[task].data
    first = make()
    make.cache_clear()
    second = make()
    assert torch.equal(first.train, second.train)
    assert torch.equal(first.held_out, second.held_out)
    assert first.train.dtype == torch.float32
    seen = {row.numpy().tobytes() for row in first.train}
    # a photograph has a sky: patches of one colour may repeat by chance
    repeated = [row for row in first.held_out if row.numpy().tobytes() in seen]
    assert all(float(row.amax() - row.amin()) < 0.1 for row in repeated)


@pytest.mark.parametrize(("task", "low", "high"), [("photographs", 0, 1), ("digits", 0, 1), ("texture", -0.2, 1.2)])
def test_images_have_the_range_that_is_said(task, low, high):
    images = TASKS[task].data().train
    assert low <= float(images.min()) < float(images.max()) <= high
    assert float(images.std()) > 0.1


@pytest.mark.parametrize(
    ("make", "module", "said"),
    [
        (data.digits, "sklearn.datasets", "scikit-learn"),
        (data.photographs, "sklearn.datasets", "scikit-learn"),
        (data.photographs, "PIL", "Pillow"),
    ],
)
def test_a_package_that_is_not_installed_is_named(make, module, said, monkeypatch):
    make.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError, match=rf"{said}, which is not installed: install the extra"):
        make()


def test_plots_are_refused_before_the_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingPackageError, match="matplotlib"):
        plots.require()
    assert cli.run(["train", "spiral", "--out", str(tmp_path / "new")]) == 2
    assert "matplotlib" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
