"""A grid of text, and the same grid as Markdown and plain text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.reporting.names import one_line

if TYPE_CHECKING:
    import pandas

_FORMULA = tuple("=+-@\t\r")
_MARKDOWN = {"<": "&lt;", ">": "&gt;", "&": "&amp;"} | {letter: f"\\{letter}" for letter in r"\|*`~"}
_LINK = re.compile(r"\](?=[(\[:])")


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
    under one heading.
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


def to_csv(frame: pandas.DataFrame) -> str:
    """Return a data frame as CSV; text that a spreadsheet would run as a formula begins with a quote."""
    safe = frame.map(lambda cell: f"'{cell}" if isinstance(cell, str) and cell[:1] in _FORMULA else cell)
    return str(safe.to_csv(index=False, lineterminator="\n"))


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
    """Return text that Markdown shows as it is, in one line: no table, code, tag or link comes of it."""
    return _LINK.sub(r"\\]", "".join(_MARKDOWN.get(letter, letter) for letter in one_line(text)))


def code_span(text: str) -> str:
    """Return text as code within a line of Markdown."""
    return f"`{one_line(text).replace('`', chr(39))}`"
