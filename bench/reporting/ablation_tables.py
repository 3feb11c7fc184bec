"""Ablations as text: a grid for LaTeX and Markdown, tidy lines, captions and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bench.reporting.ablations import AblationTable, Line
from bench.reporting.differences import Difference, difference_digits, seed_mark
from bench.reporting.grid import Grid, Text, to_plain
from bench.reporting.names import (
    HASH_DIGITS,
    Column,
    brackets,
    command,
    count,
    decimals,
    header,
    named,
    number,
    primary_metrics,
    sentence,
    titled,
)
from bench.reporting.notes import device_notes

if TYPE_CHECKING:
    import pandas

_TIDY = (
    "ablation suite task protocol variant method train_items guidance steps reference seeds metric "
    "judge scale better value low high deviation difference difference_low difference_high "
    "difference_seeds seeds_agree items"
).split()


def ablation_grid(table: AblationTable) -> Grid:
    """Return values and paired differences to the reference, two columns a metric."""
    digits = {column: _digits(table, column) for column in table.columns}
    sizes = {line.record.cost.parameters_trainable for line in table.lines}
    more = (
        *(("training items",) if table.by_items else ()),
        *(("trainable parameters",) if len(sizes) > 1 else ()),
    )
    lead, rules = ("", *more, "seeds"), []
    body: list[tuple[Text, ...]] = []
    for i, line in enumerate(table.lines):
        if i and line.train_items != table.lines[i - 1].train_items:
            rules.append(i)
        cells = [cell for c in table.columns for cell in _cells(line, c, digits[c])]
        facts = [f"{line.train_items:,}"] if table.by_items else []
        facts += [count(line.record.cost.parameters_trainable)] if len(sizes) > 1 else []
        facts.append(str(len(line.row.seeds)))
        body.append((Text(main=_marked(line)), *(Text(main=fact) for fact in facts), *cells))
    return Grid(
        header=(*lead, *(("value", "minus reference") * len(table.columns))),
        body=tuple(body),
        caption=ablation_caption(table),
        rules=tuple(rules),
        groups=(*("",) * len(lead), *(header(c) for c in table.columns for _ in range(2))),
    )


def ablation_caption(table: AblationTable) -> str:
    """Return what the reader must know: question, suite, task, N, seeds, judges, protocols."""
    records = [run.record for run in table.runs]
    items = sorted({record.splits.eval.n for record in records})
    judges = sorted({c.judge for c in table.columns} - {"", "none"})
    seeds = sorted({record.seed for record in records})
    budget = table.base["budget"]
    images = f" ({budget['train_images']:,} training images)" if "train_images" in budget else ""
    words = [
        f"Ablation {table.title}: {', '.join(map(str, items))} evaluation items",
        f"budget {budget.get('name', 'unknown')}{images}",
        f"seeds {', '.join(map(str, seeds))}",
        f"judges {', '.join(judges) if judges else 'none'}",
        protocol_words(table),
    ]
    text = (
        f"{'; '.join(words)}. {table.ablation.question} Held fixed: {table.ablation.fixed}. "
        "Brackets: 95% intervals over items at these seeds; minus reference: paired on the same items "
        f"and seeds, the reference being {titled(table.ablation.reference)}"
        f"{' at the same number of training items' if table.by_items else ''}; intervals are not "
        "widened for their number. *: single training seeds do not agree."
    )
    text += f" Not recorded: {', '.join(table.missing)}." if table.missing else ""
    return " ".join([text, *device_notes(records)])


def protocol_words(table: AblationTable) -> str:
    """Return the protocol's hash, or each hash with what differs."""
    says: dict[str, str] = {}
    for line in table.lines:
        changed = [f"{key} {value:g}" for key, value in sorted(line.record.changes.items())]
        words = ", ".join(changed).replace("_", " ")
        says.setdefault(line.record.protocol_hash[:HASH_DIGITS], words)
    if len(says) == 1:
        return f"protocol {next(iter(says))}"
    listed = [f"{digest}{f' ({words})' if words else ''}" for digest, words in says.items()]
    return f"protocols, which differ in nothing else: {', '.join(listed)}"


def ablation_sentences(table: AblationTable) -> list[str]:
    """Return what may be said of FD and fidelity, a sentence a variant, never above its interval."""
    wanted = {"fd", *primary_metrics(table.task)}
    return [
        ablation_sentence(line, line.differences[column], table)
        for column in table.columns
        if column.metric in wanted
        for line in table.lines
        if column in line.differences
    ]


def ablation_sentence(line: Line, difference: Difference, table: AblationTable) -> str:
    """Return one difference in words; "beats" needs an interval that leaves 0 out and seeds that agree."""
    reference = difference.second
    place = f" at {line.train_items:,} training items" if table.by_items else ""
    basis = f"({difference.items} items, {_seed_words(difference)})"
    on = named(difference.column)
    low, high = difference.interval.low, difference.interval.high
    if not (low > 0 or high < 0):
        return (
            f"No difference between {reference} and {line.row.name} could be shown in {on}{place}: "
            f"{_plus_minus(difference)} {basis}."
        )
    ahead = _is_ahead(difference)
    first, second = (line.row.name, reference) if ahead else (reference, line.row.name)
    verb = "beats" if difference.column.better in {"higher", "lower"} else "differs from"
    text = f"{first} {verb} {second} by {_plus_minus(difference, size=True)} {on}{place} {basis}"
    if difference.agree is False:
        return f"On the mean over seeds {text}, but single seeds do not agree."
    return f"{sentence(text)}."


def ablation_summary(table: AblationTable, *, metric: str) -> list[str]:
    """Return how the reference stands to all variants in a metric, a line a number of training items."""
    said = []
    for column in (column for column in table.columns if column.metric == metric):
        for items in dict.fromkeys(line.train_items for line in table.lines):
            own = [x for x in table.lines if x.train_items == items and column in x.differences]
            if own:
                place = f" at {items:,} training items" if table.by_items else ""
                reference = own[0].differences[column].second
                said.append(f"{reference} on {named(column)}{place}: {_standing(own, column)}.")
    return said


def _standing(lines: Sequence[Line], column: Column) -> str:
    """Say which variants the reference beats, which it falls behind and which are not told apart."""
    found: dict[str, list[str]] = {}
    for line in lines:
        difference = line.differences[column]
        interval, ahead = difference.interval, _is_ahead(difference)
        verb = "falls behind" if ahead else "beats"
        if not (interval.low > 0 or interval.high < 0):
            verb = "no difference could be shown to"
        elif difference.agree is False:
            verb = f"on the mean over seeds, with single seeds that do not agree, {verb}"
        found.setdefault(verb, []).append(
            f"{line.row.name} ({_plus_minus(difference, size=not verb.startswith('no'))})"
        )
    return "; ".join(f"{verb} {', '.join(names)}" for verb, names in found.items())


def _is_ahead(difference: Difference) -> bool:
    return (difference.interval.low > 0) == (difference.column.better == "higher")


def tidy_ablation(table: AblationTable) -> pandas.DataFrame:
    """Return the table with one line a number, in full precision; missing is empty."""
    import pandas

    lines = [_tidy_line(table, line, column) for line in table.lines for column in table.columns]
    return pandas.DataFrame(lines, columns=_TIDY)


def ablation_text(table: AblationTable) -> str:
    """Return the table and its sentences for a terminal; several lines, ends in a newline."""
    grid = ablation_grid(table)
    lead = sum(not group for group in grid.groups)
    heads = [g or h for g, h in zip(grid.groups, grid.header, strict=True)]
    heads = [h if i < lead or (i - lead) % 2 == 0 else "minus reference" for i, h in enumerate(heads)]
    lines = [heads, *([cell.line for cell in line] for line in grid.body)]
    said = "".join(f"- {sentence}\n" for sentence in ablation_sentences(table))
    notes = "".join(f"{note}\n" for note in table.notes)
    return f"{grid.caption}\n\n{to_plain(lines, left=1)}\n{notes}{said}"


def ablation_command(table: AblationTable) -> str:
    """Return the command that makes the runs of a table."""
    seeds = sorted({run.record.seed for run in table.runs})
    words = ["bench", "ablate", table.ablation.name, "--task", table.task]
    if table.suite != "emoji":
        words += ["--suite", table.suite]
    if table.base["budget"]["name"] != table.ablation.budget:
        words += ["--budget", str(table.base["budget"]["name"])]
    return command([*words, "--seeds", ",".join(map(str, seeds))])


def _cells(line: Line, column: Column, digits: int) -> tuple[Text, Text]:
    cell, difference = line.row.cells.get(column), line.differences.get(column)
    value = Text(main=number(None, 0))
    if cell is not None and cell.value is not None:
        value = Text(main=number(cell.value, digits), beside=brackets(cell.low, cell.high, digits))
    if difference is None:
        return value, Text(main="reference") if line.is_reference else Text(main=number(None, 0))
    return value, difference_cell(difference)


def difference_cell(difference: Difference) -> Text:
    """Return a difference with its interval, marked where seeds do not agree."""
    digits, interval = difference_digits(difference), difference.interval
    main = f"{_sign(interval.value)}{number(interval.value, digits)}{seed_mark(difference)}"
    return Text(main=main, beside=brackets(interval.low, interval.high, digits))


def _sign(value: float) -> str:
    return "+" if value > 0 else ""


def _plus_minus(difference: Difference, *, size: bool = False) -> str:
    """Return "31 ± 4" where both halves of the interval print alike, else "31 [27, 36]".

    size: without its sign.
    """
    digits, interval = difference_digits(difference), difference.interval
    low, value, high = interval.low, interval.value, interval.high
    if size and value < 0:
        low, value, high = -high, -value, -low
    below, above = number(value - low, digits), number(high - value, digits)
    if below == above:
        return f"{number(value, digits)} ± {above}"
    return f"{number(value, digits)} {brackets(low, high, digits)}"


def _digits(table: AblationTable, column: Column) -> int:
    cells = [line.row.cells[column] for line in table.lines if column in line.row.cells]
    widths = [c.high - c.low for c in cells if c.low is not None and c.high is not None]
    return decimals([c.value for c in cells], widths=widths)


def _marked(line: Line) -> str:
    return f"{line.row.name} (floor)" if line.row.kind == "floor" else line.row.name


def _seed_words(difference: Difference) -> str:
    return "one seed" if difference.first_seeds == 1 else f"{difference.first_seeds} seeds"


def _tidy_line(table: AblationTable, line: Line, column: Column) -> dict[str, Any]:
    record, cell = line.record, line.row.cells.get(column)
    difference = line.differences.get(column)
    sampler = record.protocol["sampler"]
    found: dict[str, Any] = {
        "ablation": table.ablation.name,
        "suite": table.suite,
        "task": table.task,
        "protocol": record.protocol_hash,
        "variant": line.row.name,
        "method": record.method,
        "train_items": line.train_items,
        "guidance": sampler.get("guidance"),
        "steps": sampler.get("steps"),
        "reference": line.is_reference,
        "seeds": " ".join(map(str, line.row.seeds)),
        "metric": column.metric,
        "judge": column.judge,
        "scale": column.scale,
        "better": column.better,
    }
    if cell is not None:
        found |= {
            "value": cell.value,
            "low": cell.low,
            "high": cell.high,
            "deviation": cell.deviation,
            "items": cell.items,
        }
    if difference is not None:
        interval = difference.interval
        found |= {
            "difference": interval.value,
            "difference_low": interval.low,
            "difference_high": interval.high,
            "difference_seeds": difference.first_seeds,
            "seeds_agree": difference.agree,
        }
    return found
