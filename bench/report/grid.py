"""A grid of text, and the same grid as Markdown, LaTeX and plain text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"$\mathdollar$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    "µ": r"$\mu$",
    "°": r"$^\circ$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "–": "--",
    "−": "$-$",
    "×": r"$\times$",
    "…": r"\ldots{}",
    "\n": " ",
    "\t": " ",
}
_MINUS = re.compile(r"(?<![\w.])-(?=\d)")
_MARKDOWN = {"|": r"\|", "<": "&lt;", ">": "&gt;", "*": r"\*", "`": r"\`", "\n": " "}


@dataclass(frozen=True, kw_only=True)
class Text:
    """A cell: the main text, and a lesser text beside or beneath it (an interval)."""

    main: str
    beside: str = ""

    @property
    def line(self) -> str:
        """Both texts in one line."""
        return f"{self.main} {self.beside}".rstrip()


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Header and body, every line as long as the header; a rule stands before each line of rules.

    left: how many leading columns are words (set to the left; numbers to the right).
    """

    header: tuple[str, ...]
    body: tuple[tuple[Text, ...], ...]
    caption: str
    left: int = 1
    rules: tuple[int, ...] = ()


def to_markdown(grid: Grid) -> str:
    """Return the grid as a GitHub table with its caption beneath, ending in a newline."""
    sides = [":--" if i < grid.left else "--:" for i in range(len(grid.header))]
    lines = [[escape_markdown(cell) for cell in grid.header], sides]
    lines += [[escape_markdown(cell.line) for cell in line] for line in grid.body]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"{table}\n{escape_markdown(grid.caption)}\n"


def to_latex(grid: Grid, *, key: str) -> str:
    r"""Return the grid as a floating table with \label{tab:key}, ready for \input.

    Needs the packages booktabs and graphicx; wide tables shrink to the width of the text.
    """
    sides = "l" * grid.left + "r" * (len(grid.header) - grid.left)
    lines = [
        r"% Needs \usepackage{booktabs,graphicx}.",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(grid.caption)}}}",
        rf"\label{{tab:{key}}}",
        r"\smallskip",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{sides}}}",
        r"\toprule",
        _latex_line([_latex_header(cell, i < grid.left) for i, cell in enumerate(grid.header)]),
        r"\midrule",
    ]
    for i, line in enumerate(grid.body):
        lines += [r"\midrule"] if i in grid.rules else []
        lines.append(_latex_line([_latex_cell(cell) for cell in line]))
    lines += [r"\bottomrule", r"\end{tabular}}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def to_plain(lines: Sequence[Sequence[str]], *, left: int = 1, gap: int = 2) -> str:
    """Return lines of cells in aligned columns for a terminal, without trailing spaces."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        (" " * gap)
        .join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        .rstrip()
        for line in lines
    ]
    return "\n".join(text) + "\n"


def escape_markdown(text: str) -> str:
    """Return text that a Markdown table shows as it is."""
    return "".join(_MARKDOWN.get(letter, letter) for letter in text)


def escape_latex(text: str) -> str:
    """Return text that pdflatex sets as it is; letters it may not know become their code point."""
    return "".join(_latex_letter(letter) for letter in text)


def _latex_letter(letter: str) -> str:
    if letter in _LATEX:
        return _LATEX[letter]
    spelled = unicodedata.normalize("NFD", letter)
    if " " <= spelled[0] < "\x7f" and letter < "ſ" and len(spelled) <= 2:
        return letter
    return rf"\texttt{{U+{ord(letter):04X}}}"


def _latex_header(cell: str, is_left: bool) -> str:
    """Set "FD (judge) ↓" in two lines, the arrow beside the name."""
    name, opened, rest = cell.partition(" (")
    if is_left or not opened:
        return escape_latex(cell)
    judge, closed, arrow = rest.rpartition(")")
    first, second = escape_latex(name + arrow), escape_latex(f"({judge}{closed}")
    return rf"\shortstack[r]{{{first}\\{{\scriptsize {second}}}}}"


def _latex_cell(cell: Text) -> str:
    main, beside = (escape_latex(_MINUS.sub("−", text)) for text in (cell.main, cell.beside))
    if not beside:
        return main
    return (
        rf"\begin{{tabular}}[t]{{@{{}}r@{{}}}}{main}\\[-2pt]{{\scriptsize {beside}}}\end{{tabular}}"
    )


def _latex_line(cells: Sequence[str]) -> str:
    joined = " & ".join(cells)
    return ("{}" if joined.startswith("[") else "") + joined + r" \\"
