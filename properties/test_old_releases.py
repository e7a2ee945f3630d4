"""Old bugs are found again: each bad release fails a row that names its cause, the mended one passes that row.

`pytest properties/test_old_releases.py -m nightly` runs all, `-k ID` one. Releases are installed once, into
`~/.cache/vqverify/releases` or the folder that VQVERIFY_RELEASES names.
"""

import functools

import pytest
from old_releases import Pair, check, failed, judged, load, named, told

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


each = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.id)


@pytest.mark.nightly
@each
def test_found_again(pair: Pair):
    bad = check(pair, pair.bad)
    assert bad is not None, f"{pair.bad} cannot be built"
    causes = [result for result in failed(bad) if any(named(result, name) for name in pair.names)]
    if pair.missed:
        assert not causes, f"{pair.bad} fails {told(causes[0])}: take `missed` away"
        return
    assert causes, f"none of {pair.names} fails on {pair.bad}: {[told(r) for r in failed(bad)]}"
    good = good_release(pair.id)
    assert (good is None) == pair.refused, f"{pair.good} {'refuses' if good is None else 'takes'} the call"
    still = [told(result) for result in failed(good) if any(named(result, name) for name in pair.names)] if good else []
    assert not still, f"{pair.good} fails, too: {still}"


@pytest.mark.nightly
@each
def test_no_law_fails_on_the_mended_release_that_is_not_real(pair: Pair):
    good = good_release(pair.id)
    real = [real.row for real in REAL if pair.id in real.pairs]
    laws = [result for result in failed(good) if result.kind == "law"] if good else []
    unjudged = [told(result) for result in laws if not judged(result, real)]
    assert not unjudged, f"laws that {pair.good} fails and nobody judged: {unjudged}"
