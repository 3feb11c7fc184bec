"""What the page shows, as plain lists and dictionaries: numbers with their text, never markup."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.record import RunRecord, device_words
from bench.reporting.ablation_page import AblationSection
from bench.reporting.compare import Comparison, findings
from bench.reporting.differences import Difference, verdict
from bench.reporting.frame import COSTLY, OWN_METHOD, Cell, Row, Table
from bench.reporting.html.ablations import ablation_data, picture_bytes
from bench.reporting.html.samples import collect_samples
from bench.reporting.page import HOW_TO_READ, Section, Suite
from bench.reporting.tables import COSTS, caption, column_digits, cost_text, mean_cost, time_words
from bench.reporting.words import (
    Column,
    amount,
    brackets,
    command_line,
    count,
    header,
    named,
    number,
    of_distribution,
    plain_name,
)

# Bytes of base64: the whole page stays below 10 MB with text and numbers of a hundred runs.
PICTURE_BUDGET = 8_000_000
_COSTS = {
    "parameters_trainable": ("trainable parameters", count),
    "macs_guided": ("MACs a guided step", count),
    "train_seconds": ("train seconds", amount),
    "sample_seconds_per_image": ("sample seconds an image", amount),
}
_MARKED = ("reference", "ceiling", "floor", "shuffled", "variant")


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """A row of the page: as the comparison names it, and the row of the table it is."""

    row: Row
    of_table: Row
    entry: Row | None


def page_data(
    sections: Sequence[Section],
    suites: Sequence[Suite],
    ablations: Sequence[AblationSection] = (),
    *,
    budget: int = PICTURE_BUDGET,
) -> dict[str, Any]:
    """Return everything the page shows.

    budget: bytes that all pictures may take as base64; beyond it samples lose quality, then items.
    """
    varied = ablation_data(ablations)
    comparisons = {suite.name: suite.comparison for suite in suites}
    said = {name: findings(found) if found else {} for name, found in comparisons.items()}
    shown = [_rows(section.table, comparisons[section.table.suite]) for section in sections]
    samples = collect_samples(
        [[line.row for line in lines] for lines in shown], budget=budget - picture_bytes(varied)
    )
    records = {run.record.run_id: run.record for s in sections for run in s.table.runs}
    credited = [*records.values(), *(run.record for a in ablations for run in a.table.runs)]
    index = {name: place for place, name in enumerate(records)}
    tables = []
    for t, (section, lines) in enumerate(zip(sections, shown, strict=True)):
        made = _table(section, lines, comparisons[section.table.suite], index)
        for r, row in enumerate(made["rows"]):
            row["pictures"] = samples.places.get((t, r))
        made["said"] = said[section.table.suite].get(section.table.task, [])
        tables.append(made | {"without": samples.reasons.get(t, [])})
    names = ", ".join(sorted({s.name for s in suites} | {a["suite"] for a in varied}))
    return {
        "title": f"BPS-Bench report: {names}",
        "how": " ".join(HOW_TO_READ.split()),
        "notes": [suite.note for suite in suites if suite.note],
        "attribution": sorted({r.attribution for r in credited if r.attribution}),
        "costNames": [name for name, _ in COSTS.values()],
        "tables": tables,
        "ablations": varied,
        "runs": [_run(record) for record in records.values()],
        "protocols": {r.protocol_hash: r.protocol for r in records.values()},
        "pictures": samples.about,
        "galleries": samples.galleries,
    }


def _rows(table: Table, comparison: Comparison | None) -> list[_Shown]:
    """Return references, methods as the comparison orders and names them, controls and floors."""
    by_runs = {_identity(row): row for row in table.rows}
    own = [row for row in table.rows if row.kind in {"method", "floor"}]
    found = [_Shown(row=row, of_table=row, entry=None) for row in own]
    if comparison is not None:
        entries = [*comparison.own("method"), *comparison.own("floor")]
        found = [
            _Shown(row=row, of_table=by_runs[_identity(row)], entry=entry)
            for entry in entries
            if (row := entry.rows.get(table.task)) is not None
        ]
    others = {
        row.kind: [_Shown(row=r, of_table=r, entry=None) for r in table.rows if r.kind == row.kind]
        for row in table.rows
    }
    ends = [line for kind in ("reference", "ceiling") for line in others.get(kind, [])]
    middle = [line for line in found if line.row.kind == "method"]
    controls = [line for kind in ("shuffled", "other") for line in others.get(kind, [])]
    floors = [line for line in found if line.row.kind == "floor"]
    return [*ends, *middle, *controls, *floors, *others.get("variant", [])]


def _identity(row: Row) -> tuple[str, ...]:
    return row.source, *(run.record.run_id for run in row.runs)


def _table(
    section: Section,
    lines: Sequence[_Shown],
    comparison: Comparison | None,
    index: Mapping[str, int],
) -> dict[str, Any]:
    table, pictures = section.table, section.pictures
    bold = set() if comparison is None else _bold(comparison, table.task)
    words = _sentences(section.differences, lines)
    digits = {column: column_digits(table, column) for column in table.columns}
    rows = []
    for line in lines:
        cells = [_cell(line.row.cells.get(c), digits[c], (c, id(line.entry)) in bold) for c in table.columns]
        costs = [_cost(line.row, key) for key in _COSTS]
        rows.append(
            _row(line, index) | {"cells": [*cells, *costs], "said": words.get(line.of_table.name, {})}
        )
    return {
        "suite": table.suite,
        "task": table.task,
        "name": section.name,
        "caption": caption(table),
        "notes": list(table.notes),
        "times": time_words(table).strip(),
        "figures": list(zip(pictures.figures, pictures.pdfs, strict=True)),
        "files": [f"table-{section.name}.{end}" for end in ("csv", "tex", "md")],
        "columns": [*map(_column, table.columns), *map(_cost_column, _COSTS)],
        "rows": rows,
    }


def _bold(comparison: Comparison, task: str) -> set[tuple[Column, int]]:
    """Return where a best value is told apart from the next, so that it may stand in bold."""
    clear = [s for s in comparison.standings.values() if s.column.task == task and s.clear]
    return {(replace(standing.column, task=""), id(standing.best)) for standing in clear}


def _column(column: Column) -> dict[str, Any]:
    return {
        "key": f"{column.metric}|{column.judge}|{column.scale}",
        "name": plain_name(column),
        "judge": "" if named(column) == plain_name(column) else named(column)[len(plain_name(column)) :],
        "title": header(column),
        "better": column.better,
        "scale": column.scale if column.scale != "none" else "",
        "group": "distribution" if of_distribution(column) else "quality",
    }


def _cost_column(key: str) -> dict[str, Any]:
    name = _COSTS[key][0]
    return {
        "key": f"cost|{key}",
        "name": name,
        "judge": "",
        "title": name,
        "better": "lower",
        "scale": "",
        "group": "cost",
    }


def _cell(cell: Cell | None, digits: int, bold: bool) -> dict[str, Any] | None:
    """Return a number with its texts, None where it is missing."""
    if cell is None or cell.value is None:
        return None
    return {
        "value": cell.value,
        "text": number(cell.value, digits),
        "interval": brackets(cell.low, cell.high, digits),
        "deviation": "" if cell.deviation is None else number(cell.deviation, digits),
        "items": cell.items,
        "bold": bold,
    }


def _cost(row: Row, key: str) -> dict[str, Any] | None:
    if row.kind not in COSTLY:
        return None
    value = mean_cost(row, key)
    return None if value is None else {"value": value, "text": _COSTS[key][1](value)}


def _row(line: _Shown, index: Mapping[str, int]) -> dict[str, Any]:
    row = line.row
    costly = row.kind in COSTLY
    return {
        "name": _plain(row),
        "kind": row.kind if row.kind in _MARKED else "",
        "seeds": list(row.seeds),
        "runs": [index[run.record.run_id] for run in row.runs] if row.seeds else [],
        "protocol": row.protocol_hash,
        "costs": [cost_text(row, key) for key in COSTS] if costly else [],
    }


def _plain(row: Row) -> str:
    """Return a row's name without its kind, which the page shows as a mark of its own."""
    return row.name.replace(f" ({row.kind})", "").replace(f" ({row.kind}, ", " (")


def _sentences(differences: Sequence[Difference], lines: Sequence[_Shown]) -> dict[str, dict[str, list[str]]]:
    """Return what may be said by row and column: against floors, controls and our own method.

    All pairs would grow with the square of the methods; they stand in the report's tables.
    """
    names = {line.of_table.name: line.row.name for line in lines}
    told = {line.of_table.name for line in lines if line.row.kind in {"floor", "shuffled"}}
    own = [line.of_table for line in lines if line.row.kind == "method"]
    told |= {row.name for row in own if row.runs[0].record.method == OWN_METHOD and _first(row, own)}
    found: dict[str, dict[str, list[str]]] = {}
    for difference, row in _sides(differences, told):
        column = _column(difference.column)["key"]
        named_alike = replace(difference, first=names[difference.first], second=names[difference.second])
        found.setdefault(row, {}).setdefault(column, []).append(verdict(named_alike))
    return found


def _first(row: Row, rows: Sequence[Row]) -> bool:
    same = [other for other in rows if other.runs[0].record.method == row.runs[0].record.method]
    return same[0] is row


def _sides(differences: Sequence[Difference], told: set[str]) -> Iterator[tuple[Difference, str]]:
    for difference in differences:
        if difference.first in told or difference.second in told:
            yield difference, difference.first
            yield difference, difference.second


def _run(record: RunRecord) -> dict[str, Any]:
    environment = record.environment
    machine = [environment.get("processor"), device_words(environment), environment.get("platform")]
    return {
        "id": record.run_id,
        "seed": record.seed,
        "command": command_line(record),
        "machine": ", ".join(str(part) for part in machine if part),
        "commit": str(environment.get("commit", "")),
        "images": record.cost.train_images,
    }
