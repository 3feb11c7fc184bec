"""Runs as one table of lines, one a run, row and metric, and the table of methods read off it."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from bench.ablations import ABLATIONS_FOLDER, Variant
from bench.config import Style
from bench.cost import load_timings, with_timing
from bench.data.openmoji import openmoji64_splits
from bench.metrics.intervals import Deal, Estimates, Interval, crossed_interval, labels_of, seed_spread
from bench.metrics.neighbours import SHARES
from bench.packed import LINES, Pack, Run, kept_runs
from bench.record import OWN_STYLES, RECORD_FILE, MetricValue, RunRecord
from bench.registry import FLOOR
from bench.reporting.words import (
    FRECHET,
    Column,
    decimals,
    device_notes,
    few_notes,
    gained_metrics,
    label,
    leak_mark,
    order_columns,
    outside_mark,
    protocol_marks,
    protocol_words,
    split_notes,
    titled,
    variant_details,
    variant_title,
)
from bench.types import BenchError, unknown

_K = TypeVar("_K", bound=Hashable)
SAMPLES = "samples"
SHUFFLED = "shuffled"
BLANK = "blank"
REAL = "real training images"
AUTOENCODER = "autoencoder"
OWN_METHOD = "bps"
_LEVEL = 0.05
COSTLY = ("method", "floor", "variant")
REFERENCES = {REAL: "reference", AUTOENCODER: "ceiling"}
OWN_ROWS = {  # source -> kind, and what its name says
    SAMPLES: ("method", ""),
    SHUFFLED: ("shuffled", "shuffled conditions"),
    BLANK: ("blank", "empty condition"),
}
_APART = {*REFERENCES, OWN_STYLES}
WRONG_CONDITIONS = ("shuffled", "blank")
_PLACES = {"reference": 0, "ceiling": 1, "floor": 3, "variant": 4}  # a method and its own rows at 2


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of a table: mean over seeds, 95% interval over items and seeds, deviation over seeds.

    None is missing, never 0. items: how many evaluation items stand behind it. lines: one a seed.
    """

    value: float | None
    low: float | None
    high: float | None
    deviation: float | None = None
    items: int
    lines: Lines = field(repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """`first` minus `second`, means over seeds on the same items, with its paired 95% interval.

    The interval is over groups of items and, where there are several, training seeds. items: paired items,
    in so many groups; left_out: items without a score in one of the two; first_seeds, second_seeds:
    training seeds averaged on each side; chance: the p-value of 0, corrected for the claims made together.
    """

    first: str
    second: str
    column: Column
    interval: Interval
    items: int
    groups: int
    left_out: int
    first_seeds: int
    second_seeds: int
    chance: float
    claims: int = 1

    @property
    def shown(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.interval.low > 0 or self.interval.high < 0

    @property
    def clear(self) -> bool:
        """Whether 0 is out of question, also once the claims made together are corrected for."""
        return self.shown and self.chance < _LEVEL

    @property
    def better(self) -> bool:
        """Whether the first has the better value, as far as the column knows a better one."""
        return (self.interval.value > 0) == (self.column.better == "higher")

    @property
    def turned(self) -> Difference:
        """The second minus the first."""
        value, low, high = self.interval.value, self.interval.low, self.interval.high
        return replace(
            self,
            first=self.second,
            second=self.first,
            interval=replace(self.interval, value=-value, low=-high, high=-low),
            first_seeds=self.second_seeds,
            second_seeds=self.first_seeds,
        )

    @property
    def digits(self) -> int:
        """Decimals that show two digits of the interval's width and no end at 0 that is not."""
        low, high = self.interval.low, self.interval.high
        digits = decimals([self.interval.value], widths=[high - low])
        nearest = min((abs(end) for end in (low, high) if end), default=0.0)
        return max(digits, min(-math.floor(math.log10(nearest)), 9)) if nearest else digits

    @property
    def mark(self) -> str:
        """ "*" where the interval leaves 0 out, but not once the claims are corrected for, else nothing."""
        return "*" if self.shown and not self.clear else ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table.

    name: as sentences say it; label: as the table says it; kind: "reference", "ceiling", "method",
    "shuffled", "blank", "other", "floor" or "variant" (a method under other options than its paper's, whose
    comparisons an ablation makes); source: the row's name in the records; runs: one a seed. rows: of a
    comparison, the same by task. variant, differences: of an ablation, the latter minus the reference on
    the seeds that both have; empty for a reference itself and the floor.
    """

    name: str
    label: str
    kind: str
    source: str = SAMPLES
    runs: tuple[Run, ...]
    cells: Mapping[Column, Cell]
    rows: Mapping[str, Row] = field(default_factory=dict)
    variant: Variant | None = None
    differences: Mapping[Column, Difference] = field(default_factory=dict)

    @property
    def record(self) -> RunRecord:
        """The record of the first run."""
        return self.runs[0].record

    @property
    def protocol_hash(self) -> str:
        """The protocol that every run of the row shares."""
        return self.record.protocol_hash

    @property
    def seeds(self) -> tuple[int, ...]:
        """Training seeds in order; empty for a reference, which no seed moves."""
        seeds = dict.fromkeys(run.record.seed for run in self.runs)  # of several choices of items each
        return () if self.kind in REFERENCES.values() else tuple(seeds)

    def seeds_of(self, column: Column) -> tuple[int, ...]:
        """Training seeds behind a number: a condition gain has those that were shuffled."""
        cell = self.cells.get(column)
        if cell is None or not column.is_beside:
            return (self.rows.get(column.task) or self).seeds
        return tuple(line.run.record.seed for line in cell.lines)

    @property
    def ranked(self) -> bool:
        """Whether sentences and bold may tell of it: a method whose runs all began here, see `Outside`."""
        return self.kind == "method" and not outside_mark([run.record for run in self.runs])

    @property
    def seeds_by_task(self) -> dict[str, int]:
        """How many training seeds stand behind each task of a comparison; empty for a reference."""
        return {task: len(row.seeds) for task, row in self.rows.items() if row.seeds}

    @property
    def train_items(self) -> int:
        """How many items were trained on."""
        return self.record.splits.train.n

    @property
    def line(self) -> str:
        """Which line of a curve a variant stands on: that of its name, whatever is trained on."""
        return self.record.method if self.variant is None else variant_title(self.variant)

    @property
    def train_macs(self) -> int | None:
        """The multiply-adds of its training; None where they were not counted."""
        cost = self.record.cost
        return None if cost.macs_train is None else cost.macs_train * cost.train_images

    def setting(self, axis: str) -> float:
        """Return where a variant stands on an ablation's axis."""
        if axis == "train_items":
            return self.train_items
        return float(self.record.protocol["budget" if axis == "train_images" else "sampler"][axis])


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows and columns of one suite and task; notes say aloud what a reader must know.

    marks: protocol hash -> mark ("A", "B"), empty where the table holds a single protocol. style: how
    intervals are printed.
    """

    suite: str
    task: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    runs: tuple[Run, ...]
    marks: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    style: Style = "brackets"

    @property
    def title(self) -> str:
        """Suite and task, and the mark of a leak where a run of the table has one."""
        return label(f"{self.suite} / {self.task}", leak_mark(self.records))

    @property
    def records(self) -> list[RunRecord]:
        """The records of all runs."""
        return [run.record for run in self.runs]

    @property
    def hashes(self) -> tuple[str, ...]:
        """Protocol hashes in order."""
        return tuple(sorted({record.protocol_hash for record in self.records}))

    def block(self, row: Row) -> object:
        """Return what rows have in common between two rules."""
        return "references" if row.kind in REFERENCES.values() else row.kind == "floor"

    def describe(self, row: Row, column: Column) -> dict[str, Any]:
        """Return what a number is of, by column of a tidy table."""
        own = row.kind not in REFERENCES.values()
        return {
            "suite": self.suite,
            "task": self.task,
            "protocol": row.protocol_hash,
            "row": row.label,
            "kind": row.kind,
            "method": row.record.method if own else None,
            "options": json.dumps(dict(row.record.options), sort_keys=True) if own else None,
            "seeds": " ".join(map(str, row.seeds_of(column))),
        }

    def compared(self, row: Row, column: Column) -> dict[str, Any]:
        """Return how a number stands to others, by column of a tidy table."""
        return {}

    def own(self, *kinds: str) -> list[Row]:
        """Return the rows of some kinds, in order."""
        return [row for row in self.rows if row.kind in kinds]


def load_runs(results: Path | Pack) -> list[Run]:
    """Read every run of `results`, folders and pack, sorted by name; BenchError where there is none at all.

    Where `bench cost` left timings beside them, costs in time and memory are those.
    """
    pack = Pack.of(results)
    runs = kept_runs(pack)
    if not runs and not kept_runs(pack, ABLATIONS_FOLDER):
        folder = pack.results
        raise BenchError(
            f"no records in {folder}: looked for {folder / '*' / RECORD_FILE} and {folder}{LINES}. Make "
            "one with 'bench run --method bps --task sketch', or name the folder that holds the runs."
        )
    timings = load_timings(pack.results)
    if timings is None:
        return runs
    return [replace(run, record=with_timing(run.record, timings), timed=timings.words) for run in runs]


def load_ablation_runs(results: Path | Pack) -> list[Run]:
    """Read the runs that `bench ablate` keeps apart from main tables; none where there are none."""
    return kept_runs(results, ABLATIONS_FOLDER)


def chosen(runs: Sequence[Run], *, methods: Sequence[str] = (), metrics: Sequence[str] = ()) -> list[Run]:
    """Return the runs of some methods, by name or title, with some metrics alone; all where none is named.

    BenchError for a name that no run has.
    """
    names = {titled(run.record.method): run.record.method for run in runs}
    names |= {name: name for name in names.values()}
    known = {metric for run in runs for row in metric_rows(run.record).values() for metric in row}
    for kind, asked, allowed in (("method", methods, names), ("metric", metrics, known)):
        for name in asked:
            if name not in allowed:
                raise unknown(f"{kind} of these runs", name, allowed)
    wanted = {names[name] for name in methods} or set(names)
    kept = set(metrics) or known
    return [_with_metrics(run, kept) if metrics else run for run in runs if run.record.method in wanted]


def _with_metrics(run: Run, kept: Collection[str]) -> Run:
    rows = {s: {m: v for m, v in row.items() if m in kept} for s, row in metric_rows(run.record).items()}
    return replace(run, record=replace(run.record, rows=rows, metrics=rows[SAMPLES]))


def metric_rows(record: RunRecord) -> dict[str, Mapping[str, MetricValue]]:
    """Return the metrics of a record by row name, the method's own samples first."""
    return {SAMPLES: record.metrics, **{n: row for n, row in record.rows.items() if n != SAMPLES}}


class Line(NamedTuple):
    """One number of a run.

    source: the row's name in the record; value, low, high: NaN where
    missing; items: N; scores: [N] in the order of ids, or None; sound: whether scores average to the value
    (of a metric of the whole set, such as mIoU, they need not: they say nothing about its differences);
    replicates: [G] of the jackknife over items in the order in which the run recorded them, or None.
    """

    run: Run
    source: str
    column: Column
    value: float
    low: float
    high: float
    items: int
    ids: tuple[str, ...]
    scores: np.ndarray | None
    sound: bool
    recorded: tuple[str, ...]
    replicates: np.ndarray | None


Lines = Sequence[Line]


def frame(runs: Sequence[Run], metrics: Collection[str] | None = None) -> list[Line]:
    """Return all numbers of runs, or those of some metrics: a line a run, row and metric."""
    orders: dict[frozenset[str], tuple[str, ...]] = {}
    return [line for run in runs for line in _lines(run, orders, metrics)]


def lines_of(lines: Lines, runs: Sequence[Run]) -> list[Line]:
    """Return the lines of some runs, in order."""
    wanted = set(map(id, runs))
    return [line for line in lines if id(line.run) in wanted]


def runs_of(lines: Lines) -> tuple[Run, ...]:
    """Return the runs of lines, each once, in order."""
    return tuple({id(line.run): line.run for line in lines}.values())


def _lines(
    run: Run, orders: dict[frozenset[str], tuple[str, ...]], kept: Collection[str] | None
) -> Iterator[Line]:
    """Give the lines of a run; orders: of items, in which scores stand for all runs on the same items."""
    recorded = run.items.ids if run.items is not None else ()
    ids = orders.setdefault(frozenset(recorded), recorded)
    at = {item: i for i, item in enumerate(recorded)} if ids != recorded else {}
    for source, metrics in metric_rows(run.record).items():
        scores = run.items.rows.get(source, {}) if run.items is not None else {}
        replicates = run.items.replicates.get(source, {}) if run.items is not None else {}
        for metric, m in metrics.items():
            if kept is not None and metric not in kept:
                continue
            of_items = scores.get(metric)
            yield Line(
                run=run,
                source=source,
                column=Column.of(metric, m),
                **{
                    end: math.nan if (x := getattr(m, end)) is None else x for end in ("value", "low", "high")
                },
                items=m.n,
                ids=ids,
                scores=of_items if of_items is None or not at else of_items[[at[item] for item in ids]],
                sound=of_items is not None and _averages_to(of_items, m.value),
                recorded=recorded,
                replicates=replicates.get(metric),
            )


def _averages_to(scores: np.ndarray, value: float | None) -> bool:
    known = scores[np.isfinite(scores)]
    if value is None or not len(known):
        return False
    return math.isclose(float(known.mean()), value, rel_tol=1e-4, abs_tol=1e-6)


def grouped(lines: Iterable[Line], key: Callable[[Line], _K]) -> dict[_K, list[Line]]:
    """Return lines by a key, in order."""
    groups: dict[_K, list[Line]] = {}
    for line in lines:
        groups.setdefault(key(line), []).append(line)
    return groups


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What one or two cells are estimated from: items that all have, left out, and groups they are in."""

    estimates: tuple[Estimates, ...]
    items: int
    left_out: int
    groups: int


def evidence(*cells: Lines) -> Evidence | None:
    """Return what cells are estimated from, on the same items and groups; None where that cannot be.

    Scores of items where they are sound, on the items that have one in every line; else what the jackknife
    left out in turn, for a metric of the whole set.
    """
    return _of_items(cells) or _of_sets(cells)


def _of_items(cells: Sequence[Lines]) -> Evidence | None:
    lines = [line for cell in cells for line in cell]
    ids = lines[0].ids
    if any(line.scores is None or not line.sound or line.ids != ids for line in lines):
        return None
    scores = [np.array([line.scores for line in cell], np.float64) for cell in cells]
    known = np.isfinite(np.concatenate(scores)).all(axis=0)
    groups = np.unique(_groups_of(lines[0].run, ids)[known], return_inverse=True)[1]
    count = len(set(groups.tolist()))
    if count < 2:
        return None
    estimates = [
        Estimates.of_items(values[:, known], groups=groups, seeds=_seeds(cell))
        for values, cell in zip(scores, cells, strict=True)
    ]
    items = int(known.sum())
    return Evidence(estimates=tuple(estimates), items=items, left_out=len(ids) - items, groups=count)


def _of_sets(cells: Sequence[Lines]) -> Evidence | None:
    """Items that are left out are dealt by place: another order would leave out others."""
    lines = [line for cell in cells for line in cell]
    first, own = lines[0], _own_groups(lines[0].run)
    alike = {(line.replicates is not None and len(line.replicates), line.recorded) for line in lines}
    if first.replicates is None or len(alike) > 1 or len({_grouped(line.run) for line in lines}) > 1:
        return None
    groups = _groups_of(first.run, first.recorded)
    dealt = Deal.of_pairs(len(groups), groups=own)
    estimates = [
        Estimates.of_replicates(
            np.array([line.value for line in cell]),
            np.array([line.replicates for line in cell]),
            dealt=dealt,
            groups=groups if own is None else None,
            seeds=_seeds(cell),
        )
        for cell in cells
    ]
    return Evidence(
        estimates=tuple(estimates), items=len(groups), left_out=0, groups=len(set(groups.tolist()))
    )


def _seeds(lines: Lines) -> tuple[tuple[int, int], ...]:
    """Return the training seed and the random choice of training items behind each line."""
    records = [line.run.record for line in lines]
    return tuple((record.seed, record.changes.get("train_subset", 0)) for record in records)


def _grouped(run: Run) -> tuple[int, ...]:
    return () if run.items is None else run.items.groups


def _own_groups(run: Run) -> np.ndarray | None:
    """The groups that a run recorded with its items, [N] int; None where it recorded none."""
    return np.array(_grouped(run)) if _grouped(run) else None


_shipped = functools.cache(openmoji64_splits)  # read and checked once a report, not once a number


def _groups_of(run: Run, ids: Sequence[str]) -> np.ndarray:
    """The group of each item, [N] int: as recorded, else as the shipped splits say, else its own."""
    own = _own_groups(run)
    if own is not None and run.items is not None:
        at = dict(zip(run.items.ids, own.tolist(), strict=True))
        return np.array([at[item] for item in ids])
    shipped = _shipped()
    known = shipped.groups if run.record.protocol.get("splits") == shipped.digest else {}
    return labels_of([known.get(item, item) for item in ids])


def gains(lines: Lines, task: str) -> list[Line]:
    """Return the condition gains of runs that were sampled under wrong conditions too, a line each.

    How much better a number is under an item's own condition than under another item's, positive where it
    is better, whichever direction that is: the condition is obeyed. Paired within a run by items or by
    what the jackknife left out, so that a gain has scores or replicates of its own.
    """
    asked = gained_metrics(task)
    wrong = {(id(line.run), line.column): line for line in lines if line.source == SHUFFLED}
    return [
        _gain(line, wrong[id(line.run), line.column])
        for line in lines
        if line.source == SAMPLES
        and line.column.gain.metric in asked
        and (id(line.run), line.column) in wrong
    ]


def forgotten(lines: Lines) -> list[Line]:
    """Return how far samples of the base's own styles lie from the base's, where a run has them."""
    known = [line._replace(column=line.column.forgotten) for line in lines if line.source == OWN_STYLES]
    return [line._replace(source=SAMPLES) for line in known if line.column.is_forgetting]


def _gain(right: Line, wrong: Line) -> Line:
    sign = 1.0 if right.column.better == "higher" else -1.0
    scores, replicates = (
        None if of is None or off is None else sign * (np.asarray(of, np.float64) - off)
        for of, off in ((right.scores, wrong.scores), (right.replicates, wrong.replicates))
    )
    value, items = sign * (right.value - wrong.value), min(right.items, wrong.items)
    sound = right.sound and wrong.sound
    if scores is not None and sound:
        known = scores[np.isfinite(scores)]
        value, items = float(known.mean()) if len(known) else math.nan, len(known)
    gain = right._replace(column=right.column.gain, value=value, low=math.nan, high=math.nan)
    return gain._replace(items=items, scores=scores, sound=sound, replicates=replicates)


def cells_of(lines: Iterable[Line], *, runs: int) -> dict[Column, Cell]:
    """Return the cells over the training seeds of a row, of its lines and so many runs."""
    by_column = grouped(lines, lambda line: line.column)
    return {
        column: _cell(column, tuple(part), len(part) if column.is_beside else runs)
        for column, part in by_column.items()
    }


def _cell(column: Column, lines: Lines, runs: int) -> Cell:
    """Return one cell.

    A number missing in any seed is missing in the mean: leaving out a failed seed would flatter. Where
    nothing is known of the items behind a number, its interval is the mean of the seeds' own.
    """
    values, items = np.asarray([line.value for line in lines]), min(line.items for line in lines)
    if len(values) < runs or np.isnan(values).any() or column.too_few(items):
        return Cell(value=None, low=None, high=None, items=items, lines=lines)
    spread, found = seed_spread(values), evidence(lines)
    ends = np.mean([(line.low, line.high) for line in lines], axis=0)
    estimates = None if found is None else found.estimates[0]  # of the same items in every seed?
    if estimates is not None and math.isclose(
        estimates.values.mean(), spread.mean, rel_tol=1e-4, abs_tol=1e-6
    ):
        interval = crossed_interval(estimates, share=column.metric in SHARES)
        ends = np.asarray([interval.low, interval.high])
    low, high = (None, None) if np.isnan(ends).any() else map(float, ends)
    return Cell(value=spread.mean, low=low, high=high, deviation=spread.deviation, items=items, lines=lines)


def build_table(runs: Sequence[Run], *, mixed: bool = False, variants: Collection[str] = ()) -> Table:
    """Build the table of runs of one suite and task.

    mixed: allow several protocols, whose rows are then marked. variants: ids of the runs that stand in
    a block of their own, below the methods. BenchError for several suites, tasks or (unless
    `mixed`) protocols, and for two records of one method, options, protocol and seed.
    """
    suite, task = _only_one(runs, mixed=mixed)
    groups = _groups(runs)
    runs = [run for group in groups for run in group]
    records = [run.record for run in runs]
    marks = protocol_marks(records)
    lines = frame(runs)
    lines += [*gains(lines, task), *forgotten(lines)]
    references, notes = _reference_rows(lines, marks)
    plain = [group[0].record for group in groups if group[0].record.run_id not in variants]
    rows = []
    for group in groups:
        varied = group[0].record.run_id in variants
        details = variant_details(
            group[0].record, [*plain, group[0].record] if varied else plain, marks=marks
        )
        made = [_row(source, part, details) for source, part in _by_source(lines_of(lines, group))]
        rows += [replace(row, kind="variant") for row in made] if varied else made
    rows = [*references, *rows]
    rows.sort(key=lambda row: (_PLACES.get(row.kind, 2), row.name if row.kind == "variant" else ""))
    return Table(
        suite=suite,
        task=task,
        rows=tuple(rows),
        columns=order_columns(column for row in rows for column in row.cells),
        runs=tuple(runs),
        marks=marks,
        notes=(*notes, *run_notes(records, rows), *_rate_notes(rows), *_cell_notes(rows)),
    )


def _rate_notes(rows: Iterable[Row]) -> list[str]:
    """Say the learning rates that were asked for in place of the suite's own."""
    records = {row.label: row.record for row in rows if row.kind in ("method", "variant")}
    asked = {name: record.config.get("learning_rate") for name, record in records.items() if record}
    chosen = ", ".join(f"{name} {rate:g}" for name, rate in asked.items() if rate is not None)
    return [f"Learning rates other than the suite's: {chosen}."] if chosen else []


def run_notes(records: Sequence[RunRecord], rows: Iterable[Row]) -> list[str]:
    """Return what must be said aloud of the runs of any table: leaks, devices, few items."""
    items = [cell.items for row in rows for c, cell in row.cells.items() if c.metric in FRECHET]
    return [*split_notes(records), *device_notes(records), *few_notes(items)]


def _only_one(runs: Sequence[Run], *, mixed: bool) -> tuple[str, str]:
    if not runs:
        raise BenchError("a table needs at least one record; none was given.")
    places = sorted({(run.record.suite, run.record.task) for run in runs})
    if len(places) > 1:
        raise BenchError(
            "one table holds one suite and task, got "
            f"{', '.join(f'{suite} / {task}' for suite, task in places)}. Make one table each."
        )
    protocols = protocol_words([run.record for run in runs])
    if len(protocols) > 1 and not mixed:
        raise BenchError(
            f"{len(protocols)} protocols in one table ({'; '.join(map(': '.join, protocols.items()))}): "
            "their numbers cannot be compared. Make one table a protocol, or allow it with mixed, which "
            "marks the rows."
        )
    return places[0]


def _groups(runs: Sequence[Run]) -> list[tuple[Run, ...]]:
    """Return the runs of each (protocol, method, options), seeds in order; refuse repeats."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.record.seed):
        groups.setdefault(_group_key(run.record), []).append(run)
    for group in groups.values():
        for run, other in zip(group, group[1:], strict=False):
            if run.record.seed == other.record.seed:
                raise BenchError(
                    f"{run.place} and {other.place} are the same run twice (method "
                    f"{run.record.method}, seed {run.record.seed}). Keep one of the two folders."
                )
    return [tuple(groups[key]) for key in sorted(groups)]


def _group_key(record: RunRecord) -> tuple[str, ...]:
    options = " ".join(f"{key}={record.options[key]}" for key in sorted(record.options))
    whole = json.dumps(dict(record.options), sort_keys=True)
    return record.method, options, record.budget, record.protocol_hash, whole


def _by_source(lines: Sequence[Line]) -> list[tuple[str, list[Line]]]:
    """Return the lines of each row of a method: its samples, wrong conditions, then others by name."""
    places = list(OWN_ROWS)
    parts = [(s, p) for s, p in grouped(lines, lambda line: line.source).items() if s not in _APART]
    return sorted(parts, key=lambda p: (places.index(p[0]) if p[0] in places else len(places), p[0]))


def _row(source: str, lines: Lines, details: Sequence[str]) -> Row:
    """Return a method's row; grids shuffle the conditions of one seed alone, so runs may be fewer."""
    group = runs_of(lines)
    records = [run.record for run in group]
    method, leak = titled(records[0].method), leak_mark(records)
    floor = records[0].method == FLOOR
    kind, own = OWN_ROWS.get(source, ("other", source))
    name = label(method, *details, own, outside_mark(records), leak)
    return Row(
        name=name,
        label=label(method, "floor", *details, leak) if floor and source == SAMPLES else name,
        kind="floor" if floor and source == SAMPLES else kind,
        source=source,
        runs=group,
        cells=cells_of(lines, runs=len(group)),
    )


def _reference_rows(lines: Lines, marks: Mapping[str, str]) -> tuple[list[Row], list[str]]:
    """Return the reference rows, one a protocol, as the first record has them; a note where others differ."""
    rows: list[Row] = []
    notes: list[str] = []
    parts = grouped(lines, lambda line: (line.run.record.protocol_hash, line.source))
    for digest, source in sorted(parts, key=lambda key: (key[0], key[1] != REAL)):
        if source not in REFERENCES:
            continue
        part = parts[digest, source]
        members = runs_of(part)
        first = {line.column: line for line in reversed(part)}
        mark = f"protocol {marks[digest]}" if marks else ""
        name = label(source, REFERENCES[source], mark, leak_mark(run.record for run in members))
        cells = cells_of(first.values(), runs=1)
        rows.append(
            Row(name=name, label=name, kind=REFERENCES[source], source=source, runs=members, cells=cells)
        )
        others = {x.run.record.run_id for x in part if not _agree(x, first[x.column])}
        if others or len({column.metric for column in first}) < len(first):
            notes.append(
                f"REFERENCES DIFFER: '{source}' must be equal in records of one protocol, and is not: shown "
                f"as in {members[0].record.run_id}, otherwise in {', '.join(sorted(others)) or 'others'}. Do "
                "not compare these rows before the cause is known."
            )
    return rows, notes


def _agree(line: Line, first: Line) -> bool:
    """Tell whether two runs measured the same: value and items; intervals are made anew of both."""
    same = np.isclose(line.value, first.value, rtol=1e-6, atol=1e-9, equal_nan=True)
    return bool(same) and line.items == first.items


def _cell_notes(rows: Iterable[Row]) -> Iterator[str]:
    """Say which seeds have no number, and whose scores of items do not average to it."""
    places = [(row, c) for row in rows if row.seeds for c in order_columns(row.cells) if not c.is_beside]
    for row, column in places:
        lines, what = row.cells[column].lines, column.header
        known = {line.run.record.seed for line in lines if not math.isnan(line.value)}
        absent = ", ".join(str(seed) for seed in row.seeds if seed not in known)
        if absent and known:
            yield f"{row.name}: {what} is missing for seed {absent}, so no mean over seeds is given."
        if any(line.scores is not None and not line.sound for line in lines):
            yield (
                f"{row.name}: the per-item scores of {what} do not average to its value, so no paired "
                "difference is stated."
            )
