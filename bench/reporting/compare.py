"""Rows compared: paired differences and what may be said of them, methods over tasks, variants."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations, groupby
from typing import Any, ClassVar, NamedTuple

from bench.ablations import ABLATIONS, Ablation, Variant
from bench.content import digest_json
from bench.metrics.intervals import crossed_interval, holm
from bench.packed import Run
from bench.record import RunRecord
from bench.registry import FLOOR
from bench.reporting import words
from bench.reporting.frame import (
    OWN_METHOD,
    REFERENCES,
    SAMPLES,
    WRONG_CONDITIONS,
    Difference,
    Lines,
    Row,
    Table,
    cells_of,
    evidence,
    frame,
    grouped,
    items_of,
    lines_of,
)
from bench.reporting.words import RATE, Column, brackets, label, leak_mark, number, titled
from bench.types import BenchError

_METHODS = ("method", "floor")
_SAMPLER = ("guidance", "steps")
_Found = Sequence[tuple[Variant, Sequence[Run]]]


def paired_differences(table: Table) -> tuple[Difference, ...]:
    """Return method minus floor, minus itself under wrong conditions and minus method, where paired.

    Only rows of one protocol are compared, and only metrics with per-item scores or, for a whole
    set (FD, KID), with jackknife replicates that left out the same items.
    """
    return corrected(
        paired(first, second, column, seeds=seeds)
        for first, second, seeds in _pairs(table)
        for column in table.columns
        if not column.is_beside
    )


def _pairs(table: Table) -> Iterator[tuple[Row, Row, tuple[int, ...] | None]]:
    """Give rows to compare, of which none is from outside, and the seeds: those shuffled, None for all."""
    methods = [row for row in table.rows if row.ranked]
    for row in methods:
        for other in table.own("floor"):
            if other.record.protocol_hash == row.record.protocol_hash:
                yield row, other, None
        for other in table.own(*WRONG_CONDITIONS):
            if {*map(id, other.runs)} <= {*map(id, row.runs)}:
                yield row, other, other.seeds
    for row, other in combinations(methods, 2):
        if row.record.protocol_hash == other.record.protocol_hash:
            yield row, other, None


def paired(
    first: Row, second: Row, column: Column, *, seeds: Collection[int] | None = None
) -> Difference | None:
    """Return first minus second in a column, at some seeds or all; None where they cannot be paired."""
    sides = [row.cells.get(column) for row in (first, second)]
    known = [cell for cell in sides if cell is not None and cell.value is not None]
    lines = [[x for x in c.lines if seeds is None or x.run.record.seed in seeds] for c in known]
    found = evidence(*lines) if len(lines) == 2 and all(lines) else None
    if found is None:
        return None
    interval = crossed_interval(*found.estimates)
    basis: dict[str, Any] = {"items": found.items, "groups": found.groups, "left_out": found.left_out}
    for name, side in zip(("first_seeds", "second_seeds"), lines, strict=True):
        basis[name] = len({line.run.record.seed for line in side})
    basis |= {"first": first.name, "second": second.name}
    return Difference(column=column, interval=interval, chance=interval.chance, **basis)


def corrected(differences: Iterable[Difference | None]) -> tuple[Difference, ...]:
    """Return the differences that are known, each with its p-value corrected for all of them (Holm)."""
    known = [difference for difference in differences if difference is not None]
    chances = holm([difference.interval.chance for difference in known])
    return tuple(replace(d, chance=p, claims=len(known)) for d, p in zip(known, chances, strict=True))


def against(differences: Sequence[Difference]) -> str:
    """Return differences of one first row in one column as a line, gathered by what may be said.

    "BPS on line F1 (40 items, one seed): beats a by 0.20 [0.10, 0.30], b by ...; cannot be told apart
    from c: ...". Items and seeds are said once where most share them. Claims follow `verdict`.
    """
    bases = [_basis(d) for d in differences]
    usual = max(bases, key=bases.count)
    claims: dict[str, list[str]] = {}
    for d, basis in zip(differences, bases, strict=True):
        verb = f"{'by its interval alone ' if d.mark else ''}{_verb(d)}"
        amount = f"{' by ' if d.shown else ': '}{_amount(d)}{'' if basis == usual else f' ({basis})'}"
        claims.setdefault(verb, []).append(f"{d.second}{amount}")
    said = "; ".join(f"{verb} {', '.join(others)}" for verb, others in claims.items())
    otherwise = "where not said, " if len(set(bases)) > 1 else ""
    return f"{differences[0].first} on {differences[0].column.named} ({otherwise}{usual}): {said}."


def verdict(difference: Difference) -> str:
    """Return a difference in plain words, never stronger than its interval.

    "beats" and "falls behind" need an interval that leaves 0 out, also once the claims made together are
    corrected for; otherwise the two cannot be told apart, or it is said that only the interval tells them.
    """
    first, second, amount = difference.first, difference.second, _amount(difference)
    on, basis = f"on {difference.column.named}", f"({_basis(difference)})"
    if not difference.shown:
        return f"{first} and {second} cannot be told apart {on}: {amount} {basis}."
    text = f"{first} {_verb(difference)} {second} {on} by {amount} {basis}"
    if difference.mark:
        return f"By its interval alone {text}; not once {difference.claims} such claims are corrected for."
    return f"{text}."


def _verb(difference: Difference) -> str:
    if not difference.shown:
        return "cannot be told apart from"
    if difference.column.better == "none":
        return "is higher than" if difference.interval.low > 0 else "is lower than"
    return "beats" if difference.better else "falls behind"


def _amount(difference: Difference) -> str:
    """Return how much it is: its size where a verb tells its direction, else with its sign."""
    interval, digits = difference.interval, difference.digits
    value, low, high = interval.value, interval.low, interval.high
    if difference.shown:
        value, (low, high) = abs(value), sorted((abs(low), abs(high)))
    return f"{'' if difference.shown else 'difference '}{number(value, digits)} {brackets(low, high, digits)}"


def _basis(difference: Difference) -> str:
    left_out = f", {difference.left_out} left out" if difference.left_out else ""
    n, other = difference.first_seeds, difference.second_seeds
    seeds = ("one seed" if n == 1 else f"{n} seeds") if n == other else f"{n} and {other} seeds"
    groups = f" in {difference.groups} groups" if difference.groups < difference.items else ""
    return f"{difference.items} items{groups}{left_out}, {seeds}"


class Standing(NamedTuple):
    """Who is best in a column, and how it stands to the next; None where they cannot be paired."""

    best: Row
    next: Row | None
    difference: Difference | None

    @property
    def clear(self) -> bool:
        """Whether the best may be set in bold: 0 is out of question, claims corrected for."""
        return self.difference is not None and self.difference.clear


@dataclass(frozen=True, kw_only=True)
class Comparison(Table):
    """Methods by tasks of one suite: a table whose columns say their task.

    tables: by task, in order; rows: references, methods (those on most tasks first), floor; standings:
    by column, where it has a best method; own_differences: of our own method to each other, in fidelity,
    KID and FD, corrected with the standings for their number; options: what a method's plain name stands
    for where it has variants.
    """

    over: ClassVar[str] = "tasks"
    tables: Mapping[str, Table]
    standings: Mapping[Column, Standing]
    own_differences: Mapping[Column, Sequence[Difference]]
    options: Mapping[str, str]

    @property
    def title(self) -> str:
        """The suite, and the mark of a leak where a run of any task has one."""
        return label(self.suite, leak_mark(self.records))

    def describe(self, row: Row, column: Column) -> dict[str, Any]:
        """Return what a number is of, by column of a tidy table, under this row's label."""
        part = self.tables[column.task]
        of_task: dict[str, Any] = {"suite": self.suite, "task": column.task, "protocol": part.hashes[0]}
        if column.task in row.rows:
            of_task = part.describe(row.rows[column.task], replace(column, task=""))
        return of_task | {"row": row.label, "kind": row.kind}

    def compared(self, row: Row, column: Column) -> dict[str, Any]:
        """Return as best whether a number stands in bold; None where it does not lead."""
        standing = self.standings.get(column)
        return {"best": standing.clear if standing is not None and standing.best is row else None}

    @property
    def parts(self) -> Mapping[str, Table]:
        """The tables by task."""
        return self.tables

    @property
    def most_seeds(self) -> int:
        """Return the most training seeds that any cell has."""
        return max((n for row in self.rows for n in row.seeds_by_task.values()), default=0)


def build_comparison(tables: Sequence[Table]) -> Comparison:
    """Compare the methods of tables of one suite, one a task, each of a single protocol.

    A row is a method and its options other than the method's own on each task, so that what a paper sets
    by task stands in one. The learning rate, which may suit each task, tells rows apart only where one
    task holds several. BenchError for several suites, a task twice or mixed protocols.
    """
    suites = {table.suite for table in tables}
    ordered = {t.task: t for t in sorted(tables, key=lambda t: words.task_place(t.task))}
    if len(suites) != 1 or len(ordered) < len(tables) or any(t.marks for t in tables):
        got = ", ".join(f"{t.suite} / {t.task}" for t in tables) or "no table"
        raise BenchError(f"a comparison holds a suite's tasks, each in one table of one protocol, got {got}.")
    methods, options = _methods(ordered)
    rows = (*_references(ordered), *methods)
    columns = _columns(ordered)
    standings = {c: found for c in columns if (found := _standing(rows, c)) is not None}
    own = {c: _own_differences(rows, c) for c in columns if c.metric in _told_of(c)}
    claims = [s.difference for s in standings.values()] + [d for each in own.values() for d in each]
    known = [claim for claim in claims if claim is not None]
    fixed = dict(zip(map(id, known), corrected(known), strict=True))
    return Comparison(
        suite=suites.pop(),
        task="",
        tables=ordered,
        rows=rows,
        columns=columns,
        runs=tuple(run for table in ordered.values() for run in table.runs),
        notes=tuple(f"{task}: {note}" for task, table in ordered.items() for note in table.notes),
        standings={c: s._replace(difference=fixed.get(id(s.difference))) for c, s in standings.items()},
        own_differences={c: [fixed[id(d)] for d in each] for c, each in own.items()},
        options=options,
        style=tables[0].style,
    )


def findings(comparison: Comparison) -> dict[str, list[str]]:
    """Return by task what may be said of fidelity, KID and FD, never stronger than the intervals."""
    lines: dict[str, list[str]] = {task: [] for task in comparison.tables}
    for column in comparison.columns:
        if column.metric in _told_of(column):
            lines[column.task] += _best_words(comparison, column)
            own = comparison.own_differences[column]
            lines[column.task] += [against(own)] if own else []
    return lines


def _columns(tables: Mapping[str, Table]) -> tuple[Column, ...]:
    """Return columns by task, what tells most in front: FID, if measured, and CLIP score, as in papers."""
    papers = any(column.is_fid for table in tables.values() for column in table.columns)
    columns = [
        replace(column, task=task)
        for task, table in tables.items()
        for metric in (*words.headline_metrics(task), *(("clip",) if papers else ()), "cosine")
        for column in table.columns
        if column.metric == metric
    ]
    first = [column for column in columns if papers and column.metric in ("fd", "clip")]
    return (*first, *(column for column in columns if column not in first))


def _row(name: str, rows: Mapping[str, Row]) -> Row:
    """Return a row of the comparison out of those of tasks, which then go by its name."""
    first = next(iter(rows.values()))
    runs = tuple(run for row in rows.values() for run in row.runs)
    marks = {task: leak_mark(run.record for run in row.runs) for task, row in rows.items()}
    leaks = ", ".join(f"{task} {mark.removeprefix('LEAK: ')}" for task, mark in marks.items() if mark)
    name = label(name, words.outside_mark([run.record for run in runs]), f"LEAK: {leaks}" if leaks else "")
    return Row(
        name=name,
        label=label(name, "floor") if first.kind == "floor" else name,
        kind=first.kind,
        source=first.source,
        runs=runs,
        cells={replace(c, task=task): cell for task, row in rows.items() for c, cell in row.cells.items()},
        rows={task: replace(row, name=name, label=name) for task, row in rows.items()},
    )


def _references(tables: Mapping[str, Table]) -> list[Row]:
    by_kind = {k: {task: t.own(k)[0] for task, t in tables.items() if t.own(k)} for k in REFERENCES.values()}
    return [_row(label(next(iter(rows.values())).source, k), rows) for k, rows in by_kind.items() if rows]


def _methods(tables: Mapping[str, Table]) -> tuple[list[Row], dict[str, str]]:
    found = [(task, row) for task, table in tables.items() for row in table.own(*_METHODS)]
    counts = Counter((task, _key(_plain(row.record))) for task, row in found)
    several_rates = {key for (_, key), n in counts.items() if n > 1}
    groups: dict[str, dict[str, Row]] = {}
    plain: dict[str, RunRecord] = {}
    for task, row in found:
        record = _plain(row.record)
        record = row.record if _key(record) in several_rates else record
        groups.setdefault(_key(record), {})[task] = row
        plain.setdefault(_key(record), record)
    every = list(plain.values())
    names = {key: label(titled(r), *words.variant_details(r, every)) for key, r in plain.items()}
    unchanged = {key: rows for key, rows in groups.items() if names[key] == titled(plain[key])}
    options = {names[key]: _stands_for(rows, every) for key, rows in unchanged.items()}
    order = sorted(groups, key=lambda key: (-len(groups[key]), plain[key].method, names[key]))
    rows = [_row(names[key], groups[key]) for key in order]
    return sorted(rows, key=lambda row: _METHODS.index(row.kind)), options


def _plain(record: RunRecord) -> RunRecord:
    return replace(record, options={k: v for k, v in record.options.items() if k != RATE})


def _key(record: RunRecord) -> str:
    return json.dumps([record.method, words.changed_options(record)], sort_keys=True)


def _stands_for(rows: Mapping[str, Row], others: Sequence[RunRecord]) -> str:
    """Return what a plain name stands for: the options that its tasks or its method's other rows change."""
    own = {task: dict(row.record.options) for task, row in rows.items()}
    (method,) = {row.record.method for row in rows.values()}
    family = [*own.values(), *(words.changed_options(r) for r in others if r.method == method)]
    values = {k: {json.dumps(options.get(k)) for options in family if k in options} for k in chain(*family)}
    told = sorted(k for k, different in values.items() if len(different) > 1 and k != RATE)
    said = {t: ", ".join(words.option_detail(k, of[k]) for k in told if k in of) for t, of in own.items()}
    tasks = grouped(said, said.__getitem__)
    return " and ".join(
        f"{what} on {', '.join(on)}" if len(tasks) > 1 else what for what, on in tasks.items()
    )


def _standing(rows: Sequence[Row], column: Column) -> Standing | None:
    """Find the best method of a column and the next; only `ranked` rows, and no gains, take part."""
    ranked = _ranked((row for row in rows if row.ranked), column)
    if column.better == "none" or column.is_beside or not ranked:
        return None
    best, second = ranked[0], ranked[1] if len(ranked) > 1 else None
    return Standing(best, second, None if second is None else _difference(best, second, column))


def _difference(first: Row, second: Row, column: Column) -> Difference | None:
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
    said = f"; no paired difference to the next, {standing.next.name}, can be stated."
    if standing.difference is not None:
        said = f", then {standing.next.name}. {verdict(standing.difference)}"
    better = _ranked([standing.best, *comparison.own("floor")], column)[0]
    if better is not standing.best:
        said += f" {better.name}, which sees no condition, has the better mean."
    return [f"Best mean on {column.named}: {standing.best.name}{said}"]


def _told_of(column: Column) -> set[str]:
    return {"fd", "kid", *words.primary_metrics(column.task)}


def _own_differences(rows: Sequence[Row], column: Column) -> list[Difference]:
    rows = [row for row in rows if row.ranked or row.kind == "floor"]
    own = [row for row in rows if row.record.method == OWN_METHOD and column.task in row.rows]
    others = [row for row in rows if row.record.method != OWN_METHOD]
    differences = [_difference(own[0], row, column) for row in others] if own else []
    return [difference for difference in differences if difference is not None]


@dataclass(frozen=True, kw_only=True)
class AblationTable(Table):
    """An ablation of one suite, task and protocol: a table with a reference, rows in the order of variants.

    base: the protocol but for what variants change. missing: variants that no run has.
    """

    over: ClassVar[str] = "variants"
    ablation: Ablation
    base: Mapping[str, Any]
    missing: tuple[str, ...]

    @property
    def by_items(self) -> bool:
        """Whether variants differ in their number of training items."""
        return any(variant.train_items is not None for variant in self.ablation.variants)

    @property
    def title(self) -> str:
        """What is ablated, on what, and the mark of a leak where a run has one."""
        return label(f"{self.ablation.name} on {self.suite} / {self.task}", leak_mark(self.records))

    def block(self, row: Row) -> object:
        """Return what rows have in common between two rules."""
        return row.train_items

    def describe(self, row: Row, column: Column) -> dict[str, Any]:
        """Return what a number is of, by column of a tidy table."""
        sampler = row.record.protocol["sampler"]
        return {
            "ablation": self.ablation.name,
            "suite": self.suite,
            "task": self.task,
            "protocol": row.record.protocol_hash,
            "variant": row.label,
            "method": row.record.method,
            "train_items": row.train_items,
            "train_images": row.record.cost.train_images,
            "train_macs": row.train_macs,
            "guidance": sampler.get("guidance"),
            "steps": sampler.get("steps"),
            "reference": self.is_reference(row),
            "seeds": " ".join(map(str, row.seeds)),
        }

    def compared(self, row: Row, column: Column) -> dict[str, Any]:
        """Return a number's difference to the reference."""
        d = row.differences.get(column)
        return {
            "difference": d and d.interval.value,
            "difference_low": d and d.interval.low,
            "difference_high": d and d.interval.high,
            "difference_seeds": d and d.first_seeds,
            "p_corrected": d and d.chance,
        }

    def is_reference(self, row: Row) -> bool:
        """Tell whether others are compared with a row."""
        return row.variant is not None and self.ablation.reference_of(row.variant) is row.variant

    @property
    def has_own(self) -> bool:
        """Whether its reference is what the paper has on this task."""
        plain = (row for row in self.rows if row.variant is not None and row.variant.is_plain(self.task))
        return any(self.is_reference(row) for row in plain)


def build_ablations(runs: Sequence[Run], *, only: Ablation | None = None) -> list[AblationTable]:
    """Return a table for every ablation, suite, task and protocol with something to compare.

    A run belongs to a variant when method and options are those of the variant and its protocol is
    the reference's but for what the variant declares: nothing else can differ within a table. only: of
    this ablation alone.
    """
    runs = list({run.record.run_id: run for run in reversed(runs)}.values())

    def key(run: Run) -> str:
        return digest_json([run.record.protocol, run.record.method, _plain(run.record).options])

    found = grouped(sorted(runs, key=lambda run: run.record.seed), key)
    bases = {
        (r.suite, words.task_place(r.task), digest_json(_base(r.protocol))): r
        for r in (run.record for run in runs)
        if {"budget", "sampler"} <= set(r.protocol) and not {*_SAMPLER} & {*r.changes}
    }
    asked = [only] if only is not None else ABLATIONS.values()
    tables = (_table(ablation, found, bases[place]) for ablation in asked for place in sorted(bases))
    return [table for table in tables if table is not None]


def in_ablations(tables: Iterable[AblationTable]) -> set[str]:
    """Return the runs of other options than the paper's that ablations compare with it: they swell tables."""
    return {
        run.record.run_id
        for table in tables
        if table.has_own
        for row in table.rows
        if row.variant is not None and not row.variant.is_plain(table.task)
        for run in row.runs
    }


def _base(protocol: Mapping[str, Any]) -> dict[str, Any]:
    budget = dict(protocol["budget"])
    choice = f"-choice{budget.pop('train_subset', None)}"
    name = str(budget["name"]).removesuffix(choice)
    budget["name"] = name.removesuffix(f"-{budget.pop('train_items', None)}")
    return {**protocol, "budget": budget}


def _protocol(base: Mapping[str, Any], variant: Variant, subset: int) -> dict[str, Any]:
    """Return the protocol that a variant's runs must have, of a random choice (subset) of the items."""
    budget, items, images = dict(base["budget"]), variant.train_items, variant.train_images
    if images is not None:
        budget |= {"name": f"{budget['name']}-{images}images", "train_images": images}
    if items is not None:
        budget |= {"name": f"{budget['name']}-{items}", "train_items": items}
    if subset:
        budget |= {"name": f"{budget['name']}-choice{subset}", "train_subset": subset}
    changed = {key: getattr(variant, key) for key in _SAMPLER if getattr(variant, key) is not None}
    leaky = {"training": {**base.get("training", {}), "leaky": True}} if variant.leaky else {}
    return {**base, **leaky, "budget": budget, "sampler": {**base["sampler"], **changed}}


def _table(ablation: Ablation, by_key: Mapping[str, list[Run]], record: RunRecord) -> AblationTable | None:
    base = _base(record.protocol)
    keys = {}
    for v in ablation.variants:
        own = v.method, v.settings(record.task)
        keys[v.called] = [digest_json([_protocol(base, v, n), *own]) for n in range(v.subsets)]
    first = {of[0]: called for called, of in reversed(keys.items())}  # once, where it is the suite's
    variants = [v for v in ablation.variants if first[keys[v.called][0]] == v.called]
    of = {v.called: [run for key in keys[v.called] for run in by_key.get(key, ())] for v in variants}
    found, notes = _one_rate([(v, of[v.called]) for v in variants if of[v.called]])
    if len(found) < 2:
        return None
    runs = [run for _, members in found for run in members]
    rows = _rows(ablation, found, record.task)
    compared = {row.variant and row.variant.amount for row in rows if row.differences}
    if len(compared) < (2 if ablation.axis in ("train_items", "train_images") else 1):
        return None
    columns = words.order_columns(column for row in rows for column in row.cells)
    notes = [*words.run_notes([run.record for run in runs], items_of(rows)), *notes]
    told: dict[str, Any] = {"suite": record.suite, "task": record.task, "columns": columns, "base": base}
    told["missing"] = tuple(v.called for v in variants if not of[v.called])
    parts: dict[str, Any] = {"rows": tuple(rows), "runs": tuple(runs), "notes": tuple(notes)}
    return AblationTable(ablation=ablation, **told, **parts)


def _one_rate(found: _Found) -> tuple[_Found, list[str]]:
    """Keep each variant's runs of its most common learning rate; say which are left out or differ."""
    same, notes = [], []
    rated: dict[str, dict[str, Any]] = {}
    for variant, runs in found:
        rates = Counter(run.record.options.get(RATE) for run in runs)
        kept = min(rates, key=lambda rate: (-rates[rate], rate or 0.0))
        same.append((variant, [run for run in runs if run.record.options.get(RATE) == kept]))
        rated.setdefault(variant.method, {})[titled(variant.called)] = kept
        if len(rates) > 1:
            others = f"{rates.total() - rates[kept]} runs of {titled(variant.called)}"
            notes.append(f"{others} at other learning rates than {kept:g} are left out.")
    for method, of in ((method, of) for method, of in rated.items() if len({*of.values()}) > 1):
        each = ", ".join(f"{name} {rate:g}" for name, rate in of.items())
        notes.append(f"Learning rates of {titled(method)}: {each}.")
    return same, notes


def _rows(ablation: Ablation, found: _Found, task: str) -> list[Row]:
    """Return a row a variant, with its differences to the reference at the seeds that both have."""
    along = {"guidance": ("clip",), "train_images": words.headline_metrics(task)}
    metrics = [*words.primary_metrics(task), "fd", "cosine", *along.get(ablation.axis, ())]
    lines = frame([run for _, runs in found for run in runs], {*metrics, "kid"})
    told = [(line, line.column) for line in lines if line.source == SAMPLES]
    samples = [line for line, c in told if c.metric in metrics or c.is_forgetting]
    rows = {v.called: _variant_row(ablation, v, runs, lines_of(samples, runs)) for v, runs in found}
    references = [rows.get(ablation.reference_of(v).called) for v, _ in found]
    differences = corrected(
        paired(row, reference, column, seeds={*row.seeds} & {*reference.seeds})
        for row, reference in zip(rows.values(), references, strict=True)
        if reference is not None and reference is not row and row.kind != "floor"
        for column in row.cells
    )
    of = grouped(differences, lambda d: d.first)
    return [replace(row, differences={d.column: d for d in of.get(row.name, ())}) for row in rows.values()]


def _variant_row(ablation: Ablation, variant: Variant, runs: Sequence[Run], lines: Lines) -> Row:
    detail = ""
    if ablation.resamples and ablation.reference_of(variant) is variant:
        value = f"{runs[0].record.protocol['sampler'][ablation.axis]:g}"
        detail = f"{value} steps" if ablation.axis == "steps" else value
    name = label(words.variant_title(variant), detail, leak_mark(run.record for run in runs))
    amounts = ((variant.train_items, "items"), (variant.train_images, "images"))
    return Row(
        name=label(name, *(f"{number:,} {what}" for number, what in amounts if number is not None)),
        label=name,
        kind="floor" if variant.method == FLOOR else "method",
        runs=tuple(runs),
        cells=cells_of(lines, runs=len(runs)),
        variant=variant,
    )


def ablation_sentences(table: AblationTable) -> list[str]:
    """Return what may be said of fidelity and FD, a sentence a variant: the reference against it."""
    return [verdict(difference) for told in _told(table) for difference in told]


def ablation_summary(table: AblationTable) -> list[str]:
    """Return how the reference stands to all variants in fidelity and FD, a line a number of items."""
    lines = (same for told in _told(table) for _, same in groupby(told, key=lambda d: d.first))
    return [against(list(same)) for same in lines]


def _told(table: AblationTable) -> list[list[Difference]]:
    """Return the reference minus each variant in fidelity and FD, a list a column."""
    columns = [c for c in table.columns if c.metric in {"fd", *words.primary_metrics(table.task)}]
    return [[row.differences[c].turned for row in table.rows if c in row.differences] for c in columns]
