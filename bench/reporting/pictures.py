"""Which pictures a table and an ablation have, and what they show."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.packed import Run
from bench.registry import FLOOR
from bench.reporting.ablations import AblationTable
from bench.reporting.figures import Mark, Panel, curve_figure, dot_figure, gallery_figure, plane_figure
from bench.reporting.frame import OWN_METHOD, Row, Table
from bench.reporting.tables import column_digits, difference_cell, mean_cost
from bench.reporting.words import (
    Column,
    header,
    made_equal,
    number,
    of_distribution,
    primary_metrics,
    titled,
)
from bench.types import BenchError

_COSTS = {"train_seconds": "training seconds", "parameters_trainable": "trainable parameters"}
_AXES = {"train_items": "training items", "guidance": "guidance", "steps": "sampling steps"}
_SHOWN, _MOST = 8, 10  # items and rows of a gallery: more columns would be too small to see
_LEVELS = {slot: f"level {1 + slot // 3}{'ab'[(slot - 1) % 3]}" for slot in (1, 2, 4, 5, 7, 8, 10, 11)}
SAMPLES = "samples of the same items from the same initial noise"
CURVES = "training curves, first seed"


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Pictures of the same items from the same initial noise, by column, [N,H,W,3] uint8 each.

    columns: "condition", rows, "target"; runs: the id of each row's run, all of one seed.
    """

    seed: int
    columns: Mapping[str, np.ndarray]
    runs: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What is drawn -> its PNG, beside which lies a PDF, and the galleries of samples, one a protocol.

    left_out: why rows are in no gallery, or not drawn of it, in sentences.
    """

    figures: Mapping[str, str]
    galleries: Sequence[Gallery]
    left_out: Sequence[str]

    @property
    def pdfs(self) -> list[str]:
        """The figures as PDF, in their order."""
        return [str(Path(name).with_suffix(".pdf")) for name in self.figures.values()]


def draw_table(table: Table, rows: Sequence[Row], out: Path, *, name: str) -> Pictures:
    """Draw the pictures of a table into `out`.

    rows: methods and floors in the order and under the names to show; name: of the table's files.
    Tables of mixed protocols get no picture that would put rows of two protocols side by side.
    """
    galleries, left_out = [], []
    for digest in dict.fromkeys(row.protocol_hash for row in rows):
        shown, reasons = gallery([row for row in rows if row.protocol_hash == digest])
        galleries += [shown] if shown is not None else []
        left_out += reasons
    drawn = {"overview": _overview(table, out / f"overview-{name}.png")}
    if not table.marks:
        drawn["cost"] = _cost(table, rows, out / f"cost-{name}.png")
    uniform = [row for row in rows if row.record.options.get("timesteps", "uniform") == "uniform"]
    curves = {row.name: row.runs[0] for row in uniform}  # a loss over other timesteps is another loss
    drawn["curves"] = _curves(curves, out / f"curves-{name}.png", table)
    if not table.marks and galleries:
        drawn["samples"] = _samples(galleries[0], out / f"qualitative-{name}.png", table.title)
    return _pictures(drawn, galleries, left_out)


def draw_ablation(table: AblationTable, out: Path, *, name: str) -> Pictures:
    """Draw the figures of an ablation into `out`; their keys say what they show.

    Samples are of each variant; along training items, of the reference's at each number of them.
    """
    drawn: dict[str, Path | None] = {}
    if table.ablation.axis:
        drawn[f"quality by {_AXES[table.ablation.axis]}"] = _along(table, out / f"{name}.png")
    else:
        drawn["differences to the paper's setting"] = _differences(table, out / f"{name}.png")
        drawn["learned layer weights"] = _weights(table, out / f"{name}-weights.png")
        runs = {row.name: row.runs[0] for row in table.rows}
        drawn[CURVES] = _curves(runs, out / f"{name}-curves.png", table, minus=_references(table))
    along = table.ablation.axis == "train_items"
    rows = [
        row
        for row in table.rows
        if row.variant is not None and not (along and row.variant.name != table.ablation.reference)
    ]
    shown, left_out = gallery(rows)
    references = {row.name for row in rows if table.is_reference(row)}
    if shown is None or len(shown.runs) < 2 or not shown.runs.keys() & references:
        return _pictures(drawn, [], [])
    drawn[SAMPLES] = _samples(shown, out / f"{name}-samples.png", table.title)
    return _pictures(drawn, [shown], left_out)


def _pictures(drawn: Mapping[str, Path | None], shown: Sequence[Gallery], left_out: list[str]) -> Pictures:
    crowd = [f"{name} is not shown for want of room." for one in shown for name in list(one.runs)[_MOST:]]
    figures = {kind: path.name for kind, path in drawn.items() if path is not None}
    return Pictures(figures=figures, galleries=shown, left_out=[*crowd, *left_out])


def gallery(rows: Sequence[Row]) -> tuple[Gallery | None, list[str]]:
    """Return the tiles of each row, all of one seed, None without any; and why rows are left out.

    rows: of the same items and noise, in the order to show. The seed is the first that most rows have.
    """
    tiled = {row.name: {r.record.seed: r for r in row.runs if r.has_tiles} for row in rows}
    left_out = [f"{name} keeps no tiles." for name, runs in tiled.items() if not runs]
    counts = Counter(seed for runs in tiled.values() for seed in runs)
    if not counts:
        return None, left_out
    seed = min(counts, key=lambda s: (-counts[s], s))
    left_out += [f"{n} keeps no tiles of seed {seed}." for n, r in tiled.items() if r and seed not in r]
    shown = {name: runs[seed] for name, runs in tiled.items() if seed in runs}
    samples: dict[str, np.ndarray] = {}
    ends: dict[str, np.ndarray] = {}
    for name, run in shown.items():
        try:
            tiles = run.tiles()
        except BenchError:
            left_out.append(f"{name}: its tiles cannot be read.")
            continue
        ends = ends or tiles
        if all(np.array_equal(tiles[side], ends[side]) for side in ("condition", "target")):
            samples[name] = tiles["sample"]
        else:
            left_out.append(f"{name}: its tiles show other items.")
    if not samples:
        return None, left_out
    columns = {"condition": ends["condition"], **samples, "target": ends["target"]}
    return Gallery(seed=seed, columns=columns, runs={n: shown[n].record.run_id for n in samples}), left_out


def _samples(shown: Gallery, path: Path, title: str) -> Path:
    """Draw the first items of a gallery, of as many rows as there is room for."""
    names = ["condition", *list(shown.runs)[:_MOST], "target"]
    title += f", seed {shown.seed}: the same items from the same initial noise"
    return gallery_figure({name: shown.columns[name][:_SHOWN] for name in names}, path, title=title)


def _marks(rows: Sequence[Row], column: Column, **more: Mapping[str, Any]) -> list[Mark]:
    """Return the numbers that rows have in a column; more: by field of a mark, what it is by row."""
    return [
        Mark(row.name, row.record.method, cell.value, cell.low, cell.high, kind=row.kind)._replace(
            **{field: values[row.name] for field, values in more.items()}
        )
        for row in rows
        if (cell := row.cells.get(column)) is not None and cell.value is not None
    ]


def _overview(table: Table, path: Path) -> Path | None:
    rows = [row for row in table.rows if row.kind != "variant"]
    labels = {row.name: row.label for row in rows}
    panels = {}
    for column in table.columns:
        marks = _marks(rows, column, name=labels)
        digits = column_digits(table, column)
        if marks and column.metric != "kid" and not of_distribution(column):
            panels[header(column)] = [mark._replace(text=number(mark.value, digits)) for mark in marks]
    title = f"{table.title}: values with 95% intervals over items"
    return dot_figure(panels, path, title=title, names=list(labels.values())) if panels else None


def _cost(table: Table, rows: Sequence[Row], path: Path) -> Path | None:
    panels = []
    for column in (c for m in (*primary_metrics(table.task), "fd") for c in table.columns if c.metric == m):
        for key, words in _COSTS.items():
            costs = {row.name: mean_cost(row, key) or math.nan for row in rows}
            marks = [m for m in _marks(rows, column, x=costs) if m.kind == "floor" or m.x > 0]
            if any(mark.kind == "method" for mark in marks):
                panels.append(Panel(words, header(column), marks, log=True))
    title = f"{table.title}: quality against cost, at {made_equal(table.records)}"
    return plane_figure(panels, path, title=title) if panels else None


def _curves(
    runs: Mapping[str, Run], path: Path, table: Table, *, minus: Mapping[str, str] | None = None
) -> Path | None:
    """Draw the training curves of first seeds."""
    curves = {name: run.curve for name, run in runs.items() if run.curve}
    if not curves:
        return None
    return curve_figure(
        curves,
        path,
        labels=("training step", "loss"),
        title=f"{table.title}: loss by training step, first seed; thick: mean over neighbours",
        methods={name: run.record.method for name, run in runs.items()},
        minus=minus,
    )


def _references(table: AblationTable) -> dict[str, str]:
    """Return rows with the reference that each is compared with, where both trained on the same batches."""
    drawn = [(row, row.variant) for row in table.rows if row.runs[0].curve and row.variant is not None]
    return {
        row.name: other.name
        for row, variant in drawn
        for other, reference in drawn
        if row is not other
        and reference is table.ablation.reference_of(variant)
        and other.record.seed == row.record.seed  # else their batches differ
    }


def _differences(table: AblationTable, path: Path) -> Path | None:
    panels: dict[str, list[Mark]] = {}
    for row, column, d in (
        (r, c, r.differences[c]) for r in table.rows for c in table.columns if c in r.differences
    ):
        kind = "untold" if not d.clear else "better" if d.better else "worse"
        i, text = d.interval, difference_cell(d).main
        mark = Mark(row.name, row.record.method, i.value, i.low, i.high, kind=kind, text=text)
        panels.setdefault(header(column), []).append(mark)
    title = (
        f"{table.title}: minus {titled(table.ablation.reference)}, 95% intervals, paired\n"
        "teal better, wine worse, grey not told apart"
    )
    names = [row.name for row in table.rows if row.differences]
    return dot_figure(panels, path, title=title, names=names, differences=True) if panels else None


def _along(table: AblationTable, path: Path) -> Path | None:
    """Draw quality along the ablation's axis where two places on it are known."""
    axis = table.ablation.axis
    settings = {row.name: row.setting(axis) for row in table.rows}
    methods = {row.name: titled(row.record.method) for row in table.rows}
    places = sorted({settings[row.name] for row in table.rows if row.kind == "method"})
    dashed = [settings[r.name] for r in table.rows if table.is_reference(r) and table.ablation.resamples]
    ticks = [(place, f"{place:,g}") for place in places]
    known = {c: _marks(table.rows, c, x=settings, name=methods) for c in table.columns}
    panels = [
        Panel(_AXES[axis], header(c), marks, axis != "guidance", ticks, dashed[0] if dashed else None)
        for c, marks in known.items()
        if any(mark.kind == "method" for mark in marks)
    ]
    title = f"{table.title}: 95% intervals over items" + ("; dashed: the suite's own" if dashed else "")
    if not panels or len(places) < 2:
        return None
    return plane_figure(panels, path, title=title, across=2 if len(panels) == 4 else 3, joined=True)


def _weights(table: AblationTable, path: Path) -> Path | None:
    """Draw layer weights that were trained along beside those they started from, which are the paper's."""
    weights = {
        f"learned, seed {r.record.seed}": r.items.layer_weights for r in table.runs if moved(r) and r.items
    }
    if not weights:
        return None
    curves = {name: [(i, now) for i, (_, _, now) in enumerate(w)] for name, w in weights.items()}
    paper, first = "the paper's, where they started", next(iter(weights.values()))
    most = max(map(moved, table.runs))
    return curve_figure(
        {paper: [(i, start) for i, (_, start, _) in enumerate(first)], **curves},
        path,
        labels=("layer", "layer weight"),
        title=f"Learned schedule on {table.suite} / {table.task}: moved by {most:.2g} at most",
        methods={paper: FLOOR, **dict.fromkeys(curves, OWN_METHOD)},
        minus=dict.fromkeys(curves, paper),
        ticks=[(i, _LEVELS.get(slot, "middle")) for i, (slot, _, _) in enumerate(first)],
    )


def moved(run: Run) -> float:
    """Return how far a run's layer weights went from their start, 0 where none or rounding alone.

    Some published items hold weights of fixed schedules that single precision has rounded.
    """
    weights = run.items.layer_weights if run.items is not None else ()
    gaps = (abs(now - start) for _, start, now in weights if not math.isclose(start, now, rel_tol=1e-6))
    return max(gaps, default=0.0)
