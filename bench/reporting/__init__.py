"""Reports: records in, tables and figures out, byte for byte the same each time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.config import Columns, ReportOptions
from bench.content import atomic_write, read_json, sha256_file, write_json
from bench.packed import Pack, Run, load_run
from bench.reporting.compare import (
    AblationTable,
    Comparison,
    build_ablations,
    build_comparison,
    in_ablations,
)
from bench.reporting.differences import Difference, paired_differences, verdict
from bench.reporting.figures import draw_ablation, draw_table
from bench.reporting.frame import Table, build_table, chosen, load_ablation_runs, load_runs
from bench.reporting.page import Pages, Section, Suite, file_name, shown_rows, small_copy
from bench.reporting.render import Grid, to_csv, to_latex, to_markdown
from bench.reporting.tables import (
    cost_grid,
    cost_task,
    difference_grid,
    distribution_grid,
    leaderboards,
    main_grid,
    record_text,
    tidy,
    tidy_costs,
    tidy_differences,
)
from bench.reporting.words import HASH_DIGITS, task_place
from bench.types import BenchError, Hooks

__all__ = [
    "Comparison",
    "Difference",
    "Report",
    "ReportOptions",
    "Run",
    "Table",
    "build_comparison",
    "build_table",
    "load_run",
    "load_runs",
    "make_report",
    "paired_differences",
    "record_text",
    "tidy",
    "verdict",
]

_Shown = Mapping[str, Any]
"""Grids and data frames by what they are written as, "name end end"; None where there is nothing."""
FIGURES_FOLDER = "figures"
INCHES: Mapping[Columns, float] = {"one": 3.25, "two": 6.75}
"""Width of a column and of a page of two columns, as ICML has them."""
FILES_FILE = "files.json"
"""In the folder of a report: what it wrote, with digests, so that the next one can tell what is stale."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The files of a report, sorted, and the leaderboards that a terminal shows."""

    files: tuple[Path, ...]
    leaderboards: tuple[Grid, ...]


def make_report(
    results: Path, out: Path, options: ReportOptions | None = None, *, hooks: Hooks | None = None
) -> Report:
    """Write the report of all records below `results` into `out`; hooks are told how far it is.

    A comparison a suite over its tasks, and one table a suite, task and protocol. A suite with several
    protocols for one task has no comparison. Ablations follow; a variant that one shows stands in its
    task's CSV too and in no other table of methods. Files are named by suite and task, and by protocol too
    where there are several; what an earlier report wrote into `out` and this does not is removed, other
    files are left alone. Nothing but the records moves a byte. BenchError, with nothing written, where
    there is no record, one does not verify or one table cannot hold them.
    """
    asked, hooks = options or ReportOptions(), hooks or Hooks()
    width = INCHES[asked.columns] if asked.figures == "paper" else None
    earlier = _earlier(out)
    tables, varied = _tables(results, asked)
    ablations = [replace(ablation, style=asked.style) for ablation in varied]
    suites = [_suite(suite, tables) for suite in sorted({t.suite for t in tables.values()})]
    comparisons = {suite.name: suite.comparison for suite in suites if suite.comparison is not None}
    steps = len(tables) + 2
    hooks.stage("report", steps)
    sections: list[Section] = []
    for name, table in tables.items():
        hooks.tick(len(sections), steps, name)
        suite = next(suite for suite in suites if suite.name == table.suite)
        sections.append(_section(out, name, table, suite, width=width))
    hooks.tick(len(tables), steps, "ablations")
    parts = _ablations(ablations, out, width=width)
    pages = Pages(sections=sections, suites=suites, ablations=parts, out=out)
    hooks.tick(len(tables) + 1, steps, "pages")
    texts = {"report.md": pages.report(), "index.html": pages.html()}
    made = [_of_table(section, long=asked.long) for section in sections]
    made += [_of_comparison(comparison) for comparison in comparisons.values()]
    made += [{f"{s.name} md tex": main_grid(s.table), f"{s.name} csv": tidy(s.table)} for s in parts]
    texts |= {file: text for shown in made for file, text in _texts(shown, asked)}
    drawn = [section.pictures for section in (*sections, *parts)]
    written = [out / file for kept in drawn for file in (*kept.figures.values(), *kept.pdfs)]
    written += _write(out, texts)
    written.append(_settle(out, written, earlier))
    if asked.readme is not None:
        written += _readme(pages, results, asked.readme)
    hooks.tick(steps, steps)
    boards = [*comparisons.values(), *(t for t in tables.values() if t.suite not in comparisons)]
    return Report(
        files=tuple(sorted(written)),
        leaderboards=tuple(grid for board in boards for grid in leaderboards(board)),
    )


def _tables(results: Path, asked: ReportOptions) -> tuple[dict[str, Table], list[AblationTable]]:
    """Return the tables by the name of their files, and the ablations."""
    pack = Pack(results)
    runs, others = load_runs(pack), load_ablation_runs(pack)
    kept = chosen([*runs, *others], methods=asked.methods, metrics=asked.metrics)
    main = {run.record.run_id for run in runs}
    ablations = build_ablations(kept)
    places: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for run in kept:
        record = run.record
        if record.run_id in main:
            protocols = places.setdefault((record.suite, record.task), {})
            protocols.setdefault("" if asked.mixed else record.protocol_hash, []).append(run)
    tables, varied = {}, in_ablations(ablations)
    for (suite, task), protocols in sorted(places.items(), key=lambda p: (p[0][0], task_place(p[0][1]))):
        for digest, members in sorted(protocols.items()):
            parts = [suite, task, *([digest[:HASH_DIGITS]] if len(protocols) > 1 else [])]
            table = build_table(members, mixed=asked.mixed, variants=varied)
            tables[file_name(*parts)] = replace(table, style=asked.style)
    return tables, ablations


def _suite(name: str, tables: Mapping[str, Table]) -> Suite:
    """Compare the tasks of a suite, or say why they cannot be compared."""
    members = [table for table in tables.values() if table.suite == name]
    hashes: dict[str, set[str]] = {}
    for table in members:
        hashes.setdefault(table.task, set()).update(digest[:HASH_DIGITS] for digest in table.hashes)
    several = "; ".join(f"{task}: {', '.join(sorted(h))}" for task, h in sorted(hashes.items()) if len(h) > 1)
    if several:
        note = f"No comparison over tasks: several protocols for one task ({several})."
        return Suite(name=name, note=note)
    comparison = build_comparison(members)
    if not comparison.own("method") or not comparison.columns:
        return Suite(name=name, note="No comparison over tasks: no method is scored.")
    return Suite(name=name, comparison=comparison)


def _section(out: Path, name: str, table: Table, suite: Suite, *, width: float | None) -> Section:
    """Draw a table's pictures: of methods and floors as the comparison orders and names them."""
    rows = shown_rows(table, suite.comparison)
    drawn = [row for row in rows.values() if row.kind in {"method", "floor"}]
    return Section(
        name=name,
        table=table,
        pictures=draw_table(table, drawn, out, name=name, width=width),
        rows=rows,
        differences=paired_differences(table),
        suite=suite,
    )


def _ablations(tables: Sequence[AblationTable], out: Path, *, width: float | None) -> list[Section]:
    """Draw the figures of ablations; the protocol is part of the name where there are several."""
    places = [("ablation", table.ablation.name, table.suite, table.task) for table in tables]
    sections = []
    for table, place in zip(tables, places, strict=True):
        name = file_name(*place, *([table.key[:HASH_DIGITS]] if places.count(place) > 1 else []))
        drawn = draw_ablation(table, out, name=name, width=width)
        sections.append(Section(name=name, table=table, pictures=drawn))
    return sections


def _of_table(section: Section, *, long: bool) -> _Shown:
    name, table = section.name, section.table
    return {
        f"table-{name} md tex": main_grid(table),
        f"table-{name} csv": tidy(table),
        f"cost-{name} tex": cost_grid(table),
        f"cost-{name} csv": tidy_costs(table),
        f"distribution-{name} {'md tex' if long else 'md'}": distribution_grid(table),
        f"differences-{name} tex": difference_grid(table, section.differences) if long else None,
        f"differences-{name} csv": tidy_differences(section.differences),
    }


def _of_comparison(comparison: Comparison) -> _Shown:
    name = file_name(comparison.suite)
    return {
        f"comparison-{name} md tex": main_grid(comparison),
        f"comparison-{name} csv": tidy(comparison),
        f"cost-{name} md tex": cost_grid(comparison),
        f"cost-{name} csv": tidy_costs(comparison.tables[cost_task(comparison)]),
    }


def _texts(shown: _Shown, asked: ReportOptions) -> Iterator[tuple[str, str]]:
    """Give each file of what is shown, and its text."""
    for names, what in shown.items():
        name, *ends = names.split()
        for end in ends if what is not None else ():
            if not isinstance(what, Grid):
                text = to_csv(what)
            elif end == "md":
                text = to_markdown(what)
            else:
                text = to_latex(what, key=name.removeprefix("table-"), columns=asked.columns)
            yield f"{name}.{end}", text


def _readme(pages: Pages, results: Path, readme: Path) -> list[Path]:
    text, figures = pages.readme(results, readme), readme.parent / FIGURES_FOLDER
    copies = [small_copy(pages.out / name, figures / name) for name in pages.figures]
    return [*_write(readme.parent, {readme.name: text}), *copies]


def _earlier(out: Path) -> dict[str, str]:
    """Return what the report in a folder wrote, by its list: file -> digest; nothing where it has none."""
    try:
        files = read_json(out / FILES_FILE)
    except BenchError:
        return {}
    pairs = files.items() if isinstance(files, dict) else ()
    return {name: digest for name, digest in pairs if name == Path(name).name and isinstance(digest, str)}


def _settle(out: Path, written: Sequence[Path], earlier: Mapping[str, str]) -> Path:
    """Remove what an earlier report wrote, nobody changed since and this one does not; list its files."""
    for name in earlier.keys() - {path.name for path in written}:
        path = out / name
        if path.is_file() and not path.is_symlink() and sha256_file(path) == earlier[name]:
            path.unlink()
    write_json(out / FILES_FILE, {path.name: sha256_file(path) for path in written})
    return out / FILES_FILE


def _write(out: Path, texts: Mapping[str, str]) -> list[Path]:
    for name, text in texts.items():
        atomic_write(out / name, text.encode())
    return [out / name for name in texts]
