"""The comparison of methods over the tasks of one suite: rows, columns and who is best where."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bench.record import RunRecord
from bench.reporting.differences import Difference, Pairing, against, told_apart, verdict
from bench.reporting.leaks import leak_by_task, leak_title, marked, outside_mark
from bench.reporting.names import (
    RATE,
    Column,
    label,
    named,
    primary_metrics,
    task_place,
    titled,
    variant_details,
)
from bench.reporting.rows import BOOTSTRAP_SEED, Cell, Row, Table
from bench.reporting.runs import OWN_METHOD
from bench.types import BenchError

FEWER = "†"
_REFERENCES = ("reference", "ceiling")
_KINDS = (*_REFERENCES, "method", "floor")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of the comparison: a method with its options on several tasks, or a reference.

    name: as sentences say it; label: as tables say it; rows: task -> its row there, under `name`.
    """

    name: str
    label: str
    kind: str
    rows: Mapping[str, Row]

    def cell(self, task: str, column: Column) -> Cell | None:
        """Return its number in a task's column, None where it has none."""
        row = self.rows.get(task)
        found = row.cells.get(column) if row is not None else None
        return found if found is not None and found.value is not None else None

    @property
    def seeds(self) -> dict[str, int]:
        """How many training seeds stand behind each task; empty for a reference."""
        return {task: len(row.seeds) for task, row in self.rows.items() if row.seeds}


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Who is best in one column, and whether it is told apart from the next.

    difference: best minus next, None where there is no next or the two cannot be paired.
    """

    task: str
    column: Column
    best: Entry
    next: Entry | None
    difference: Difference | None

    @property
    def clear(self) -> bool:
        """Whether the best may be set in bold: the interval leaves 0 out and seeds agree."""
        return self.difference is not None and told_apart(self.difference)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Methods by tasks of one suite.

    tables: by task, in order; entries: references, methods (those on most tasks first), floor;
    columns: (task, column) in order; standings: one a column that has a best method; options: what
    a method's plain name stands for where it has variants.
    """

    suite: str
    tables: Mapping[str, Table]
    entries: tuple[Entry, ...]
    columns: tuple[tuple[str, Column], ...]
    standings: tuple[Standing, ...]
    options: Mapping[str, str]

    @property
    def title(self) -> str:
        """The suite, and the mark of a leak where a run of any task has one."""
        records = [run.record for table in self.tables.values() for run in table.runs]
        return leak_title(self.suite, records)

    def own(self, kind: str) -> list[Entry]:
        """Return the entries of one kind, in order."""
        return [entry for entry in self.entries if entry.kind == kind]

    @property
    def most_seeds(self) -> int:
        """Return the most training seeds that any cell has."""
        return max((n for entry in self.entries for n in entry.seeds.values()), default=0)

    def has_fewer_seeds(self, entry: Entry) -> bool:
        """Tell whether a row has fewer seeds, in some task, than the table's most."""
        return any(n < self.most_seeds for n in entry.seeds.values())


def build_comparison(tables: Sequence[Table], *, seed: int = BOOTSTRAP_SEED) -> Comparison:
    """Compare the methods of tables of one suite, one a task, each of a single protocol.

    A method is its name and options without the learning rate, which may suit each task; the rate
    tells rows apart only where one task holds several. seed: of the bootstrap over items.
    BenchError for several suites, a task twice or mixed protocols.
    """
    suites = {table.suite for table in tables}
    ordered = {t.task: t for t in sorted(tables, key=lambda t: task_place(t.task))}
    if len(suites) != 1 or len(ordered) < len(tables) or any(t.marks for t in tables):
        raise BenchError(
            "a comparison holds the tasks of one suite, each in one table of one protocol, got "
            f"{', '.join(f'{t.suite} / {t.task}' for t in tables) or 'no table'}."
        )
    methods, options = _methods(ordered)
    entries = tuple([*_references(ordered), *methods])
    columns = _columns(ordered)
    pairing = Pairing(seed=seed)
    standings = [_standing(entries, task, column, pairing) for task, column in columns]
    return Comparison(
        suite=suites.pop(),
        tables=ordered,
        entries=entries,
        columns=columns,
        standings=tuple(found for found in standings if found is not None),
        options=options,
    )


def findings(comparison: Comparison, *, seed: int = BOOTSTRAP_SEED) -> dict[str, list[str]]:
    """Return by task what may be said of fidelity and FD, never stronger than the intervals."""
    pairing = Pairing(seed=seed)
    said: dict[str, list[str]] = {task: [] for task in comparison.tables}
    for task, column in comparison.columns:
        if column.metric in {"fd", *primary_metrics(task)}:
            said[task] += _best_words(comparison, task, column)
            said[task] += _own_words(comparison, task, column, pairing)
    return said


def _columns(tables: Mapping[str, Table]) -> tuple[tuple[str, Column], ...]:
    return tuple(
        (task, column)
        for task, table in tables.items()
        for metric in ("fd", *primary_metrics(task), "cosine")
        for column in table.columns
        if column.metric == metric
    )


def _references(tables: Mapping[str, Table]) -> list[Entry]:
    """Return real images and autoencoder; none in a task whose records differ about them."""
    entries = []
    for kind in _REFERENCES:
        found = {task: [r for r in t.rows if r.kind == kind] for task, t in tables.items()}
        rows = {task: own[0] for task, own in found.items() if len(own) == 1}
        if rows:
            first = next(iter(rows.values()))
            name = marked(label(first.source, first.kind), _leak(rows))
            entries.append(Entry(name=name, label=name, kind=kind, rows=rows))
    return entries


def _methods(tables: Mapping[str, Table]) -> tuple[list[Entry], dict[str, str]]:
    """Return methods and floor, those on most tasks first, and what plain names stand for."""
    groups: dict[str, dict[str, Row]] = {}
    plain: dict[str, RunRecord] = {}
    rates = _several_rates(tables.values())
    for task, table in tables.items():
        for row in _own_rows(table):
            record = row.runs[0].record
            keep = _key(record) in rates
            groups.setdefault(_key(record, keep), {})[task] = row
            plain.setdefault(_key(record, keep), _plain(record, keep))
    names, options = _names(plain, {key: len(rows) for key, rows in groups.items()})
    entries = [
        _entry(names[key], rows)
        for key, rows in sorted(groups.items(), key=lambda g: (-len(g[1]), plain[g[0]].method, names[g[0]]))
    ]
    return sorted(entries, key=lambda entry: _KINDS.index(entry.kind)), options


def _own_rows(table: Table) -> list[Row]:
    return [row for row in table.rows if row.kind in {"method", "floor"}]


def _first(rows: Mapping[str, Row]) -> RunRecord:
    return next(iter(rows.values())).runs[0].record


def _plain(record: RunRecord, keep_rate: bool) -> RunRecord:
    """Return the record without its learning rate, unless the rate is what tells rows apart."""
    options = {k: v for k, v in record.options.items() if k != RATE or keep_rate}
    return replace(record, options=options)


def _key(record: RunRecord, keep_rate: bool = False) -> str:
    return json.dumps([record.method, dict(_plain(record, keep_rate).options)], sort_keys=True)


def _several_rates(tables: Iterable[Table]) -> set[str]:
    """Return the identities of methods of which one task holds several learning rates."""
    found: set[str] = set()
    for table in tables:
        keys = [_key(row.runs[0].record) for row in _own_rows(table)]
        found |= {key for key in keys if keys.count(key) > 1}
    return found


def _names(
    records: Mapping[str, RunRecord], tasks: Mapping[str, int]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return names by identity: the plain name for the variant on most tasks, if it is alone there.

    Other variants say what differs from it; without such a one, all say what differs among them.
    """
    names: dict[str, str] = {}
    stands_for: dict[str, str] = {}
    for method in sorted({record.method for record in records.values()}):
        family = {key: record for key, record in records.items() if record.method == method}
        most = max(tasks[key] for key in family)
        leaders = [key for key in family if tasks[key] == most]
        main = family[leaders[0]] if len(leaders) == 1 and len(family) > 1 else None
        short = {} if main is None else _labels(family, [main])
        if main is None or len(set(short.values())) < len(family):
            names |= _labels(family, list(family.values()))
        else:
            names |= short
            stands_for[titled(method)] = ", ".join(variant_details(main, list(family.values()), marks={}))
    return names, stands_for


def _labels(family: Mapping[str, RunRecord], others: Sequence[RunRecord]) -> dict[str, str]:
    return {
        key: label(titled(record.method), *variant_details(record, others, marks={}))
        for key, record in family.items()
    }


def _entry(name: str, rows: Mapping[str, Row]) -> Entry:
    kind = next(iter(rows.values())).kind
    given = outside_mark(run.record for row in rows.values() for run in row.runs)
    name = marked(marked(name, given), _leak(rows))
    return Entry(
        name=name,
        label=marked(name, "floor") if kind == "floor" else name,
        kind=kind,
        rows={task: replace(row, name=name, label=name) for task, row in rows.items()},
    )


def _leak(rows: Mapping[str, Row]) -> str:
    return leak_by_task({task: [run.record for run in row.runs] for task, row in rows.items()})


def _standing(entries: Sequence[Entry], task: str, column: Column, pairing: Pairing) -> Standing | None:
    """Find the best method of a column and the next; references and floors do not take part."""
    if column.better not in {"higher", "lower"}:
        return None
    ranked = _ranked([e for e in entries if e.kind == "method"], task, column)
    if not ranked:
        return None
    best, second = ranked[0], ranked[1] if len(ranked) > 1 else None
    difference = None
    if second is not None:
        difference = pairing.difference(best.rows[task], second.rows[task], column=column)
    return Standing(task=task, column=column, best=best, next=second, difference=difference)


def _ranked(entries: Iterable[Entry], task: str, column: Column) -> list[Entry]:
    sign = -1.0 if column.better == "higher" else 1.0
    found = [(entry.cell(task, column), entry) for entry in entries]
    known = [(sign * (cell.value or 0.0), entry) for cell, entry in found if cell is not None]
    return [entry for _, entry in sorted(known, key=lambda pair: pair[0])]


def _best_words(comparison: Comparison, task: str, column: Column) -> list[str]:
    found = [s for s in comparison.standings if (s.task, s.column) == (task, column)]
    if not found or found[0].next is None:
        return []
    standing, other = found[0], found[0].next
    words = f"Best mean on {named(column)}: {standing.best.name}"
    if standing.difference is None:
        words += f"; no paired difference to the next, {other.name}, can be stated."
    else:
        words += f", then {other.name}. {verdict(standing.difference)}"
    floors = [e for e in comparison.own("floor") if e.cell(task, column) is not None]
    better = _ranked([standing.best, *floors], task, column)[0]
    if better is not standing.best:
        words += f" {better.name}, which sees no condition, has the better mean."
    return [words]


def _own_words(comparison: Comparison, task: str, column: Column, pairing: Pairing) -> list[str]:
    """Say how our own method stands to every other method and the floor."""
    own = [e for e in comparison.own("method") if _method(e) == OWN_METHOD and task in e.rows]
    if not own:
        return []
    others = [e for e in (*comparison.own("method"), *comparison.own("floor")) if _method(e) != OWN_METHOD]
    row = own[0].rows[task]
    found = [pairing.difference(row, e.rows[task], column=column) for e in others if task in e.rows]
    known = [difference for difference in found if difference is not None]
    return [against(known)] if known else []


def _method(entry: Entry) -> str:
    return _first(entry.rows).method
