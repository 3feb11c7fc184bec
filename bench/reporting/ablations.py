"""Ablations out of records: which runs are which variant, and their differences to the paper's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.ablations import ABLATIONS, Ablation, Variant
from bench.content import digest_json
from bench.metrics.intervals import FEW_ITEMS
from bench.packed import Run
from bench.record import RunRecord
from bench.registry import FLOOR
from bench.reporting.differences import Difference, Pairing
from bench.reporting.leaks import leak_mark, leak_title, split_notes
from bench.reporting.names import RATE, Column, label, order_columns, primary_metrics, task_place, titled
from bench.reporting.notes import FRECHET, device_notes, few_notes
from bench.reporting.rows import BOOTSTRAP_SEED, Row, aggregate
from bench.reporting.runs import SAMPLES

_SAMPLER = ("guidance", "steps")
_Place = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One variant with its runs, a seed each.

    differences: minus the reference, on the seeds that both have; empty for a reference itself, for
    the floor, and where there is nothing to pair with.
    """

    variant: Variant
    row: Row
    is_reference: bool
    differences: Mapping[Column, Difference]

    @property
    def record(self) -> RunRecord:
        """The record of the first seed."""
        return self.row.runs[0].record

    @property
    def train_items(self) -> int:
        """How many items were trained on."""
        return self.record.splits.train.n

    def setting(self, axis: str) -> float:
        """Return where the variant stands on an axis."""
        if axis == "train_items":
            return self.train_items
        return float(self.record.protocol["sampler"][axis])


@dataclass(frozen=True, kw_only=True)
class AblationTable:
    """An ablation of one suite, task and protocol; lines in the order of its variants.

    base: the protocol but for what variants change. missing: variants that no run has.
    """

    ablation: Ablation
    suite: str
    task: str
    base: Mapping[str, Any]
    lines: tuple[Line, ...]
    columns: tuple[Column, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def by_items(self) -> bool:
        """Whether variants differ in their number of training items."""
        return any(variant.train_items is not None for variant in self.ablation.variants)

    def full_name(self, line: Line) -> str:
        """Return a line's name, with its number of training items where the variants differ in it."""
        name = line.row.name
        return f"{line.train_items:,} items: {name}" if self.by_items else name

    @property
    def runs(self) -> list[Run]:
        """All runs, each once."""
        return [run for line in self.lines for run in line.row.runs]

    @property
    def key(self) -> str:
        """The digest of the protocol that the variants share."""
        return digest_json(dict(self.base))

    @property
    def title(self) -> str:
        """What is ablated, on what, and the mark of a leak where a run has one."""
        place = f"{self.ablation.name} on {self.suite} / {self.task}"
        return leak_title(place, [run.record for run in self.runs])


class _Runs:
    """Runs by protocol, method and options, each run once, of one learning rate a method."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.all = list({run.record.run_id: run for run in reversed(runs)}.values())
        self.by_key: dict[str, list[Run]] = {}
        for run in self.all:
            record = run.record
            options = {k: v for k, v in record.options.items() if k != RATE}
            key = _key(digest_json(dict(record.protocol)), record.method, options)
            self.by_key.setdefault(key, []).append(run)

    def bases(self) -> list[tuple[_Place, Mapping[str, Any]]]:
        """Return (suite, task) and the protocols of runs without what a variant may change."""
        found: dict[tuple[Any, ...], tuple[_Place, Mapping[str, Any]]] = {}
        for run in self.all:
            record = run.record
            whole = {"budget", "sampler"} <= set(record.protocol)
            if whole and not set(_SAMPLER) & set(record.changes):
                base, place = _all_items(record.protocol), (record.suite, record.task)
                key = (record.suite, task_place(record.task), digest_json(base))
                found.setdefault(key, (place, base))
        return [found[key] for key in sorted(found)]


def build_ablations(
    runs: Sequence[Run], *, only: Ablation | None = None, seed: int = BOOTSTRAP_SEED
) -> list[AblationTable]:
    """Return a table for every ablation, suite, task and protocol with something to compare.

    A run belongs to a variant when method and options are those of the variant and its protocol is
    the reference's but for what the variant declares: nothing else can differ within a table. seed: of
    the bootstrap over items. only: of this ablation alone.
    """
    known, pairing = _Runs(runs), Pairing(seed=seed)
    bases = known.bases()
    made = [
        _table(ablation, known, base, place=place, pairing=pairing)
        for ablation in ([only] if only is not None else ABLATIONS.values())
        for place, base in bases
    ]
    return [table for table in made if table is not None and _says_something(table)]


def in_ablations(tables: Sequence[AblationTable]) -> set[str]:
    """Return the runs with options that are not the paper's and that some ablation shows.

    They stand there and would swell the tables of methods.
    """
    return {
        run.record.run_id
        for table in tables
        for line in table.lines
        for run in line.row.runs
        if line.variant.options
    }


def _key(protocol: str, method: str, options: Mapping[str, Any]) -> str:
    return digest_json([protocol, method, dict(options)])


def _all_items(protocol: Mapping[str, Any]) -> dict[str, Any]:
    budget = dict(protocol["budget"])
    items = budget.pop("train_items", None)
    if items is not None:
        budget["name"] = str(budget["name"]).removesuffix(f"-{items}")
    return {**protocol, "budget": budget}


def _protocol(base: Mapping[str, Any], variant: Variant) -> dict[str, Any]:
    """Return the protocol that a variant's runs must have: the base's and what it declares."""
    budget, items = dict(base["budget"]), variant.train_items
    if items is not None:
        budget |= {"name": f"{budget['name']}-{items}", "train_items": items}
    own = {key: getattr(variant, key) for key in _SAMPLER if getattr(variant, key) is not None}
    return {**base, "budget": budget, "sampler": {**base["sampler"], **own}}


def _table(
    ablation: Ablation, known: _Runs, base: Mapping[str, Any], *, place: _Place, pairing: Pairing
) -> AblationTable | None:
    groups: dict[str, tuple[Variant, list[Run]]] = {}
    for variant in ablation.variants:
        protocol = digest_json(_protocol(base, variant))
        key = _key(protocol, variant.method, variant.settings)
        groups.setdefault(key, (variant, known.by_key.get(key, [])))  # once, where it is the suite's
    found, notes = _one_rate([(variant, runs) for variant, runs in groups.values() if runs])
    if not found:
        return None
    own = [run for _, runs in found for run in runs]
    records = [run.record for run in own]
    columns = _columns(ablation, place[1], own)
    rows = [(variant, _row(ablation, variant, runs, columns)) for variant, runs in found]
    return AblationTable(
        ablation=ablation,
        suite=place[0],
        task=place[1],
        base=base,
        columns=columns,
        lines=tuple(_line(ablation, variant, row, rows, pairing) for variant, row in rows),
        missing=tuple(variant.called for variant, runs in groups.values() if not runs),
        notes=(*split_notes(records), *device_notes(records), *notes, *_few(rows)),
    )


def _one_rate(
    groups: Sequence[tuple[Variant, list[Run]]],
) -> tuple[list[tuple[Variant, list[Run]]], list[str]]:
    """Keep each method's runs of its most common learning rate, and say how many are left out."""
    counts: dict[str, Counter[Any]] = {}
    for variant, runs in groups:
        rates = [run.record.options.get(RATE) for run in runs]
        counts.setdefault(variant.method, Counter()).update(rates)
    kept = {m: max(c, key=lambda rate, c=c: (c[rate], -(rate or 0.0))) for m, c in counts.items()}  # type: ignore[misc]
    notes = [
        f"{sum(c.values()) - c[kept[m]]} runs of {titled(m)} at other learning rates than {kept[m]:g} are "
        "left out."
        for m, c in counts.items()
        if len(c) > 1
    ]
    found = [
        (variant, [run for run in runs if run.record.options.get(RATE) == kept[variant.method]])
        for variant, runs in groups
    ]
    return [(variant, runs) for variant, runs in found if runs], notes


def _columns(ablation: Ablation, task: str, runs: Iterable[Run]) -> tuple[Column, ...]:
    """Return FD, fidelity, cosine and, where guidance moves it, the CLIP score."""
    wanted = ["fd", *primary_metrics(task), "cosine"]
    wanted += ["clip"] if ablation.axis == "guidance" else []
    found = {Column.of(m, v) for run in runs for m, v in run.record.metrics.items() if m in wanted}
    return order_columns(found)


def _row(ablation: Ablation, variant: Variant, runs: Sequence[Run], columns: Sequence[Column]) -> Row:
    own = tuple(sorted(runs, key=lambda run: run.record.seed))
    name = titled(variant.name)
    if ablation.resamples and variant.name == ablation.reference:
        value = f"{own[0].record.protocol['sampler'][ablation.axis]:g}"
        name = label(name, f"{value} steps" if ablation.axis == "steps" else value)
    mark = leak_mark([run.record for run in own])
    name = label(name, mark) if mark else name
    cells = {c: aggregate(own, source=SAMPLES, column=c, seed=BOOTSTRAP_SEED) for c in columns}
    kind = "floor" if variant.method == FLOOR else "method"
    return Row(name=name, label=name, kind=kind, source=SAMPLES, runs=own, cells=cells)


def _line(
    ablation: Ablation,
    variant: Variant,
    row: Row,
    rows: Sequence[tuple[Variant, Row]],
    pairing: Pairing,
) -> Line:
    paper = ablation.reference_of(variant)
    reference = next((other for v, other in rows if v is paper), None)
    found: dict[Column, Difference] = {}
    if variant is not paper and row.kind != "floor" and reference is not None:
        sides = _common(row, reference)
        for column in row.cells if sides else ():
            difference = pairing.difference(*sides, column=column)
            found |= {column: difference} if difference is not None else {}
    return Line(variant=variant, row=row, is_reference=variant is paper, differences=found)


def _common(one: Row, other: Row) -> tuple[Row, ...]:
    """Return both rows on the seeds that both have, nothing where they share none."""
    seeds = set(one.seeds) & set(other.seeds)
    return tuple(
        replace(row, runs=tuple(run for run in row.runs if run.record.seed in seeds))
        for row in (one, other)
        if seeds
    )


def _says_something(table: AblationTable) -> bool:
    """Whether a variant is compared; along an axis of items, at two numbers of items or more."""
    compared = {line.train_items for line in table.lines if line.differences}
    return len(compared) > (1 if table.ablation.axis == "train_items" else 0)


def _few(rows: Sequence[tuple[Variant, Row]]) -> list[str]:
    items = [row.cells[c].items for _, row in rows for c in row.cells if c.metric in FRECHET]
    return few_notes(min(items, default=FEW_ITEMS))
