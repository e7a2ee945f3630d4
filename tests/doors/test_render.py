"""Renderings are functions of a report, and a report is a function of its JSON."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from vqverify import report as reports
from vqverify.render import badge, html, junit, markdown, terminal, words
from vqverify.report import Report, ReportError, Result, SubjectReport

ZEROS, THIRD = [0] * 12, 0.3333333333
WITNESS = {
    "format": 1,
    "subject": {"target": "my.py:VQ", "kwargs": {"dim": 4}},
    "operations": [
        {"op": "construct", "seed": 0},
        {"op": "set_codebook", "level": 0, "values": {"dtype": "float32", "shape": [3, 4], "values": ZEROS}},
        {"op": "train", "seed": 1, "z": {"dtype": "float32", "shape": [1, 4], "values": [1, 0, 0, THIRD]}},
        {
            "op": "check", "case": None, "seed": 0,
            "z": {"dtype": "float64", "shape": [1, 4], "values": [1, "nan", 0, 0]},
            "g": {"dtype": "float32", "shape": [1, 4], "values": [0, 0, 0, 0]},
        },
    ],
}  # fmt: skip
EVIL = "<script>alert(1)</script> [bold]|`*\x00\x1b[31m"
RESULTS = (
    Result("lookup.nearest", "passed", examples=25, margin=0.5, seconds=0.1),
    Result(
        "rotation.angle",
        "failed",
        label="angle",
        message=EVIL,
        statement="S",
        source="A",
        hint="H",
        witness="abc",
    ),
    Result("rotation.norm", "failed", label="norm", message="follows", explained_by=("rotation.angle",)),
    Result("rotation.accuracy", "failed", kind="limit", label="accuracy", message="m"),
    Result("update.ema_law", "n/a", reason="learning is gradient"),
    Result("lookup.decode", "undetermined", reason="unknown"),
    Result("interface.runs", "error", case="train", reason="ZeroDivisionError"),
    Result("gap.bound", "expected", label="gap", reason="known since May"),
    Result("gap.tight", "fixed", label="tight", message="its witness passes now"),
)


@pytest.fixture
def report():
    identified = {
        "estimator": {"value": "rotation", "origin": "given", "evidence": "e" * 200, "mistake": "transposed"},
        "codes": {"value": True, "origin": "identified", "evidence": "", "mistake": None},
        "decay": {"value": None, "origin": "identified", "evidence": "dormant", "mistake": None},
    }
    subject = SubjectReport(
        "VQ(dim=4)", "my.py:VQ", {"dim": 4, "mode": "true"}, None, identified, RESULTS, "failed", 1, {}, 1.5
    )
    profile = {"name": "quick", "seed": 0, "fail_on": ["law", "contract"]}
    return Report(profile, {"torch": "2.13.0"}, (subject,), {"abc": WITNESS}, vqverify="0.1.0")


def read(data):
    return reports.from_json(json.loads(reports.dumps(data)))


def test_json_round_trip_and_unknown_keys(report):
    data = report.to_json()
    assert read(data) == report
    data["later"] = 1
    data["subjects"][0]["later"] = 1
    data["subjects"][0]["results"][0]["later"] = 1
    assert read(data) == report
    assert data["subjects"][0]["results"][1]["witness"] == "witnesses/abc.json"


@pytest.mark.parametrize("change", [{"format": 2}, {"subjects": None}, {"subjects": [{"name": "x"}]}])
def test_another_format_is_refused(report, change):
    with pytest.raises(ReportError):
        read({**report.to_json(), **change})


def test_saving_writes_the_witnesses_beside(report, tmp_path):
    reports.save(report, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json.witnesses/abc.json").read_text()) == WITNESS


def printed(report, **options):
    console = Console(width=100, highlight=False, **options)
    with console.capture() as text:
        console.print(terminal.render(report))
    return text.get()


def test_terminal(report):
    text = printed(report)
    assert max(map(len, text.splitlines())) <= 100
    assert (
        text.index("rotation.angle") < text.index("rotation.norm") < text.index("rotation.accuracy") < text.index("✓")
    )
    for piece in (
        "3 × [0 ×4]",
        "[1, 0, 0, 0.3333]",
        "known since May",
        "ZeroDivisionError",
        "exit 1",
        "learning is gradient",
    ):
        assert piece in text
    assert "\x1b[31m" not in text
    assert "not complete" in printed(replace(report, complete=False))


def test_what_follows_is_grouped_under_its_cause(report):
    groups = words.grouped(words.failures(report.subjects[0]))
    assert [(cause.invariant, [r.invariant for r in followers]) for cause, followers in groups] == [
        ("rotation.angle", ["rotation.norm"]),
        ("gap.tight", []),
        ("rotation.accuracy", []),
    ]
    circle = [Result("a", "failed", explained_by=("b",)), Result("b", "failed", explained_by=("a",))]
    assert len(words.grouped(circle)) == 1
    by_case = [Result("a", "failed", explained_by=("b[train]",)), Result("b", "failed", case="train")]
    assert [cause.invariant for cause, _ in words.grouped(by_case)] == ["b"]


class Page(HTMLParser):
    tags: tuple = ()

    def handle_starttag(self, tag, attrs):
        self.tags = (*self.tags, (tag, dict(attrs)))


def test_html_opens_offline_and_escapes(report):
    text = html.render(report)
    assert "<script>alert" not in text
    page = Page()
    page.feed(text)
    assert not [tag for tag, attrs in page.tags if "src" in attrs or tag == "link" or "http" in str(attrs.get("href"))]
    assert sum(attrs.get("data-status") is not None for _, attrs in page.tags) == len(RESULTS)


def test_junit(report):
    suite = ET.fromstring(junit.render(report))[0]
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    assert len(cases) == len(RESULTS)
    assert cases["rotation.angle angle"].find("failure").get("type") == "angle"
    assert cases["gap.tight tight"].find("failure") is not None
    assert cases["rotation.accuracy accuracy"].find("skipped") is not None
    assert cases["interface.runs[train]"].find("error") is not None
    assert (suite.get("failures"), suite.get("errors"), suite.get("skipped")) == ("3", "1", "4")


def test_markdown(report):
    text = markdown.render(report)
    assert "<script>" not in text.replace("\\<script\\>", "")
    assert "| n/a | update.ema\\_law | learning is gradient |" in text or "update.ema_law" in text
    assert "--kw 'mode=\"true\"'" in text


def test_badge(report):
    data = json.loads(badge.render(report))
    assert data == {"schemaVersion": 1, "label": "vqverify", "message": "1 passed, 4 failed", "color": "red"}


def test_print_and_repr_are_short(report):
    lines = str(report).splitlines()
    failed = [result for subject in report.subjects for result in subject.results if result.status == "failed"]
    assert failed
    for result in failed:
        assert any(result.invariant in line and str(result.label) in line for line in lines)
    assert all(subject.name in str(report) for subject in report.subjects)
    assert len(repr(report).splitlines()) == 1
    assert f"{report.counts['failed']} failed" in repr(report)
