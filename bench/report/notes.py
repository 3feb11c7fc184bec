"""What a table says aloud: leaks, few items, missing seeds; and which numbers it does not show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.record import RunRecord, made_on
from bench.report.leaks import split_notes
from bench.report.names import Column, header, order_columns
from bench.report.runs import Run, items_disagree, measured
from bench.stats import FEW_ITEMS, LEAST_ITEMS

if TYPE_CHECKING:
    from bench.report.rows import Row

FRECHET = ("fd", "fd_infinite")


def too_few(column: Column, items: int) -> bool:
    """Tell whether a Fréchet distance has too few items to be shown."""
    return column.metric in FRECHET and items < LEAST_ITEMS


def table_notes(runs: Sequence[Run], *, rows: Sequence[Row], own: Sequence[Row]) -> list[str]:
    """Return a table's notes in order; own: its rows but for the references."""
    records = [run.record for run in runs]
    leaks, devices = split_notes(records), device_notes(records)
    return [*leaks, *devices, *_few_notes(rows), *_missing_notes(own), *_item_notes(own)]


def device_notes(records: Sequence[RunRecord]) -> list[str]:
    """Say on which devices runs were made where a GPU is among them or torch differs; aloud if mixed."""
    found = Counter(made_on(record.environment) for record in records)
    if len(found) > 1:
        each = "; ".join(f"{number} on {words}" for words, number in sorted(found.items()))
        return [f"DEVICES OR TORCH DIFFER: sums round otherwise on others. Runs: {each}."]
    if any(str(record.environment.get("device")).startswith("cuda") for record in records):
        return [f"Made on {next(iter(found))}."]
    return []


def made_equal(records: Sequence[RunRecord]) -> str:
    """Say what the budget made equal between methods: training time or images; aloud where neither."""
    if any(r.protocol.get("budget", {}).get("images_of") for r in records):
        return "equal training time"
    images = {r.cost.train_images for r in records} - {0}
    return "equal training images" if len(images) < 2 else "training images that are NOT EQUAL"


def few_notes(fewest: int) -> list[str]:
    """Return what must be said beside Fréchet distances of so many items; nothing for many."""
    if fewest >= FEW_ITEMS:
        return []
    if fewest < LEAST_ITEMS:
        return [
            f"TOO FEW ITEMS: no Fréchet distance is shown of {fewest} items, fewer than "
            f"{LEAST_ITEMS}. The records keep the numbers; evaluate more items to compare them."
        ]
    return [
        f"FEW ITEMS: Fréchet distances of {fewest} items, fewer than {FEW_ITEMS:,}, lie above those "
        "of more items. Value and interval are those expected at this number: compare rows of this "
        "table, never another N. KID beside it has no such bias."
    ]


def _few_notes(rows: Sequence[Row]) -> list[str]:
    """Say how far Fréchet distances of few items may be believed, and which are not shown."""
    items = [row.cells[c].items for row in rows for c in row.cells if c.metric in FRECHET]
    return few_notes(min(items, default=FEW_ITEMS))


def _missing_notes(rows: Sequence[Row]) -> list[str]:
    notes = []
    for row in rows:
        for column in order_columns(row.cells):
            known = [measured(run, row.source, column) for run in row.runs]
            absent = [
                str(run.record.seed)
                for run, m in zip(row.runs, known, strict=True)
                if m is None or m.value is None
            ]
            if 0 < len(absent) < len(known):
                notes.append(
                    f"{row.name}: {header(column)} is missing for seed {', '.join(absent)}, so no "
                    "mean over seeds is given."
                )
    return notes


def _item_notes(rows: Sequence[Row]) -> list[str]:
    notes = []
    for row in rows:
        for column in order_columns(row.cells):
            if any(items_disagree(r, source=row.source, metric=column.metric) for r in row.runs):
                notes.append(
                    f"{row.name}: the per-item scores of {header(column)} do not average to its "
                    "value, so no paired difference is stated."
                )
    return notes
