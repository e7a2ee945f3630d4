"""`vqverify prove` and `vqverify explain`: text, LaTeX and the page that opens offline."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from unicodedata import combining

import pytest

from vqverify.cli import run
from vqverify.symbolic import angle, book, catalogue, householder
from vqverify.symbolic.derivation import algebra


@pytest.fixture(scope="module")
def page():
    chapters = [book.Chapter(one) for one in catalogue.derivations()]
    return book.as_html(chapters, [book.Entry(one) for one in catalogue.errata()])


class Balance(HTMLParser):
    """Open elements, and the addresses that elements refer to."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.ids, self.wrong = [], [], set(), []

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        self.ids.add(named.get("id"))
        if tag not in ("meta", "br", "link", "mspace", "mprescripts", "none"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if tag in ("meta", "br", "link", "mspace", "mprescripts", "none"):
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_the_page_is_whole_and_refers_to_nothing_outside(page):
    found = Balance()
    found.feed(page)
    assert not found.wrong
    assert not found.open
    assert all(address.startswith("#") and address[1:] in found.ids for address in found.addresses)
    assert not re.search(r"@import|url\(|<script|<link", page)


def test_the_page_typesets_every_theorem_and_erratum(page):
    for one in catalogue.derivations():
        assert f'id="{one.theorem}"' in page
    for one in catalogue.errata():
        assert f'id="{one.id}"' in page
    assert page.count("<math") > 300
    assert not re.search(r"\\[a-zA-Z]+|merror", page.split("</style>")[1])  # no command is left over


def test_the_page_says_what_does_not_hold():
    broken = dataclasses.replace(angle.ANGLE, steps=(algebra("wrong", lambda _: False),))
    text = book.as_html([book.Chapter(broken, proof=broken.prove())])
    assert "does not hold: wrong" in text


def test_latex_has_balanced_braces_and_all_theorems():
    text = book.as_latex(
        [book.Chapter(one) for one in catalogue.derivations()], [book.Entry(one) for one in catalogue.errata()]
    )
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert text.count(r"\section*") == 38
    for name in ("document", "gather*", "description", "enumerate"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") > 0


def test_plain_text_has_no_latex_left():
    for one in catalogue.derivations():
        for step in one.steps:
            assert not re.search(r"[\\$]", book.plain(step.text)), step.text


def test_prove_writes_json_and_exits_0(tmp_path, capsys):
    assert run(["prove", "--only", "rotation.a*", "--json", str(tmp_path / "p.json")]) == 0
    results = json.loads((tmp_path / "p.json").read_text("utf-8"))["results"]
    assert [result["id"] for result in results] == ["rotation.algebra", "rotation.angle"]
    assert {"id", "kind", "statement", "source", "steps", "holds", "failed", "seconds"} <= set(results[0])
    assert results[0]["steps"] == {"algebra": 11, "certificate": 0, "lemma": 1}
    assert "2 of 2 theorems" in capsys.readouterr().out


def test_prove_exits_1_and_names_what_does_not_hold(monkeypatch, capsys):
    broken = dataclasses.replace(angle.ANGLE, stated={**angle.ANGLE.stated, "J": -householder.ROTATION})
    monkeypatch.setattr(catalogue, "derivations", lambda: (broken,))
    assert run(["prove", "--only", "rotation.angle"]) == 1
    text = capsys.readouterr().out
    assert "rotation.angle does not hold: JJᵀ = λ² I" in text  # in words, without LaTeX


def test_prove_refuses_a_pattern_that_matches_nothing(capsys):
    assert run(["prove", "--only", "rotation.angl"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_what_is_unknown_is_answered_in_one_line(capsys):
    assert run(["prove", "--only", "T38"]) == 2
    assert run(["explain", "nope"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all("rotation.*" in line and "T1 to T37" in line and len(line) < 300 for line in lines)


def test_names_are_found_in_either_case(capsys):
    assert run(["explain", "001.EQ21"]) == 0
    assert "001.eq21" in capsys.readouterr().out
    assert {one.theorem for one in catalogue.selected("t1?")} == {f"T{n}" for n in range(10, 20)}
    assert catalogue.derivation("t2") is angle.ANGLE


@pytest.mark.parametrize("option", ["--html", "--latex"])
def test_a_file_that_cannot_be_written_is_named(option, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "book"
    assert run(["explain", "T2", option, str(path)]) == 2
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rotation.angle", ("mutants it rejects", "rotation_transposed", "000 A.3", "hypotheses", "derivation", "JJᵀ")),
        ("T17", ("EMA is a gradient step", "rows that rest on it", "update.ema_law")),
        ("001.eq21", ("printed", "−η²∂L", "T23")),
        ("interface.shapes", ("rests on no theorem",)),
    ],
)
def test_explain_says(name, words, capsys):
    assert run(["explain", name]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in words)
    assert max(sum(not combining(char) for char in line) for line in text.splitlines()) <= 100


def test_explain_writes_one_chapter(tmp_path):
    page, source = tmp_path / "a.html", tmp_path / "a.tex"
    assert run(["explain", "gap.ste", "--html", str(page), "--latex", str(source)]) == 0
    assert "executed, holds" in page.read_text("utf-8")
    assert r"\section*{T9" in source.read_text("utf-8")


@pytest.mark.parametrize(
    "arguments", [["explain"], ["explain", "rotation.angl"], ["explain", "interface.shapes", "--html"]]
)
def test_explain_refuses(arguments, tmp_path, capsys):
    if arguments[-1] == "--html":
        arguments = [*arguments, str(tmp_path / "a.html")]
    assert run(arguments) == 2
    assert capsys.readouterr().err
