"""Quality against cost: one point a method, with its interval and its name."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.reporting.figures import GRID, INK, SOFT, Look, figure_file, floor_line, looks
from bench.reporting.frame import Row
from bench.reporting.tables import mean_cost
from bench.reporting.words import Column, count, header, primary_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

_COSTS = {
    "train_seconds": "training seconds",
    "parameters_trainable": "trainable parameters",
}
_REACH_OF_AXIS = 0.25  # heights of a panel: a floor farther away would press the methods together
_REACHES = (9, 16, 26, 38, 52, 68)  # points between a mark and its name
_DIRECTIONS = 16


@dataclass(frozen=True, kw_only=True)
class _Point:
    name: str
    x: float
    y: float
    low: float | None
    high: float | None


def cost_panels(rows: Sequence[Row], columns: Sequence[Column], *, task: str) -> list[Column]:
    """Return the columns that `cost_figure` can draw: primary fidelity and FD, where points exist."""
    wanted = (*primary_metrics(task), "fd")
    found = [c for metric in wanted for c in columns if c.metric == metric]
    return [c for c in found if any(_points(rows, c, key) for key in _COSTS)]


def cost_figure(
    rows: Sequence[Row],
    columns: Sequence[Column],
    path: Path,
    *,
    title: str,
    pdf: bool = False,
) -> Path:
    """Draw each column against training seconds and trainable parameters (log axes), as PNG.

    rows: methods and floors of one table; floors, which train nothing, are dotted lines, or told at
    the edge where they lie far away. columns: of `cost_panels`, one line of panels each; pdf: see
    `figure_file`. The same rows give the same bytes.
    """
    styles = looks({row.name: row.runs[0].record.method for row in rows if row.kind == "method"})
    size = (10.0, 0.5 + 3.4 * len(columns))
    with figure_file(path, size=size, pdf=pdf) as figure:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)
        axes = figure.subplots(len(columns), len(_COSTS), squeeze=False, sharey="row")
        panels = list(itertools.product(columns, _COSTS))
        for axis, (column, key) in zip(axes.flat, panels, strict=True):
            _panel(axis, rows, column, key, styles)
        figure.draw_without_rendering()  # fixes where panels stand, so that names can be placed
        figure.set_layout_engine("none")
        for axis, (column, key) in zip(axes.flat, panels, strict=True):
            _place_names(axis, _points(rows, column, key), styles)
    return Path(path)


def _points(rows: Sequence[Row], column: Column, key: str) -> list[_Point]:
    """Return the methods that have both numbers."""
    found = []
    for row in rows:
        cell, cost = row.cells.get(column), mean_cost(row, key)
        if row.kind == "method" and cell is not None and cell.value is not None and cost:
            found.append(_Point(name=row.name, x=cost, y=cell.value, low=cell.low, high=cell.high))
    return found


def _panel(axis: Axes, rows: Sequence[Row], column: Column, key: str, styles: Mapping[str, Look]) -> None:
    points = _points(rows, column, key)
    for p in points:
        colour, marker = styles[p.name].colour, styles[p.name].marker
        if p.low is not None and p.high is not None:
            axis.plot([p.x, p.x], [p.low, p.high], color=colour, linewidth=1.6, alpha=0.55)
        axis.plot([p.x], [p.y], marker, color=colour, markersize=6, zorder=3)
    axis.margins(y=0.18)
    for row in rows:
        cell = row.cells.get(column)
        if row.kind == "floor" and cell is not None and cell.value is not None:
            words, height = floor_line(axis, row.name, cell.value, reach=_REACH_OF_AXIS)
            axis.annotate(
                words,
                (1.0, height),
                xycoords=("axes fraction", "data"),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=SOFT,
            )
    _log_axis(axis, [p.x for p in points])
    axis.set_xlabel(_COSTS[key])
    if key == next(iter(_COSTS)):
        axis.set_ylabel(header(column))
    axis.grid(color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)


def _log_axis(axis: Axes, values: Sequence[float]) -> None:
    """Set a log axis about the values with ticks at 1, 2 and 5, or finer where these are too few."""
    if not values:
        return
    low, high = min(values) / 1.6, max(values) * 1.6
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [s * 10.0**e for e in exponents for s in steps if low <= s * 10.0**e <= high]
        if len(ticks) >= 3:
            break
    axis.set_xticks(ticks, [count(tick) for tick in ticks])
    axis.minorticks_off()


def _place_names(axis: Axes, points: Sequence[_Point], styles: Mapping[str, Look]) -> None:
    """Write each name near its mark where it covers no mark, no interval and no other name."""
    from matplotlib.transforms import Bbox

    taken = []
    for point in points:
        x, y = axis.transData.transform((point.x, point.y))
        taken.append(Bbox.from_extents(x - 8, y - 8, x + 8, y + 8))
        if point.low is not None and point.high is not None:
            ends = axis.transData.transform([(point.x, point.low), (point.x, point.high)])
            taken.append(Bbox.from_extents(x - 2, ends[0][1], x + 2, ends[1][1]))
    for point in sorted(points, key=lambda p: (p.x, p.y, p.name)):
        colour = styles[point.name].colour
        note = axis.annotate(
            point.name,
            (point.x, point.y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=8,
            color=colour,
            ha="center",
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "shrinkA": 0,
                "shrinkB": 3,
                "alpha": 0.6,
            },
        )
        taken.append(_put(note, axis, taken, (point.x, point.y)))


def _put(note: Annotation, axis: Axes, taken: Sequence[Bbox], spot: tuple[float, float]) -> Bbox:
    """Move a name to the nearest place that covers least, and return the box it then takes."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    own = Text.get_window_extent(note)
    x, y = axis.transData.transform(spot)
    pixels = axis.get_figure(root=True).dpi / 72  # type: ignore[union-attr]
    best: tuple[float, Bbox] | None = None
    for reach, turn in itertools.product(_REACHES, range(_DIRECTIONS)):
        angle = 2 * math.pi * turn / _DIRECTIONS
        dx = math.cos(angle) * (reach * pixels + own.width / 2)
        dy = math.sin(angle) * (reach * pixels + own.height / 2)
        box = Bbox.from_bounds(x + dx - own.width / 2, y + dy - own.height / 2, own.width, own.height)
        cost = sum(_overlap(box, other) for other in taken) + reach * pixels
        cost += 10.0 * (own.width * own.height - _overlap(box, axis.bbox))
        if best is None or cost < best[0] - 1e-6:
            best = cost, box
            note.set_position((dx / pixels, dy / pixels))
    assert best is not None, note
    return best[1]


def _overlap(one: Bbox, other: Bbox) -> float:
    across = min(one.x1, other.x1) - max(one.x0, other.x0)
    down = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(across, 0.0) * max(down, 0.0)
