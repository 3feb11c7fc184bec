"""What a report reads of runs: their records with times measured alone, scores by item, metrics by row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.ablations import ABLATIONS_FOLDER
from bench.cost import load_timings, with_timing
from bench.packed import LINES, Run, kept_runs
from bench.record import RECORD_FILE, MetricValue, RunRecord
from bench.reporting.names import Column
from bench.types import BenchError

SAMPLES = "samples"
SHUFFLED = "shuffled"
REAL = "real training images"
AUTOENCODER = "autoencoder"
FLOOR_METHOD = "text-only"
OWN_METHOD = "bps"


def load_runs(results: Path) -> list[Run]:
    """Read every run of `results`, folders and pack, sorted by name; BenchError where there is none at all.

    Where `bench cost` left timings beside them, costs in time and memory are those.
    """
    runs = kept_runs(results)
    if not runs and kept_runs(results, ABLATIONS_FOLDER):
        return []
    if not runs:
        raise BenchError(
            f"no records in {results}: looked for {results / '*' / RECORD_FILE} and {results}{LINES}. Make "
            "one with 'bench run --method bps --task sketch', or name the folder that holds the runs."
        )
    timings = load_timings(results)
    if timings is None:
        return runs
    return [replace(run, record=with_timing(run.record, timings), timed=timings.words) for run in runs]


def load_ablation_runs(results: Path) -> list[Run]:
    """Read the runs that `bench ablate` keeps apart from main tables; none where there are none."""
    return kept_runs(results, ABLATIONS_FOLDER)


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
