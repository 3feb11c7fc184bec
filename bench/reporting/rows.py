"""The rows of one table: records grouped by method, averaged over seeds, and references."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from bench.content import digest_json
from bench.metrics.intervals import (
    FEW_ITEMS,
    Interval,
    Resamples,
    jackknife_interval,
    mean_interval,
    seed_spread,
)
from bench.metrics.neighbours import SHARES
from bench.packed import Run
from bench.record import MetricValue
from bench.reporting.leaks import leak_mark, leak_title, outside_mark, split_notes
from bench.reporting.names import (
    Column,
    header,
    label,
    order_columns,
    protocol_marks,
    protocol_words,
    titled,
    variant_details,
)
from bench.reporting.notes import FRECHET, device_notes, few_notes, too_few
from bench.reporting.runs import (
    AUTOENCODER,
    FLOOR_METHOD,
    REAL,
    SAMPLES,
    SHUFFLED,
    item_matrix,
    items_disagree,
    measured,
    metric_rows,
    replicate_matrix,
)
from bench.types import BenchError

BOOTSTRAP_SEED = 0
_KINDS = ("reference", "ceiling", "method", "shuffled", "other", "floor", "variant")
COSTLY = ("method", "floor", "variant")
_REFERENCES = {REAL: "reference", AUTOENCODER: "ceiling"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of a table: mean over seeds, 95% interval over items, deviation over seeds.

    None is missing, never 0. items: how many evaluation items stand behind it.
    """

    value: float | None
    low: float | None
    high: float | None
    deviation: float | None = None
    items: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table.

    name: as sentences say it; label: as the table says it; kind: "reference", "ceiling", "method",
    "shuffled", "other", "floor" or "variant" (a method under other options than its paper's, whose
    comparisons an ablation makes); source: the row's name in the records; runs: one a seed.
    """

    name: str
    label: str
    kind: str
    source: str
    runs: tuple[Run, ...]
    cells: Mapping[Column, Cell]

    @property
    def protocol_hash(self) -> str:
        """The protocol that every run of the row shares."""
        return self.runs[0].record.protocol_hash

    @property
    def seeds(self) -> tuple[int, ...]:
        """Training seeds in order; empty for a reference, which no seed moves."""
        if self.kind in _REFERENCES.values():
            return ()
        return tuple(run.record.seed for run in self.runs)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows and columns of one suite and task; notes say aloud what a reader must know.

    marks: protocol hash -> mark ("A", "B"), empty where the table holds a single protocol.
    """

    suite: str
    task: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    runs: tuple[Run, ...]
    marks: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Suite and task, and the mark of a leak where a run of the table has one."""
        return leak_title(f"{self.suite} / {self.task}", [run.record for run in self.runs])

    @property
    def hashes(self) -> tuple[str, ...]:
        """Protocol hashes in order."""
        return tuple(sorted({run.record.protocol_hash for run in self.runs}))


def build_table(
    runs: Sequence[Run],
    *,
    mixed: bool = False,
    variants: Collection[str] = (),
    seed: int = BOOTSTRAP_SEED,
) -> Table:
    """Build the table of runs of one suite and task.

    mixed: allow several protocols, whose rows are then marked. variants: ids of the runs that stand in
    a block of their own, below the methods. seed: of the bootstrap over items where several training
    seeds are averaged. BenchError for several suites, tasks or (unless
    `mixed`) protocols, and for two records of one method, options, protocol and seed.
    """
    suite, task = _only_one(runs, mixed=mixed)
    groups = _groups(runs)
    marks = protocol_marks([run.record for run in runs])
    references, notes = _reference_rows(runs, marks=marks)
    plain = [group for group in groups if group[0].record.run_id not in variants]
    varied = [group for group in groups if group[0].record.run_id in variants]
    own = [row for group in plain for row in _group_rows(group, plain, marks=marks, seed=seed)]
    below = [
        replace(row, kind="variant")
        for group in varied
        for row in _group_rows(group, [*plain, group], marks=marks, seed=seed)
    ]
    own += sorted(below, key=lambda row: row.name)
    rows = sorted([*references, *own], key=lambda row: _place(row.kind))
    return Table(
        suite=suite,
        task=task,
        rows=tuple(rows),
        columns=order_columns(column for row in rows for column in row.cells),
        runs=tuple(run for group in groups for run in group),
        marks=marks,
        notes=(*notes, *_table_notes(runs, rows=rows, own=own)),
    )


def aggregate(runs: Sequence[Run], *, source: str, column: Column, seed: int) -> Cell:
    """Return one cell over the training seeds of a method.

    A number missing in any seed is missing in the mean: leaving out a failed seed would flatter.
    One seed keeps its recorded interval. Several: the bootstrap over items on scores averaged over
    seeds where they exist, the jackknife on averaged replicates for a metric of the whole set, else
    the mean of the seeds' bounds.
    """
    found = [measured(run, source, column) for run in runs]
    values = [m.value for m in found if m is not None and m.value is not None]
    items = min((m.n for m in found if m is not None), default=0)
    if len(values) < len(runs) or too_few(column, items):
        return Cell(value=None, low=None, high=None, items=items)
    spread = seed_spread(np.asarray(values))
    low, high = _bounds(runs, [m for m in found if m is not None], source, column, seed)
    return Cell(value=spread.mean, low=low, high=high, deviation=spread.deviation, items=items)


def _bounds(
    runs: Sequence[Run], found: Sequence[MetricValue], source: str, column: Column, seed: int
) -> tuple[float | None, float | None]:
    if len(runs) > 1:
        interval = _item_interval(runs, source, column, seed) or _set_interval(runs, found, source, column)
        if interval is not None:
            return interval.low, interval.high
    lows = [m.low for m in found if m.low is not None]
    highs = [m.high for m in found if m.high is not None]
    if min(len(lows), len(highs)) < len(runs):
        return None, None
    return float(np.mean(lows)), float(np.mean(highs))


def _item_interval(runs: Sequence[Run], source: str, column: Column, seed: int) -> Interval | None:
    """Bootstrap the mean over seeds; items without a score must be the same in every seed."""
    scores = item_matrix(runs, source=source, metric=column.metric)
    if scores is None:
        return None
    known = np.isfinite(scores[1])
    if known.sum(axis=1).min() < 2 or (known != known[0]).any():
        return None
    values = scores[1][:, known[0]].mean(axis=0)
    return mean_interval(values, resamples=_resamples(len(values), seed))


@lru_cache(maxsize=8)
def _resamples(items: int, seed: int) -> Resamples:
    """Draw once what every cell on equally many items shares; they cannot be written to."""
    return Resamples(n_items=items, seed=seed)


def _set_interval(
    runs: Sequence[Run], found: Sequence[MetricValue], source: str, column: Column
) -> Interval | None:
    replicates = replicate_matrix(runs, source=source, metric=column.metric)
    values = [m.value for m in found if m.value is not None]
    if replicates is None or len(values) < len(runs):
        return None
    items = min(m.n for m in found) if column.metric in SHARES else None
    return jackknife_interval(float(np.mean(values)), replicates[1].mean(axis=0), share_of=items)


def _only_one(runs: Sequence[Run], *, mixed: bool) -> tuple[str, str]:
    if not runs:
        raise BenchError("a table needs at least one record; none was given.")
    places = sorted({(run.record.suite, run.record.task) for run in runs})
    if len(places) > 1:
        raise BenchError(
            "one table holds one suite and task, got "
            f"{', '.join(f'{suite} / {task}' for suite, task in places)}. Make one table each."
        )
    hashes = sorted({run.record.protocol_hash for run in runs})
    if len(hashes) > 1 and not mixed:
        raise BenchError(
            f"{len(hashes)} protocols in one table ({protocol_words([r.record for r in runs])}): their "
            "numbers cannot be compared. Make one table a protocol, or allow it with mixed, which "
            "marks the rows."
        )
    return places[0]


def _groups(runs: Sequence[Run]) -> list[tuple[Run, ...]]:
    """Return the runs of each (protocol, method, options), seeds in order; refuse repeats."""
    found: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        record = run.record
        options = digest_json(dict(record.options))
        found.setdefault((record.protocol_hash, record.method, options), []).append(run)
    groups = [tuple(sorted(group, key=lambda r: r.record.seed)) for group in found.values()]
    for group in groups:
        for one, other in zip(group, group[1:], strict=False):
            if one.record.seed == other.record.seed:
                raise BenchError(
                    f"{one.place} and {other.place} are the same run twice (method "
                    f"{one.record.method}, seed {one.record.seed}). Keep one of the two folders."
                )
    return sorted(groups, key=_group_key)


def _group_key(group: Sequence[Run]) -> tuple[str, str, str, str]:
    record = group[0].record
    options = " ".join(f"{key}={record.options[key]}" for key in sorted(record.options))
    return record.method, options, record.budget, record.protocol_hash


def _group_rows(
    group: tuple[Run, ...],
    groups: Sequence[tuple[Run, ...]],
    *,
    marks: Mapping[str, str],
    seed: int,
) -> list[Row]:
    record = group[0].record
    details = variant_details(record, [other[0].record for other in groups], marks=marks)
    sources = sorted({s for run in group for s in metric_rows(run.record)} - set(_REFERENCES))
    sources.sort(key=lambda s: (s != SAMPLES, s != SHUFFLED))
    return [
        _own_row(_with_source(group, source), source, details=details, seed=seed)
        for source in sources
        if source == SAMPLES or record.method != FLOOR_METHOD
    ]


def _with_source(group: tuple[Run, ...], source: str) -> tuple[Run, ...]:
    """Return the runs that sampled a source: grids shuffle the conditions of one seed alone."""
    return tuple(run for run in group if source in metric_rows(run.record))


def _own_row(group: tuple[Run, ...], source: str, *, details: Sequence[str], seed: int) -> Row:
    method = titled(group[0].record.method)
    floor = group[0].record.method == FLOOR_METHOD
    own = list({SAMPLES: [], SHUFFLED: ["shuffled conditions"]}.get(source, [source]))
    kind = {SAMPLES: "method", SHUFFLED: "shuffled"}.get(source, "other")
    records = [run.record for run in group]
    mark = leak_mark(records)
    own += [m for m in (outside_mark(records), mark) if m]
    name = label(method, *details, *own)
    columns = {
        Column.of(metric, value)
        for run in group
        for metric, value in metric_rows(run.record).get(source, {}).items()
    }
    return Row(
        name=name,
        label=label(method, "floor", *details, *([mark] if mark else [])) if floor else name,
        kind="floor" if floor else kind,
        source=source,
        runs=group,
        cells={c: aggregate(group, source=source, column=c, seed=seed) for c in columns},
    )


def _reference_rows(runs: Sequence[Run], *, marks: Mapping[str, str]) -> tuple[list[Row], list[str]]:
    """Return the reference rows, one a protocol; where records differ, each version and a note."""
    rows: list[Row] = []
    notes: list[str] = []
    for digest in sorted({run.record.protocol_hash for run in runs}):
        same = [run for run in runs if run.record.protocol_hash == digest]
        for source, kind in _REFERENCES.items():
            versions = _versions([run for run in same if source in run.record.rows], source)
            if len(versions) > 1:
                notes.append(_differ_note(source, versions))
            for version in versions:
                details = [kind, *([f"protocol {marks[digest]}"] if marks else [])]
                mark = leak_mark([run.record for run in version])
                details += [mark] if mark else []
                if len(versions) > 1:
                    details.append(f"as in {version[0].record.run_id}")
                rows.append(_reference_row(version, source, kind, label(source, *details)))
    return rows, notes


def _reference_row(version: Sequence[Run], source: str, kind: str, name: str) -> Row:
    cells: dict[Column, Cell] = {}
    for run in version:
        for metric, m in run.record.rows[source].items():
            column = Column.of(metric, m)
            cell = Cell(value=m.value, low=m.low, high=m.high, items=m.n)
            if too_few(column, m.n):
                cell = Cell(value=None, low=None, high=None, items=m.n)
            cells.setdefault(column, cell)
    return Row(name=name, label=name, kind=kind, source=source, runs=tuple(version), cells=cells)


def _versions(runs: Iterable[Run], source: str) -> list[list[Run]]:
    """Return the runs apart by what they say of a reference: one list where all agree."""
    versions: list[list[Run]] = []
    for run in runs:
        row = run.record.rows[source]
        for version in versions:
            if all(_agree(row, other.record.rows[source]) for other in version):
                version.append(run)
                break
        else:
            versions.append([run])
    return versions


def _agree(one: Mapping[str, MetricValue], other: Mapping[str, MetricValue]) -> bool:
    return all(
        _close(one[metric].value, other[metric].value)
        and _close(one[metric].low, other[metric].low)
        and _close(one[metric].high, other[metric].high)
        and Column.of(metric, one[metric]) == Column.of(metric, other[metric])
        for metric in one.keys() & other.keys()
    )


def _close(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)


def _differ_note(source: str, versions: Sequence[Sequence[Run]]) -> str:
    names = "; ".join(", ".join(run.record.run_id for run in version) for version in versions)
    return (
        f"REFERENCES DIFFER: '{source}' must be equal in records of one protocol, and is not "
        f"({names}). Do not compare these rows before the cause is known."
    )


def _place(kind: str) -> int:
    """Return where a kind of row stands; a method and its own rows keep together."""
    return _KINDS.index("method") if kind in {"shuffled", "other"} else _KINDS.index(kind)


def _table_notes(runs: Sequence[Run], *, rows: Sequence[Row], own: Sequence[Row]) -> list[str]:
    """Return a table's notes in order; own: its rows but for the references."""
    records = [run.record for run in runs]
    leaks, devices = split_notes(records), device_notes(records)
    return [*leaks, *devices, *_few_notes(rows), *_missing_notes(own), *_item_notes(own)]


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
