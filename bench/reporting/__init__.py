"""Reports: records in, tables and figures out, byte for byte the same each time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.ablations import ABLATIONS_FOLDER
from bench.config import Columns, ReportOptions
from bench.content import Text, atomic_write, digest_json, read_json, sha256_file, write_json
from bench.packed import Pack, Run, kept_runs
from bench.reporting import tables as made
from bench.reporting.compare import (
    AblationTable,
    build_ablations,
    build_comparison,
    in_ablations,
    paired_differences,
)
from bench.reporting.figures import draw_ablation, draw_table
from bench.reporting.frame import Table, build_table, chosen, load_runs
from bench.reporting.page import Pages, Section, Suite, file_name, shown_rows, small_copy
from bench.reporting.render import Grid, to_csv, to_latex, to_markdown
from bench.reporting.words import HASH_DIGITS, task_place
from bench.types import BenchError, Hooks

if TYPE_CHECKING:
    from pandas import DataFrame

FIGURES_FOLDER = "figures"
INCHES: Mapping[Columns, float] = {"one": 3.25, "two": 6.75}
"""Width of a column and of a page of two columns, as ICML has them."""
FILES_FILE = "files.json"
"""In the folder of a report: what it wrote, with digests, so that the next one can tell what is stale."""


class Report(NamedTuple):
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
    tables, varied = _tables(results, asked)
    suites = {name: _suite(name, tables) for name in sorted({t.suite for t in tables.values()})}
    steps = len(tables) + 2
    hooks.stage("report", steps)
    sections: list[Section] = []
    for name, table in tables.items():
        hooks.tick(len(sections), steps, name)
        rows = shown_rows(table, suites[table.suite].comparison)
        drawn = [row for row in rows.values() if row.kind in {"method", "floor"}]
        what: dict[str, Any] = {"rows": rows, "differences": paired_differences(table)}
        what |= {"pictures": draw_table(table, drawn, out, name=name, width=width)}
        sections.append(Section(name=name, table=table, suite=suites[table.suite], **what))
    hooks.tick(len(tables), steps, "ablations")
    parts = _ablations(varied, out, width=width)
    pages = Pages(sections=sections, suites=[*suites.values()], ablations=parts, out=out)
    hooks.tick(len(tables) + 1, steps, "pages")
    texts = {"report.md": pages.report(), "index.html": pages.html(), **dict(_texts(pages, asked))}
    written = [
        out / file
        for section in (*sections, *parts)
        for file in (*section.pictures.figures.values(), *section.pictures.pdfs)
    ]
    written += _write(out, texts)
    written.append(_settle(out, written))
    if asked.readme is not None:
        figures = asked.readme.parent / FIGURES_FOLDER
        written += _write(asked.readme.parent, {asked.readme.name: pages.readme(results, asked.readme)})
        written += [small_copy(out / name, figures / name) for name in pages.figures]
    hooks.tick(steps, steps)
    boards = [suite.comparison for suite in suites.values() if suite.comparison is not None]
    alone = [table for table in tables.values() if suites[table.suite].comparison is None]
    return Report(
        tuple(sorted(written)), tuple(grid for t in (*boards, *alone) for grid in made.leaderboards(t))
    )


def _tables(results: Path, asked: ReportOptions) -> tuple[dict[str, Table], list[AblationTable]]:
    pack = Pack(results)
    runs = load_runs(pack)
    kept = chosen([*runs, *kept_runs(pack, ABLATIONS_FOLDER)], methods=asked.methods, metrics=asked.metrics)
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
            name = file_name(suite, task, *([digest[:HASH_DIGITS]] if len(protocols) > 1 else []))
            table = build_table(members, mixed=asked.mixed, variants=varied)
            tables[name] = replace(table, style=asked.style)
    return tables, [replace(ablation, style=asked.style) for ablation in ablations]


def _suite(name: str, tables: Mapping[str, Table]) -> Suite:
    members = [table for table in tables.values() if table.suite == name]
    hashes: dict[str, set[str]] = {}
    for table in members:
        hashes.setdefault(table.task, set()).update(digest[:HASH_DIGITS] for digest in table.hashes)
    several = "; ".join(f"{task}: {', '.join(sorted(h))}" for task, h in sorted(hashes.items()) if len(h) > 1)
    if several:
        return Suite(name, note=f"No comparison over tasks: several protocols for one task ({several}).")
    comparison = build_comparison(members)
    if not comparison.own("method") or not comparison.columns:
        return Suite(name, note="No comparison over tasks: no method is scored.")
    return Suite(name, comparison)


def _ablations(tables: Sequence[AblationTable], out: Path, *, width: float | None) -> list[Section]:
    """Draw the figures of ablations; the protocol is part of the name where there are several."""
    places = [("ablation", table.ablation.name, table.suite, table.task) for table in tables]
    sections = []
    for table, place in zip(tables, places, strict=True):
        several = [digest_json(dict(table.base))[:HASH_DIGITS]] if places.count(place) > 1 else []
        name = file_name(*place, *several)
        drawn = draw_ablation(table, out, name=name, width=width)
        sections.append(Section(name=name, table=table, pictures=drawn))
    return sections


def _texts(pages: Pages, asked: ReportOptions) -> Iterator[tuple[str, str]]:
    main, tidy = made.main_grid, made.tidy
    shown: dict[str, Grid | DataFrame | None] = {}  # by what they are written as, "name end end"
    for s in pages.sections:
        shown |= {f"table-{s.name} md tex": main(s.table), f"table-{s.name} csv": tidy(s.table)}
        costs = made.cost_grid(s.table), made.tidy_costs(s.table)
        shown |= {f"cost-{s.name} tex": costs[0], f"cost-{s.name} csv": costs[1]}
        shown[f"distribution-{s.name} md"] = made.distribution_grid(s.table)
        shown[f"differences-{s.name} csv"] = made.tidy_differences(s.differences)
    for comparison in (suite.comparison for suite in pages.suites if suite.comparison is not None):
        name, cost = (
            file_name(comparison.suite),
            made.tidy_costs(comparison.tables[made.cost_task(comparison)]),
        )
        shown |= {f"comparison-{name} md tex": main(comparison), f"comparison-{name} csv": tidy(comparison)}
        shown |= {f"cost-{name} md tex": made.cost_grid(comparison), f"cost-{name} csv": cost}
    for s in pages.ablations:
        shown |= {f"{s.name} md tex": main(s.table), f"{s.name} csv": tidy(s.table)}
    for names, what in shown.items():
        name, *ends = names.split()
        for end in ends:
            if isinstance(what, Grid):
                key = name.removeprefix("table-")
                text = to_markdown(what) if end == "md" else to_latex(what, key=key, columns=asked.columns)
                yield f"{name}.{end}", text
            elif what is not None:
                yield f"{name}.{end}", to_csv(what)


def _settle(out: Path, written: Sequence[Path]) -> Path:
    """Remove what an earlier report wrote, nobody changed since and this one does not; list its files."""
    earlier: dict[str, str] = {}
    with suppress(BenchError):
        earlier = read_json(out / FILES_FILE, of=dict[Text, Text])
    for path, digest in ((out / name, digest) for name, digest in earlier.items() if name == Path(name).name):
        if path not in written and path.is_file() and not path.is_symlink() and sha256_file(path) == digest:
            path.unlink()
    write_json(out / FILES_FILE, {path.name: sha256_file(path) for path in written})
    return out / FILES_FILE


def _write(out: Path, texts: Mapping[str, str]) -> list[Path]:
    for name, text in texts.items():
        atomic_write(out / name, text.encode())
    return [out / name for name in texts]
