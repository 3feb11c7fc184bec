"""Reports: records in, tables and figures out, byte for byte the same each time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.content import atomic_write, read_json, sha256_file, write_json
from bench.packed import Run, load_run
from bench.reporting.ablation_page import ablation_files, ablation_sections
from bench.reporting.ablations import build_ablations, in_ablations
from bench.reporting.compare import Comparison, build_comparison
from bench.reporting.compare_tables import comparison_costs, comparison_grid, tidy_comparison
from bench.reporting.curves import curve_figure
from bench.reporting.differences import Difference, paired_differences, verdict, verdicts
from bench.reporting.figures import contact_sheet, overview
from bench.reporting.grid import to_csv, to_markdown
from bench.reporting.html import html_page
from bench.reporting.latex import to_latex
from bench.reporting.names import task_place
from bench.reporting.page import Section, Suite, report_page
from bench.reporting.pictures import draw_pictures, file_name, small_copy
from bench.reporting.readme import FIGURES_FOLDER, readme_figures, readme_page
from bench.reporting.rows import BOOTSTRAP_SEED, Row, Table, build_table
from bench.reporting.runs import load_ablation_runs, load_runs
from bench.reporting.tables import (
    cost_grid,
    difference_grid,
    distribution_grid,
    main_grid,
    record_text,
    tidy,
    tidy_costs,
    tidy_differences,
)
from bench.types import BenchError

__all__ = [
    "BOOTSTRAP_SEED",
    "Comparison",
    "Difference",
    "Run",
    "Table",
    "build_comparison",
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

FILES_FILE = "files.json"
"""In the folder of a report: what it wrote, with digests, so that the next one can tell what is stale."""


def make_report(
    results: Path, out: Path, *, mixed: bool = False, long: bool = False, readme: Path | None = None
) -> list[Path]:
    """Write the report of all records below `results` into `out`; return the files, sorted.

    A comparison a suite over its tasks, and one table a suite, task and protocol; with `mixed`, one
    a suite and task whose rows are marked. A suite with several protocols for one task has no
    comparison. Ablations follow; a variant that one shows stands in its task's CSV too and in no other
    table of methods. Files are named by suite and task, and by protocol too where there are several;
    what an earlier report wrote into `out` and this does not is removed, other files
    are left alone. long: write tables of several pages as LaTeX too (differences,
    distributions). readme: where to write a page of published results, with a folder of its few
    figures beside it. Nothing but the records moves a byte. BenchError, with nothing written, where
    there is no record, one does not verify or one table cannot hold them.
    """
    earlier = _earlier(out)
    runs = load_runs(results)
    ablations = build_ablations([*runs, *load_ablation_runs(results)])
    varied = in_ablations(ablations)
    tables = {
        name: build_table(members, mixed=mixed, variants=varied)
        for name, members in _tables(runs, mixed=mixed)
    }
    suites = [_suite(suite, tables) for suite in sorted({t.suite for t in tables.values()})]
    by_suite = {suite.name: suite.comparison for suite in suites}
    sections = [_section(out, name, table, by_suite[table.suite]) for name, table in tables.items()]
    written: list[Path] = []
    for section in sections:
        written += _write(out, _table_files(section, long=long))
        written += [out / file for file in section.pictures.files]
    for suite in suites:
        if suite.comparison is not None:
            written += _write(out, _comparison_files(suite.comparison))
    parts = ablation_sections(ablations, out)
    for part in parts:
        written += _write(out, ablation_files(part))
        written += [out / file for file in (*part.figures, *part.pdfs)]
    written += _write(out, {"report.md": report_page(sections, suites, parts)})
    written += _write(out, {"index.html": html_page(sections, suites, parts)})
    written.append(_settle(out, written, earlier))
    if readme is not None:
        page = readme_page(sections, suites, parts, results=results, out=out, readme=readme)
        written += _write(readme.parent, {readme.name: page})
        figures = readme.parent / FIGURES_FOLDER
        written += [small_copy(out / name, figures / name) for name in readme_figures(sections, parts)]
    return sorted(written)


def _tables(runs: Sequence[Run], *, mixed: bool) -> list[tuple[str, list[Run]]]:
    """Return the runs of each table with the name of its files."""
    places: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for run in runs:
        record = run.record
        protocols = places.setdefault((record.suite, record.task), {})
        protocols.setdefault("" if mixed else record.protocol_hash, []).append(run)
    tables = []
    for (suite, task), protocols in sorted(places.items(), key=lambda p: (p[0][0], task_place(p[0][1]))):
        for digest, members in sorted(protocols.items()):
            parts = [suite, task, *([digest[:12]] if len(protocols) > 1 else [])]
            tables.append(("-".join(file_name(part) for part in parts), members))
    return tables


def _suite(name: str, tables: Mapping[str, Table]) -> Suite:
    """Compare the tasks of a suite, or say why they cannot be compared."""
    own = [table for table in tables.values() if table.suite == name]
    hashes: dict[str, set[str]] = {}
    for table in own:
        hashes.setdefault(table.task, set()).update(table.hashes)
    several = {task: sorted(found) for task, found in sorted(hashes.items()) if len(found) > 1}
    if several:
        words = "; ".join(f"{t}: {', '.join(h[:12] for h in found)}" for t, found in several.items())
        note = f"No comparison over tasks: several protocols for one task ({words})."
        return Suite(name=name, comparison=None, note=note)
    comparison = build_comparison(own)
    if not comparison.own("method") or not comparison.columns:
        return Suite(name=name, comparison=None, note="No comparison over tasks: no method is scored.")
    return Suite(name=name, comparison=comparison, note="")


def _section(out: Path, name: str, table: Table, comparison: Comparison | None) -> Section:
    return Section(
        name=name,
        table=table,
        differences=paired_differences(table),
        pictures=draw_pictures(table, _shown_rows(table, comparison), out, name=name),
    )


def _shown_rows(table: Table, comparison: Comparison | None) -> list[Row]:
    """Return methods and floors as the comparison orders and names them, else as the table does."""
    if comparison is None:
        return [row for row in table.rows if row.kind in {"method", "floor"}]
    entries = [*comparison.own("method"), *comparison.own("floor")]
    return [entry.rows[table.task] for entry in entries if table.task in entry.rows]


def _table_files(section: Section, *, long: bool) -> dict[str, str]:
    name, table = section.name, section.table
    more = distribution_grid(table)
    files = {
        f"table-{name}.md": to_markdown(main_grid(table)),
        f"table-{name}.tex": to_latex(main_grid(table), key=name),
        f"table-{name}.csv": to_csv(tidy(table)),
        f"cost-{name}.tex": to_latex(cost_grid(table), key=f"cost-{name}"),
        f"cost-{name}.csv": to_csv(tidy_costs(table)),
        f"differences-{name}.csv": to_csv(tidy_differences(section.differences)),
    }
    if more is not None:
        files[f"distribution-{name}.md"] = to_markdown(more)
    if more is not None and long:
        files[f"distribution-{name}.tex"] = to_latex(more, key=f"distribution-{name}")
    if long:
        pairs = difference_grid(table, section.differences)
        files[f"differences-{name}.tex"] = to_latex(pairs, key=f"differences-{name}")
    return files


def _comparison_files(comparison: Comparison) -> dict[str, str]:
    name = file_name(comparison.suite)
    main, (task, cost) = comparison_grid(comparison), comparison_costs(comparison)
    lines = tidy_costs(comparison.tables[task])
    return {
        f"comparison-{name}.md": to_markdown(main),
        f"comparison-{name}.tex": to_latex(main, key=f"comparison-{name}"),
        f"comparison-{name}.csv": to_csv(tidy_comparison(comparison)),
        f"cost-{name}.md": to_markdown(cost),
        f"cost-{name}.tex": to_latex(cost, key=f"cost-{name}"),
        f"cost-{name}.csv": to_csv(lines),
    }


def _earlier(out: Path) -> dict[str, str]:
    """Return what the report in a folder wrote, by its list: file -> digest; nothing where it has none."""
    try:
        found = read_json(out / FILES_FILE)
    except BenchError:
        return {}
    pairs = found.items() if isinstance(found, dict) else ()
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
