"""What is said aloud of records: devices, budgets, few items; and which numbers no table shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bench.metrics.intervals import FEW_ITEMS, LEAST_ITEMS
from bench.record import RunRecord, made_on
from bench.reporting.names import Column

FRECHET = ("fd", "fd_infinite")


def too_few(column: Column, items: int) -> bool:
    """Tell whether a Fréchet distance has too few items to be shown."""
    return column.metric in FRECHET and items < LEAST_ITEMS


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
