"""Tables of a report as text and as tidy data frames: methods, comparisons, ablations, differences, costs."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.config import RunConfig, Style, option_text
from bench.cost import setup_of, setup_words
from bench.record import MACHINE, Cost, MetricValue, RunRecord
from bench.registry import FLOOR
from bench.reporting.compare import AblationTable, Comparison, ablation_sentences
from bench.reporting.differences import Difference
from bench.reporting.frame import COSTLY, OWN_ROWS, WRONG_CONDITIONS, Row, Table, metric_rows
from bench.reporting.render import Grid, Text, plain_lines, to_plain
from bench.reporting.words import (
    FRECHET,
    HASH_DIGITS,
    MISSING,
    Column,
    amount,
    brackets,
    command_line,
    count,
    decimals,
    device_notes,
    few_notes,
    headline_metrics,
    interval_text,
    leak_lines,
    made_equal,
    number,
    one_line,
    order_columns,
    protocol_words,
    titled,
)

if TYPE_CHECKING:
    from pandas import DataFrame

FEWER = "†"
LICENCE_FILE = "LICENSE.md"
PIPELINE = "text-to-image"
DATA_SETS = {"emoji": "openmoji", "micro": "openmoji", "coco17": "coco-2017"}
"""What the data of suites are called elsewhere; those of others are the user's own."""
COSTS: Mapping[str, tuple[str, Callable[[float | None], str]]] = {
    "parameters_trainable": ("trainable parameters", count),
    "parameters_dead": ("dead parameters", count),
    "parameters": ("total parameters", count),
    "macs": ("MACs a call", count),
    "macs_guided": ("MACs a guided step", count),
    "macs_encode": ("MACs once an image", count),
    "train_images_per_second": ("train images/s", amount),
    "sample_seconds_per_image": ("sample seconds an image", amount),
    "train_seconds": ("train seconds", amount),
    "peak_memory_bytes": ("peak memory (MiB)", lambda size: amount(None if size is None else size / 2**20)),
}
_NUMBERS = ("value", "low", "high", "deviation", "items")
_WHAT = ("metric", "judge", "scale", "better")


def main_grid(table: Table) -> Grid:
    """Return a table of any kind as text: methods, a comparison or an ablation.

    Of methods: value and interval in each cell, deviations over seeds beneath. Of a comparison: bold where
    the best is told apart from the next. Of an ablation: two columns a metric, the second the difference.
    """
    return _grid(table, [c for c in table.columns if not c.spec.detail], caption=caption(table))


def published_grid(suite: str) -> Grid | None:
    """Return what others published of a suite's data, as they tell it; None for other suites than coco17."""
    if suite != "coco17":
        return None
    text = resources.files(__package__).joinpath("templates/published.csv").read_text(encoding="utf-8")
    header, *lines = csv.reader(text.splitlines())
    return Grid(
        header=tuple(header),
        body=tuple(tuple(Text(main=cell or MISSING) for cell in line) for line in lines),
        caption="Published elsewhere, each under a protocol of its own: other splits, samples, judges and "
        "tools. No number here compares with one of this report, nor with another source's.",
        left=2,
    )


def distribution_grid(table: Table) -> Grid | None:
    """Return what the first table leaves out of the set's distribution; None where nothing is."""
    columns = [column for column in table.columns if column.spec.detail]
    if not columns:
        return None
    about = caption(replace(table, columns=tuple(columns)))
    words = (
        f"Distribution of the samples. {about} FD∞ extrapolates in 1/N and stays too "
        "high with fewer items than feature dimensions. Nearer to training: the share of samples whose "
        "nearest real image is one of as many training images, not another item's target; 0.5 "
        "or less says that nothing is copied. Differences in precision, recall, density and coverage have "
        "intervals that hold the truth in 99%, not 95%: they claim too rarely."
    )
    return _grid(table, columns, caption=words)


def _grid(table: Table, columns: Sequence[Column], *, caption: str) -> Grid:
    rows = [row for row in table.rows if row.kind != "variant"]
    digits = {column: column_digits(table, column) for column in columns}
    lead, varied = _lead(table), isinstance(table, AblationTable)
    above = [c.header if varied else c.task for c in columns for _ in range(2 if varied else 1)]
    heads = [h for c in columns for h in (("value", "minus reference") if varied else (c.header,))]
    body: list[tuple[Text, ...]] = []
    rules = []
    for i, row in enumerate(rows):
        if i and table.block(row) != table.block(rows[i - 1]):
            rules.append(len(body))
        name = (
            f"{row.label} {FEWER}"
            if isinstance(table, Comparison) and table.has_fewer_seeds(row)
            else row.label
        )
        cells = (cell for c in columns for cell in _cells(table, row, c, digits[c]))
        body.append((Text(main=name), *(Text(main=fact(row)) for fact in lead.values()), *cells))
        if type(table) is Table and len(row.seeds) > 1:
            known = ((row.cells.get(c), digits[c]) for c in columns)
            deviations = (Text(main=number(cell.deviation if cell else None, n)) for cell, n in known)
            over = Text(main="standard deviation", beside=f"over {len(row.seeds)} seeds")
            body.append((over, *(Text(main="") for _ in lead), *deviations))
    return Grid(
        header=("", *lead, *heads),
        body=tuple(body),
        caption=caption,
        rules=tuple(rules),
        groups=("", *("" for _ in lead), *above) if any(above) else (),
    )


def _lead(table: Table) -> dict[str, Callable[[Row], str]]:
    """Return what stands between a row's label and its numbers."""
    seeds: dict[str, Callable[[Row], str]] = {"seeds": seeds_text}
    if not isinstance(table, AblationTable):
        return seeds
    lead: dict[str, Callable[[Row], str]] = {}
    if table.by_items:
        lead["training items"] = lambda row: f"{row.train_items:,}"
    if len({row.record.cost.parameters_trainable for row in table.rows}) > 1:
        lead["trainable parameters"] = lambda row: count(row.record.cost.parameters_trainable)
    return lead | seeds


def seeds_text(row: Row) -> str:
    """Return "3", "1–3" where tasks have different numbers of seeds, nothing for a reference."""
    numbers = sorted(set(row.seeds_by_task.values()) if row.rows else {len(row.seeds)} - {0})
    return "–".join(str(n) for n in (numbers[:1] + numbers[1:][-1:]))


def _cells(table: Table, row: Row, column: Column, digits: int) -> list[Text]:
    cell = row.cells.get(column)
    value = Text(main=MISSING)
    if cell is not None and cell.value is not None:
        standing = table.standings.get(column) if isinstance(table, Comparison) else None
        value = Text(
            main=number(cell.value, digits),
            beside=interval_text(cell.value, cell.low, cell.high, digits, table.style),
            bold=standing is not None and standing.clear and standing.best is row,
        )
    if not isinstance(table, AblationTable):
        return [value]
    if column in row.differences:
        return [value, difference_cell(row.differences[column], table.style)]
    return [value, Text(main="reference" if table.is_reference(row) else MISSING)]


def column_digits(table: Table, column: Column) -> int:
    """Return how many decimals the numbers of a column are given, the same for every row."""
    cells = [row.cells[column] for row in table.rows if column in row.cells]
    widths = [c.high - c.low for c in cells if c.low is not None and c.high is not None]
    return decimals([c.value for c in cells], widths=widths)


def difference_cell(difference: Difference, style: Style = "brackets") -> Text:
    """Return a difference with its sign and interval, marked where only the interval tells it from 0."""
    digits, i = difference.digits, difference.interval
    main = f"{'+' if i.value > 0 else ''}{number(i.value, digits)}{difference.mark}"
    return Text(main=main, beside=interval_text(i.value, i.low, i.high, digits, style))


def leaderboards(table: Table) -> list[Grid]:
    """Return what a terminal shows, a grid a task: methods and floor by headline metrics, best in bold."""
    return [_leaderboard(table, task) for task in (table.tables if isinstance(table, Comparison) else [""])]


def _leaderboard(table: Table, task: str) -> Grid:
    headline = (*headline_metrics(task or table.task), *(["clip"] if task else []))  # where it is compared
    main = [c for c in table.columns if c.task == task and c.metric in headline]
    rows = tuple(row for row in table.own("method", "floor") if not task or task in row.rows)
    title = table.tables[task].title if isinstance(table, Comparison) else table.title
    grid = _grid(replace(table, rows=rows, style="none", notes=()), main, caption=title)
    body = tuple(line for line in grid.body if line[0].main != "standard deviation")
    heads = tuple(c.header.replace(c.named, c.plain_name) for c in main)
    return replace(grid, header=(*grid.header[: len(grid.header) - len(main)], *heads), body=body, groups=())


def difference_grid(table: Table, differences: Sequence[Difference]) -> Grid:
    """Return paired differences as text, one line each."""
    body = []
    for d in differences:
        digits, i = d.digits, d.interval
        ends = interval_text(i.value, i.low, i.high, digits, table.style)
        cells = [Text(main=text) for text in (d.first, d.second, d.column.header)]
        body.append(
            (*cells, Text(main=number(i.value, digits), beside=ends), Text(main=f"{d.items}{d.mark}"))
        )
    return Grid(
        header=("first", "minus second", "metric", "difference", "items"),
        body=tuple(body),
        caption=(
            f"Paired differences on {table.title}: first minus second on the same items and seeds, with 95% "
            "intervals over groups of items and training seeds; with one seed they say nothing of others. "
            f"*: the interval leaves 0 out, but not once all {len(body)} are corrected for (Holm)."
        ),
        left=3,
    )


def cost_grid(table: Table) -> Grid:
    """Return what each method cost as text, times averaged over its seeds.

    Of a comparison: on the task with most methods, without what guided steps tell already.
    """
    rows: dict[str, Row | None] = {row.label: row for row in table.own("method", "floor")}
    title, keys = table.title, list(COSTS)
    if isinstance(table, Comparison):
        task = cost_task(table)
        rows = {name: row and row.rows.get(task) for name, row in rows.items()}
        title, table = f"{title}, measured on {task}", table.tables[task]
        keys.remove("macs")
    words = (
        f"Cost of {title}, at {made_equal(table.records)}, budget {_budget(table.records)}; means over "
        "seeds. Parameters are numbers of scalars (total: with the frozen base; dead: no gradient reached "
        "them in training). MACs are of one image: a call has one text branch, a guided step two; once an "
        "image is what the condition alone needs."
    )
    setups = {name: setup_words(setup_of(row.record)) if row else "" for name, row in rows.items()}
    marked = {name: f"{name} ({how})" for name, how in setups.items() if how and len({*setups.values()}) > 1}
    costs = {marked.get(name, name): [cost_text(row, key) for key in keys] for name, row in rows.items()}
    return Grid(
        header=("", *(COSTS[key][0] for key in keys)),
        body=tuple(tuple(Text(main=text) for text in (name, *texts)) for name, texts in costs.items()),
        caption=words + time_words(table),
    )


def cost_text(row: Row | None, key: str) -> str:
    """Return a row's cost as text, the mean over its seeds; "–" where there is no row."""
    return MISSING if row is None else COSTS[key][1](mean_cost(row, key))


def mean_cost(row: Row, key: str) -> float | None:
    """Return a field of a record's cost, averaged over a row's seeds; None where one has none."""
    values = [getattr(run.record.cost, key) for run in row.runs]
    return None if None in values else float(np.mean(values))


def cost_task(comparison: Comparison) -> str:
    """Return the task on which most methods ran; the first in order of those."""
    methods = comparison.own("method")
    return max(comparison.tables, key=lambda task: sum(task in row.rows for row in methods))


def time_words(table: Table) -> str:
    """Return a sentence on where times and memory come from, with a space before it."""
    machines = sorted({run.timed for run in table.runs if run.timed})
    if machines:
        return (
            f" Times and memory: each method measured alone ({'; '.join(machines)}), train seconds for "
            "the images of the budget."
        )
    if len({tuple(str(r.environment.get(k)) for k in MACHINE) for r in table.records}) > 1:
        return " Times and memory come from different machines and do not compare."
    return ""


def caption(table: Table) -> str:
    """Return what a table's reader must know: N, budget, seeds, judges, protocols, how to read it."""
    by_task = {table.task: table.records}
    seeds = f"seeds {_join(sorted({seed for row in table.rows for seed in row.seeds}))}"
    if isinstance(table, Comparison):
        by_task = {task: t.records for task, t in table.tables.items()}
        seeds = _seed_words(table)
    kind = {Comparison: "Comparison on ", AblationTable: "Ablation "}.get(type(table), "")
    judges = _join(sorted({c.judge for c in table.columns} - {"", "none"}))
    facts = [
        f"{kind}{table.title}: {_by_task(by_task, _items)} evaluation items",
        f"budget {_by_task(by_task, _budget)}",
        seeds,
        f"judges {judges}",
        _protocols(table, by_task),
    ]
    about = [
        *_interval_words(table.style),
        *_real_words(table),
        *_gain_words(table),
        *_words(table),
        *(note.rstrip(".") for note in device_notes(table.records)),
    ]
    warning = "MIXED PROTOCOLS, rows of different marks do not compare. " if table.marks else ""
    return f"{warning}{'; '.join(facts)}. {'. '.join(about)}.".replace("?. ", "? ")


def _interval_words(style: Style) -> list[str]:
    ends = {
        "brackets": "Brackets: 95% intervals over groups of items and seeds",
        "±": "±: the longer side of 95% intervals over groups of items and seeds",
    }
    return [ends[style]] if style in ends else []


def _real_words(table: Table) -> list[str]:
    """Say what FD is between two sets of real pictures, by task where it differs."""
    far: dict[str, list[str]] = {}
    for row in table.own("reference"):
        for column in (c for c in table.columns if c.metric == "fd"):
            cell = row.cells.get(column)
            if cell is not None and cell.value is not None:
                text = f"{number(cell.value, column_digits(table, column))} {column.named}"
                far.setdefault(text, []).append(column.task)
    each = [f"{text}{f' on {_join(tasks)}' if len(far) > 1 else ''}" for text, tasks in far.items()]
    return [f"Two random sets of real pictures of this size differ by {_join(each)}"] if far else []


def _gain_words(table: Table) -> list[str]:
    """Say what a condition gain and forgetting are, and of how many seeds gains are where of fewer."""
    known = [(row, c) for row in table.rows for c in table.columns if c.is_gain and c in row.cells]
    forgotten = [
        "Forgetting: samples for captions of the base's own styles, without a condition, against those that "
        "the base makes of the same noise"
    ]
    forgotten = forgotten if any(column.is_forgetting for column in table.columns) else []
    if not known:
        return forgotten
    behind = {(len(row.seeds_of(c)), len((row.rows.get(c.task) or row).seeds)) for row, c in known}
    fewer = [f"{n} where a row has {most}" for n, most in sorted(behind) if n < most]
    seeds = f". Gains are of fewer training seeds: {_join(fewer)}" if fewer else ""
    return [
        "Condition gain: how much better the number is under an item's own condition than under another "
        f"item's, paired; above 0 the condition is obeyed{seeds}",
        *forgotten,
    ]


def _words(table: Table) -> list[str]:
    """Return what only one kind of table has to say."""
    if isinstance(table, AblationTable):
        same = " at the same number of training items" if table.by_items else ""
        same = " of the same method" if table.ablation.resamples else same
        missing = [f"Not recorded: {', '.join(table.missing)}"] if table.missing else []
        return [
            table.ablation.question.rstrip("."),
            f"Held fixed: {table.ablation.fixed}",
            "Minus reference: paired on the same items and seeds, the reference being "
            f"{titled(table.ablation.reference)}{same}",
            "*: the interval leaves 0 out, but not once the table's differences are corrected for (Holm)",
            *missing,
        ]
    if isinstance(table, Comparison):
        return [
            "Means over training seeds",
            "Bold: the best method of a column, where its difference to the next best is told from 0, the "
            "claims of this table corrected for (Holm); never a floor, a reference, weights from "
            "outside or a condition gain",
            *(f"{name} stands for {what}" for name, what in table.options.items() if what),
            *_variant_words(table),
            f"{MISSING}: not measured",
        ]
    most = max((len(row.seeds) for row in table.rows), default=0)
    deviations = ["Standard deviations are over seeds"] if most > 1 else []
    if any(row.kind in WRONG_CONDITIONS and len(row.seeds) < most for row in table.rows):
        deviations.append(
            "Rows under shuffled or empty conditions are of the first seed alone: compare them with that "
            "seed's own record, not with a mean"
        )
    return deviations


def _protocols(table: Table, by_task: Mapping[str, Sequence[RunRecord]]) -> str:
    """Return the protocol's hash, or each with what differs: its task, or what the protocols say."""
    if len(by_task) > 1:
        hashes = {task: records[0].protocol_hash[:HASH_DIGITS] for task, records in by_task.items()}
        return f"protocol {', '.join(f'{task} {digest}' for task, digest in hashes.items())}"
    says = protocol_words(table.records)
    if isinstance(table, AblationTable):
        changes = {r.protocol_hash[:HASH_DIGITS]: r.changes for r in table.records}
        words = {
            digest: [f"{key} {value:g}" for key, value in kept.items()] for digest, kept in changes.items()
        }
        says = {digest: ", ".join(w).replace("_", " ") or "the suite's" for digest, w in words.items()}
    if len(says) < 2:
        return f"protocol {next(iter(says))}"
    names = {digest[:HASH_DIGITS]: f"{mark} is " for digest, mark in table.marks.items()}
    each = ", ".join(f"{names.get(digest, '')}{digest} ({words})" for digest, words in says.items())
    return f"protocols {each}"


def _by_task(records: Mapping[str, Sequence[RunRecord]], say: Callable[[Sequence[RunRecord]], str]) -> str:
    """Return what `say` makes of each task's records: once where all agree."""
    texts = {task: say(members) for task, members in records.items()}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return ", ".join(f"{task} {text}" for task, text in texts.items())


def _items(records: Sequence[RunRecord]) -> str:
    return " or ".join(str(n) for n in sorted({r.splits.eval.n for r in records}))


def _budget(records: Sequence[RunRecord]) -> str:
    """Say the budget and the training images of every method; aloud where they are not equal."""
    names = " or ".join(sorted({r.budget.removesuffix(f"-{r.changes.get('train_items')}") for r in records}))
    images = sorted({r.cost.train_images for r in records} - {0})
    text = " or ".join(f"{n:,}" for n in images)
    if not images:
        return names
    if made_equal(records) == "equal training time":
        return f"{names} (equal training time: {text} training images by method)"
    return f"{names} ({text} training images for each method{'' if len(images) == 1 else ', NOT EQUAL'})"


def _seed_words(comparison: Comparison) -> str:
    """Say how many seeds the rows have, and by task those that have fewer."""
    most, fewer = comparison.most_seeds, []
    for row in comparison.rows:
        counts = {task: n for task, n in row.seeds_by_task.items() if n < most}
        by_task = ", ".join(f"{n} on {task}" for task, n in counts.items())
        same = len(set(counts.values())) == 1 and len(counts) == len(row.seeds_by_task)
        fewer += [f"{row.name} {next(iter(counts.values())) if same else by_task}"] if counts else []
    seeds = f"{most} training seed{'s' if most != 1 else ''} a row"
    return f"{seeds} ({FEWER} fewer: {', '.join(fewer)})" if fewer else seeds


def _variant_words(comparison: Comparison) -> list[str]:
    """Say where variants are, if any task has some."""
    found = {
        task: {titled(row.record.method) for row in t.own("variant")} for task, t in comparison.tables.items()
    }
    tasks = [task for task, methods in found.items() if methods]
    methods = sorted(set().union(*found.values()))
    return [f"Variants of {', '.join(methods)} stand in the ablations of {', '.join(tasks)}"] if tasks else []


def _join(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values)) if values else "none"


def tidy(table: Table) -> DataFrame:
    """Return a table of any kind with one line a number, in full precision; missing numbers are empty.

    low, high: 95% interval over items. deviation: standard deviation over training seeds. best, of a
    comparison: whether the number stands in bold, empty where it does not lead. difference, of an
    ablation: minus the reference.
    """
    import pandas

    lines = [
        table.describe(row, column) | _tidy_cell(row, column) | table.compared(row, column)
        for row in table.rows
        for column in table.columns
    ]
    return pandas.DataFrame(lines)


def _tidy_cell(row: Row, column: Column) -> dict[str, Any]:
    cell = row.cells.get(column)
    numbers = {key: None if cell is None else getattr(cell, key) for key in _NUMBERS}
    return {key: getattr(column, key) for key in _WHAT} | numbers


def tidy_costs(table: Table) -> DataFrame:
    """Return measured costs with one line a run: counts, seconds, bytes; missing is empty."""
    import pandas

    lines = [
        {"run": run.record.run_id, "row": row.name, "seed": run.record.seed, **vars(run.record.cost)}
        for row in table.own(*COSTLY)
        for run in row.runs
    ]
    return pandas.DataFrame(lines)


def tidy_differences(differences: Sequence[Difference]) -> DataFrame:
    """Return paired differences with one line each, in full precision."""
    import pandas

    names = "first second metric judge better difference low high items groups left_out p p_corrected".split()
    lines = [
        (*(d.first, d.second, c.metric, c.judge, c.better), *(i.value, i.low, i.high))
        + (d.items, d.groups, d.left_out, i.chance, d.chance)
        for d in differences
        for c, i in [(d.column, d.interval)]
    ]
    return pandas.DataFrame(lines, columns=names)


def ablation_text(table: AblationTable) -> str:
    """Return the table and its sentences for a terminal; several lines, ends in a newline."""
    grid = main_grid(table)
    said = "".join(f"- {sentence}\n" for sentence in ablation_sentences(table))
    notes = "".join(f"{note}\n" for note in table.notes)
    return f"{grid.caption}\n\n{to_plain(plain_lines(grid))}\n{notes}{said}"


def record_text(record: RunRecord, *, floor: RunRecord | None = None) -> str:
    """Return one record as a plain table for a terminal, beside its floor where one is given.

    Two lines a metric: values, then 95% intervals over items. Several lines, ends in a newline.
    """
    rows = metric_rows(record)
    sides = {name: rows.pop(name) for name in OWN_ROWS if name in rows}
    sides |= {f"{FLOOR} (floor)": floor.metrics} if floor is not None else {}
    sides |= rows
    columns = order_columns(Column.of(k, m) for side in sides.values() for k, m in side.items())
    protocol = record.protocol_hash[:HASH_DIGITS]
    title = [
        f"{titled(record.method)} on {record.suite} / {record.task}, seed {record.seed}, budget "
        f"{record.budget}, {record.splits.eval.n} items, protocol {protocol}"
    ]
    if floor is not None and floor.protocol_hash != record.protocol_hash:
        title.append(f"MIXED PROTOCOLS: the floor has {floor.protocol_hash[:HASH_DIGITS]}")
    title += leak_lines(record)
    lines = [["", *sides]]
    for column in columns:
        lines += _record_lines(column, list(sides.values()))
    notes = few_notes(m.n for k, m in record.metrics.items() if k in FRECHET)
    return "\n".join([*title, "", to_plain(lines), *notes, _cost_text(record.cost), ""])


def _record_lines(column: Column, sides: Sequence[Mapping[str, MetricValue]]) -> list[list[str]]:
    values = [side.get(column.metric) for side in sides]
    cells = [
        m if m and Column.of(column.metric, m) == column and not column.too_few(m.n) else None for m in values
    ]
    widths = [m.high - m.low for m in cells if m and m.low is not None and m.high is not None]
    digits = decimals([m.value for m in cells if m], widths=widths)
    judge = column.judged
    return [
        [
            column.header.replace(judge, "", 1) if judge else column.header,
            *(number(m.value if m else None, digits) for m in cells),
        ],
        [judge or " ", *(brackets(m.low, m.high, digits) if m else "" for m in cells)],
    ]


def _cost_text(cost: Cost) -> str:
    trained = (
        f"trained {cost.train_images} images in {amount(cost.train_seconds, 's')} "
        f"({amount(cost.train_images_per_second)}/s)"
        if cost.train_seconds is not None
        else "not trained"
    )
    memory = None if cost.peak_memory_bytes is None else cost.peak_memory_bytes / 2**20
    return (
        f"{count(cost.parameters_trainable)} of {count(cost.parameters)} parameters trainable, "
        f"{count(cost.parameters_dead)} dead; {count(cost.macs)} MACs a call; {trained}; "
        f"{amount(cost.sample_seconds_per_image, 's')} an image; {amount(memory, 'MiB')} at the peak"
    )


def ablation_command(table: AblationTable) -> str:
    """Return the command that makes the runs of a table."""
    asked = RunConfig(task=table.task, suite=table.suite)
    if table.base["budget"]["name"] != table.ablation.budget:
        asked = replace(asked, budget=str(table.base["budget"]["name"]))
    seeds = ",".join(str(seed) for seed in sorted({record.seed for record in table.records}))
    words = asked.command().removeprefix("bench run --method bps ")
    return one_line(f"bench ablate {table.ablation.name} {words} --seeds {seeds}")


@dataclass(frozen=True, kw_only=True)
class About:
    """What a card says that no record holds.

    title, source: of the method. base: its name; whole: whether it lies in the folder too. licence:
    sentences. usage: lines of Python. condition: the condition in words.
    """

    title: str
    source: str
    base: str
    whole: bool
    licence: Sequence[str]
    usage: str
    condition: str


def model_card(record: RunRecord, about: About) -> str:
    """Return README.md of a folder with the weights of a run, ending in a newline."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    data_set = DATA_SETS.get(record.suite)
    results = [
        EvalResult(
            task_type=PIPELINE,
            task_name=f"{record.task} to image",
            dataset_type=data_set or record.suite,
            dataset_name=f"{record.splits.eval.n} items of the side {record.splits.eval.name}",
            dataset_revision=str(record.protocol.get("dataset", ""))[:HASH_DIGITS] or None,
            metric_type=name,
            metric_name=Column.of(name, value).named,
            metric_value=value.value,
        )
        for name, value in record.metrics.items()
        if value.value is not None
    ]
    hub, _, _ = about.base.partition("@")
    data = ModelCardData(
        base_model=hub if "/" in hub else None,  # a folder's name is no model of the hub
        license="other",
        license_name="see-license-file",
        license_link=LICENCE_FILE,
        library_name="diffusers",
        tags=["bps-bench", record.method, record.task],
        pipeline_tag=PIPELINE,
        datasets=[data_set] if data_set else None,
        model_name=f"{about.title}, {record.task}" if results else None,
        eval_results=results or None,
    )
    card = ModelCard.from_template(
        data,
        template_str=resources.files(__package__).joinpath("templates/card.md").read_text(encoding="utf-8"),
        about=about,
        record=record,
        parameters=count(record.cost.parameters_trainable),
        scores=record_text(record),
        command=command_line(record),
        options=", ".join(f"{k} {option_text(v)}" for k, v in sorted(record.options.items())),
    )
    return f"{card}\n"
