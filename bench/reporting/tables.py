"""Tables of a report: tidy data frames, and grids for Markdown, LaTeX and the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.metrics.intervals import FEW_ITEMS
from bench.record import MACHINE, Cost, MetricValue, RunRecord
from bench.reporting.differences import Difference, difference_digits, seed_mark
from bench.reporting.grid import Grid, Text, to_plain
from bench.reporting.leaks import leak_lines
from bench.reporting.names import (
    HASH_DIGITS,
    Column,
    amount,
    brackets,
    count,
    decimals,
    header,
    named,
    number,
    of_distribution,
    order_columns,
    plain_name,
    protocol_differences,
)
from bench.reporting.notes import FRECHET, device_notes, few_notes, too_few
from bench.reporting.rows import COSTLY, Row, Table
from bench.reporting.runs import FLOOR_METHOD, SAMPLES, SHUFFLED, metric_rows

if TYPE_CHECKING:
    import pandas

_COUNTS = {
    "parameters_trainable": "trainable parameters",
    "parameters_dead": "dead parameters",
    "parameters": "total parameters",
    "macs": "MACs a call",
    "macs_guided": "MACs a guided step",
    "macs_encode": "MACs once an image",
}
_AMOUNTS = {
    "train_images_per_second": "train images/s",
    "sample_seconds_per_image": "sample seconds an image",
    "train_seconds": "train seconds",
    "peak_memory_bytes": "peak memory (MiB)",
}
_TIDY = (
    "suite task protocol row kind method options seeds metric judge scale better value low high "
    "deviation items"
).split()


def tidy(table: Table) -> pandas.DataFrame:
    """Return the table with one line a number, in full precision; missing numbers are empty.

    low, high: 95% interval over items. deviation: standard deviation over training seeds.
    """
    import pandas

    lines = [
        {**_tidy_row(table, row), **_tidy_cell(row, column)} for row in table.rows for column in table.columns
    ]
    return pandas.DataFrame(lines, columns=_TIDY)


def tidy_costs(table: Table) -> pandas.DataFrame:
    """Return measured costs with one line a run: counts, seconds, bytes; missing is empty."""
    import pandas

    lines = []
    for row in _costly(table):
        for run in row.runs:
            record = run.record
            costs = {key: getattr(record.cost, key) for key in Cost.__dataclass_fields__}
            lines.append({"run": record.run_id, "row": row.name, "seed": record.seed} | costs)
    return pandas.DataFrame(lines)


def tidy_differences(differences: Sequence[Difference]) -> pandas.DataFrame:
    """Return paired differences with one line each, in full precision."""
    import pandas

    names = ("first second metric judge better difference low high items left_out seeds_agree").split()
    lines = [
        (
            d.first,
            d.second,
            d.column.metric,
            d.column.judge,
            d.column.better,
            d.interval.value,
            d.interval.low,
            d.interval.high,
            d.items,
            d.left_out,
            d.agree,
        )
        for d in differences
    ]
    return pandas.DataFrame(lines, columns=names)


def main_grid(table: Table) -> Grid:
    """Return the methods as text: value and interval in each cell, deviations over seeds beneath."""
    columns = [column for column in table.columns if not of_distribution(column)]
    return _grid(table, columns, caption=caption(table))


def distribution_grid(table: Table) -> Grid | None:
    """Return what the first table leaves out of the set's distribution; None where nothing is."""
    columns = [column for column in table.columns if of_distribution(column)]
    if not columns:
        return None
    words = (
        f"Distribution of the samples. {caption(table)} FD∞ extrapolates in 1/N and stays too high "
        "with fewer items than feature dimensions. Nearer to training: the share of samples whose "
        "nearest real image is one of as many training images, not another item's target; 0.5 "
        "or less says that nothing is copied."
    )
    return _grid(table, columns, caption=words)


def _grid(table: Table, columns: Sequence[Column], *, caption: str) -> Grid:
    digits = {column: column_digits(table, column) for column in columns}
    body: list[tuple[Text, ...]] = []
    rules = []
    rows = [row for row in table.rows if row.kind != "variant"]
    for i, row in enumerate(rows):
        if i and _block(row) != _block(rows[i - 1]):
            rules.append(len(body))
        body.append(_value_line(row, columns, digits))
        if len(row.seeds) > 1:
            body.append(_deviation_line(row, columns, digits))
    return Grid(
        header=("", "seeds", *(header(column) for column in columns)),
        body=tuple(body),
        caption=caption,
        rules=tuple(rules),
    )


def cost_grid(table: Table) -> Grid:
    """Return what each method cost as text, times averaged over its seeds."""
    rows = [row for row in _costly(table) if row.kind != "variant"]
    body = [(Text(main=row.label), *cost_cells(row)) for row in rows]
    words = (
        f"Cost of {table.title}, measured: parameters in numbers of scalars (total: "
        "with the frozen base; dead: no gradient reached them in training), MACs of one denoiser "
        "call for one image and one text branch, means over seeds."
    )
    words += time_words(table)
    return Grid(
        header=("", *cost_headers()),
        body=tuple(body),
        caption=words,
    )


def cost_headers(*, leave_out: Sequence[str] = ()) -> list[str]:
    """Return the headers of `cost_cells`."""
    names = {**_COUNTS, **_AMOUNTS}
    return [names[key] for key in names if key not in leave_out]


def cost_cells(row: Row, *, leave_out: Sequence[str] = ()) -> list[Text]:
    """Return a row's costs as text, means over its seeds; leave_out: fields of a record's cost."""
    counts = [count(mean_cost(row, key)) for key in _COUNTS if key not in leave_out]
    amounts = [amount(_amount(row, key)) for key in _AMOUNTS if key not in leave_out]
    return [Text(main=text) for text in (*counts, *amounts)]


def mean_cost(row: Row, key: str) -> float | None:
    """Return a field of a record's cost, averaged over a row's seeds; None where one has none."""
    values = [getattr(run.record.cost, key) for run in row.runs]
    return None if None in values else float(np.mean(values))


def difference_grid(table: Table, differences: Sequence[Difference]) -> Grid:
    """Return paired differences as text, one line each."""
    body = []
    for d in differences:
        digits = difference_digits(d)
        ends = brackets(d.interval.low, d.interval.high, digits)
        value = Text(main=number(d.interval.value, digits), beside=ends)
        cells = [Text(main=text) for text in (d.first, d.second, header(d.column))]
        body.append((*cells, value, Text(main=f"{d.items}{seed_mark(d)}")))
    return Grid(
        header=("first", "minus second", "metric", "difference", "items"),
        body=tuple(body),
        caption=(
            f"Paired differences on {table.title}: first minus second on the same "
            f"items, with 95% intervals over items, not widened for their number ({len(body)}): a "
            "bootstrap of per-item scores, and the jackknife for FD and KID, which belong to a set. They "
            "hold for the training seeds at hand. *: single training seeds do not agree, one of the first "
            "lying on the other side of one of the second; unmarked, all seeds agree, or there is one. No "
            "interval adds seed variance: of 3 seeds it would reach 2.5 standard deviations "
            "either way (t, 2 degrees of freedom) and hang on their own luck."
        ),
        left=3,
    )


def caption(table: Table) -> str:
    """Return what a table's reader must know: suite, task, N, seeds, judges, protocol."""
    records = [run.record for run in table.runs]
    items = sorted({record.splits.eval.n for record in records})
    judges = sorted({c.judge for c in table.columns} - {"", "none"})
    seeds = sorted({s for row in table.rows for s in row.seeds})
    words = [
        f"{table.title}: {_join(items)} evaluation items",
        f"budget {_join(sorted({record.budget for record in records}))}",
        f"seeds {_join(seeds)}",
        f"judges {_join(judges) if judges else 'none'}",
        _protocol_words(table, records),
    ]
    text = "; ".join(words) + ". Brackets: 95% intervals over items."
    most = max((len(row.seeds) for row in table.rows), default=0)
    if most > 1:
        text += " Standard deviations are over seeds, which the intervals leave out."
    if any(row.source == SHUFFLED and len(row.seeds) < most for row in table.rows):
        text += (
            " Shuffled conditions are of the first seed alone: compare them with that seed's own "
            "record, not with a mean."
        )
    text = " ".join([text, *device_notes(records)])
    warning = "MIXED PROTOCOLS, rows of different marks do not compare. " if table.marks else ""
    return warning + text


def time_words(table: Table) -> str:
    """Return a sentence on where times and memory come from, with a space before it."""
    machines = sorted({run.timed for run in table.runs if run.timed})
    if machines:
        return (
            f" Times and memory: each method measured alone ({'; '.join(machines)}), train seconds for "
            "the images of the budget."
        )
    if len({tuple(str(r.record.environment.get(k)) for k in MACHINE) for r in table.runs}) > 1:
        return " Times and memory come from different machines and do not compare."
    return ""


def record_text(record: RunRecord, *, floor: RunRecord | None = None) -> str:
    """Return one record as a plain table for a terminal, beside its floor where one is given.

    Two lines a metric: values, then 95% intervals over items. Several lines, ends in a newline.
    """
    own = metric_rows(record)
    sides = {name: own.pop(name) for name in (SAMPLES, SHUFFLED) if name in own}
    if floor is not None:
        sides[f"{FLOOR_METHOD} (floor)"] = floor.metrics
    sides |= own
    columns = order_columns(Column.of(k, m) for side in sides.values() for k, m in side.items())
    title = (
        f"{record.method} on {record.suite} / {record.task}, seed {record.seed}, budget "
        f"{record.budget}, {record.splits.eval.n} items, protocol "
        f"{record.protocol_hash[:HASH_DIGITS]}\n"
    )
    if floor is not None and floor.protocol_hash != record.protocol_hash:
        title += f"MIXED PROTOCOLS: the floor has {floor.protocol_hash[:HASH_DIGITS]}\n"
    lines = [["", *sides]]
    title += "".join(f"{line}\n" for line in leak_lines(record))
    for column in columns:
        lines += _record_lines(column, sides)
    fewest = min((m.n for k, m in record.metrics.items() if k in FRECHET), default=FEW_ITEMS)
    notes = "".join(f"{note}\n" for note in few_notes(fewest))
    return f"{title}\n{to_plain(lines)}\n{notes}{_cost_text(record.cost)}\n"


def _record_lines(column: Column, sides: Mapping[str, Mapping[str, MetricValue]]) -> list[list[str]]:
    found = [side.get(column.metric) for side in sides.values()]
    cells = [m if m and Column.of(column.metric, m) == column else None for m in found]
    cells = [None if m and too_few(column, m.n) else m for m in cells]
    widths = [m.high - m.low for m in cells if m and m.low is not None and m.high is not None]
    digits = decimals([m.value for m in cells if m], widths=widths)
    judge = named(column).removeprefix(plain_name(column))
    arrow = header(column).removeprefix(named(column))
    values = [number(m.value if m else None, digits) for m in cells]
    ends = [brackets(m.low, m.high, digits) if m else "" for m in cells]
    return [[plain_name(column) + arrow, *values], [judge, *ends]]


def _cost_text(cost: Cost) -> str:
    trained = (
        f"trained {cost.train_images} images in {amount(cost.train_seconds, 's')} "
        f"({amount(cost.train_images_per_second)}/s)"
        if cost.train_seconds is not None
        else "not trained"
    )
    return (
        f"{count(cost.parameters_trainable)} of {count(cost.parameters)} parameters trainable, "
        f"{count(cost.parameters_dead)} dead; {count(cost.macs)} MACs a call; {trained}; "
        f"{amount(cost.sample_seconds_per_image, 's')} an image; "
        f"{amount(_mebibytes(cost.peak_memory_bytes), 'MiB')} at the peak"
    )


def _tidy_row(table: Table, row: Row) -> dict[str, Any]:
    own = row.kind not in {"reference", "ceiling"}
    record = row.runs[0].record
    return {
        "suite": table.suite,
        "task": table.task,
        "protocol": row.protocol_hash,
        "row": row.label,
        "kind": row.kind,
        "method": record.method if own else None,
        "options": json.dumps(dict(record.options), sort_keys=True) if own else None,
        "seeds": " ".join(map(str, row.seeds)),
    }


def _tidy_cell(row: Row, column: Column) -> dict[str, Any]:
    what = {"metric": column.metric, "judge": column.judge}
    what |= {"scale": column.scale, "better": column.better}
    cell = row.cells.get(column)
    if cell is None:
        return what
    numbers = {"value": cell.value, "low": cell.low, "high": cell.high, "items": cell.items}
    return what | numbers | {"deviation": cell.deviation}


def column_digits(table: Table, column: Column) -> int:
    """Return how many decimals the numbers of a column are given, the same for every row."""
    cells = [row.cells[column] for row in table.rows if column in row.cells]
    widths = [c.high - c.low for c in cells if c.low is not None and c.high is not None]
    return decimals([c.value for c in cells], widths=widths)


def _value_line(row: Row, columns: Sequence[Column], digits: Mapping[Column, int]) -> tuple[Text, ...]:
    cells = [row.cells.get(column) for column in columns]
    return (
        Text(main=row.label),
        Text(main=str(len(row.seeds)) if row.seeds else ""),
        *(
            Text(main=number(None, 0))
            if cell is None
            else Text(
                main=number(cell.value, digits[column]),
                beside=brackets(cell.low, cell.high, digits[column]),
            )
            for cell, column in zip(cells, columns, strict=True)
        ),
    )


def _deviation_line(row: Row, columns: Sequence[Column], digits: Mapping[Column, int]) -> tuple[Text, ...]:
    cells = [row.cells.get(column) for column in columns]
    return (
        Text(main="standard deviation", beside=f"over {len(row.seeds)} seeds"),
        Text(main=""),
        *(
            Text(main=number(cell.deviation if cell else None, digits[column]))
            for cell, column in zip(cells, columns, strict=True)
        ),
    )


def _block(row: Row) -> str:
    if row.kind in {"reference", "ceiling"}:
        return "references"
    return "floor" if row.kind == "floor" else "methods"


def _costly(table: Table) -> list[Row]:
    return [row for row in table.rows if row.kind in COSTLY]


def _amount(row: Row, key: str) -> float | None:
    mean = mean_cost(row, key)
    return _mebibytes(mean) if key == "peak_memory_bytes" else mean


def _mebibytes(size: float | None) -> float | None:
    return None if size is None else size / 2**20


def _protocol_words(table: Table, records: Sequence[RunRecord]) -> str:
    if not table.marks:
        return f"protocol {table.hashes[0][:HASH_DIGITS]}"
    says = protocol_differences(records)
    return "; ".join(
        f"protocol {mark} is {digest[:HASH_DIGITS]} ({', '.join(says[digest]) or 'says the same'})"
        for digest, mark in table.marks.items()
    )


def _join(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values)) if values else "none"
