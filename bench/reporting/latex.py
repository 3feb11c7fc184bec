r"""A grid as LaTeX: floats over the whole width of the text, in one column and in two, that fit the page."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from bench.reporting.grid import Grid, Text
from bench.reporting.names import MISSING

_T = TypeVar("_T")
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
_MINUS = re.compile(r"(?<![\w.])-(?=\d)")
_BRACKETS = re.compile(r" \(([^)]*)\)")
_LONG_BRACKETS = 8  # letters: longer ones, which name judges, become marks that the caption explains

# Points. A4 with margins of 2.5 cm has 455 by 702, US letter 472 by 652.
_WIDTH, _HEIGHT = 450.0, 630.0
_GAP = 6.0  # between columns
_LINE, _INTERVAL = 9.5, 8.0  # of the table's type, and of an interval beneath a value
_HEAD = 44.0  # of a header with its rules
_CAPTION = 100  # letters in a line of a caption
_WORDS, _HEADER = 86.0, 48.0  # the width that a column of words, and the words of a header, keep to
_UNBROKEN = 78.0  # wider words may be broken anywhere
_SMALL, _BOLD = 0.94, 1.16  # times the width of the table's type
_LETTERS: Mapping[str, float] = {  # widths of Computer Modern at 8 points
    **dict.fromkeys("ijl.,:;'!|[]I", 2.4),
    **dict.fromkeys("()ftrs- ", 3.35),
    **dict.fromkeys("0123456789acegovxyz–/↑↓", 4.3),
    **dict.fromkeys("wCDGHKNOQRUVXYABEFLPTZS&", 6.7),
    **dict.fromkeys("mMW%+−=±×<>@", 7.9),
}


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One tabular of a grid: its columns, its lines and how wide columns of words are set."""

    columns: tuple[int, ...]
    lines: tuple[int, ...]
    words: tuple[float, ...]


def to_latex(grid: Grid, *, key: str) -> str:
    r"""Return the grid as floating tables with \label{tab:key}, ready for \input; needs booktabs.

    They take the whole width of the text, also where it has two columns. Columns that do not fit
    beside each other follow beneath, and what does not fit a page in further floats of one number.
    """
    marks = _marks(grid)
    notes = "".join(rf" $^{mark}$~{escape_latex(said)}." for said, mark in marks.items())
    caption = escape_latex(grid.caption) + notes
    lines = [r"% Needs \usepackage{booktabs}."]
    room = _HEIGHT - _LINE * (2 + len(grid.caption) / _CAPTION)
    for i, parts in enumerate(_pages(grid, _parts(grid, room), room)):
        title = rf"\caption{{{caption}}}\label{{tab:{key}}}"
        title = r"\addtocounter{table}{-1}\caption[]{Continued.}" if i else title
        lines += [r"\begin{table*}", r"\centering\footnotesize\setlength{\tabcolsep}{3pt}", title]
        lines += [line for part in parts for line in _tabular(grid, part, marks)]
        lines += [r"\end{table*}"]
    return "\n".join(lines) + "\n"


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


def _marks(grid: Grid) -> dict[str, str]:
    """Return a mark for each long text in brackets of the headers."""
    heads = [*grid.header[grid.left :], *grid.groups]
    found = [said for head in heads for said in _BRACKETS.findall(head) if len(said) > _LONG_BRACKETS]
    return {said: chr(ord("a") + i % 26) for i, said in enumerate(dict.fromkeys(found))}


def _parts(grid: Grid, room: float) -> Iterator[_Part]:
    """Yield the tabulars of a grid: columns as many as fit the width, lines as many as fit the page."""
    lead = list(range(grid.left))
    widths = [_column_width(grid, i) for i in range(len(grid.header))]
    least = [min(widths[i], _WORDS) for i in lead]
    across = _WIDTH - sum(width + _GAP for width in least)
    for columns in _blocks(grid, widths, across):
        left = across - sum(widths[i] + _GAP for i in columns)
        words = tuple(min(widths[i], width + left / len(lead)) for i, width in zip(lead, least, strict=True))
        own = [i for i in columns if not grid.groups or grid.groups[i]]
        whole = len(columns) == len(grid.header) - len(lead)
        lines = [
            i
            for i, line in enumerate(grid.body)
            if whole or any(line[c].main not in {"", MISSING} for c in own)
        ]
        part = _Part(columns=(*lead, *columns), lines=tuple(lines), words=words)
        for page in _fitting(lines, [_line_height(grid, part, i) for i in lines], room - _HEAD):
            yield _Part(columns=part.columns, lines=tuple(page), words=words)


def _blocks(grid: Grid, widths: Sequence[float], across: float) -> list[list[int]]:
    """Return the columns of each block, about equally wide: whole groups where one fits."""
    columns = range(grid.left, len(grid.header))
    lead = [i for i in columns if grid.groups and not grid.groups[i]]
    rest = [i for i in columns if i not in lead]
    across -= sum(widths[i] + _GAP for i in lead)
    named = [grid.groups[i] if grid.groups else str(i) for i in rest]
    units = [[rest[i] for i, n in enumerate(named) if n == name] for name in dict.fromkeys(named)]
    sizes = [sum(widths[i] + _GAP for i in unit) for unit in units]
    if max(sizes, default=0.0) > across:
        units = [[i] for unit in units for i in unit]
        sizes = [widths[i] + _GAP for (i,) in units]
    fewest = len(list(_fitting(units, sizes, across)))
    while across > 0 and len(list(_fitting(units, sizes, across - 5))) == fewest:
        across -= 5  # so that the last block is not a narrow rest
    return [[*lead, *itertools.chain(*block)] for block in _fitting(units, sizes, across)]


def _fitting(things: Sequence[_T], sizes: Sequence[float], room: float) -> Iterator[list[_T]]:
    """Yield things in lists, in order, whose sizes together keep to the room where there are two."""
    found: list[_T] = []
    used = 0.0
    for thing, size in zip(things, sizes, strict=True):
        if found and used + size > room:
            yield found
            found, used = [], 0.0
        found.append(thing)
        used += size
    if found:
        yield found


def _pages(grid: Grid, parts: Iterator[_Part], room: float) -> Iterator[list[_Part]]:
    known = list(parts)
    heights = [_HEAD + sum(_line_height(grid, part, i) for i in part.lines) for part in known]
    return _fitting(known, heights, room)


def _line_height(grid: Grid, part: _Part, line: int) -> float:
    """Return about how high a line is: a value has its interval beneath, words may be broken."""
    cells = grid.body[line]
    broken = [-(-_width(cells[i].main) // (0.8 * w)) for i, w in enumerate(part.words)]
    rule = _LINE if line in grid.rules else 0.0
    beneath = _INTERVAL if any(cells[i].beside for i in part.columns) else 0.0
    return rule + max(_LINE * max(broken), _LINE + beneath)


def _column_width(grid: Grid, column: int) -> float:
    cells = [max(_width(c.main, bold=c.bold), _SMALL * _width(c.beside)) for _, c in _column(grid, column)]
    if column < grid.left:
        return max([*cells, _width(grid.header[column]), 20.0])
    return max([*cells, *map(_width, _header_lines(grid.header[column]))])


def _column(grid: Grid, column: int) -> Iterator[tuple[int, Text]]:
    for i, line in enumerate(grid.body):
        yield i, line[column]


def _width(text: str, *, bold: bool = False) -> float:
    """Return about how wide text is set, in points, rather too much than too little."""
    width = sum(_LETTERS.get(letter, 4.75 if letter < "ſ" else 28.0) for letter in _MINUS.sub("−", text))
    return width * (_BOLD if bold else 1.0)


def _header_lines(text: str) -> list[str]:
    """Break a header into lines at blanks; its arrow keeps to the last word, long brackets are gone."""
    name = _BRACKETS.sub(lambda b: b[0] if len(b[1]) <= _LONG_BRACKETS else "", text)
    lines: list[str] = []
    for word in re.sub(r" ([↑↓])", r"\1", name).split():
        if lines and _width(f"{lines[-1]} {word}") <= _HEADER:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines or [""]


def _tabular(grid: Grid, part: _Part, marks: Mapping[str, str]) -> list[str]:
    """Return the lines of one tabular."""
    sides = "".join(f"p{{{width:.0f}pt}}" for width in part.words)
    sides += "r" * (len(part.columns) - len(part.words))
    groups = [grid.groups[i] for i in part.columns] if grid.groups else []
    heads = [_latex_header(grid.header[i], marks, words=i < grid.left) for i in part.columns]
    lines = [r"\par\smallskip", rf"\begin{{tabular}}{{{sides}}}", r"\toprule"]
    lines += _latex_groups(groups, marks) if any(groups) else []
    lines += [_latex_line(heads), r"\midrule"]
    for i in part.lines:
        lines += [r"\midrule"] if i in grid.rules and i != part.lines[0] else []
        lines.append(_latex_line([_latex_cell(grid.body[i][c], c < grid.left) for c in part.columns]))
    return [*lines, r"\bottomrule", r"\end{tabular}"]


def _latex_groups(groups: Sequence[str], marks: Mapping[str, str]) -> list[str]:
    """Return the line of headings over neighbours of one group, and the rules beneath them."""
    cells, rules, start = [], [], 0
    for name, members in itertools.groupby(groups):
        n = len(list(members))
        if name:
            head = _latex_header(name, marks, one=True)
            cells.append(rf"\multicolumn{{{n}}}{{c}}{{{head}}}")
            rules.append(rf"\cmidrule(lr){{{start + 1}-{start + n}}}")
        else:
            cells += [""] * n
        start += n
    return [_latex_line(cells), "".join(rules)]


def _latex_header(cell: str, marks: Mapping[str, str], *, words: bool = False, one: bool = False) -> str:
    """Set a header in as many lines as it needs, or in one, with the mark of what its brackets say."""
    if words:
        return escape_latex(cell)
    lines = _header_lines(cell)
    lines = [" ".join(lines)] if one else lines
    mark = next((marks[said] for said in _BRACKETS.findall(cell) if said in marks), "")
    set_lines = [escape_latex(line) for line in lines]
    set_lines[-1] += f"$^{mark}$" if mark else ""
    joined = r"\\".join(set_lines)
    return joined if len(lines) == 1 else rf"\shortstack[r]{{{joined}}}"


def _latex_cell(cell: Text, words: bool) -> str:
    if words:
        return rf"\raggedright {_breakable(cell.line)}"
    main, beside = (escape_latex(_MINUS.sub("−", text)) for text in (cell.main, cell.beside))
    main = rf"\textbf{{{main}}}" if cell.bold else main
    if not beside:
        return main
    return rf"\begin{{tabular}}[t]{{@{{}}r@{{}}}}{main}\\[-2pt]{{\scriptsize {beside}}}\end{{tabular}}"


def _breakable(text: str) -> str:
    """Return words of which the wide ones may be broken anywhere; an arrow keeps to what is before it."""
    words = []
    for word in re.sub(r" ([↑↓])", r"\1", _MINUS.sub("−", text)).split(" "):
        plain = word.rstrip("↑↓")
        between = "" if _width(word) <= _UNBROKEN else r"\hspace{0pt}"
        words.append(between.join(map(_latex_letter, plain)) + escape_latex(word[len(plain) :]))
    return " ".join(words)


def _latex_line(cells: Sequence[str]) -> str:
    joined = " & ".join(cells)
    return ("{}" if joined.startswith("[") else "") + joined + r" \\"
