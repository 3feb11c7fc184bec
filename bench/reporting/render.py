r"""A table of texts as Markdown, LaTeX, CSV and on a terminal; what it looks like stands in templates/.

LaTeX tables float over one or both columns of a page. Columns that do not fit beside each other, and
lines that do not fit a page, follow in further floats of one number; what is still too wide is scaled.
"""

from __future__ import annotations

import itertools
import json
import re
import textwrap
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, TypeVar

from bench.config import Columns

if TYPE_CHECKING:
    import pandas
    from jinja2 import Environment
    from rich.table import Table as RichTable

_T = TypeVar("_T")
MISSING = "–"
_FORMULA = tuple("=+-@\t\r")
_MARKDOWN = str.maketrans(
    {"<": "&lt;", ">": "&gt;", "&": "&amp;"} | {letter: f"\\{letter}" for letter in r"\|*`~"}
)
_LINK = re.compile(r"\](?=[(\[:])")
_LATEX = str.maketrans(
    {
        **{letter: f"\\{letter}" for letter in "&%#_{}"},
        **{"\\": r"\textbackslash{}", "$": r"$\mathdollar$", "~": r"\textasciitilde{}", '"': "''"},
        **{"^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
        **{"Δ": r"$\Delta$", "†": r"$\dagger$", "±": r"$\pm$", "∞": r"$\infty$", "µ": r"$\mu$"},
        **{"°": r"$^\circ$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "×": r"$\times$", "−": "$-$"},
        **{"–": "--", "…": r"\ldots{}", "\n": " ", "\t": " "},
    }
)
_LATEX_MARKS: dict[str, Any] = {
    **{"variable_start_string": "<<", "variable_end_string": ">>"},
    **{"block_start_string": "<%", "block_end_string": "%>"},
}
_MINUS = re.compile(r"(?<![\w.])-(?=\d)")
_HEADER = re.compile(r"(?P<name>.*?)(?P<judge> \(.*\))?(?P<arrow> [↑↓])?")
# Points, of \footnotesize. ICML has columns of 235 and 488 points, NeurIPS lines of 397, article of 345
# (two columns: 200 and 410); article's pages are the lowest, 550. What is wider is scaled.
_WIDTH: Mapping[Columns, float] = {"one": 215.0, "two": 400.0}
_HEIGHT = 520.0
_LETTER, _GAP, _LINE = 4.4, 6.0, 9.5
_WORDS: Mapping[Columns, int] = {"one": 20, "two": 30}  # letters in a line of a cell of words
_CAPTION = {"one": 45, "two": 80}  # letters in a line of a caption


@dataclass(frozen=True)
class Text:
    """A cell: the main text, bold where the output knows it, and a lesser one beside it (an interval)."""

    main: str
    beside: str = ""
    bold: bool = False

    @property
    def line(self) -> str:
        """Both texts in one line."""
        return f"{self.main} {self.beside}".rstrip()


@dataclass(frozen=True)
class Grid:
    """Header and body, every line as long as the header; a rule stands before each line of rules.

    left: how many leading columns are words (set to the left; numbers to the right). groups: what
    stands above each column ("" above those that lead every block), or none; equal neighbours stand
    under one heading.
    """

    header: tuple[str, ...]
    body: tuple[tuple[Text, ...], ...]
    caption: str
    left: int = 1
    rules: tuple[int, ...] = ()
    groups: tuple[str, ...] = ()


@cache
def _environment(**marks: Any) -> Environment:
    """Return the templates, with what they call to turn values into text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("bench.reporting"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **marks,
    )
    environment.filters |= {
        "md": escape_markdown,
        "tex": escape_latex,
        "code": code_span,
        "line": one_line,
        "table": to_markdown,
        "json": json_text,
        "ended": lambda end, name: f"{name}.{end}",
        "links": lambda files: ", ".join(f"[{file}]({file})" for file in files),
    }
    return environment


def filled(template: str, **values: Any) -> str:
    """Return a template with values filled in: in LaTeX, which is full of braces, between << >> or <% %>."""
    environment = _environment(**_LATEX_MARKS) if template.endswith(".tex") else _environment()
    return str(environment.get_template(template).render(values))


def template_text(name: str) -> str:
    """Return a template as it is."""
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def json_text(value: Mapping[str, Any]) -> str:
    """Return JSON to be read by people."""
    return json.dumps(dict(value), sort_keys=True, indent=1, ensure_ascii=False)


def data_block(data: Any) -> str:
    """Return data as JSON that is safe inside an HTML script block, whatever its texts hold."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # What ends the block or opens a comment in it, and line ends that older JavaScript has not in texts.
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def to_markdown(grid: Grid) -> str:
    """Return the grid as a GitHub table with its caption beneath, ending in a newline."""
    return filled("table.md", grid=grid)


def to_csv(frame: pandas.DataFrame) -> str:
    """Return a data frame as CSV; text that a spreadsheet would run as a formula begins with a quote."""
    safe = frame.map(lambda cell: f"'{cell}" if isinstance(cell, str) and cell[:1] in _FORMULA else cell)
    return str(safe.to_csv(index=False, lineterminator="\n"))


def plain_lines(grid: Grid) -> list[list[str]]:
    """Return a grid as lines of plain cells, the first of which heads it."""
    groups = grid.groups or [""] * len(grid.header)
    heads = [f"{group} {head}".strip() for group, head in zip(groups, grid.header, strict=True)]
    return [heads, *([cell.line for cell in line] for line in grid.body)]


def to_rich(grid: Grid) -> RichTable:
    """Return a grid as rich prints it on a terminal."""
    from rich.table import Table
    from rich.text import Text as RichText

    table = Table(title=RichText(grid.caption), title_justify="left")
    for i, head in enumerate(plain_lines(grid)[0]):
        table.add_column(RichText(head), justify="left" if i < grid.left else "right")
    for i, line in enumerate(grid.body):
        cells = [RichText(cell.line, style="bold" if cell.bold else "") for cell in line]
        table.add_row(*cells, end_section=i + 1 in grid.rules)
    return table


def to_plain(lines: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Return lines of cells in aligned columns for a terminal of any width, without trailing spaces."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = (
        [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    )
    return "".join("  ".join(line).rstrip() + "\n" for line in aligned)


def one_line(text: str) -> str:
    """Return text with a blank in place of what would break its line or is not shown."""
    whole = text.isprintable()
    return text if whole else "".join(letter if letter.isprintable() else " " for letter in text)


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows as it is, in one line: no table, code, tag or link comes of it."""
    return _LINK.sub(r"\\]", one_line(text).translate(_MARKDOWN))


def code_span(text: str) -> str:
    """Return text as code within a line of Markdown."""
    return f"`{one_line(text).replace('`', chr(39))}`"


def escape_latex(text: str) -> str:
    """Return text that pdflatex sets as it is; letters it may not know become their code point."""
    escaped = text.translate(_LATEX)
    return escaped if escaped.isascii() else "".join(map(_latex_letter, escaped))


def _latex_letter(letter: str) -> str:
    spelled = unicodedata.normalize("NFD", letter)
    known = " " <= spelled[0] < "\x7f" and letter < "ſ" and len(spelled) <= 2
    return letter if known else rf"\texttt{{U+{ord(letter):04X}}}"


def to_latex(grid: Grid, *, key: str, columns: Columns = "two") -> str:
    r"""Return the grid as floating tables with \label{tab:key}, ready for \input.

    columns: how many columns of a page of two they take; "two" is also the width of a page of one.
    """
    letters = [_WORDS[columns] if i < grid.left else 0 for i in range(len(grid.header))]
    heads = [_head(text, n or 12) for text, n in zip(grid.header, letters, strict=True)]
    body = [[_cell(cell, n) for cell, n in zip(line, letters, strict=True)] for line in grid.body]
    room = _HEIGHT - _LINE * (4 + len(grid.caption) / _CAPTION[columns])
    parts = []
    for block in _blocks(grid, [heads, *body], _WIDTH[columns]):
        values = [i for i in block if i >= grid.left and (not grid.groups or grid.groups[i])]
        shown = [  # lines that have something in a block which holds but some of the columns
            n
            for n, line in enumerate(grid.body)
            if len(block) == len(grid.header) or any(line[i].main not in {"", MISSING} for i in values)
        ]
        tall = [_LINE * (0.3 + max(len(body[n][i]) for i in block)) for n in shown]
        above = [grid.groups[i] for i in block] if grid.groups else []
        over = itertools.groupby(above if any(above) else [])
        part = {
            "sides": "".join("l" if i < grid.left else "r" for i in block),
            "groups": [(name, len(list(members))) for name, members in over],
            "heads": [heads[i] for i in block],
        }
        for fit in _fitting(shown, tall, room):
            lines = [(n in grid.rules and n != fit[0], [body[n][i] for i in block]) for n in fit]
            parts.append({**part, "lines": lines})
    float_name = "table" if columns == "one" else "table*"
    return filled("table.tex", parts=parts, float=float_name, key=key, caption=grid.caption)


_Lines = Sequence[tuple[str, str]]
"""Lines of a cell, each with the LaTeX command that sets it ("" for none)."""


def _head(text: str, letters: int) -> _Lines:
    """Break a header at blanks, its arrow kept to its last word, and set its judge small beneath."""
    parts = _HEADER.fullmatch(text)
    assert parts is not None, text
    name, judge = f"{parts['name']}{(parts['arrow'] or '').strip()}", (parts["judge"] or "").strip()
    lines = [(line, "") for line in textwrap.wrap(name, letters)]
    return lines + [(line, r"\scriptsize") for line in textwrap.wrap(judge, 14)]


def _cell(cell: Text, letters: int) -> _Lines:
    """Return the lines of a cell of words of so many letters, or of a number (0) and its interval."""
    if letters:
        return [(line, "") for line in textwrap.wrap(cell.line, letters)]
    main, beside = (_MINUS.sub("−", text) for text in (cell.main, cell.beside))
    lines = [(main, r"\bfseries" if cell.bold else ""), (beside, r"\scriptsize")]
    return [line for line in lines if line[0]]


def _blocks(grid: Grid, lines: Sequence[Sequence[_Lines]], room: float) -> Iterator[list[int]]:
    """Yield the columns of each block: those that lead, and others that fit, in whole groups if they do."""
    widths = [
        _GAP + max(_LETTER * len(text) for line in lines for text, _ in line[i] or [("", "")])
        for i in range(len(grid.header))
    ]
    lead = [i for i in range(len(widths)) if i < grid.left or (grid.groups and not grid.groups[i])]
    rest = [i for i in range(len(widths)) if i not in lead]
    room -= sum(widths[i] for i in lead)
    units = [
        list(unit) for _, unit in itertools.groupby(rest, lambda i: grid.groups[i] if grid.groups else i)
    ]
    if any(sum(widths[i] for i in unit) > room for unit in units):
        units = [[i] for i in rest]
    for block in _fitting(units, [sum(widths[i] for i in unit) for unit in units], room):
        yield [*lead, *itertools.chain(*block)]


def _fitting(things: Sequence[_T], sizes: Sequence[float], room: float) -> Iterator[list[_T]]:
    """Yield things in lists, in order, whose sizes together keep to the room where there are two."""
    fitting: list[_T] = []
    used = 0.0
    for thing, size in zip(things, sizes, strict=True):
        if fitting and used + size > room:
            yield fitting
            fitting, used = [], 0.0
        fitting.append(thing)
        used += size
    yield from [fitting] if fitting else []
