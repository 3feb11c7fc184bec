"""Ablations out of records: which runs are which variant, and their differences to the paper's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from bench.ablations import ABLATIONS, Ablation, Variant
from bench.content import digest_json
from bench.packed import Run
from bench.record import RunRecord
from bench.registry import FLOOR
from bench.reporting.differences import Difference, against, paired, verdict
from bench.reporting.frame import SAMPLES, Cell, Row, Table, cells_of, frame, grouped, run_notes
from bench.reporting.words import (
    RATE,
    Column,
    label,
    leak_mark,
    order_columns,
    primary_metrics,
    task_place,
    titled,
)

_SAMPLER = ("guidance", "steps")
_Found = Sequence[tuple[Variant, Sequence[Run]]]


@dataclass(frozen=True, kw_only=True)
class AblationTable(Table):
    """An ablation of one suite, task and protocol: a table with a reference, rows in the order of variants.

    base: the protocol but for what variants change. missing: variants that no run has.
    """

    ablation: Ablation
    base: Mapping[str, Any]
    missing: tuple[str, ...]

    @property
    def by_items(self) -> bool:
        """Whether variants differ in their number of training items."""
        return _by_items(self.ablation)

    @property
    def key(self) -> str:
        """The digest of the protocol that the variants share."""
        return digest_json(dict(self.base))

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
            "protocol": row.protocol_hash,
            "variant": row.label,
            "method": row.record.method,
            "train_items": row.train_items,
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
            "seeds_agree": d and d.agree,
        }

    def is_reference(self, row: Row) -> bool:
        """Tell whether others are compared with a row."""
        return row.variant is not None and self.ablation.reference_of(row.variant) is row.variant


def _by_items(ablation: Ablation) -> bool:
    return any(variant.train_items is not None for variant in ablation.variants)


def build_ablations(runs: Sequence[Run], *, only: Ablation | None = None) -> list[AblationTable]:
    """Return a table for every ablation, suite, task and protocol with something to compare.

    A run belongs to a variant when method and options are those of the variant and its protocol is
    the reference's but for what the variant declares: nothing else can differ within a table. only: of
    this ablation alone.
    """
    runs = list({run.record.run_id: run for run in reversed(runs)}.values())
    by_key: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.record.seed):
        options = {k: v for k, v in run.record.options.items() if k != RATE}
        by_key.setdefault(_key(run.record.protocol, run.record.method, options), []).append(run)
    bases = {_place(record): record for record in (run.record for run in runs) if _is_base(record)}
    tables = (
        _table(ablation, by_key, bases[place])
        for ablation in ([only] if only is not None else ABLATIONS.values())
        for place in sorted(bases)
    )
    return [table for table in tables if table is not None and _says_something(table)]


def in_ablations(tables: Iterable[AblationTable]) -> set[str]:
    """Return the runs with options that are not the paper's and that some ablation shows.

    They stand there and would swell the tables of methods.
    """
    rows = (row for table in tables for row in table.rows if row.variant is not None and row.variant.options)
    return {run.record.run_id for row in rows for run in row.runs}


def _key(protocol: Mapping[str, Any], method: str, options: Mapping[str, Any]) -> str:
    return digest_json([protocol, method, options])


def _is_base(record: RunRecord) -> bool:
    """Tell whether a run's protocol is one that variants may change."""
    return {"budget", "sampler"} <= set(record.protocol) and not set(_SAMPLER) & set(record.changes)


def _place(record: RunRecord) -> tuple[Any, ...]:
    return record.suite, task_place(record.task), digest_json(_base(record.protocol))


def _base(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Return a protocol without what a variant may change of its budget."""
    budget = dict(protocol["budget"])
    budget["name"] = str(budget["name"]).removesuffix(f"-{budget.pop('train_items', None)}")
    return {**protocol, "budget": budget}


def _protocol(base: Mapping[str, Any], variant: Variant) -> dict[str, Any]:
    """Return the protocol that a variant's runs must have: the base's and what it declares."""
    budget, items = dict(base["budget"]), variant.train_items
    if items is not None:
        budget |= {"name": f"{budget['name']}-{items}", "train_items": items}
    changed = {key: getattr(variant, key) for key in _SAMPLER if getattr(variant, key) is not None}
    return {**base, "budget": budget, "sampler": {**base["sampler"], **changed}}


def _table(ablation: Ablation, by_key: Mapping[str, list[Run]], record: RunRecord) -> AblationTable | None:
    base = _base(record.protocol)
    keys = {v.called: _key(_protocol(base, v), v.method, v.settings) for v in ablation.variants}
    first = {key: called for called, key in reversed(keys.items())}  # once, where it is the suite's
    variants = [v for v in ablation.variants if first[keys[v.called]] == v.called]
    found, notes = _one_rate([(v, by_key[keys[v.called]]) for v in variants if keys[v.called] in by_key])
    if len(found) < 2:
        return None
    runs = [run for _, members in found for run in members]
    rows = _rows(ablation, found, _wanted(ablation, record.task))
    return AblationTable(
        ablation=ablation,
        suite=record.suite,
        task=record.task,
        base=base,
        rows=tuple(rows),
        columns=order_columns(column for row in rows for column in row.cells),
        runs=tuple(runs),
        missing=tuple(v.called for v in variants if keys[v.called] not in by_key),
        notes=(*run_notes([run.record for run in runs], rows), *notes),
    )


def _one_rate(found: _Found) -> tuple[_Found, list[str]]:
    """Keep each method's runs of its most common learning rate, and say how many are left out."""
    kept, notes = {}, []
    for method in dict.fromkeys(variant.method for variant, _ in found):
        rates = Counter(
            run.record.options.get(RATE)
            for variant, runs in found
            if variant.method == method
            for run in runs
        )
        kept[method] = min(rates, key=lambda rate: (-rates[rate], rate or 0.0))
        if len(rates) > 1:
            others = rates.total() - rates[kept[method]]
            notes.append(
                f"{others} runs of {titled(method)} at other learning rates than {kept[method]:g} are "
                "left out."
            )
    same = [(v, [run for run in runs if run.record.options.get(RATE) == kept[v.method]]) for v, runs in found]
    return [(variant, runs) for variant, runs in same if runs], notes


def _wanted(ablation: Ablation, task: str) -> list[str]:
    """Return FD, fidelity, cosine and, where guidance moves it, the CLIP score."""
    return ["fd", *primary_metrics(task), "cosine", *(["clip"] if ablation.axis == "guidance" else [])]


def _rows(ablation: Ablation, found: _Found, metrics: Sequence[str]) -> list[Row]:
    """Return a row a variant, with its differences to the reference."""
    lines = frame([run for _, runs in found for run in runs], metrics)
    by_run = grouped((line for line in lines if line.source == SAMPLES), lambda line: line.run)
    rows, first = {}, 0
    for variant, runs in found:
        own = [line for place in range(first, first + len(runs)) for line in by_run.get(place, ())]
        first += len(runs)
        rows[variant.called] = _row(ablation, variant, runs, cells_of(own, runs=len(runs)))
    return [
        _compared(row, rows.get(ablation.reference_of(v).called))
        for (v, _), row in zip(found, rows.values(), strict=True)
    ]


def _row(ablation: Ablation, variant: Variant, runs: Sequence[Run], cells: Mapping[Column, Cell]) -> Row:
    details = []
    if ablation.resamples and variant.name == ablation.reference:
        value = f"{runs[0].record.protocol['sampler'][ablation.axis]:g}"
        details = [f"{value} steps" if ablation.axis == "steps" else value]
    name = label(titled(variant.name), *details, leak_mark(run.record for run in runs))
    floor = variant.method == FLOOR
    return Row(
        name=label(name, f"{variant.train_items:,} items" if variant.train_items is not None else ""),
        label=name,
        kind="floor" if floor else "method",
        runs=tuple(runs),
        cells=cells,
        variant=variant,
    )


def _compared(row: Row, reference: Row | None) -> Row:
    """Return a row with its differences to the reference, at the seeds that both have."""
    if reference is None or reference is row or row.kind == "floor":
        return row
    seeds = set(row.seeds) & set(reference.seeds)
    differences = {column: paired(row, reference, column, seeds=seeds) for column in row.cells}
    return replace(row, differences={c: d for c, d in differences.items() if d is not None})


def _says_something(table: AblationTable) -> bool:
    """Whether a variant is compared; along an axis of items, at two numbers of items or more."""
    compared = {row.train_items for row in table.rows if row.differences}
    return len(compared) > (1 if table.ablation.axis == "train_items" else 0)


def ablation_sentences(table: AblationTable) -> list[str]:
    """Return what may be said of FD and fidelity, a sentence a variant: the reference against it."""
    return [verdict(d.turned) for column in _told(table) for d in _differences(table, column)]


def ablation_summary(table: AblationTable) -> list[str]:
    """Return how the reference stands to all variants in FD and fidelity, a line a number of items."""
    told = (_differences(table, column) for column in _told(table))
    return [
        against([d.turned for d in same])
        for differences in told
        for _, same in groupby(differences, key=lambda d: d.second)
    ]


def _told(table: AblationTable) -> list[Column]:
    return [c for c in table.columns if c.metric in {"fd", *primary_metrics(table.task)}]


def _differences(table: AblationTable, column: Column) -> list[Difference]:
    return [row.differences[column] for row in table.rows if column in row.differences]
