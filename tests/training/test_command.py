"""`vqverify train`: results, resuming after a kill, and what is refused."""

import signal
import subprocess
import sys

from vqverify import cli
from vqverify.training import Recipe, Run, folder


def run(*arguments):
    return cli.run(["train", *map(str, arguments), "--no-plots"])


def test_the_folder_holds_the_results(tmp_path, capsys):
    assert run("mixture", "--steps", 8, "--every", 4, "--out", tmp_path / "new") == 0
    shown = capsys.readouterr()
    assert "step 8/8" in shown.err
    assert "reconstruction" in shown.out
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["card.md", "checkpoint.pt", "curve.json"]
    card = (tmp_path / "new/card.md").read_text("utf-8")
    for variable in ("Hardware", "Software", "Dataset splits", "Experiment setup", "Open source code"):
        assert f"| {variable} |" in card
    assert "vqverify train mixture-rotation-ema --seed 0 --steps 8 --every 4" in card
    curve = folder.loads((tmp_path / "new/curve.json").read_text("utf-8"))
    assert folder.dumps(curve) == (tmp_path / "new/curve.json").read_text("utf-8")


def test_pictures_are_drawn(tmp_path):
    from vqverify.training import plots

    for task in ("texture", "mixture"):
        one = Run(Recipe(task), 0, every=1)
        one.advance(2)
        for picture in (plots.curves(one.curve()), plots.reconstructions(one)):
            assert picture.startswith(b"\x89PNG")


KILLED = """
import os, pathlib, signal, sys
from vqverify import cli, files
from vqverify.training import folder

saved = []

def replace(self, target, inner=pathlib.Path.replace):
    saved.append(target)
    if len(saved) == 6:  # in the middle of writing the third curve: the checkpoint is there, the curve is not
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(self, target)

pathlib.Path.replace = replace
cli.run(sys.argv[1:])
"""


def test_a_killed_run_goes_on_to_the_same_curve(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = ["train", "texture-rotation-gradient", "--steps", "40", "--every", "5", "--no-plots", "--out"]
    child = subprocess.run([sys.executable, "-c", KILLED, *words, str(killed)], capture_output=True, check=False)
    assert child.returncode == -signal.SIGKILL
    assert folder.loads((killed / folder.CURVE).read_text("utf-8")).steps == (5, 10)
    assert cli.run([*words, str(killed)]) == 0
    assert cli.run([*words, str(whole)]) == 0
    assert (killed / folder.CURVE).read_bytes() == (whole / folder.CURVE).read_bytes()


def test_a_run_that_is_done_can_go_further(tmp_path):
    assert run("spiral", "--steps", 6, "--every", 3, "--out", tmp_path / "a") == 0
    assert run("spiral", "--steps", 12, "--every", 3, "--out", tmp_path / "a") == 0
    assert run("spiral", "--steps", 12, "--every", 3, "--out", tmp_path / "b") == 0
    assert (tmp_path / "a" / folder.CURVE).read_bytes() == (tmp_path / "b" / folder.CURVE).read_bytes()


def test_mistakes_are_refused_in_one_sentence(tmp_path, capsys):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / folder.CHECKPOINT).write_bytes(b"junk")
    (tmp_path / "file").write_text("")
    one = Run(Recipe("spiral", "straight-through"), 0, every=3)
    folder.save(one, tmp_path / "other")
    for words, said in (
        ([], "NAME is missing"),
        (["digts"], "did you mean digits"),
        (["spiral", "--out", tmp_path / "bad"], "no checkpoint of this version"),
        (["spiral", "--every", 3, "--seed", 1, "--out", tmp_path / "other"], "with seed 0; this one has 1"),
        (["spiral", "--out", tmp_path / "file/below"], "cannot be read or written"),
        (["spiral", "--steps", 0], "--steps"),
        (["spiral", "--seed", -1], "--seed"),
    ):
        assert run(*words) == 2, words
        shown = capsys.readouterr().err
        assert said in shown
        assert "Traceback" not in shown


def test_the_list_shows_every_training(capsys):
    from vqverify.training import recipes

    assert cli.run(["train", "--list"]) == 0
    shown = capsys.readouterr().out.split()
    assert set(recipes()) <= set(shown)
