"""Runs as the report reads them: a record, its folder and its per-item scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.ablations import ABLATIONS_FOLDER
from bench.record import (
    ITEMS_FILE,
    RECORD_FILE,
    ItemScores,
    MetricValue,
    RunRecord,
    find_records,
    load_items,
    load_record,
)
from bench.report.names import Column
from bench.timings import load_timings, with_timing
from bench.types import BenchError

SAMPLES = "samples"
SHUFFLED = "shuffled"
REAL = "real training images"
AUTOENCODER = "autoencoder"
FLOOR_METHOD = "text-only"
OWN_METHOD = "bps"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A record with the folder it lies in and its per-item scores, None where there are none.

    timed: on what machine and how its costs in time and memory were measured alone, in words; "" where they
    are those of the run itself.
    """

    record: RunRecord
    folder: Path | None = None
    items: ItemScores | None = None
    timed: str = ""

    @property
    def place(self) -> str:
        """The folder, else the name, for messages."""
        return self.record.run_id if self.folder is None else str(self.folder)

    @property
    def curve(self) -> tuple[tuple[int, float], ...]:
        """The training curve as (step, loss); empty where nothing was trained or kept."""
        return self.items.curve if self.items is not None else ()


def load_run(folder: Path) -> Run:
    """Read one run folder; BenchError for a bad record, a changed artifact or unusable items.

    Refused too are files of it that are links to places outside; the folder itself may be a link.
    """
    for name in (RECORD_FILE, ITEMS_FILE):
        if not lies_within(folder, folder / name):
            raise BenchError(f"{folder / name} is a link that leads out of its run. Put the file there.")
    record = load_record(folder)
    items = load_items(folder) if (folder / ITEMS_FILE).exists() else None
    return Run(record=record, folder=folder, items=items)


def lies_within(folder: Path, path: Path) -> bool:
    """Tell whether a path still lies in a folder once all links are followed."""
    return path.resolve().is_relative_to(folder.resolve())


def load_runs(results: Path) -> list[Run]:
    """Read every run folder below `results`, sorted by name; BenchError where there is none at all.

    Where `bench cost` left timings beside them, costs in time and memory are those.
    """
    folders = find_records(results)
    if not folders and find_records(results / ABLATIONS_FOLDER):
        return []
    if not folders:
        raise BenchError(
            f"no records in {results}: looked for {results / '*' / RECORD_FILE}. Make one with "
            "'bench run --method bps --task sketch', or name the folder that holds the runs."
        )
    runs, timings = [load_run(folder) for folder in folders], load_timings(results)
    if timings is None:
        return runs
    return [replace(run, record=with_timing(run.record, timings), timed=timings.words) for run in runs]


def load_ablation_runs(results: Path) -> list[Run]:
    """Read the runs that `bench ablate` keeps apart from main tables; none where there are none."""
    return [load_run(folder) for folder in find_records(results / ABLATIONS_FOLDER)]


def metric_rows(record: RunRecord) -> dict[str, Mapping[str, MetricValue]]:
    """Return the metrics of a record by row name, the method's own samples first."""
    others = {name: row for name, row in record.rows.items() if name != SAMPLES}
    return {SAMPLES: record.metrics, **others}


def item_matrix(
    runs: Sequence[Run], *, source: str, metric: str
) -> tuple[tuple[str, ...], np.ndarray] | None:
    """Return ids and per-item scores [S,N] of a record row, one line a run, in the first's order.

    None unless every run has them, on the same items, and they average to the recorded value (a
    metric of a whole set, such as mIoU, need not: its items say nothing about its differences).
    """
    found = [_line(run, source, metric) for run in runs]
    lines = [line for line in found if line is not None]
    if not lines or len(lines) < len(found):
        return None
    ids = tuple(lines[0])
    if any(set(line) != set(ids) for line in lines):
        return None
    return ids, np.asarray([[line[i] for i in ids] for line in lines], dtype=np.float64)


def replicate_matrix(
    runs: Sequence[Run], *, source: str, metric: str
) -> tuple[tuple[str, ...], np.ndarray] | None:
    """Return ids and jackknife replicates [S,G] of a metric of the whole set, one line a run.

    None unless every run has equally many of them on the same ids in the same order: the groups of
    items that are left out are dealt by place, so another order would leave out other items.
    """
    found = [
        (run.items.ids, run.items.replicates.get(source, {}).get(metric))
        for run in runs
        if run.items is not None
    ]
    lines = [values for _, values in found if values is not None]
    if not lines or len(lines) < len(runs):
        return None
    if len({ids for ids, _ in found}) > 1 or len({len(line) for line in lines}) > 1:
        return None
    return found[0][0], np.stack(lines)


def measured(run: Run, source: str, column: Column) -> MetricValue | None:
    """Return what a run's record says in a row and column, None where it says nothing."""
    found = metric_rows(run.record).get(source, {}).get(column.metric)
    return found if found is not None and Column.of(column.metric, found) == column else None


def items_disagree(run: Run, *, source: str, metric: str) -> bool:
    """Tell whether a run has per-item scores that do not average to the recorded value."""
    scores = _scores(run, source, metric)
    return scores is not None and not _averages_to(scores, _recorded(run, source, metric))


def _line(run: Run, source: str, metric: str) -> dict[str, float] | None:
    scores = _scores(run, source, metric)
    if run.items is None or scores is None:
        return None
    if not _averages_to(scores, _recorded(run, source, metric)):
        return None
    return dict(zip(run.items.ids, scores.tolist(), strict=True))


def _scores(run: Run, source: str, metric: str) -> np.ndarray | None:
    return None if run.items is None else run.items.rows.get(source, {}).get(metric)


def _recorded(run: Run, source: str, metric: str) -> float | None:
    found = metric_rows(run.record).get(source, {}).get(metric)
    return None if found is None else found.value


def _averages_to(scores: np.ndarray, value: float | None) -> bool:
    known = scores[np.isfinite(scores)]
    if value is None or not len(known):
        return False
    return math.isclose(float(known.mean()), value, rel_tol=1e-4, abs_tol=1e-6)
