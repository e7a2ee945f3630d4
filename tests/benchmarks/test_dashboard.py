"""The dashboard: every benchmark is named, explained and pinned; asv's page asks nothing of the network."""

import importlib
import json
import math
import pkgutil
import re
from importlib.resources import files

import pytest

import benchmarks
from benchmarks import _measure, _table, dashboard


def tracked():
    for module in pkgutil.iter_modules(benchmarks.__path__, "benchmarks."):
        loaded = importlib.import_module(module.name)
        for kind in vars(loaded).values():
            if isinstance(kind, type) and kind.__module__ == module.name:
                for name in dir(kind):
                    if re.match("(track|time|mem|peakmem)_", name):
                        yield f"{module.name}.{kind.__name__}.{name}", getattr(kind, name)


def test_every_benchmark_has_a_name_a_unit_and_a_pinned_version():
    found = dict(tracked())
    assert len(found) > 30
    for name, function in found.items():
        assert re.match(r"[A-Z][\w-]*( \w+)?: ", function.pretty_name), name
        assert function.version, name
        assert function.unit != "unit", name
    names = [function.pretty_name for function in found.values()]
    assert len(set(names)) == len(names)


def test_no_script_or_style_of_asv_s_page_is_remote():
    page, used = dashboard.localise((files("asv") / "www/index.html").read_text("utf-8"))
    assert set(used) == set(dashboard.SCRIPTS.values())
    assert not re.search(r'<(script|link|img)[^>]*(src|href)="(https?:)?//', page)
    assert "integrity=" not in page
    for file in used:
        assert f'="vendor/{file}">' in page


def test_a_script_that_is_not_known_is_refused():
    with pytest.raises(dashboard.VendorError, match="asks for https"):
        dashboard.localise('<script src="https://example.org/new.js" crossorigin="anonymous"></script>')


def test_packages_are_pinned_by_hash_and_permissively_licensed():
    lock = json.loads((dashboard.HERE / "package-lock.json").read_text("utf-8"))
    packages = {name.removeprefix("node_modules/"): entry for name, entry in lock["packages"].items() if name}
    assert set(packages) == {file.split("/")[0] for file in dashboard.SCRIPTS.values()}
    for entry in packages.values():
        assert entry["integrity"].startswith("sha512-")


def test_a_table_keeps_errors_and_lets_the_others_be_measured():
    good, bad = _table.Case(1, 1, 1), _table.Case(2, 1, 1)

    def work(case):
        if case is bad:
            raise ValueError("planted")
        return {"ours": lambda: sum(range(2000)), "limit": lambda: sum(range(1000))}

    measured = _table.measured(_table.by_name(good, bad), work)
    assert _table.cell(measured, str(good), "limit") > 1
    assert math.isnan(_table.cell(measured, str(good), "faiss"))
    assert math.isnan(_table.cell(measured, "another", "limit"))
    with pytest.raises(RuntimeError, match="planted"):
        _table.cell(measured, str(bad), "seconds")


def test_exponent_of_a_power_law():
    assert _measure.exponent([1, 2, 4, 8], [3 * n**1.5 for n in (1, 2, 4, 8)]) == pytest.approx(1.5)


def test_samples_interleave_and_pair():
    order = []
    taken = _measure.samples({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, most=4)
    assert [len(v) for v in taken.values()] == [4, 4]
    assert "".join(order) == "ab" + "abba" * 2
    assert _measure.paired({"a": [2, 4, 100], "b": [1, 2, 5]}, "a", "b") == 2
