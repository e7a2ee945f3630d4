"""The pytest door: an item a row, and none that vanishes."""

import re
from pathlib import Path

import hypothesis.strategies as st
import pytest

from vqverify import cli
from vqverify.invariant import registry

ROWS = tuple(registry())  # imported before pytester takes its snapshot of what is, as
st.binary().validate()  # the modules that Hypothesis imports when it first draws
MINIATURES = str(Path(__file__).parents[1] / "miniatures.py")
pytest_plugins = ("pytester",)


def outcome(pytester, name, arguments, *options):
    pytester.makepyfile(
        f"""
        import vqverify

        @vqverify.parametrize_with_invariants({f"{MINIATURES}:{name}"!r}, {arguments})
        def test_layer(check):
            check()
        """
    )
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", *options)


def test_an_item_a_row(pytester):
    done = outcome(pytester, "Right", "dict(dim=4), only=['lookup.*', 'update.ema_law']", "-v")
    done.stdout.fnmatch_lines(["*test_layer?subject? PASSED*", "*test_layer?lookup.nearest? PASSED*"])
    done.stdout.fnmatch_lines(["*test_layer?update.ema_law? N/A (*"])
    assert done.ret == 0
    passed, absent = map(int, re.search(r"(\d+) passed, (\d+) n/a in", done.stdout.str()).groups())
    wanted = [id_ for id_ in ROWS if id_.startswith("lookup.") or id_ == "update.ema_law"]
    assert passed + absent == len(wanted) + 1  # and the subject itself


def test_a_failing_row_fails_with_its_witness(pytester):
    done = outcome(pytester, "AlwaysWrong", "claims={'metric': 'euclidean'}, only=['lookup.nearest']")
    done.stdout.fnmatch_lines(["*lookup.nearest  regret*", "*must hold*", "*witness*", "*1 failed, 1 passed*"])


def test_the_witness_of_a_failure_is_kept_for_replay(pytester):
    pytester.makepyfile(
        f"""
        import vqverify

        @vqverify.parametrize_with_invariants({f"{MINIATURES}:AlwaysWrong"!r}, only=["lookup.nearest"])
        def test_layer(check):
            check()
        """
    )
    pytester.runpytest_inprocess()
    (kept,) = (pytester.path / ".pytest_cache").rglob("vqverify/*.json")
    assert cli.run(["replay", str(kept)]) == 1


def test_pinned_rows_must_apply(pytester):
    done = outcome(pytester, "Right", "only=['lookup.*'], applies=['lookup.decode', 'lookup.nearest']")
    done.stdout.fnmatch_lines(["*rows that are pinned do not apply:*", "*lookup.decode: n/a, decode is absent*"])
    done.assert_outcomes(failed=2, passed=done.parseoutcomes()["passed"])


def test_a_pin_that_names_no_row_is_a_mistake_of_the_file(pytester):
    done = outcome(pytester, "Right", "applies=['lookup.nearst']")
    done.stdout.fnmatch_lines(["*did you mean lookup.nearest*"])
    assert done.ret == pytest.ExitCode.INTERRUPTED


def test_a_subject_that_decides_nothing_fails(pytester):
    done = outcome(pytester, "GivesNaN", "only=['lookup.nearest']")
    done.stdout.fnmatch_lines(["*no row of lookup or estimator could be determined*"])
    assert done.parseoutcomes() == {"failed": 1, "undetermined": 1}


def test_collecting_builds_nothing(pytester):
    done = outcome(pytester, "Dies", "dict(at_once=True)", "--collect-only")
    assert done.ret == 0


def test_classes_and_built_modules_are_targets(pytester):
    pytester.makepyfile(
        """
        import torch, vqverify

        class Local(torch.nn.Module):
            def __init__(self, dim=4):
                super().__init__()
                self.codebook = torch.nn.Parameter(torch.randn(8, dim))

            def forward(self, z):
                codes = torch.cdist(z, self.codebook, compute_mode="donot_use_mm_for_euclid_dist").argmin(-1)
                return z + (self.codebook[codes] - z).detach(), codes

        @vqverify.parametrize_with_invariants(Local, {"dim": 3}, only=["lookup.nearest"])
        def test_class(check):
            check()

        @vqverify.parametrize_with_invariants(Local(), only=["lookup.nearest"])
        def test_module(check):
            check()
        """
    )
    pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider").assert_outcomes(passed=4)
