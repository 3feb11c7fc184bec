"""Figures of a report: drawn without a screen, safe for common colour vision, of fixed bytes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.content import atomic_path
from bench.reporting.frame import Cell, Row, Table
from bench.reporting.sheet import SheetLayout, contact_sheet, sheet_layout
from bench.reporting.words import MISSING, Column, decimals, header, number, of_distribution
from bench.types import BenchError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["SheetLayout", "contact_sheet", "overview", "sheet_layout"]

# Okabe and Ito 2008: told apart by readers with any common colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK, SOFT, GRID = "#222222", "#666666", "#e3e3e3"
# A method has its colour in every figure; methods unknown here share the others.
_OF_METHOD: Mapping[str, str] = {
    "bps": "#0072B2",
    "controlnet": "#D55E00",
    "t2i-adapter": "#009E73",
    "sd-finetune": "#CC79A7",
    "lora-concat": "#E69F00",
    "controlnet-xs": "#56B4E9",
    "text-only": SOFT,
}
_OF_OTHERS = ("#000000", "#999933", "#332288", "#661100")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
_SIGNS = ("", "- - ", "· · ", "- · ")  # before labels, which have no line to show a dash
_MARKERS = "osD^v"
_SHADES = (0.0, -0.4, 0.3)  # towards black, towards white
_MARKS: Mapping[str, tuple[str, bool]] = {
    "reference": ("D", False),
    "ceiling": ("D", True),
    "method": ("o", True),
    "shuffled": ("o", False),
    "other": ("s", False),
    "floor": ("s", True),
}
BOX = {"facecolor": "white", "edgecolor": "none", "pad": 0.4, "alpha": 0.85}
# Dates and versions would move the bytes of a figure that did not change.
_NO_METADATA = {"CreationDate": None, "Creator": None, "Producer": None}
_NOT_IN_OVERVIEW = ("kid",)
_SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "xtick.color": SOFT,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "savefig.dpi": 150.0,
    "pdf.fonttype": 42,  # TrueType: publishers refuse the default, Type 3
}


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a row is drawn; sign: of its dash, before a label that has no line to show it."""

    colour: str
    marker: str
    dash: Any
    sign: str


def looks(methods: Mapping[str, str]) -> dict[str, Look]:
    """Return the look of each name, given with its method: the method's colour in every figure.

    Further names of one method differ in shade, dash and marker, twelve of them in the first two.
    """
    found: dict[str, Look] = {}
    seen: Counter[str] = Counter()
    for name, method in methods.items():
        spare = _OF_OTHERS[sum(method.encode()) % len(_OF_OTHERS)]
        found[name] = _look(_OF_METHOD.get(method, spare), seen[method])
        seen[method] += 1
    return found


def plain_looks(names: Iterable[str]) -> dict[str, Look]:
    """Return the looks of names that are no methods: one colour each, then dashes."""
    return {
        name: replace(_look(COLOURS[i % len(COLOURS)], 0), **_dash(i // len(COLOURS)))
        for i, name in enumerate(names)
    }


def _look(colour: str, place: int) -> Look:
    shade = _SHADES[place % len(_SHADES)]
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    mixed = (round(p + shade * (255 - p)) if shade > 0 else round(p * (1 + shade)) for p in parts)
    hexadecimal = "".join(f"{part:02x}" for part in mixed)
    return Look(colour=f"#{hexadecimal}", marker=_MARKERS[place % len(_MARKERS)], **_dash(place))


def _dash(place: int) -> dict[str, Any]:
    return {"dash": _DASHES[place % len(_DASHES)], "sign": _SIGNS[place % len(_SIGNS)]}


def overview(table: Table, path: Path, *, across: int = 4, pdf: bool = False) -> Path:
    """Draw each metric as a panel of dots with 95% intervals, one line a row of the table, as PNG.

    The dotted line is the floor. across: panels side by side; pdf: see `figure_file`. The same
    table gives the same bytes. BenchError where the table holds no number.
    """
    columns = [
        c
        for c in table.columns
        if _numbers(table, c) and c.metric not in _NOT_IN_OVERVIEW and not of_distribution(c)
    ]
    if not columns:
        raise BenchError(f"no numbers to draw for {table.suite} / {table.task}")
    across = min(across, len(columns))
    down = -(-len(columns) // across)
    longest = max(len(row.label) for row in table.rows)
    size = (0.3 + 0.075 * longest + 2.35 * across, 0.5 + down * (0.75 + 0.3 * len(table.rows)))
    with figure_file(path, size=size, pdf=pdf) as figure:
        figure.suptitle(
            f"{table.title}: values with 95% intervals over items",
            x=0.01,
            ha="left",
            fontsize=11,
            color=INK,
        )
        axes = figure.subplots(down, across, squeeze=False, sharey=True)
        for axis in axes.flat[len(columns) :]:
            axis.set_visible(False)
        for axis, column in zip(axes.flat, columns, strict=False):
            _panel(axis, table, column)
    return Path(path)


@contextmanager
def figure_file(path: Path, *, size: tuple[float, float], pdf: bool = False) -> Iterator[Figure]:
    """Give an empty figure and write it as PNG when the block ends; no state is shared with others.

    size: inches. pdf: write the same figure beside it as PDF too, for papers, at `pdf_path`.
    """
    with _figure(size, layout="constrained") as figure:
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})
        if pdf:
            _save_pdf(figure, pdf_path(path))


@contextmanager
def pdf_file(path: Path, *, size: tuple[float, float]) -> Iterator[Figure]:
    """Give an empty figure, whose parts stay where they are put, and write it as PDF alone."""
    with _figure(size, layout=None) as figure:
        yield figure
        _save_pdf(figure, path)


@contextmanager
def _figure(size: tuple[float, float], *, layout: Literal["constrained"] | None) -> Iterator[Figure]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.style import context

    with context(["default", _SETTINGS]):
        figure = Figure(figsize=size, layout=layout)
        FigureCanvasAgg(figure)
        yield figure


def _save_pdf(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="pdf", metadata=_NO_METADATA)


def pdf_path(path: Path) -> Path:
    """Return where the PDF of a figure lies: beside its PNG, under the same name."""
    return Path(path).with_suffix(".pdf")


def _panel(axis: Axes, table: Table, column: Column) -> None:
    numbers = _numbers(table, column)
    digits = _panel_digits([cell for _, _, cell in numbers])
    for place in set(range(len(table.rows))) - {place for place, _, _ in numbers}:
        where, align = (0.02, place), axis.get_yaxis_transform()
        axis.text(*where, MISSING, transform=align, va="center", fontsize=9, color=SOFT, bbox=BOX)
    for place, row, cell in numbers:
        _dot(axis, place, row, cell, digits)
        if row.kind == "floor":
            axis.axvline(cell.value or 0.0, color=SOFT, linestyle=":", linewidth=1, zorder=0)
    axis.set_title(wrapped(header(column)), loc="left", fontsize=9, color=INK)
    axis.set_ylim(len(table.rows) - 0.5, -0.75)
    axis.set_yticks(range(len(table.rows)), [row.label for row in table.rows])
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="y", color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines["left"].set_visible(False)
    axis.locator_params(axis="x", nbins=4)
    axis.margins(x=0.14)


def _dot(axis: Axes, place: int, row: Row, cell: Cell, digits: int) -> None:
    (marker, filled), method = _MARKS[row.kind], row.runs[0].record.method
    colour = INK if row.kind in {"reference", "ceiling"} else looks({row.name: method})[row.name].colour
    value = cell.value if cell.value is not None else math.nan
    if cell.low is not None and cell.high is not None:
        axis.plot([cell.low, cell.high], [place, place], color=colour, linewidth=2, alpha=0.55)
    face = colour if filled else "white"
    axis.plot([value], [place], marker, color=colour, markersize=5.5, markerfacecolor=face, zorder=3)
    axis.annotate(
        number(value, digits),
        (value, place),
        xytext=(0, 4.5),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=7,
        color=SOFT,
        bbox=BOX,
    )


def _numbers(table: Table, column: Column) -> list[tuple[int, Row, Cell]]:
    found = [(i, row, row.cells.get(column)) for i, row in enumerate(table.rows)]
    return [(i, row, cell) for i, row, cell in found if cell and cell.value is not None]


def _panel_digits(cells: Sequence[Cell]) -> int:
    widths = [c.high - c.low for c in cells if c.low is not None and c.high is not None]
    return decimals([cell.value for cell in cells], widths=widths)


def wrapped(text: str) -> str:
    """Return a header with what stands in brackets on a line of its own."""
    return text.replace(" (", "\n(", 1)


def label_ends(axis: Axes, ends: Sequence[tuple[str, str, float, float]]) -> None:
    """Write each curve's name beside its end, pushed apart where names would overlap."""
    low, high = axis.get_ylim()
    least = (high - low) * 0.055
    heights = _apart([end[3] for end in ends], least=least)
    heights = _above(heights, floor=low + least / 2, least=least)  # names keep above the axis
    right = max(end[2] for end in ends)
    for (name, colour, _, _), height in zip(ends, heights, strict=True):
        axis.annotate(
            name,
            (right, height),
            xytext=(6, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            ha="left",
            fontsize=9,
            annotation_clip=False,
        )


def floor_line(axis: Axes, name: str, value: float, *, reach: float = 1.0) -> tuple[str, float]:
    """Dot a floor across the panel; return its label and where that stands.

    One farther away than `reach` times the height of the panel, which would flatten what else it
    shows, is told at the edge instead.
    """
    low, high = axis.get_ylim()
    if max(low - value, value - high) <= reach * (high - low):
        axis.axhline(value, color=SOFT, linestyle=":", linewidth=1, zorder=0)
        return name, value
    axis.set_ylim(low, high)
    return (f"{name} {value:.3g} ↓", low) if value < low else (f"{name} {value:.3g} ↑", high)


def _apart(values: Sequence[float], *, least: float) -> list[float]:
    """Return values moved up and down, their order kept, until neighbours are `least` apart."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    moved = list(values)
    for _ in range(200):
        for below, above in zip(order, order[1:], strict=False):
            lack = least - (moved[above] - moved[below])
            if lack > 0:
                moved[below] -= lack / 2
                moved[above] += lack / 2
    return moved


def _above(values: Sequence[float], *, floor: float, least: float) -> list[float]:
    """Return values with those under `floor` lifted to it, and as many above as are in the way."""
    moved, free = list(values), floor
    if min(moved) < floor:
        for i in sorted(range(len(moved)), key=lambda i: values[i]):
            moved[i] = max(moved[i], free)
            free = moved[i] + least
    return moved
