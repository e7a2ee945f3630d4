"""Old bugs are found again: each bad release fails a row that names its cause, the mended one passes that row.

`pytest properties/test_old_releases.py -m nightly` runs all, `-k ID` one. Releases are installed once, into
`~/.cache/vqverify/releases` or the folder that VQVERIFY_RELEASES names.
"""

import functools

import pytest
from old_releases import Pair, check, failed, load, named, told

from vqverify.invariant import registry

PAIRS, REAL = load()


def test_the_file_names_rows_that_exist():
    rows = {name.partition(": ")[0].partition("[")[0] for pair in PAIRS for name in pair.names}
    rows |= {real.row.partition(": ")[0].partition("[")[0] for real in REAL}
    assert rows <= set(registry()), rows - set(registry())
    ids = [pair.id for pair in PAIRS]
    assert len(set(ids)) == len(ids)
    assert {id_ for real in REAL for id_ in real.pairs} <= set(ids)
    assert all(real.reason for real in REAL)


def test_twenty_known_bugs_and_a_dozen_more():
    assert sum(not pair.missed for pair in PAIRS if pair.id.startswith("vqp-")) >= 18
    assert sum(not pair.missed for pair in PAIRS if not pair.id.startswith("vqp-")) >= 12


@functools.cache
def good_release(id_: str):
    pair = next(pair for pair in PAIRS if pair.id == id_)
    return check(pair, pair.good)


def each(field):
    """Every pair; one whose field says why it cannot pass yet is expected to fail."""
    return pytest.mark.parametrize(
        "pair",
        [
            pytest.param(pair, id=pair.id, marks=[pytest.mark.xfail(reason=reason)] if reason else [])
            for pair in PAIRS
            for reason in [getattr(pair, field)]
        ],
    )


@pytest.mark.nightly
@each("missed")
def test_found_again(pair: Pair):
    bad = check(pair, pair.bad)
    assert bad is not None, f"{pair.bad} cannot be built"
    causes = [result for result in failed(bad) if any(named(result, name) for name in pair.names)]
    assert causes, f"none of {pair.names} fails on {pair.bad}: {[told(r) for r in failed(bad)]}"
    good = good_release(pair.id)
    assert (good is None) == pair.refused, f"{pair.good} {'refuses' if good is None else 'takes'} the call"
    still = [told(result) for result in failed(good) if any(named(result, name) for name in pair.names)] if good else []
    assert not still, f"{pair.good} fails, too: {still}"


@pytest.mark.nightly
@each("open")
def test_no_law_fails_on_the_mended_release_that_is_not_real(pair: Pair):
    good = good_release(pair.id)
    real = [real.row for real in REAL if pair.id in real.pairs]
    laws = [result for result in failed(good) if result.kind == "law"] if good else []
    unjudged = [told(result) for result in laws if not any(named(result, row) for row in real)]
    assert not unjudged, f"laws that {pair.good} fails and nobody judged: {unjudged}"
