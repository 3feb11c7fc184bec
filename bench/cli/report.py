"""`bench report`, `bench show` and `bench list`: looking at what there is."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.options import AsJson, Shell, outline, taking
from bench.cli.terminal import console_hooks, say, to_json
from bench.config import RESULTS, ReportOptions

if TYPE_CHECKING:
    from bench.record import RunRecord

RunPlace = Annotated[Path, typer.Argument(help="A run folder, packed or not, or its record.json.")]


@taking(ReportOptions, "options")
def report(
    *,
    results: Annotated[Path, typer.Option(help="Folder of run folders, or a pack of them.")] = RESULTS,
    out: Annotated[Path | None, typer.Option(help="Else <results>/report.")] = None,
    options: ReportOptions,
    latex: Annotated[
        bool, typer.Option("--latex", help="Print the tables as LaTeX, for a paper, and nothing else.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make tables, figures (PNG, PDF) and an offline HTML page of all records in a folder."""
    from rich.console import Console

    from bench.packed import Pack
    from bench.reporting import make_report
    from bench.reporting.render import plain_lines, to_rich

    results = Pack(results).results
    out = out or results / "report"
    gc.set_threshold(200_000)  # a report makes millions of objects, few in cycles: a tenth of its time
    with console_hooks() as hooks:
        made = make_report(results, out, options, hooks=hooks)
    if as_json:
        boards = [{"title": b.caption, "lines": plain_lines(b)} for b in made.leaderboards]
        say(to_json({"files": [str(path) for path in made.files], "leaderboards": boards}))
        return
    if latex:
        tables = [path for path in made.files if path.suffix == ".tex"]
        compared = [path for path in tables if path.name.startswith("comparison-")]
        say("\n".join(path.read_text(encoding="utf-8") for path in compared or tables).rstrip())
        return
    console = Console()
    console.width = console.width if console.is_terminal else 1000  # elsewhere a table is as wide as it is
    for board in made.leaderboards:
        console.print(to_rich(board))
    say(f"{len(made.files)} files in {out}: begin with {out / 'index.html'} or {out / 'report.md'}")


def show(
    run: RunPlace,
    diff: Annotated[
        Path | None, typer.Option("--diff", help="Another run: say in words what differs.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a run: its record, its artifacts checked; or what differs from another; or list a folder."""
    from bench.packed import kept_record, kept_records
    from bench.record import RECORD_FILE, record_values
    from bench.reporting.tables import record_text
    from bench.reporting.words import record_changes

    listed = kept_records(run) if run.is_dir() and not (run / RECORD_FILE).exists() else []
    if listed and diff is None:
        say(to_json([record.run_id for record in listed]) if as_json else "\n".join(map(_line, listed)))
        return
    record = kept_record(run_folder(run))
    if diff is not None:
        said = record_changes(record, kept_record(run_folder(diff)))
        say(to_json(said) if as_json else "\n".join(said))
        return
    say(to_json(record_values(record)) if as_json else record_text(record))


def _line(record: RunRecord) -> str:
    found = {name: value.value for name, value in record.metrics.items() if name in ("fd", "kid", "cosine")}
    values = ", ".join(f"{name} {value:.4g}" for name, value in found.items() if value is not None)
    return f"{record.run_id}: {values}"


def run_folder(place: Path) -> Path:
    """Return the folder of a run that is named by its folder or its record."""
    return place.parent if place.name == "record.json" else place


def list_names(
    name: Annotated[str | None, typer.Argument(help="A method: its options and what they take.")] = None,
    as_json: AsJson = False,
) -> None:
    """List methods, ablations, tasks, suites and budgets; or what one method takes."""
    table = _everything() if name is None else _method(name)
    say(to_json(table) if as_json else outline(table))


def _everything() -> dict[str, Any]:
    from bench import registry
    from bench.ablations import ABLATIONS

    def titles(kind: str, *, variants: bool = False) -> dict[str, str]:
        rows = {n: row for n, row in registry.rows(kind).items() if bool(row.variant_of) == variants}
        packages = {n: f" (package {row.package})" if row.package else "" for n, row in rows.items()}
        return {n: f"{row.title or row.target}{packages[n]}" for n, row in rows.items()}

    def about(suite: Any) -> dict[str, Any]:
        sizes = {b.name: (b.train_images, b.eval_items or "all") for b in suite.budgets.values()}
        budgets = {n: "{} training images, {} evaluation items".format(*size) for n, size in sizes.items()}
        return {"about": suite.about, "tasks": list(suite.tasks), "budgets": budgets}

    return {
        "methods": titles("method"),
        "variants": titles("method", variants=True),
        "ablations": {a.name: a.question for a in ABLATIONS.values()},
        "tasks": titles("task"),
        "suites": {name: about(registry.load("suite", name)) for name in registry.rows("suite")},
        "metrics besides": titles("metric"),
        "judges": titles("judge"),
    }


def _method(name: str) -> dict[str, Any]:
    from bench import registry
    from bench.types import refusal

    row, method = registry.row("method", name), registry.load("method", name)
    allowed, options = getattr(method, "allowed", {}), {}
    for option, default in (dict(method.options) | dict(row.options)).items():
        takes = allowed.get(option, "as the method says")
        options[option] = {"default": json.dumps(default), "allowed": takes}
    refusals = {n: refusal(method, registry.load("task", n)) for n in registry.rows("task")}
    return {
        "title": row.title or method.title,
        "source": method.source,
        "options": options,
        "cannot do": {n: reason for n, reason in refusals.items() if reason},
    }


results_app = Shell(help="Pack run folders as data, and unpack them.", no_args_is_help=True)


@results_app.command("pack")
def pack(
    folder: Annotated[Path, typer.Argument(help="Folder of run folders.")],
    out: Annotated[Path, typer.Argument(help="Name of the pack: OUT.jsonl.gz and OUT.npz.")],
    parquet: Annotated[
        bool, typer.Option("--parquet", help="Write OUT.parquet alone, a line a number, for a data set.")
    ] = False,
) -> None:
    """Write records, scores of items and tiles of each variant's first seed as two files."""
    from bench import load_results
    from bench.content import atomic_path
    from bench.packed import pack_runs

    if not parquet:
        say("\n".join(map(str, pack_runs(folder, out))))
        return
    path = out.with_name(f"{out.name}.parquet")
    with atomic_path(path) as temporary:
        load_results(folder).to_parquet(temporary, index=False)
    say(path)


@results_app.command("add")
def add(
    file: Annotated[Path, typer.Argument(help="A record.json of others, or the folder of their run.")],
    by: Annotated[str, typer.Option(help="Who made it, in a word; the row bears it.")],
    results: Annotated[Path, typer.Option(help="The results folder that it joins.")] = RESULTS,
) -> None:
    """Check a run that others submit, and make it a row, marked as theirs."""
    from bench.packed import add_record

    say(add_record(file, results, by=by))


@results_app.command("unpack")
def unpack(
    pack: Annotated[Path, typer.Argument(help="Name of the pack, with or without .jsonl.gz.")],
    folder: Annotated[Path, typer.Argument(help="Where the run folders go.")],
) -> None:
    """Write the runs of a pack as run folders, byte for byte, after checking their digests."""
    from bench.packed import unpack_runs

    say(f"{len(unpack_runs(pack, folder))} runs in {folder}")
