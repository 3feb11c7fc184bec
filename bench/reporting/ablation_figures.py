"""Figures of ablations: differences as bars, quality along an axis, layer weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.packed import Run
from bench.reporting.ablations import AblationTable
from bench.reporting.differences import Difference
from bench.reporting.figures import (
    BOX,
    GRID,
    INK,
    SOFT,
    Look,
    figure_file,
    floor_line,
    label_ends,
    looks,
    wrapped,
)
from bench.reporting.frame import Row
from bench.reporting.tables import difference_cell
from bench.reporting.words import Column, header, titled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_Point = tuple[float, float, float | None, float | None]
_BETTER, _WORSE, _UNTOLD = "#44AA99", "#882255", "#9a9a9a"  # none is a method's
_KEY = "teal better, wine worse, grey not told apart"
AXES = {
    "train_items": "training items",
    "guidance": "guidance",
    "steps": "sampling steps",
}
_LOGARITHMIC = ("train_items", "steps")
_LEVELS = {slot: f"level {1 + slot // 3}{'ab'[(slot - 1) % 3]}" for slot in (1, 2, 4, 5, 7, 8, 10, 11)}
_MIDDLE = 12


def bars_figure(table: AblationTable, path: Path, *, pdf: bool = False) -> Path | None:
    """Draw each variant minus the reference as a bar with its 95% interval, a panel a metric.

    Teal is better than the reference, wine worse, grey not told apart. None, and no file, where
    there is no difference. The same table gives the same bytes.
    """
    lines = [line for line in table.rows if line.differences]
    columns = [c for c in table.columns if any(c in line.differences for line in lines)]
    if not columns:
        return None
    names = [line.name for line in lines]
    width = 0.3 + 0.075 * max(map(len, names)) + 2.6 * len(columns)
    with figure_file(path, size=(width, 1.5 + 0.34 * len(lines)), pdf=pdf) as figure:
        title = f"{table.title}: minus {titled(table.ablation.reference)}, 95% intervals, paired\n{_KEY}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)
        axes = figure.subplots(1, len(columns), squeeze=False, sharey=True)
        for axis, column in zip(axes.flat, columns, strict=True):
            for place, line in enumerate(lines):
                if column in line.differences:
                    _bar(axis, place, line.differences[column])
            _bar_axis(axis, column, names)
    return Path(path)


def axis_figure(table: AblationTable, path: Path, *, pdf: bool = False) -> Path | None:
    """Draw quality along the ablation's axis, a line a method with 95% intervals, a panel a metric.

    Floors, which no axis moves, are dotted. None, and no file, where fewer than two places are known.
    """
    axis_name = table.ablation.axis
    lines = [line for line in table.rows if line.kind == "method"]
    columns = [c for c in table.columns if any(_known(line, c) for line in lines)]
    if not axis_name or not columns or len({line.setting(axis_name) for line in lines}) < 2:
        return None
    across = 2 if len(columns) == 4 else min(len(columns), 3)
    down = -(-len(columns) // across)
    with figure_file(path, size=(0.6 + 3.9 * across, 0.4 + 3.2 * down), pdf=pdf) as figure:
        title = f"{table.title}: 95% intervals over items"
        title += "; dashed: the suite's own" if table.ablation.resamples else ""
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)
        axes = figure.subplots(down, across, squeeze=False)
        for axis in axes.flat[len(columns) :]:
            axis.set_visible(False)
        for axis, column in zip(axes.flat, columns, strict=False):
            _curves(axis, table, column)
    return Path(path)


def weights_figure(table: AblationTable, path: Path, *, pdf: bool = False) -> Path | None:
    """Draw layer weights that were trained along beside those they started from, which are the paper's.

    Above the weights themselves, below how far each moved; a line a seed. None, and no file, where
    no run holds such weights.
    """
    runs = [run for run in table.runs if moved(run) > 0.0]
    if not runs:
        return None
    with figure_file(path, size=(6.4, 5.4), pdf=pdf) as figure:
        axis, below = figure.subplots(2, sharex=True)
        seen = [run.items.layer_weights for run in runs if run.items is not None]
        slots = [slot for slot, _, _ in seen[0]]
        places = range(len(slots))
        axis.step(
            places,
            [start for _, start, _ in seen[0]],
            where="mid",
            color=SOFT,
            linewidth=1.4,
            linestyle=(0, (5, 2)),
            label="the paper's, where they started",
        )
        styles = looks({run.record.run_id: run.record.method for run in runs})
        for run, weights in zip(runs, seen, strict=True):
            style = {
                "marker": styles[run.record.run_id].marker,
                "color": styles[run.record.run_id].colour,
                "markersize": 5,
                "linewidth": 1.2,
                "label": f"learned, seed {run.record.seed}",
            }
            axis.plot(places, [now for _, _, now in weights], **style)
            below.plot(places, [now - start for _, start, now in weights], **style)
        below.set_xticks(places, [_LEVELS.get(slot, "middle") for slot in slots], rotation=35, ha="right")
        axis.set_ylabel("layer weight")
        below.set_ylabel("moved by")
        below.axhline(0.0, color=SOFT, linewidth=1.4, linestyle=(0, (5, 2)))
        axis.set_ylim(bottom=min(0.0, *(now for w in seen for _, _, now in w)))
        most = max(map(moved, runs))
        title = f"Learned schedule on {table.suite} / {table.task}: moved by {most:.2g} at most"
        axis.set_title(title, loc="left", fontsize=10)
        for panel in (axis, below):
            panel.grid(axis="y", color=GRID, linewidth=0.8)
            panel.set_axisbelow(True)
        axis.legend(frameon=False, fontsize=8)
    return Path(path)


def moved(run: Run) -> float:
    """Return how far a run's layer weights went from their start, 0 where none or rounding alone.

    Some published items hold weights of fixed schedules that single precision has rounded.
    """
    weights = run.items.layer_weights if run.items is not None else ()
    gaps = (abs(now - start) for _, start, now in weights if not math.isclose(start, now, rel_tol=1e-6))
    return max(gaps, default=0.0)


def _bar(axis: Axes, place: int, difference: Difference) -> None:
    interval = difference.interval
    better = (interval.value > 0) == (difference.column.better == "higher")
    colour = _UNTOLD if not difference.clear else _BETTER if better else _WORSE
    axis.barh(place, interval.value, height=0.62, color=colour, alpha=0.75)
    axis.plot([interval.low, interval.high], [place, place], color=INK, linewidth=1.3)
    ends = (interval.low, interval.high, 0.0)
    right = abs(max(ends)) >= abs(min(ends))
    axis.annotate(
        difference_cell(difference).main,
        (max(ends) if right else min(ends), place),
        xytext=(4 if right else -4, 0),
        textcoords="offset points",
        va="center",
        ha="left" if right else "right",
        fontsize=7,
        color=SOFT,
        bbox=BOX,
    )


def _bar_axis(axis: Axes, column: Column, names: Sequence[str]) -> None:
    axis.axvline(0.0, color=INK, linewidth=0.9)
    axis.set_title(wrapped(header(column)), loc="left", fontsize=9, color=INK)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_yticks(range(len(names)), names)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.grid(axis="x", color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.locator_params(axis="x", nbins=4)
    axis.margins(x=0.28)


def _known(line: Row, column: Column) -> bool:
    cell = line.cells.get(column)
    return cell is not None and cell.value is not None


def _curves(axis: Axes, table: AblationTable, column: Column) -> None:
    name = table.ablation.axis
    methods = list(dict.fromkeys(line.record.method for line in table.rows))
    ticks, ends = sorted({line.setting(name) for line in table.rows}), []
    floors: list[tuple[str, float]] = []
    for method in methods:
        own = [line for line in table.rows if line.record.method == method]
        known = sorted((p for line in own for p in _point(line, name, column)), key=lambda p: p[0])
        if not known:
            continue
        if own[0].kind == "floor":
            floors.append((titled(method), known[0][1]))
        else:
            look = looks({method: method})[method]
            _curve(axis, known, look)
            ends.append((titled(method), look.colour, known[-1][0], known[-1][1]))
    if table.ablation.resamples:
        place = next(line.setting(name) for line in table.rows if table.is_reference(line))
        axis.axvline(place, color=SOFT, linestyle=(0, (5, 2)), linewidth=1, zorder=0)
    for floor in floors:
        words, height = floor_line(axis, *floor)
        ends.append((words, SOFT, ticks[-1], height))
    _scale(axis, name, ticks)
    axis.set_title(wrapped(header(column)), loc="left", fontsize=9, color=INK)
    if len(ends) > 1:
        label_ends(axis, ends)


def _point(line: Row, axis_name: str, column: Column) -> Iterator[_Point]:
    cell = line.cells.get(column)
    if cell is not None and cell.value is not None:
        yield line.setting(axis_name), cell.value, cell.low, cell.high


def _curve(axis: Axes, points: Sequence[_Point], look: Look) -> None:
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    axis.plot(xs, ys, look.marker, linestyle="-", color=look.colour, linewidth=1.6, markersize=4.5)
    for x, _, low, high in points:
        if low is not None and high is not None:
            axis.plot([x, x], [low, high], color=look.colour, linewidth=1.4, alpha=0.5)


def _scale(axis: Axes, name: str, ticks: Sequence[float]) -> None:
    if name in _LOGARITHMIC:
        axis.set_xscale("log")
        axis.minorticks_off()
    axis.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
    axis.set_xlabel(AXES[name])
    axis.grid(color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
