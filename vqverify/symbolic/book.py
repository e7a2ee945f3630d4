"""The derivations as pages to read: plain text, LaTeX, and one HTML page with MathML that opens offline."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import sympy as sp
from sympy.printing.latex import LatexPrinter

from vqverify.symbolic.derivation import Derivation, Proof, Step
from vqverify.symbolic.errata import Erratum

_BAR = re.compile(r'<mo stretchy="false">(?:\||&#x0007C;)</mo>')
_INLINE = re.compile(r"\$([^$]+)\$")
_LOWER = re.compile(r"_(?:\{([^}]*)\}|([A-Za-z0-9α-ωâ-ûẑ⟂\u0302]+))")
_UPPER = re.compile(r"\^(?:\{([^}]*)\}|(-?[A-Za-z0-9]+))")
_NAMES = {
    "e_norm": r"\left|e\right|",
    "q_norm": r"\left|q\right|",
    "g_norm": r"\left|g\right|",
    "z_norm": r"\left|z\right|",
    "c_norm": r"\left|c\right|",
    "c_max": r"\max|c|",
    "n2": r"\left|g\right|^2",
    "qg": r"\langle q,g\rangle",
    "eg": r"\langle e,g\rangle",
    "ug": r"(\hat u\cdot g)",
    "pg": r"(\delta_\perp\cdot g)",
    "delta_u": r"(\delta\cdot\hat u)",
    "u_low": "u'",
    "zbar": r"\bar z",
    "dist2": r"\mathrm{dist}^2",
    "sum_q": r"\sum_i q_i",
    "sum_G": r"\sum_i G_i",
    "sum_Gx": r"\sum_i G_i x_i",
    "sg_q_minus_z": r"\mathrm{sg}(q-z)",
    "sg_q": r"\mathrm{sg}\,q",
    "E_D": r"\mathbb E[D]",
    "E_D2": r"\mathbb E[D^2]",
    "delta_perp": r"\delta_\perp",
    "u_0": r"\hat u",
    "zc": r"z\cdot c",
    "z2": "|z|^2",
    "cc": "(|c_k|^2-|c_j|^2)",
    "b_hat": r"b_{\hat k}",
    "b_min": r"b_{\min}",
    "D_min": r"D_{\min}",
    "dim": "d",
    "spacing": r"\min_j|c_j-c_k|",
    "even": r"[L\text{ even}]",
    "uhat": r"\hat u",
    "vhat": r"\hat v",
    "lip_G": r"\mathrm{Lip}(G)",
    "lip_L": r"\mathrm{Lip}(L)",
    "on_u": r"(\hat u\cdot g)",
    "on_v": r"(\hat v\cdot g)",
    "excess": r"(|w|^2-1)",
    "along": r"(w\cdot x)",
    "span": r"\rho",
    "tau_0": r"\tau",
    "g_e": r"|\nabla L(e)|",
    "g_q": r"|\nabla L(q)|",
    "others": r"\ldots",
}
_PLAIN = {
    r"\langle ": "⟨", r"\rangle": "⟩", r"\mathsf T": "T", r"\pm ": "±",
    r"\hat u": "û", r"\hat v": "v̂", r"\lambda": "λ", r"\mathrm{tr}": "tr", r"\mathrm{fl}": "fl", r"\alpha": "α",
    r"\theta": "θ", r"\perp": "⟂", r"\le": "≤", r"\ge": "≥", r"\cdot": "·", r"\det": "det", r"\eta": "η", r"\|": "‖",
    r"\nabla": "∇", r"\circ ": "∘", r"\delta": "δ", r"\int_0^1": "∫₀¹", r"\int": "∫",
    r"\beta": "β", r"\equiv": "≡", r"\,": " ", "^T": "ᵀ", "^2": "²", "^{-1}": "⁻¹", r"^{d-1}": "^(d−1)", "-": "−",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A row of the catalogue of invariants that rests on a theorem.

    Attributes:
        id: of the invariant.
        statement: what it checks.
        hint: what to look for in code that breaks it.
        mutants: names of the wrong quantizers that it rejects, with what is wrong in each.
    """

    id: str
    statement: str
    hint: str
    mutants: Mapping[str, str]


@dataclass(frozen=True)
class Chapter:
    """A derivation with what is known beside it: the rows that rest on it, and the outcome of its proof."""

    derivation: Derivation
    rows: tuple[Row, ...] = ()
    proof: Proof | None = None


@dataclass(frozen=True)
class Entry:
    """An erratum with the outcome of its proof."""

    erratum: Erratum
    proof: Proof | None = None


class _Printer(LatexPrinter):
    """SymPy's LaTeX with the names of the theory page."""

    def _print_Symbol(self, expr: Any, style: str = "plain") -> str:  # noqa: N802  the printer dispatches on class names
        return _NAMES.get(expr.name) or str(super()._print_Symbol(expr, style))

    def _print_MatrixSymbol(self, expr: Any) -> str:  # noqa: N802
        return _NAMES.get(expr.name) or str(super()._print_Symbol(expr))

    def _print_MatAdd(self, expr: Any) -> str:  # noqa: N802
        # the identity first, and a sum of a negative term as a difference
        terms = sorted(expr.args, key=lambda term: (not isinstance(term, sp.Identity), str(term)[0] == "-"))
        return " + ".join(str(self._print(term)) for term in terms).replace("+ -", "-")


def latex(formula: Any) -> str:
    """A stated formula in LaTeX."""
    text = _Printer({"mat_symbol_style": "plain"}).doprint(sp.sympify(formula))
    return str(text).replace(r"\mathbb{I}", "I")


def plain(text: str) -> str:
    """Inline mathematics written with Unicode characters, for a terminal."""

    def spoken(match: re.Match[str]) -> str:
        inside = match.group(1)
        for command, character in _PLAIN.items():
            inside = inside.replace(command, character)
        return inside.replace("{", "").replace("}", "")

    return _INLINE.sub(spoken, text)


def _mathml(source: str, display: str = "block") -> str:
    from latex2mathml.converter import convert

    # a bar is a fence here, never a relation: no space around it
    return _BAR.sub('<mo stretchy="false" lspace="0" rspace="0" form="prefix">|</mo>', convert(source, display=display))


def _inline(text: str) -> str:
    """Text as HTML, with the mathematics between dollar signs as MathML, and indices and exponents as such."""
    parts = _INLINE.split(text)
    return "".join(_mathml(part, "inline") if index % 2 else _scripts(part) for index, part in enumerate(parts))


def _scripts(text: str) -> str:
    lowered = _LOWER.sub(lambda match: f"<sub>{match[1] or match[2]}</sub>", escape(text, quote=False))
    return _UPPER.sub(lambda match: f"<sup>{match[1] or match[2]}</sup>", lowered)


def formulas(derivation: Derivation) -> tuple[tuple[str, str], ...]:
    """Name and LaTeX of each stated formula."""
    return tuple((name, latex(formula)) for name, formula in derivation.stated.items())


def tolerances(derivation: Derivation) -> tuple[tuple[str, str], ...]:
    """Name and LaTeX of each bound on rounding."""
    return tuple((name, latex(formula)) for name, formula in derivation.tolerances.items())


def kinds(steps: Sequence[Step]) -> str:
    """How many steps of each kind: `3 algebra, 1 certificate, 1 lemma (cited)`."""
    counts = {kind: sum(step.kind == kind for step in steps) for kind in ("algebra", "certificate", "lemma")}
    return ", ".join(f"{n} {kind}{' (cited)' if kind == 'lemma' else ''}" for kind, n in counts.items() if n)


def as_html(chapters: Sequence[Chapter], entries: Sequence[Entry] = ()) -> str:
    """One self-contained page: no script, style, font or image from elsewhere.

    Args:
        chapters: derivations, in the order in which they appear.
        entries: the ledger of errata; none leaves the section out.

    Returns:
        The page.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vqverify.symbolic"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"inline": _inline, "mathml": _mathml, "kinds": kinds}
    executed = [one.proof for one in (*chapters, *entries) if one.proof]
    return environment.get_template("book.html.j2").render(
        chapters=chapters,
        entries=entries,
        formulas=formulas,
        tolerances=tolerances,
        executed=executed,
        holding=sum(proof.holds for proof in executed),
        seconds=sum(proof.seconds for proof in executed),
    )


_ESCAPES = {
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\^{}",
    "⟂": r"$\perp$",
    "﹤": "$<$",
}


def _tex(text: str) -> str:
    parts = _INLINE.split(text)
    return "".join(
        f"${part}$" if index % 2 else "".join(_ESCAPES.get(char, char) for char in part)
        for index, part in enumerate(parts)
    )


def _tex_chapter(chapter: Chapter) -> str:
    one = chapter.derivation
    display = one.latex.replace(r"\qquad", r"\\")
    lines = [
        rf"\section*{{{one.theorem}\quad {_tex(one.title)}}}",
        rf"\noindent\texttt{{{_tex(one.id)}}}, {_tex(one.source)}. {_tex(one.statement)}",
        rf"\begin{{gather*}} {display} \end{{gather*}}",
        rf"\textbf{{Hypotheses}}: {_tex('; '.join(one.hypotheses))}.",
        r"\begin{description}",
        *(rf"\item[{{{_tex(name)}}}] $\displaystyle {source}$" for name, source in formulas(one)),
        r"\end{description}",
        r"\begin{enumerate}",
        *(rf"\item \textit{{{step.kind}}}: {_tex(step.text)}." for step in one.steps),
        r"\end{enumerate}",
        *(rf"\par\noindent Rounding, {_tex(name)}: ${source}$." for name, source in tolerances(one)),
        rf"\par\noindent\textbf{{Catches}}: {_tex(one.catches)}.",
        *(
            rf"\par\texttt{{{_tex(row.id)}}} rejects {_tex(', '.join(row.mutants) or '–')}. {_tex(row.hint)}"
            for row in chapter.rows
        ),
    ]
    return "\n".join(lines)


def as_latex(chapters: Sequence[Chapter], entries: Sequence[Entry] = ()) -> str:
    """A LaTeX document, for LuaLaTeX or XeLaTeX (the text is Unicode)."""
    ledger = [
        rf"\item[{{{_tex(one.erratum.where)}}}] printed: {_tex(one.erratum.printed)}; right: {_tex(one.erratum.right)}"
        rf" ({_tex(one.erratum.theorem or 'arithmetic')}: {_tex(one.erratum.by)})."
        for one in entries
    ]
    errata = [r"\section*{Errata}", r"\begin{description}", *ledger, r"\end{description}"] if ledger else []
    return "\n".join(
        [
            r"\documentclass{article}",
            r"\usepackage{amsmath,unicode-math}",
            r"\setmainfont{DejaVu Sans}",
            r"\begin{document}\sloppy",
            *(_tex_chapter(chapter) for chapter in chapters),
            *errata,
            r"\end{document}",
            "",
        ]
    )
