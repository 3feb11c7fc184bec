"""Tables of a report as text and as tidy data frames: methods, comparisons, ablations, differences, costs."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.config import RunConfig, Style, option_text
from bench.cost import setup_of, setup_words
from bench.record import MACHINE, MetricValue, RunRecord
from bench.registry import FLOOR
from bench.reporting import words
from bench.reporting.compare import AblationTable, Comparison, ablation_sentences
from bench.reporting.frame import COSTLY, OWN_ROWS, WRONG_CONDITIONS, Difference, Row, Table, metric_rows
from bench.reporting.render import MISSING, Grid, Text, filled, one_line, plain_lines, template_text, to_plain
from bench.reporting.words import HASH_DIGITS, Column, amount, brackets, count, interval_text, number

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
    "peak_memory_bytes": ("peak memory (MiB)", lambda size: amount(size and size / 2**20)),
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
    header, *lines = csv.reader(template_text("published.csv").splitlines())
    body = tuple(tuple(Text(cell or MISSING) for cell in line) for line in lines)
    return Grid(header=tuple(header), body=body, caption=_prose("published"), left=2)


def distribution_grid(table: Table) -> Grid | None:
    """Return what the first table leaves out of the set's distribution; None where nothing is."""
    columns = tuple(column for column in table.columns if column.spec.detail)
    about = caption(replace(table, columns=columns), of="distribution")
    return _grid(table, columns, caption=about) if columns else None


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
        fewer = isinstance(table, Comparison) and {*row.seeds_by_task.values()} - {table.most_seeds}
        cells = (cell for c in columns for cell in _cells(table, row, c, digits[c]))
        name = f"{row.label} {FEWER}" if fewer else row.label
        body.append((Text(name), *(Text(fact(row)) for fact in lead.values()), *cells))
        if type(table) is Table and len(row.seeds) > 1:
            known = ((row.cells.get(c), digits[c]) for c in columns)
            deviations = (Text(number(cell.deviation if cell else None, n)) for cell, n in known)
            over = Text("standard deviation", f"over {len(row.seeds)} seeds")
            body.append((over, *(Text("") for _ in lead), *deviations))
    groups = ("", *("" for _ in lead), *above) if any(above) else ()
    return Grid(("", *lead, *heads), tuple(body), caption, rules=tuple(rules), groups=groups)


def _lead(table: Table) -> dict[str, Callable[[Row], str]]:
    lead: dict[str, Callable[[Row], str]] = {}
    if isinstance(table, AblationTable):
        if table.by_items:
            lead["training items"] = lambda row: f"{row.train_items:,}"
        if len({row.record.cost.parameters_trainable for row in table.rows}) > 1:
            lead["trainable parameters"] = lambda row: count(row.record.cost.parameters_trainable)
    return lead | {"seeds": seeds_text}


def seeds_text(row: Row) -> str:
    """Return "3", "1–3" where tasks have different numbers of seeds, nothing for a reference."""
    numbers = sorted(set(row.seeds_by_task.values()) if row.rows else {len(row.seeds)} - {0})
    return "–".join(str(n) for n in (numbers[:1] + numbers[1:][-1:]))


def _cells(table: Table, row: Row, column: Column, digits: int) -> list[Text]:
    cell = row.cells.get(column)
    value = Text(MISSING)
    if cell is not None and cell.value is not None:
        ends = interval_text(cell.value, cell.low, cell.high, digits, table.style)
        value = Text(number(cell.value, digits), ends, bold=bool(table.compared(row, column).get("best")))
    if not isinstance(table, AblationTable):
        return [value]
    if column in row.differences:
        return [value, difference_cell(row.differences[column], table.style)]
    return [value, Text("reference" if table.is_reference(row) else MISSING)]


def column_digits(table: Table, column: Column) -> int:
    """Return how many decimals the numbers of a column are given, the same for every row."""
    return words.decimals(row.cells.get(column) for row in table.rows)


def difference_cell(difference: Difference, style: Style = "brackets") -> Text:
    """Return a difference with its sign and interval, marked where only the interval tells it from 0."""
    text, sign = _with_ends(difference, style), "+" if difference.interval.value > 0 else ""
    return replace(text, main=f"{sign}{text.main}{difference.mark}")


def leaderboards(table: Table) -> Iterator[Grid]:
    """Yield what a terminal shows, a grid a task: methods and floor by headline metrics, best in bold."""
    for part in table.parts.values():
        task = part.task if isinstance(table, Comparison) else ""
        headline = (*words.headline_metrics(part.task), *(["clip"] if task else []))  # where it is compared
        main = [c for c in table.columns if c.task == task and c.metric in headline]
        rows = tuple(row for row in table.own("method", "floor") if not task or task in row.rows)
        grid = _grid(replace(table, rows=rows, style="none"), main, caption=part.title)
        body = tuple(line for line in grid.body if line[0].main != "standard deviation")
        heads = (c.header.replace(c.named, c.plain_name) for c in main)
        header = (*grid.header[: len(grid.header) - len(main)], *heads)
        yield replace(grid, header=header, body=body, groups=())


def difference_grid(table: Table, differences: Sequence[Difference]) -> Grid:
    """Return paired differences as text, one line each."""
    header = ("first", "minus second", "metric", "difference", "items")
    body = []
    for d in differences:
        names = map(Text, (d.first, d.second, d.column.header))
        body.append((*names, _with_ends(d, table.style), Text(f"{d.items}{d.mark}")))
    return Grid(header, tuple(body), _prose("differences", table=table, claims=len(body)), left=3)


def _with_ends(d: Difference, style: Style) -> Text:
    i = d.interval
    return Text(number(i.value, d.digits), interval_text(i.value, i.low, i.high, d.digits, style))


def cost_grid(table: Table) -> Grid:
    """Return what each method cost, means over seeds; of a comparison on the task with most methods."""
    rows: dict[str, Row | None] = {row.label: row for row in table.own("method", "floor")}
    title, keys = table.title, [*COSTS]
    if isinstance(table, Comparison):
        task = cost_task(table)
        rows = {name: row and row.rows.get(task) for name, row in rows.items()}
        title, table = f"{title}, measured on {task}", table.tables[task]
        keys.remove("macs")
    setups = {name: setup_words(setup_of(row.record)) if row else "" for name, row in rows.items()}
    marked = {name: f"{name} ({how})" for name, how in setups.items() if how and len({*setups.values()}) > 1}
    costs = [(marked.get(name, name), *(cost_text(row, key) for key in keys)) for name, row in rows.items()]
    about = _prose("costs", title=title, table=table, budget=_budget(table.records), times=time_words(table))
    header = ("", *(COSTS[key][0] for key in keys))
    return Grid(header, tuple(tuple(map(Text, line)) for line in costs), about)


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
    """Return a sentence on where times and memory come from, or nothing."""
    if machines := "; ".join(sorted({run.timed for run in table.runs if run.timed})):
        alone = f"each method measured alone ({machines})"
        return f"Times and memory: {alone}, train seconds for the images of the budget."
    several = len({tuple(str(r.environment.get(k)) for k in MACHINE) for r in table.records}) > 1
    return "Times and memory come from different machines and do not compare." if several else ""


def caption(table: Table, *, of: str = "methods") -> str:
    """Return what a table's reader must know: N, budget, seeds, judges, protocols, how to read it."""
    most = max((len(row.seeds) for row in table.rows), default=0)
    return _prose(
        of,
        table=table,
        items=_by_task(table, lambda records: _joined((r.splits.eval.n for r in records), " or ")),
        budget=_by_task(table, _budget),
        seeds=_seed_words(table),
        judges=_joined({c.judge for c in table.columns} - {"", "none"}) or "none",
        protocols=_protocol_words(table),
        real=_real_words(table),
        gains=_fewer_gains(table),
        variants=_variant_words(table),
        most=most,
        first_seed_alone=any(len(row.seeds) < most for row in table.own(*WRONG_CONDITIONS)),
    )


def _prose(of: str, **values: Any) -> str:
    return " ".join(filled("caption.txt", of=of, words=words, **values).split())


def _joined(values: Iterable[Any], mark: str = ", ") -> str:
    return mark.join(map(str, sorted(set(values))))


def _by_task(table: Table, say: Callable[[Sequence[RunRecord]], str]) -> str:
    """Return what `say` makes of each task's records: once where all agree."""
    texts = {task: say(part.records) for task, part in table.parts.items()}
    alike = set(texts.values())
    return alike.pop() if len(alike) == 1 else ", ".join(f"{task} {text}" for task, text in texts.items())


def _budget(records: Sequence[RunRecord]) -> str:
    """Say the budget and the training images of every method; aloud where they are not equal."""
    names = _joined((r.budget.removesuffix(f"-{r.changes.get('train_items')}") for r in records), " or ")
    images = sorted({r.cost.train_images for r in records} - {0})
    text = " or ".join(f"{n:,}" for n in images)
    if not images:
        return names
    if words.made_equal(records) == "equal training time":
        return f"{names} (equal training time: {text} training images by method)"
    return f"{names} ({text} training images for each method{'' if len(images) == 1 else ', NOT EQUAL'})"


def _seed_words(table: Table) -> str:
    """Say which seeds there are; of a comparison how many, and by task those that have fewer."""
    if not isinstance(table, Comparison):
        return f"seeds {_joined(seed for row in table.rows for seed in row.seeds) or 'none'}"
    most, fewer = table.most_seeds, []
    for row in table.rows:
        counts = {task: n for task, n in row.seeds_by_task.items() if n < most}
        same = len(set(counts.values())) == 1 and len(counts) == len(row.seeds_by_task)
        by_task = ", ".join(f"{n} on {task}" for task, n in counts.items())
        fewer += [f"{row.name} {next(iter(counts.values())) if same else by_task}"] if counts else []
    seeds = f"{most} training seed{'s' if most != 1 else ''} a row"
    return f"{seeds} ({FEWER} fewer: {', '.join(fewer)})" if fewer else seeds


def _protocol_words(table: Table) -> str:
    """Return the protocol's hash, or each with what differs: its task, or what the protocols say."""
    if len(table.parts) > 1:
        hashes = (f"{task} {t.records[0].protocol_hash[:HASH_DIGITS]}" for task, t in table.parts.items())
        return f"protocol {', '.join(hashes)}"
    says = words.protocol_words(table.records)
    if isinstance(table, AblationTable):
        changes = {r.protocol_hash[:HASH_DIGITS]: r.changes.items() for r in table.records}
        asked = {h: ", ".join(f"{key} {value:g}" for key, value in of) for h, of in changes.items()}
        says = {h: text.replace("_", " ") or "the suite's" for h, text in asked.items()}
    if len(says) < 2:
        return f"protocol {next(iter(says))}"
    marks = {digest[:HASH_DIGITS]: f"{mark} is " for digest, mark in table.marks.items()}
    return "protocols " + ", ".join(f"{marks.get(h, '')}{h} ({said})" for h, said in says.items())


def _real_words(table: Table) -> str:
    """Say what FD is between two sets of real pictures, by task where it differs."""
    far: dict[str, list[str]] = {}
    for row, column in ((r, c) for r in table.own("reference") for c in table.columns if c.metric == "fd"):
        value = row.cells[column].value if column in row.cells else None
        if value is not None:
            text = f"{number(value, column_digits(table, column))} {column.named}"
            far.setdefault(text, []).append(column.task)
    return ", ".join(f"{text} on {', '.join(on)}" if len(far) > 1 else text for text, on in far.items())


def _fewer_gains(table: Table) -> str | None:
    """Say of how many seeds condition gains are where of fewer than their rows; None without gains."""
    known = [(row, c) for row in table.rows for c in table.columns if c.is_gain and c in row.cells]
    behind = {(len(row.seeds_of(c)), len((row.rows.get(c.task) or row).seeds)) for row, c in known}
    fewer = ", ".join(f"{n} where a row has {most}" for n, most in sorted(behind) if n < most)
    return fewer if known else None


def _variant_words(table: Table) -> str:
    found = {t: {words.titled(r.record) for r in p.own("variant")} for t, p in table.parts.items()}
    tasks, methods = ", ".join(task for task in found if found[task]), _joined(set().union(*found.values()))
    return f"Variants of {methods} stand in the ablations of {tasks}." if tasks else ""


def tidy(table: Table) -> DataFrame:
    """Return a table of any kind with one line a number, in full precision; missing numbers are empty.

    low, high: 95% interval over items. deviation: standard deviation over training seeds. best, of a
    comparison: whether the number stands in bold, empty where it does not lead. difference, of an
    ablation: minus the reference.
    """
    return _data_frame(
        table.describe(row, column)
        | {key: getattr(column, key) for key in _WHAT}
        | {key: getattr(row.cells.get(column), key, None) for key in _NUMBERS}
        | table.compared(row, column)
        for row in table.rows
        for column in table.columns
    )


def tidy_costs(table: Table) -> DataFrame:
    """Return measured costs with one line a run: counts, seconds, bytes; missing is empty."""
    return _data_frame(
        {"run": run.record.run_id, "row": row.name, "seed": run.record.seed, **vars(run.record.cost)}
        for row in table.own(*COSTLY)
        for run in row.runs
    )


def tidy_differences(differences: Sequence[Difference]) -> DataFrame:
    """Return paired differences with one line each, in full precision."""
    names = "first second metric judge better difference low high items groups left_out p p_corrected".split()
    lines = [
        (*(d.first, d.second, c.metric, c.judge, c.better), *(i.value, i.low, i.high))
        + (d.items, d.groups, d.left_out, i.chance, d.chance)
        for d in differences
        for c, i in [(d.column, d.interval)]
    ]
    return _data_frame(lines, columns=names)


def _data_frame(lines: Iterable[Any], columns: Any = None) -> DataFrame:
    import pandas

    return pandas.DataFrame(list(lines), columns=columns)


def ablation_text(table: AblationTable) -> str:
    """Return the table and its sentences for a terminal; several lines, ends in a newline."""
    grid, said = main_grid(table), [*table.notes, *(f"- {text}" for text in ablation_sentences(table))]
    return "".join(f"{line}\n" for line in (f"{grid.caption}\n\n{to_plain(plain_lines(grid))}", *said))


def record_text(record: RunRecord, *, floor: RunRecord | None = None) -> str:
    """Return one record as a plain table for a terminal, beside its floor where one is given.

    Two lines a metric: values, then 95% intervals over items. Several lines, ends in a newline.
    """
    rows = metric_rows(record)
    sides = {name: rows.pop(name) for name in OWN_ROWS if name in rows}
    sides |= {f"{FLOOR} (floor)": floor.metrics} if floor is not None else {}
    sides |= rows
    columns = words.order_columns(Column.of(k, m) for side in sides.values() for k, m in side.items())
    lines = [line for column in columns for line in _record_lines(column, sides)]
    notes = words.notes("few", items=[m.n for k, m in record.metrics.items() if k in words.FRECHET])
    told = {"record": record, "floor": floor, "table": to_plain([["", *sides], *lines]), "notes": notes}
    return filled("record.txt", words=words, **told)


def _record_lines(column: Column, sides: Mapping[str, Mapping[str, MetricValue]]) -> list[list[str]]:
    every = [side.get(column.metric) for side in sides.values()]
    shown = [m and Column.of(column.metric, m) == column and not column.too_few(m.n) for m in every]
    own = [m if known else None for m, known in zip(every, shown, strict=True)]
    digits, judge = words.decimals(own), column.judged
    name = column.header.replace(judge, "", 1) if judge else column.header
    return [
        [name, *(number(m.value if m else None, digits) for m in own)],
        [judge or " ", *(brackets(m.low, m.high, digits) if m else "" for m in own)],
    ]


def ablation_command(table: AblationTable) -> str:
    """Return the command that makes the runs of a table."""
    asked = RunConfig(task=table.task, suite=table.suite)
    if table.base["budget"]["name"] != table.ablation.budget:
        asked = replace(asked, budget=str(table.base["budget"]["name"]))
    argv = asked.command().removeprefix("bench run --method bps ")
    seeds = _joined((record.seed for record in table.records), ",")
    return one_line(f"bench ablate {table.ablation.name} {argv} --seeds {seeds}")


def model_card(record: RunRecord, **about: Any) -> str:
    """Return README.md of a folder with the weights of a run, ending in a newline.

    about: what no record holds: title and source of the method; base, its name, and whole, whether it lies in
    the folder too; licence, sentences; usage, lines of Python; condition, in words.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    data_set = DATA_SETS.get(record.suite)
    of_all: dict[str, Any] = {
        "task_type": PIPELINE,
        "task_name": f"{record.task} to image",
        "dataset_type": data_set or record.suite,
        "dataset_name": f"{record.splits.eval.n} items of the side {record.splits.eval.name}",
        "dataset_revision": str(record.protocol.get("dataset", ""))[:HASH_DIGITS] or None,
    }
    results = [
        EvalResult(**of_all, metric_type=n, metric_name=Column.of(n, m).named, metric_value=m.value)
        for n, m in record.metrics.items()
        if m.value is not None
    ]
    hub, _, _ = about["base"].partition("@")
    data = ModelCardData(
        base_model=hub if "/" in hub else None,  # a folder's name is no model of the hub
        license="other",
        license_name="see-license-file",
        license_link=LICENCE_FILE,
        library_name="diffusers",
        tags=["bps-bench", record.method, record.task],
        pipeline_tag=PIPELINE,
        datasets=[data_set] if data_set else None,
        model_name=f"{about['title']}, {record.task}" if results else None,
        eval_results=results or None,
    )
    card = ModelCard.from_template(
        data,
        template_str=template_text("card.md"),
        about=about,
        record=record,
        parameters=count(record.cost.parameters_trainable),
        scores=record_text(record),
        command=words.command_line(record),
        options=", ".join(f"{k} {option_text(v)}" for k, v in sorted(record.options.items())),
    )
    return f"{card}\n"
