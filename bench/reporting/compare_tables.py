"""The comparison of methods over tasks as text: quality, cost and tidy lines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.record import RunRecord
from bench.reporting.compare import FEWER, Comparison, Entry
from bench.reporting.grid import Grid, Text
from bench.reporting.names import HASH_DIGITS, Column, brackets, decimals, header, number, titled
from bench.reporting.notes import made_equal
from bench.reporting.rows import Table
from bench.reporting.tables import cost_cells, cost_headers, time_words

if TYPE_CHECKING:
    import pandas

_TIDY = (
    "suite task protocol row kind method options seeds metric judge scale better value low high "
    "deviation items best"
).split()
_NOT_SHOWN = ("macs",)


def comparison_grid(comparison: Comparison) -> Grid:
    """Return methods by tasks as text; bold where the best is told apart from the next."""
    digits = {place: _digits(comparison, *place) for place in comparison.columns}
    bold = {(s.task, s.column, s.best.label) for s in comparison.standings if s.clear}
    body: list[tuple[Text, ...]] = []
    rules = []
    for i, entry in enumerate(comparison.entries):
        if i and _block(entry) != _block(comparison.entries[i - 1]):
            rules.append(len(body))
        cells = [
            _cell(entry, task, column, digits[task, column], bold) for task, column in comparison.columns
        ]
        fewer = f" {FEWER}" if comparison.has_fewer_seeds(entry) else ""
        body.append((Text(main=entry.label + fewer), Text(main=_seeds(entry)), *cells))
    return Grid(
        header=("", "seeds", *(header(column) for _, column in comparison.columns)),
        body=tuple(body),
        caption=comparison_caption(comparison),
        rules=tuple(rules),
        groups=("", "", *(task for task, _ in comparison.columns)),
    )


def comparison_caption(comparison: Comparison) -> str:
    """Return what the reader must know: suite, N, budget, judges, protocols, seeds, what is bold."""
    tables = comparison.tables
    records = {task: [run.record for run in t.runs] for task, t in tables.items()}
    judges = sorted({c.judge for _, c in comparison.columns} - {"", "none"})
    hashes = {task: t.hashes[0][:HASH_DIGITS] for task, t in tables.items()}
    parts = [
        f"Comparison on {comparison.title}: {_by_task(records, _items)} evaluation items",
        f"budget {_by_task(records, _budget)}",
        f"judges {', '.join(judges) if judges else 'none'}",
        f"protocol {', '.join(f'{task} {digest}' for task, digest in hashes.items())}",
    ]
    words = [
        "; ".join(parts),
        "Means over training seeds with 95% intervals over items in brackets",
        "Bold: the best method of a column, where the paired 95% interval of its difference to the "
        "next best leaves 0 out and training seeds do not disagree; never a floor or a reference",
        *_seed_words(comparison),
        *(f"{name} stands for {what}" for name, what in comparison.options.items()),
        *_variant_words(comparison),
        "–: not measured",
    ]
    return ". ".join(words) + "."


def comparison_costs(comparison: Comparison) -> tuple[str, Grid]:
    """Return the task whose costs are shown, and the costs: the task with most methods."""
    task = cost_task(comparison)
    entries = [e for e in comparison.entries if e.kind in {"method", "floor"}]
    body = tuple(
        (
            Text(main=entry.label),
            *(
                cost_cells(entry.rows[task], leave_out=_NOT_SHOWN)
                if task in entry.rows
                else [Text(main=number(None, 0))] * len(cost_headers(leave_out=_NOT_SHOWN))
            ),
        )
        for entry in entries
    )
    records = [run.record for run in comparison.tables[task].runs]
    words = (
        f"Cost on {comparison.title}, measured on {task} at {made_equal(records)}, budget "
        f"{_budget(records)}; means over seeds. Parameters are numbers of scalars (total: with "
        "the frozen base; dead: no gradient reached them in training); MACs for one image: a guided "
        "step has two text branches, once an image is what the condition alone needs."
    )
    words += time_words(comparison.tables[task])
    return task, Grid(header=("", *cost_headers(leave_out=_NOT_SHOWN)), body=body, caption=words)


def cost_task(comparison: Comparison) -> str:
    """Return the task on which most methods ran; the first in order of those."""
    entries = comparison.own("method")
    return max(comparison.tables, key=lambda task: sum(task in e.rows for e in entries))


def tidy_comparison(comparison: Comparison) -> pandas.DataFrame:
    """Return the comparison with one line a number, in full precision; missing is empty.

    best: whether the number stands in bold, empty where it does not lead.
    """
    import pandas

    clear = {(s.task, s.column, s.best.label): s.clear for s in comparison.standings}
    lines = []
    for entry in comparison.entries:
        for task, column in comparison.columns:
            own = _tidy_row(comparison.tables[task], entry, task)
            best = {"best": clear.get((task, column, entry.label))}
            lines.append(own | _tidy_cell(entry, task, column) | best)
    return pandas.DataFrame(lines, columns=_TIDY)


def _cell(entry: Entry, task: str, column: Column, digits: int, bold: set[tuple[str, Column, str]]) -> Text:
    cell = entry.cell(task, column)
    if cell is None:
        return Text(main=number(None, 0))
    return Text(
        main=number(cell.value, digits),
        beside=brackets(cell.low, cell.high, digits),
        bold=(task, column, entry.label) in bold,
    )


def _digits(comparison: Comparison, task: str, column: Column) -> int:
    found = [entry.cell(task, column) for entry in comparison.entries]
    cells = [cell for cell in found if cell is not None]
    widths = [c.high - c.low for c in cells if c.low is not None and c.high is not None]
    return decimals([c.value for c in cells], widths=widths)


def _seeds(entry: Entry) -> str:
    """Return "3", or "1–3" where tasks have different numbers of seeds."""
    numbers = sorted(set(entry.seeds.values()))
    return "–".join(str(n) for n in (numbers[:1] + numbers[1:][-1:]))


def _seed_words(comparison: Comparison) -> list[str]:
    """Say how many seeds the rows have, and by task those that have fewer."""
    most = comparison.most_seeds
    fewer = []
    for entry in comparison.entries:
        if comparison.has_fewer_seeds(entry):
            counts = {task: str(n) for task, n in entry.seeds.items() if n < most}
            whole = len(set(counts.values())) == 1 and len(counts) == len(entry.seeds)
            text = (
                next(iter(counts.values()))
                if whole
                else ", ".join(f"{n} on {task}" for task, n in counts.items())
            )
            fewer.append(f"{entry.name} {text}")
    seeds = f"{most} training seed{'s' if most != 1 else ''} a row"
    return [f"{seeds}; {FEWER} fewer: {'; '.join(fewer)}" if fewer else seeds]


def _variant_words(comparison: Comparison) -> list[str]:
    """Say where variants are, if any task has some."""
    found = {
        task: sorted({titled(r.runs[0].record.method) for r in table.rows if r.kind == "variant"})
        for task, table in comparison.tables.items()
    }
    methods = sorted({method for own in found.values() for method in own})
    tasks = [task for task, own in found.items() if own]
    words = f"Variants of {', '.join(methods)} stand in the ablations of {', '.join(tasks)}"
    return [words] if tasks else []


def _by_task(records: Mapping[str, Sequence[RunRecord]], say: Any) -> str:
    """Return what `say` makes of each task's records: once where all agree."""
    said = {task: say(own) for task, own in records.items()}
    if len(set(said.values())) == 1:
        return str(next(iter(said.values())))
    return ", ".join(f"{task} {text}" for task, text in said.items())


def _items(records: Sequence[RunRecord]) -> str:
    return " or ".join(str(n) for n in sorted({r.splits.eval.n for r in records}))


def _budget(records: Sequence[RunRecord]) -> str:
    """Say the budget and the training images of every method; aloud where they are not equal."""
    names = " or ".join(sorted({r.budget for r in records}))
    images = sorted({r.cost.train_images for r in records} - {0})
    if not images:
        return names
    text = " or ".join(f"{n:,}" for n in images)
    if made_equal(records) == "equal training time":
        return f"{names} (equal training time: {text} training images by method)"
    warning = "" if len(images) == 1 else ", NOT EQUAL"
    return f"{names} ({text} training images for each method{warning})"


def _block(entry: Entry) -> str:
    return "references" if entry.kind in {"reference", "ceiling"} else entry.kind


def _tidy_row(table: Table, entry: Entry, task: str) -> dict[str, Any]:
    row = entry.rows.get(task)
    line = {
        "suite": table.suite,
        "task": task,
        "protocol": table.hashes[0],
        "row": entry.label,
        "kind": entry.kind,
    }
    if row is None or not row.seeds:
        return line
    record = row.runs[0].record
    return line | {
        "method": record.method,
        "options": json.dumps(dict(record.options), sort_keys=True),
        "seeds": " ".join(map(str, row.seeds)),
    }


def _tidy_cell(entry: Entry, task: str, column: Column) -> dict[str, Any]:
    what = {"metric": column.metric, "judge": column.judge}
    what |= {"scale": column.scale, "better": column.better}
    cell = entry.cell(task, column)
    if cell is None:
        return what
    numbers = {"value": cell.value, "low": cell.low, "high": cell.high, "items": cell.items}
    return what | numbers | {"deviation": cell.deviation}
