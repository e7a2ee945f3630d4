"""The gate: its statistics on synthetic pairs, its table, its exit codes, and a run against a commit that fails."""

import importlib.util
import math
import random
import shutil
import subprocess
import sys

import pytest

from benchmarks.gate import __main__ as door
from benchmarks.gate import calibrate, compare, curves, groups, judge, live, trees
from benchmarks.gate.rows import Row, exit_code, table
from vqverify.training import WATCHED, Curve


def pairs(change, noise, batches, seed=0):
    rng = random.Random(seed)
    return [math.log(1 + change) + rng.gauss(0, noise) for _ in range(batches * judge.BATCH)]


def run(change, noise, seed, cases=30):
    ratios = pairs(change, noise, judge.BATCHES, seed)
    for i in range(1, judge.BATCHES + 1):
        verdict = judge.decide(ratios[: i * judge.BATCH], cases, last=i == judge.BATCHES)
        if verdict:
            return verdict
    raise AssertionError


def test_no_false_alarm_in_two_thousand_identical_cases():
    found = {run(0, noise, seed) for seed in range(500) for noise in (0.005, 0.02, 0.05, 0.15)}
    assert found <= {"unchanged", "undecided"}


@pytest.mark.parametrize(("change", "verdict"), [(0.10, "slower"), (-0.10, "faster")])
def test_a_change_of_ten_per_cent_is_seen_in_noise_of_three(change, verdict):
    assert [run(change, 0.03, seed) for seed in range(200)].count(verdict) >= 190


def test_a_change_within_the_tolerance_is_none():
    assert {run(0.02, 0.01, seed) for seed in range(200)} == {"unchanged"}


def test_one_batch_is_not_enough_to_alarm():
    # what the processes of a batch share, and no other batch does
    first = pairs(0.2, 0.002, 1)
    assert judge.decide(first, 1) is None
    assert judge.decide(first + pairs(0.0, 0.002, 2, seed=1), 1, last=True) != "slower"
    assert judge.decide(first + pairs(0.2, 0.002, 1, seed=1), 1) == "slower"


def test_noise_that_hides_the_promise_is_undecided():
    assert judge.decide(pairs(0.0, 0.5, 3), 1) is None
    assert judge.decide(pairs(0.0, 0.5, 3), 1, last=True) == "undecided"
    assert judge.decide([0.0], 1, last=True) == "undecided"


def test_a_pair_is_judged_by_the_median_of_its_rounds():
    assert judge.median_ratio([1, 1, 1], [2, 2, 50]) == pytest.approx(math.log(2))


def test_resampled_runs_see_a_slowdown_and_nothing_else():
    records = {f"case {i}": pairs(0, 0.03, 4, seed=i) for i in range(5)}
    rng = random.Random(0)
    assert not any({"slower", "faster"} & set(calibrate.resample(records, rng).values()) for _ in range(100))
    seen = [v for _ in range(40) for v in calibrate.resample(records, rng, math.log(1.1)).values()]
    assert seen.count("slower") >= 0.9 * len(seen)


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        (["unchanged", "faster", "better", "new", "undecided"], 0),
        (["unchanged", "slower"], 1),
        (["worse"], 1),
        (["moved"], 1),
        (["slower", "failed"], 2),
        ([], 2),
    ],
)
def test_exit_codes(verdicts, code):
    assert exit_code([Row("group", "case", verdict) for verdict in verdicts]) == code


def test_table_shows_what_matters_first_and_counts():
    rows = [Row("lookup", "b", "unchanged", "+0.1%", "8 pairs"), Row("lookup", "a", "slower", "+11%", "x\n16 pairs")]
    lines = table(rows).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["slower", "unchanged"]
    assert "16 pairs" in lines[2]
    assert lines[-1] == "1 slower, 1 unchanged"
    assert len({len(line) for line in lines[:4]}) == 1


def test_an_unknown_verdict_is_refused():
    with pytest.raises(ValueError, match="verdict must be one of"):
        Row("group", "case", "fine")


def curve(seed, scale):
    rng = random.Random(seed)
    values = {name: tuple(scale * (1 + 0.1 * rng.random()) for _ in range(3)) for name in WATCHED}
    return Curve("training", seed, (1, 2, 3), values)


@pytest.mark.parametrize(("scale", "verdicts"), [(1.2, {"worse"}), (1.0, {"unchanged"})])
def test_trainings_are_judged_over_seeds(scale, verdicts):
    before, after = ([curve(seed, s) for seed in curves.ALL] for s in (1.0, scale))
    (row,) = curves.judgements({("training", "training"): (before, after)})
    assert row.verdict in verdicts
    assert "10 seeds" in row.how


def test_every_group_has_cases_with_names_of_their_own():
    names = compare.list_cases(list(groups.GROUPS))
    assert {group for group, _ in names} == set(groups.GROUPS)
    assert len(set(names)) == len(names)


FAKE = """
import os

def head():
    import vqverify.reference
    return vqverify.reference.SIDE == "head"

def work(n=200):
    return lambda: sum(range(n))

def dies():
    return (lambda: os._exit(3)) if head() else work()

def raises():
    if head():
        raise ValueError("planted")
    return work()

def later():
    import vqverify.reference
    vqverify.reference.LATER
    return work()

def gate():
    return {"fine": work, "dies": dies, "raises": raises, "later": later}
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Two commits of a stand-in for the package, and the benchmarks with a group that fails in the second."""
    package = tmp_path / "repo/vqverify/reference"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()

    def git(*arguments):
        identity = ["-c", "user.name=x", "-c", "user.email=x@x.example"]
        command = ["git", *identity, *arguments]
        subprocess.run(command, cwd=tmp_path / "repo", check=True, capture_output=True, text=True)

    git("init", "-q")
    for side, more in (("base", ""), ("head", "LATER = 1\n")):
        (package / "__init__.py").write_text(f"SIDE = {side!r}\n{more}")
        git("add", "-A")
        git("commit", "-qm", side)
    shutil.copytree(trees.BENCHMARKS, tmp_path / "benchmarks")
    (tmp_path / "benchmarks/fake.py").write_text(FAKE)
    spec = importlib.util.spec_from_file_location("benchmarks.fake", tmp_path / "benchmarks/fake.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "benchmarks.fake", module)
    monkeypatch.setattr(trees, "BENCHMARKS", tmp_path / "benchmarks")
    monkeypatch.setattr(groups, "TIMED", ("fake",))
    monkeypatch.setattr(groups, "GROUPS", ("fake",))
    monkeypatch.chdir(tmp_path / "repo")
    return tmp_path / "repo"


def test_a_benchmark_that_fails_ends_with_2_and_the_others_are_measured(repository, capsys, tmp_path):
    assert door.main(["HEAD~1", "HEAD", "--json", str(tmp_path / "rows.json")]) == 2
    out, err = capsys.readouterr()
    found = {line.split("|")[3].strip(): line.split("|")[1].strip() for line in out.splitlines() if "fake" in line}
    assert found.pop("fine") in {"unchanged", "undecided"}
    assert found == {"dies": "failed", "raises": "failed", "later": "new"}
    assert "planted" in err
    assert "exit 3" in err
    assert (tmp_path / "rows.json").exists()
    listed = subprocess.run(["git", "worktree", "list"], cwd=repository, check=True, capture_output=True, text=True)
    assert len(listed.stdout.splitlines()) == 1


@pytest.mark.parametrize("name", live.PLANTS)
def test_the_line_that_a_plant_changes_is_there_once(name):
    what = live.PLANTS[name]
    if what.file:
        assert (trees.BENCHMARKS.parent / what.file).read_text("utf-8").count(what.old) == 1
        assert what.group in groups.GROUPS


def test_a_revision_that_is_none_ends_with_2(repository, capsys):
    assert door.main(["nothing", "HEAD"]) == 2
    assert "'nothing' must name a commit" in capsys.readouterr().err
