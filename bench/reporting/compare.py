"""The comparison of methods over the tasks of one suite: rows, columns and who is best where."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.record import RunRecord
from bench.reporting.differences import Difference, against, paired, verdict
from bench.reporting.frame import OWN_METHOD, REFERENCES, Row, Table
from bench.reporting.words import (
    RATE,
    Column,
    label,
    leak_by_task,
    leak_mark,
    named,
    outside_mark,
    primary_metrics,
    task_place,
    titled,
    variant_details,
)
from bench.types import BenchError

_METHODS = ("method", "floor")


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Who is best in one column, and whether it is told apart from the next.

    difference: best minus next, None where there is no next or the two cannot be paired.
    """

    column: Column
    best: Row
    next: Row | None
    difference: Difference | None

    @property
    def clear(self) -> bool:
        """Whether the best may be set in bold: the interval leaves 0 out and seeds agree."""
        return self.difference is not None and self.difference.clear


@dataclass(frozen=True, kw_only=True)
class Comparison(Table):
    """Methods by tasks of one suite: a table whose columns say their task.

    tables: by task, in order; rows: references, methods (those on most tasks first), floor; standings:
    by column, where it has a best method; options: what a method's plain name stands for where it has
    variants.
    """

    tables: Mapping[str, Table]
    standings: Mapping[Column, Standing]
    options: Mapping[str, str]

    @property
    def title(self) -> str:
        """The suite, and the mark of a leak where a run of any task has one."""
        return label(self.suite, leak_mark(self.records))

    def describe(self, row: Row, column: Column) -> dict[str, Any]:
        """Return what a number is of, by column of a tidy table, under this row's label."""
        known = row.rows.get(column.task)
        unknown = {"suite": self.suite, "task": column.task, "protocol": self.tables[column.task].hashes[0]}
        of_task = unknown if known is None else self.tables[column.task].describe(known, column)
        return of_task | {"row": row.label, "kind": row.kind}

    def compared(self, row: Row, column: Column) -> dict[str, Any]:
        """Return as best whether a number stands in bold; None where it does not lead."""
        standing = self.standings.get(column)
        return {"best": standing.clear if standing is not None and standing.best is row else None}

    @property
    def most_seeds(self) -> int:
        """Return the most training seeds that any cell has."""
        return max((n for row in self.rows for n in row.seeds_by_task.values()), default=0)

    def has_fewer_seeds(self, row: Row) -> bool:
        """Tell whether a row has fewer seeds, in some task, than the table's most."""
        return any(n < self.most_seeds for n in row.seeds_by_task.values())


def build_comparison(tables: Sequence[Table]) -> Comparison:
    """Compare the methods of tables of one suite, one a task, each of a single protocol.

    A method is its name and options without the learning rate, which may suit each task; the rate
    tells rows apart only where one task holds several. BenchError for several suites, a task twice or
    mixed protocols.
    """
    suites = {table.suite for table in tables}
    ordered = {t.task: t for t in sorted(tables, key=lambda t: task_place(t.task))}
    if len(suites) != 1 or len(ordered) < len(tables) or any(t.marks for t in tables):
        raise BenchError(
            "a comparison holds the tasks of one suite, each in one table of one protocol, got "
            f"{', '.join(f'{t.suite} / {t.task}' for t in tables) or 'no table'}."
        )
    methods, options = _methods(ordered)
    rows = (*_references(ordered), *methods)
    columns = _columns(ordered)
    standings = {column: _standing(rows, column) for column in columns}
    return Comparison(
        suite=suites.pop(),
        task="",
        tables=ordered,
        rows=rows,
        columns=columns,
        runs=tuple(run for table in ordered.values() for run in table.runs),
        notes=tuple(f"{task}: {note}" for task, table in ordered.items() for note in table.notes),
        standings={column: standing for column, standing in standings.items() if standing is not None},
        options=options,
        style=tables[0].style,
    )


def findings(comparison: Comparison) -> dict[str, list[str]]:
    """Return by task what may be said of fidelity and FD, never stronger than the intervals."""
    lines: dict[str, list[str]] = {task: [] for task in comparison.tables}
    for column in comparison.columns:
        if column.metric in {"fd", *primary_metrics(column.task)}:
            lines[column.task] += [*_best_words(comparison, column), *_own_words(comparison, column)]
    return lines


def _columns(tables: Mapping[str, Table]) -> tuple[Column, ...]:
    return tuple(
        replace(column, task=task)
        for task, table in tables.items()
        for metric in ("fd", *primary_metrics(task), "cosine")
        for column in table.columns
        if column.metric == metric
    )


def _row(name: str, rows: Mapping[str, Row]) -> Row:
    """Return a row of the comparison out of those of tasks, which then go by its name."""
    first = next(iter(rows.values()))
    leak = leak_by_task({task: [run.record for run in row.runs] for task, row in rows.items()})
    name = label(name, outside_mark(run.record for row in rows.values() for run in row.runs), leak)
    return Row(
        name=name,
        label=label(name, "floor") if first.kind == "floor" else name,
        kind=first.kind,
        source=first.source,
        runs=tuple(run for row in rows.values() for run in row.runs),
        cells={replace(c, task=task): cell for task, row in rows.items() for c, cell in row.cells.items()},
        rows={task: replace(row, name=name, label=name) for task, row in rows.items()},
    )


def _references(tables: Mapping[str, Table]) -> list[Row]:
    """Return real images and autoencoder, each as the tasks have it."""
    by_kind = {k: {task: t.own(k)[0] for task, t in tables.items() if t.own(k)} for k in REFERENCES.values()}
    return [_row(label(next(iter(rows.values())).source, k), rows) for k, rows in by_kind.items() if rows]


def _methods(tables: Mapping[str, Table]) -> tuple[list[Row], dict[str, str]]:
    """Return methods and floor, those on most tasks first, and what plain names stand for."""
    counts = Counter(
        (task, _key(_plain(row.record))) for task, table in tables.items() for row in table.own(*_METHODS)
    )
    several_rates = {key for (_, key), n in counts.items() if n > 1}
    groups: dict[str, dict[str, Row]] = {}
    plain: dict[str, RunRecord] = {}
    for task, table in tables.items():
        for row in table.own(*_METHODS):
            record = row.record if _key(_plain(row.record)) in several_rates else _plain(row.record)
            groups.setdefault(_key(record), {})[task] = row
            plain.setdefault(_key(record), record)
    names, options = _names(plain, {key: len(rows) for key, rows in groups.items()})
    order = sorted(groups, key=lambda key: (-len(groups[key]), plain[key].method, names[key]))
    rows = [_row(names[key], groups[key]) for key in order]
    return sorted(rows, key=lambda row: _METHODS.index(row.kind)), options


def _plain(record: RunRecord) -> RunRecord:
    return replace(record, options={k: v for k, v in record.options.items() if k != RATE})


def _key(record: RunRecord) -> str:
    return json.dumps([record.method, dict(record.options)], sort_keys=True)


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
        leaders = [record for key, record in family.items() if tasks[key] == most]
        short = _labels(family, leaders)
        if len(leaders) == 1 < len(family) and len(set(short.values())) == len(family):
            names |= short
            details = variant_details(leaders[0], list(family.values()))
            stands_for[titled(method)] = ", ".join(details)
        else:
            names |= _labels(family, list(family.values()))
    return names, stands_for


def _labels(family: Mapping[str, RunRecord], others: Sequence[RunRecord]) -> dict[str, str]:
    return {key: label(titled(r.method), *variant_details(r, others)) for key, r in family.items()}


def _standing(rows: Sequence[Row], column: Column) -> Standing | None:
    """Find the best method of a column and the next; references and floors do not take part."""
    ranked = _ranked((row for row in rows if row.kind == "method"), column)
    if column.better == "none" or not ranked:
        return None
    best, second = ranked[0], ranked[1] if len(ranked) > 1 else None
    difference = None if second is None else _difference(best, second, column)
    return Standing(column=column, best=best, next=second, difference=difference)


def _difference(first: Row, second: Row, column: Column) -> Difference | None:
    """Return the difference of two rows of a comparison in a task that both have."""
    if not {column.task} <= first.rows.keys() & second.rows.keys():
        return None
    return paired(first.rows[column.task], second.rows[column.task], replace(column, task=""))


def _ranked(rows: Iterable[Row], column: Column) -> list[Row]:
    known = [(cell.value, row) for row in rows if (cell := row.cells.get(column)) and cell.value is not None]
    return [row for _, row in sorted(known, key=lambda pair: pair[0], reverse=column.better == "higher")]


def _best_words(comparison: Comparison, column: Column) -> list[str]:
    standing = comparison.standings.get(column)
    if standing is None or standing.next is None:
        return []
    words = f"Best mean on {named(column)}: {standing.best.name}"
    if standing.difference is None:
        words += f"; no paired difference to the next, {standing.next.name}, can be stated."
    else:
        words += f", then {standing.next.name}. {verdict(standing.difference)}"
    better = _ranked([standing.best, *comparison.own("floor")], column)[0]
    if better is not standing.best:
        words += f" {better.name}, which sees no condition, has the better mean."
    return [words]


def _own_words(comparison: Comparison, column: Column) -> list[str]:
    """Say how our own method stands to every other method and the floor."""
    rows = comparison.own(*_METHODS)
    own = [row for row in rows if row.record.method == OWN_METHOD and column.task in row.rows]
    others = [row for row in rows if row.record.method != OWN_METHOD]
    differences = [_difference(own[0], row, column) for row in others] if own else []
    known = [difference for difference in differences if difference is not None]
    return [against(known)] if known else []
