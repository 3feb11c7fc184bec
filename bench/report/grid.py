"""A grid of text, and the same grid as Markdown, LaTeX and plain text."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from bench.report.names import MISSING

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
    "Δ": r"$\Delta$",
    "†": r"$\dagger$",
    "±": r"$\pm$",
    "∞": r"$\infty$",
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
_ARROW = re.compile(r" (\$\\(?:up|down)arrow\$)")  # keeps to the word before it
_LATEX_LINES = 30  # more do not fit a page
_LATEX_HEADER = 12
_LATEX_COLUMNS = 8  # beside the leading ones: more would be set too small to read
_MINUS = re.compile(r"(?<![\w.])-(?=\d)")
_MARKDOWN = {"|": r"\|", "<": "&lt;", ">": "&gt;", "*": r"\*", "`": r"\`", "\n": " "}


@dataclass(frozen=True, kw_only=True)
class Text:
    """A cell: the main text, and a lesser text beside or beneath it (an interval).

    bold: set the main text in bold, where the output knows bold.
    """

    main: str
    beside: str = ""
    bold: bool = False

    @property
    def line(self) -> str:
        """Both texts in one line."""
        return f"{self.main} {self.beside}".rstrip()


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Header and body, every line as long as the header; a rule stands before each line of rules.

    left: how many leading columns are words (set to the left; numbers to the right). groups: what
    stands above each column ("" above those that lead every block), or none; equal neighbours stand
    under one heading, and LaTeX sets blocks of few enough columns beneath each other.
    """

    header: tuple[str, ...]
    body: tuple[tuple[Text, ...], ...]
    caption: str
    left: int = 1
    rules: tuple[int, ...] = ()
    groups: tuple[str, ...] = ()


def to_markdown(grid: Grid) -> str:
    """Return the grid as a GitHub table with its caption beneath, ending in a newline."""
    sides = [":--" if i < grid.left else "--:" for i in range(len(grid.header))]
    heads = [escape_markdown(cell) for cell in grid.header]
    if grid.groups:
        names = [escape_markdown(name) for name in grid.groups]
        heads = [f"{n}<br>{h}" if n else h for n, h in zip(names, heads, strict=True)]
    lines = [heads, sides]
    lines += [[_markdown_cell(c, under=bool(grid.groups)) for c in line] for line in grid.body]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"{table}\n{escape_markdown(grid.caption)}\n"


def _markdown_cell(cell: Text, *, under: bool) -> str:
    """Set a cell in one line, or with its lesser text beneath, which keeps wide tables narrow."""
    main, beside = escape_markdown(cell.main), escape_markdown(cell.beside)
    main = f"**{main}**" if cell.bold else main
    if under and beside:
        return f"{main}<br><sub>{beside}</sub>"
    return f"{main} {beside}".rstrip()


def to_latex(grid: Grid, *, key: str) -> str:
    r"""Return the grid as a floating table with \label{tab:key}, ready for \input.

    Needs the packages booktabs, graphicx and longtable. Wide tables shrink to the width of the text;
    those too long for a page are no float but run over pages.
    """
    title = [rf"\caption{{{escape_latex(grid.caption)}}}", rf"\label{{tab:{key}}}"]
    needs = r"% Needs \usepackage{booktabs,graphicx,longtable}."
    if len(grid.body) > _LATEX_LINES and not grid.groups:
        return "\n".join([needs, *_latex_long(grid, "".join(title))]) + "\n"
    lines = [needs, r"\begin{table}", r"\centering", *title, r"\smallskip"]
    for i, columns in enumerate(_blocks(grid.groups) or [list(range(len(grid.header)))]):
        lines += [r"\par\medskip"] if i else []
        lines += _latex_block(grid, columns)
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _latex_block(grid: Grid, columns: Sequence[int]) -> list[str]:
    """Return the lines of one tabular of the given columns; of a part, rows without a number go."""
    sides = "".join("l" if i < grid.left else "r" for i in columns)
    head = [_latex_header(grid.header[i], i < grid.left) for i in columns]
    own = [i for i in columns if grid.groups and grid.groups[i]]
    lines = [
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{sides}}}",
        r"\toprule",
        *(_latex_groups([grid.groups[i] for i in columns]) if grid.groups else []),
        _latex_line(head),
        r"\midrule",
    ]
    for i, line in enumerate(grid.body):
        lines += [r"\midrule"] if i in grid.rules else []
        if not own or any(line[column].main != MISSING for column in own):
            lines.append(_latex_line([_latex_cell(line[column]) for column in columns]))
    return [*lines, r"\bottomrule", r"\end{tabular}}"]


def _latex_long(grid: Grid, title: str) -> list[str]:
    """Return the lines of a table over several pages: words in columns that break, small type.

    The last column of words, which holds judges, is a little wider.
    """
    shares = [0.6 / grid.left] * (grid.left - 1) + [0.6 / grid.left + 0.04]
    words = "".join(rf"p{{{share:.3f}\linewidth}}" for share in shares)
    sides = words + "r" * (len(grid.header) - grid.left)
    head = [_latex_header(cell, i < grid.left) for i, cell in enumerate(grid.header)]
    lines = [
        r"\begingroup\scriptsize\setlength{\tabcolsep}{2pt}",
        rf"\begin{{longtable}}{{{sides}}}",
        rf"{title}\\",
        *(r"\toprule", _latex_line(head), r"\midrule", r"\endfirsthead"),
        *(r"\toprule", _latex_line(head), r"\midrule", r"\endhead"),
        r"\bottomrule\endlastfoot",
    ]
    for i, line in enumerate(grid.body):
        lines += [r"\midrule"] if i in grid.rules else []
        cells = [_latex_cell(cell) for cell in line]
        broken = [rf"\raggedright {_ARROW.sub(lambda a: '~' + a[1], cell)}" for cell in cells[: grid.left]]
        lines.append(_latex_line([*broken, *cells[grid.left :]]))
    return [*lines, r"\end{longtable}", r"\endgroup"]


def _blocks(groups: Sequence[str]) -> list[list[int]]:
    """Return the columns of each block: those without a group, and whole groups up to a width."""
    lead = [i for i, name in enumerate(groups) if not name]
    blocks: list[list[int]] = []
    for name in dict.fromkeys(name for name in groups if name):
        own = [i for i, other in enumerate(groups) if other == name]
        if blocks and len(blocks[-1]) + len(own) <= _LATEX_COLUMNS + len(lead):
            blocks[-1] += own
        else:
            blocks.append([*lead, *own])
    return blocks


def _latex_groups(groups: Sequence[str]) -> list[str]:
    """Return the line of headings over neighbours of one group, and the rules beneath them."""
    cells, rules, start = [], [], 0
    for name, members in itertools.groupby(groups):
        n = len(list(members))
        if name:
            cells.append(rf"\multicolumn{{{n}}}{{c}}{{{escape_latex(name)}}}")
            rules.append(rf"\cmidrule(lr){{{start + 1}-{start + n}}}")
        else:
            cells += [""] * n
        start += n
    return [_latex_line(cells), "".join(rules)]


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
    """Set "FD (judge) ↓" in two lines, the arrow beside the name; break other long headers too."""
    name, opened, rest = cell.partition(" (")
    if is_left:
        return escape_latex(cell)
    if opened:
        judge, closed, arrow = rest.rpartition(")")
        first, second = escape_latex(name + arrow), escape_latex(f"({judge}{closed}")
        return rf"\shortstack[r]{{{first}\\{{\scriptsize {second}}}}}"
    if len(cell) <= _LATEX_HEADER or " " not in cell:
        return escape_latex(cell)
    blanks = [i for i, letter in enumerate(cell) if letter == " "]
    middle = min(blanks, key=lambda i: abs(len(cell) - 2 * i))
    first, second = escape_latex(cell[:middle]), escape_latex(cell[middle + 1 :])
    return rf"\shortstack[r]{{{first}\\{second}}}"


def _latex_cell(cell: Text) -> str:
    main, beside = (escape_latex(_MINUS.sub("−", text)) for text in (cell.main, cell.beside))
    main = rf"\textbf{{{main}}}" if cell.bold else main
    if not beside:
        return main
    return rf"\begin{{tabular}}[t]{{@{{}}r@{{}}}}{main}\\[-2pt]{{\scriptsize {beside}}}\end{{tabular}}"


def _latex_line(cells: Sequence[str]) -> str:
    joined = " & ".join(cells)
    return ("{}" if joined.startswith("[") else "") + joined + r" \\"
