"""Reports: records in, tables and figures out, byte for byte the same each time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bench.content import atomic_write
from bench.report.differences import Difference, paired_differences, verdict, verdicts
from bench.report.figures import contact_sheet, curve_figure, overview
from bench.report.grid import to_latex, to_markdown
from bench.report.page import Section, report_page
from bench.report.rows import BOOTSTRAP_SEED, Table, build_table
from bench.report.runs import Run, load_run, load_runs
from bench.report.tables import (
    cost_grid,
    difference_grid,
    main_grid,
    record_text,
    tidy,
    tidy_costs,
    tidy_differences,
)

__all__ = [
    "BOOTSTRAP_SEED",
    "Difference",
    "Run",
    "Table",
    "build_table",
    "contact_sheet",
    "curve_figure",
    "load_run",
    "load_runs",
    "make_report",
    "overview",
    "paired_differences",
    "record_text",
    "tidy",
    "verdict",
    "verdicts",
]
CONTACT_SHEET = "contact.png"


def make_report(results: Path, out: Path, *, mixed: bool = False) -> list[Path]:
    """Write the report of all records below `results` into `out`; return the files, sorted.

    One table a suite, task and protocol; with `mixed`, one a suite and task whose rows are marked.
    Files are named by suite and task, and by protocol too where there are several; other files in
    `out` are left alone. Nothing but the records moves a byte. BenchError, with nothing written,
    where there is no record, one does not verify or one table cannot hold them.
    """
    runs = load_runs(results)
    written: list[Path] = []
    groups = _tables(runs, mixed=mixed)
    tables = [(name, build_table(members, mixed=mixed)) for name, members in groups]
    sections = [_section(out, name, table) for name, table in tables]
    for section in sections:
        written += _write_tables(out, section)
        written += [out / file for file in section.sheets.values()]
        written += [out / section.overview] if section.overview else []
    written.append(_write(out / "report.md", report_page(sections)))
    return sorted(written)


def _tables(runs: Sequence[Run], *, mixed: bool) -> list[tuple[str, list[Run]]]:
    """Return the runs of each table with the name of its files."""
    places: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for run in runs:
        record = run.record
        protocols = places.setdefault((record.suite, record.task), {})
        protocols.setdefault("" if mixed else record.protocol_hash, []).append(run)
    tables = []
    for (suite, task), protocols in sorted(places.items()):
        for digest, members in sorted(protocols.items()):
            parts = [suite, task, *([digest[:12]] if len(protocols) > 1 else [])]
            tables.append(("-".join(_file_name(part) for part in parts), members))
    return tables


def _section(out: Path, name: str, table: Table) -> Section:
    numbers = any(cell.value is not None for row in table.rows for cell in row.cells.values())
    figure = f"overview-{name}.png" if numbers else None
    if figure:
        overview(table, out / figure)
    return Section(
        name=name,
        table=table,
        differences=paired_differences(table),
        overview=figure,
        sheets=_copy_sheets(table, out),
    )


def _copy_sheets(table: Table, out: Path) -> dict[str, str]:
    """Copy contact sheets beside the report and return their names by run id."""
    sheets = {}
    for run in table.runs:
        source = run.folder / CONTACT_SHEET if run.folder is not None else None
        if source is not None and source.is_file():
            name = f"contact-{_file_name(source.parent.name)}.png"
            atomic_write(out / name, source.read_bytes())
            sheets[run.record.run_id] = name
    return sheets


def _write_tables(out: Path, section: Section) -> list[Path]:
    name, table = section.name, section.table
    main, cost = main_grid(table), cost_grid(table)
    pairs = difference_grid(table, section.differences)
    texts = {
        f"table-{name}.md": to_markdown(main),
        f"table-{name}.tex": to_latex(main, key=name),
        f"table-{name}.csv": tidy(table).to_csv(index=False, lineterminator="\n"),
        f"cost-{name}.tex": to_latex(cost, key=f"cost-{name}"),
        f"cost-{name}.csv": tidy_costs(table).to_csv(index=False, lineterminator="\n"),
        f"differences-{name}.tex": to_latex(pairs, key=f"differences-{name}"),
        f"differences-{name}.csv": tidy_differences(section.differences).to_csv(
            index=False, lineterminator="\n"
        ),
    }
    return [_write(out / file, text) for file, text in texts.items()]


def _write(path: Path, text: str) -> Path:
    atomic_write(path, text.encode())
    return path


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "unnamed"
