"""Runs as one table of lines, one a run, row and metric, and the table of methods read off it."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np

from bench.ablations import ABLATIONS_FOLDER, Variant
from bench.config import Style
from bench.cost import load_timings, with_timing
from bench.data.openmoji import openmoji64_splits
from bench.metrics.intervals import Deal, Estimates, Interval, crossed_interval, labels_of, seed_spread
from bench.metrics.neighbours import SHARES
from bench.packed import LINES, Pack, Run, kept_runs
from bench.record import OWN_STYLES, RECORD_FILE, ItemScores, MetricValue, RunRecord
from bench.registry import FLOOR
from bench.reporting import words
from bench.reporting.words import Column, label, leak_mark, titled
from bench.types import BenchError, unknown

_T = TypeVar("_T")
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
WRONG_CONDITIONS = ("shuffled", "blank")
_PLACES = {"reference": 0, "ceiling": 1, "floor": 3, "variant": 4}  # a method and its own rows at 2
_NO_ITEMS = ItemScores(ids=(), rows={})


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of a table: mean over seeds, 95% interval over items and seeds, deviation over seeds.

    None is missing, never 0. items: how many evaluation items stand behind it. lines: one a seed.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
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
        value, low, high = -self.interval.value, -self.interval.high, -self.interval.low
        turned = replace(self, first=self.second, second=self.first, first_seeds=self.second_seeds)
        interval = replace(self.interval, value=value, low=low, high=high)
        return replace(turned, interval=interval, second_seeds=self.first_seeds)

    @property
    def digits(self) -> int:
        """Decimals that show two digits of the interval's width and no end at 0 that is not."""
        digits, ends = words.decimals([self.interval]), (self.interval.low, self.interval.high)
        nearest = min((abs(end) for end in ends if end), default=0.0)
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
    def seeds(self) -> tuple[int, ...]:
        """Training seeds in order; empty for a reference, which no seed moves."""
        seeds = dict.fromkeys(run.record.seed for run in self.runs)  # of several choices of items each
        return () if self.kind in REFERENCES.values() else tuple(seeds)

    def seeds_of(self, column: Column) -> tuple[int, ...]:
        """Training seeds behind a number: a condition gain has those that were shuffled."""
        if column.is_beside and column in self.cells:
            return tuple(line.run.record.seed for line in self.cells[column].lines)
        return (self.rows.get(column.task) or self).seeds

    @property
    def ranked(self) -> bool:
        """Whether sentences and bold may tell of it: a method whose runs all began here, see `Outside`."""
        return self.kind == "method" and not words.outside_mark([run.record for run in self.runs])

    @property
    def seeds_by_task(self) -> dict[str, int]:
        """How many training seeds stand behind each task of a comparison; empty for a reference."""
        return {task: len(row.seeds) for task, row in self.rows.items() if row.seeds}

    @property
    def train_items(self) -> int:
        """How many items were trained on."""
        return self.record.splits.train.n

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
    intervals are printed. over: what its rows are told apart by.
    """

    suite: str
    task: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    runs: tuple[Run, ...]
    marks: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    style: Style = "brackets"
    over: ClassVar[str] = "methods"

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

    @property
    def parts(self) -> Mapping[str, Table]:
        """By task, the tables it is made of: itself, where it is no comparison of several."""
        return {self.task: self}

    def block(self, row: Row) -> object:
        """Return what rows have in common between two rules."""
        return "references" if row.kind in REFERENCES.values() else row.kind == "floor"

    def describe(self, row: Row, column: Column) -> dict[str, Any]:
        """Return what a number is of, by column of a tidy table."""
        own = row.kind not in REFERENCES.values()
        return {
            "suite": self.suite,
            "task": self.task,
            "protocol": row.record.protocol_hash,
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
    runs, folder = kept_runs(pack), pack.results
    if not runs and not kept_runs(pack, ABLATIONS_FOLDER):
        looked = f"looked for {folder / '*' / RECORD_FILE} and {folder}{LINES}"
        raise BenchError(
            f"no records in {folder}: {looked}. Make one: 'bench run --method bps --task sketch'."
        )
    timings = load_timings(folder)
    if timings is None:
        return runs
    return [replace(run, record=with_timing(run.record, timings), timed=timings.words) for run in runs]


def chosen(runs: Sequence[Run], *, methods: Sequence[str] = (), metrics: Sequence[str] = ()) -> list[Run]:
    """Return runs of some methods, by name or title, and metrics, else all; BenchError for an unknown one."""
    names = {titled(run.record): run.record.method for run in runs}
    names |= {name: name for name in names.values()}
    known = {metric for run in runs for row in metric_rows(run.record).values() for metric in row}
    for kind, asked, allowed in (("method", methods, names), ("metric", metrics, known)):
        for name in asked:
            if name not in allowed:
                raise unknown(f"{kind} of these runs", name, allowed)
    wanted = {names[name] for name in methods} or set(names)
    runs = [run for run in runs if run.record.method in wanted]
    return [_with_metrics(run, metrics) for run in runs] if metrics else runs


def _with_metrics(run: Run, kept: Collection[str]) -> Run:
    rows = {s: {m: v for m, v in row.items() if m in kept} for s, row in metric_rows(run.record).items()}
    return replace(run, record=replace(run.record, rows=rows, metrics=rows[SAMPLES]))


def metric_rows(record: RunRecord) -> dict[str, Mapping[str, MetricValue]]:
    """Return the metrics of a record by row name, the method's own samples first."""
    return {SAMPLES: record.metrics, **{n: row for n, row in record.rows.items() if n != SAMPLES}}


class Line(NamedTuple):
    """One number of a run.

    source: the row's name in the record; value, low, high: NaN where missing; items: N; scores: [N] in the
    order of ids, or None; sound: whether scores average to the value (of a metric of the whole set, such as
    mIoU, they need not: they say nothing about its differences); replicates: [G] of the jackknife over items
    in the order in which the run recorded them, or None.
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
    replicates: np.ndarray | None


Lines = Sequence[Line]


def frame(runs: Sequence[Run], metrics: Collection[str] | None = None) -> list[Line]:
    """Return all numbers of runs, or those of some metrics: a line a run, row and metric.

    Scores of runs on the same items stand in the order of the first. With the samples stand what their
    condition gains over a wrong one and, of metrics that tell it, how far the base forgot its own styles.
    """
    orders: dict[frozenset[str], tuple[str, ...]] = {}
    return [line for run in runs for line in _lines(run, orders, metrics)]


def _lines(
    run: Run, orders: dict[frozenset[str], tuple[str, ...]], kept: Collection[str] | None
) -> list[Line]:
    items, lines = run.items or _NO_ITEMS, []
    ids = orders.setdefault(frozenset(items.ids), items.ids)
    at = {item: i for i, item in enumerate(items.ids)} if ids != items.ids else {}
    for source, metrics in metric_rows(run.record).items():
        for metric, m in metrics.items():
            if kept is not None and metric not in kept:
                continue
            scores = items.rows.get(source, {}).get(metric)
            sound = scores is not None and _averages_to(scores, m.value)
            if scores is not None and at:
                scores = scores[[at[item] for item in ids]]
            value, low, high = (math.nan if x is None else x for x in (m.value, m.low, m.high))
            column, left = Column.of(metric, m), items.replicates.get(source, {}).get(metric)
            lines.append(Line(run, source, column, value, low, high, m.n, ids, scores, sound, left))
            forgotten = replace(column, metric=f"{metric}_forgotten")
            if source == OWN_STYLES and forgotten.is_forgetting:
                lines.append(lines[-1]._replace(column=forgotten, source=SAMPLES))
    right, wrong = ({x.column: x for x in lines if x.source == source} for source in (SAMPLES, SHUFFLED))
    asked = words.gained_metrics(run.record.task)
    gained = [c for c in right if c in wrong and f"{c.metric}_gain" in asked]
    return [*lines, *(_gain(right[column], wrong[column]) for column in gained)]


def _gain(right: Line, wrong: Line) -> Line:
    """Return how much better (above 0) a number is under an item's own condition, by items or blocks."""
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
    column = replace(right.column, metric=f"{right.column.metric}_gain", better="higher")
    gain = right._replace(column=column, value=value, low=math.nan, high=math.nan)
    return gain._replace(items=items, scores=scores, sound=sound, replicates=replicates)


def _averages_to(scores: np.ndarray, value: float | None) -> bool:
    known = scores[np.isfinite(scores)]
    near = value is not None and len(known) and math.isclose(known.mean(), value, rel_tol=1e-4, abs_tol=1e-6)
    return bool(near)


def lines_of(lines: Lines, runs: Sequence[Run]) -> list[Line]:
    """Return the lines of some runs, in order."""
    wanted = set(map(id, runs))
    return [line for line in lines if id(line.run) in wanted]


def runs_of(lines: Lines) -> tuple[Run, ...]:
    """Return the runs of lines, each once, in order."""
    return tuple({id(line.run): line.run for line in lines}.values())


def grouped(things: Iterable[_T], key: Callable[[_T], _K]) -> dict[_K, list[_T]]:
    """Return things by a key, in order."""
    groups: dict[_K, list[_T]] = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    return groups


class Evidence(NamedTuple):
    """What one or two cells are estimated from: items that all have, left out, and groups they are in."""

    estimates: tuple[Estimates, ...]
    items: int
    left_out: int
    groups: int


def evidence(*cells: Lines) -> Evidence | None:
    """Return what cells are estimated from, on the same items and groups; None where that cannot be.

    Scores of items where they are sound, on the items that have one in every line; else what the jackknife
    left out in turn, for a metric of the whole set: dealt by place, as another order would leave out others.
    """
    lines = [line for cell in cells for line in cell]
    ids, items = lines[0].ids, lines[0].run.items or _NO_ITEMS
    if all(line.scores is not None and line.sound and line.ids == ids for line in lines):
        scores = [np.array([line.scores for line in cell], np.float64) for cell in cells]
        known = np.isfinite(np.concatenate(scores)).all(axis=0)
        names, groups = np.unique(_groups_of(lines[0].run, ids)[known], return_inverse=True)
        if len(names) > 1:
            pairs = zip(scores, cells, strict=True)
            of = [Estimates.of_items(s[:, known], groups=groups, seeds=_seeds(c)) for s, c in pairs]
            return Evidence(tuple(of), int(known.sum()), int((~known).sum()), len(names))
    kinds = [{_left_out(line) for line in cell} for cell in cells]
    if lines[0].replicates is None or any(len(kind) > 1 for kind in kinds):
        return None
    if any(kind != kinds[0] for kind in kinds) and not _by_the_same_groups([cell[0] for cell in cells]):
        return None
    groups, of_sets = _groups_of(lines[0].run, items.ids), []
    for cell in cells:
        own = groups if (cell[0].run.items or _NO_ITEMS).groups else None
        values, left = (np.array([getattr(x, what) for x in cell]) for what in ("value", "replicates"))
        how: dict[str, Any] = {"dealt": Deal.of_pairs(len(groups), groups=own), "seeds": _seeds(cell)}
        of_sets.append(Estimates.of_replicates(values, left, groups=groups, **how))
    return Evidence(tuple(of_sets), len(groups), 0, len(set(groups.tolist())))


def _left_out(line: Line) -> tuple[int | None, tuple[str, ...], tuple[int, ...]]:
    """Return how many replicates a line has, of which items and recorded groups."""
    items = line.run.items or _NO_ITEMS
    return None if line.replicates is None else len(line.replicates), items.ids, items.groups


def _by_the_same_groups(lines: Lines) -> bool:
    """Tell whether replicates that left out items or groups each gather to the same groups."""
    found = set()
    for line in lines:
        kept, ids, groups = _left_out(line)
        if kept is None or kept != (len(set(groups)) or len(ids)):
            return False
        found.add((ids, tuple(_groups_of(line.run, ids).tolist())))
    return len(found) == 1


def _seeds(lines: Lines) -> tuple[tuple[int, int], ...]:
    records = [line.run.record for line in lines]
    return tuple((record.seed, record.changes.get("train_subset", 0)) for record in records)


_shipped = functools.cache(openmoji64_splits)  # read and checked once a report, not once a number


def _groups_of(run: Run, ids: Sequence[str]) -> np.ndarray:
    """The group of each item, [N] int: as recorded, else as the shipped splits say, else its own."""
    if run.items is not None and run.items.groups:
        at = dict(zip(run.items.ids, run.items.groups, strict=True))
        return np.array([at[item] for item in ids])
    shipped = _shipped()
    known = shipped.groups if run.record.protocol.get("splits") == shipped.digest else {}
    return labels_of([known.get(item, item) for item in ids])


def cells_of(lines: Iterable[Line], *, runs: int) -> dict[Column, Cell]:
    """Return the cells over the training seeds of a row, of its lines and so many runs."""
    by_column = grouped(lines, lambda line: line.column)
    return {c: _cell(c, part, len(part) if c.is_beside else runs) for c, part in by_column.items()}


def _cell(column: Column, lines: Lines, runs: int) -> Cell:
    """Return one cell; where nothing is known of the items, its interval is the mean of the seeds' own."""
    values, items = np.asarray([line.value for line in lines]), min(line.items for line in lines)
    # A number missing in any seed is missing in the mean: leaving out a failed seed would flatter.
    if len(values) < runs or np.isnan(values).any() or column.too_few(items):
        return Cell(items=items, lines=lines)
    (mean, deviation), found = seed_spread(values), evidence(lines)
    low, high = map(float, np.mean([(line.low, line.high) for line in lines], axis=0))
    own = math.nan if found is None else float(found.estimates[0].values.mean())
    if found is not None and math.isclose(own, mean, rel_tol=1e-4, abs_tol=1e-6):  # of the same items?
        interval = crossed_interval(found.estimates[0], share=column.metric in SHARES)
        low, high = interval.low, interval.high
    ends = {} if math.isnan(low + high) else {"low": low, "high": high}
    return Cell(value=mean, **ends, deviation=deviation, items=items, lines=lines)


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
    hashes = sorted({record.protocol_hash for record in records})
    letters = (chr(ord("A") + i) if i < 26 else str(i + 1) for i in itertools.count())
    marks = dict(zip(hashes, letters, strict=False)) if len(hashes) > 1 else {}
    lines = frame(runs)
    rows, notes = _reference_rows(lines, marks)
    plain = [group[0].record for group in groups if group[0].record.run_id not in variants]
    for group in groups:
        first, varied = group[0].record, group[0].record.run_id in variants
        details = words.variant_details(first, [*plain, first] if varied else plain)
        details += [f"protocol {marks[first.protocol_hash]}"] if marks else []
        by_source = grouped(lines_of(lines, group), lambda line: line.source)
        own = sorted(by_source.keys() - {*REFERENCES, OWN_STYLES} - {*OWN_ROWS})
        made = [_row(s, by_source[s], details) for s in (*OWN_ROWS, *own) if s in by_source]
        rows += [replace(row, kind="variant") for row in made] if varied else made
    rows.sort(key=lambda row: (_PLACES.get(row.kind, 2), row.name if row.kind == "variant" else ""))
    return Table(
        suite=suite,
        task=task,
        rows=tuple(rows),
        columns=words.order_columns(column for row in rows for column in row.cells),
        runs=tuple(runs),
        marks=marks,
        notes=(*notes, *words.run_notes(records, items_of(rows)), *_rate_notes(rows), *_cell_notes(rows)),
    )


def _only_one(runs: Sequence[Run], *, mixed: bool) -> tuple[str, str]:
    places = sorted({(run.record.suite, run.record.task) for run in runs})
    if len(places) != 1:
        got = ", ".join(f"{suite} / {task}" for suite, task in places) or "no record"
        raise BenchError(f"one table holds one suite and task, got {got}. Make one table each.")
    protocols = words.protocol_words([run.record for run in runs])
    if len(protocols) > 1 and not mixed:
        each = "; ".join(map(": ".join, protocols.items()))
        many = f"{len(protocols)} protocols in one table ({each}): their numbers cannot be compared"
        raise BenchError(f"{many}. Make one table each, or allow it with mixed, which marks the rows.")
    return places[0]


def _groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the runs of each (protocol, method, options), seeds in order; refuse repeats."""

    def identity(run: Run) -> tuple[str, ...]:
        record, options = run.record, sorted(run.record.options.items())
        texts = " ".join(f"{key}={value}" for key, value in options), json.dumps(options)
        return record.method, texts[0], record.budget, record.protocol_hash, texts[1]

    groups = grouped(sorted(runs, key=lambda run: run.record.seed), identity)
    for run, other in (pair for group in groups.values() for pair in itertools.pairwise(group)):
        if run.record.seed == other.record.seed:
            twice = f"are the same run twice (method {run.record.method}, seed {run.record.seed})"
            raise BenchError(f"{run.place} and {other.place} {twice}. Keep one of the two folders.")
    return [groups[key] for key in sorted(groups)]


def _row(source: str, lines: Lines, details: Sequence[str]) -> Row:
    """Return a method's row; grids shuffle the conditions of one seed alone, so runs may be fewer."""
    runs = runs_of(lines)
    records = [run.record for run in runs]
    method, leak = titled(records[0]), leak_mark(records)
    floor = records[0].method == FLOOR and source == SAMPLES
    kind, own = OWN_ROWS.get(source, ("other", source))
    name = label(method, *details, own, words.outside_mark(records), leak)
    shown, kind = (label(method, "floor", *details, leak), "floor") if floor else (name, kind)
    cells = cells_of(lines, runs=len(runs))
    return Row(name=name, label=shown, kind=kind, source=source, runs=runs, cells=cells)


def _reference_rows(lines: Lines, marks: Mapping[str, str]) -> tuple[list[Row], list[str]]:
    """Return the reference rows, one a protocol, as the first record has them; a note where others differ."""
    rows: list[Row] = []
    notes: list[str] = []
    own = [line for line in lines if line.source in REFERENCES]
    parts = grouped(own, lambda line: (line.run.record.protocol_hash, line.source))
    for digest, source in sorted(parts, key=lambda key: (key[0], key[1] != REAL)):
        part, kind = parts[digest, source], REFERENCES[source]
        runs, first = runs_of(part), {line.column: line for line in reversed(part)}
        mark = f"protocol {marks[digest]}" if marks else ""
        name = label(source, kind, mark, leak_mark(run.record for run in runs))
        cells = cells_of(first.values(), runs=1)
        rows.append(Row(name=name, label=name, kind=kind, source=source, runs=runs, cells=cells))
        unlike = [line for line in part if not _agree(line, first[line.column])]
        others = ", ".join(sorted({line.run.record.run_id for line in unlike})) or "others"
        metrics = [column.metric for column in first]
        differing = {line.column for line in unlike} | {c for c in first if metrics.count(c.metric) > 1}
        if differing:
            names = ", ".join(column.named for column in words.order_columns(differing))
            equal = f"'{source}' must be equal in records of one protocol, and is not in {names}"
            shown = f"shown as in {runs[0].record.run_id}, otherwise in {others}"
            notes.append(
                f"REFERENCES DIFFER: {equal}: {shown}. Do not compare rows in it before the cause is known."
            )
    return rows, notes


def _agree(line: Line, first: Line) -> bool:
    """Tell whether two runs measured the same: value and items; intervals are made anew of both.

    Another processor rounds otherwise, so that some pixels differ by a level and numbers by some 1e-5.
    """
    same = np.isclose(line.value, first.value, rtol=1e-4, atol=1e-9, equal_nan=True)
    return bool(same) and line.items == first.items


def items_of(rows: Iterable[Row]) -> list[int]:
    """Return how many items stand behind each Fréchet distance."""
    return [cell.items for row in rows for c, cell in row.cells.items() if c.metric in words.FRECHET]


def _rate_notes(rows: Iterable[Row]) -> list[str]:
    """Say the learning rates that were asked for in place of the suite's own."""
    records = {row.label: row.record for row in rows if row.kind in ("method", "variant")}
    asked = {name: record.config.get("learning_rate") for name, record in records.items()}
    chosen = ", ".join(f"{name} {rate:g}" for name, rate in asked.items() if rate is not None)
    return [f"Learning rates other than the suite's: {chosen}."] if chosen else []


def _cell_notes(rows: Iterable[Row]) -> Iterator[str]:
    """Say which seeds have no number, and whose scores of items do not average to it."""
    scored = [(row, c) for row in rows if row.seeds for c in words.order_columns(row.cells)]
    for row, column in ((row, c) for row, c in scored if not c.is_beside):
        lines, what = row.cells[column].lines, column.header
        known = {line.run.record.seed for line in lines if not math.isnan(line.value)}
        absent = ", ".join(str(seed) for seed in row.seeds if seed not in known)
        if absent and known:
            yield f"{row.name}: {what} is missing for seed {absent}, so no mean over seeds is given."
        if any(line.scores is not None and not line.sound for line in lines):
            scores = f"the per-item scores of {what} do not average to its value"
            yield f"{row.name}: {scores}, so no paired difference is stated."
