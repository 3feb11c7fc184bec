"""The command line of BPS-Bench. Heavy imports happen inside commands, so that help is instant."""

from __future__ import annotations

import functools
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.app.audit import audit_command
from bench.app.coverage import coverage_command
from bench.app.exchange import exporting
from bench.app.folders import score_or, tools_command
from bench.app.options import (
    PRETRAINING,
    RATES,
    RESULTS,
    AllowLeak,
    AsJson,
    BaseFolder,
    Batch,
    BudgetName,
    ConditionChannels,
    Device,
    Every,
    Inverted,
    Jobs,
    MethodName,
    Methods,
    Options,
    Rate,
    Results,
    Seed,
    Shuffled,
    Side,
    SuiteName,
    TaskName,
    Tasks,
    Trained,
    WeightsPath,
    guarded,
)
from bench.app.show import show_command
from bench.app.study import study_app

app = typer.Typer(
    help="Compare ways of adding an image condition to a text-to-image diffusion model.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip
data_app = typer.Typer(help="The data sets and their splits.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(study_app, name="study")
app.command("audit")(audit_command)
app.command("show")(show_command)


def methods() -> dict[str, str]:
    """Join the tables of methods: name -> "module:Class"."""
    import baselines
    import bps

    return {**bps.METHODS, **baselines.METHODS}


def catalogue() -> Any:
    """Join the tables of methods and of variants, the short names of methods with options set."""
    import baselines
    import bps
    from bench.commands import Catalogue

    variants = {**bps.VARIANTS, **baselines.VARIANTS}
    return Catalogue(methods=methods(), variants=variants, load=baselines.load)


def _method(name: str) -> Any:
    return catalogue().find(name)[0]


def _show(run: Any, record: Any, *, floor: Any, as_json: bool) -> None:
    """Print the table with the floor's row, or the record as JSON."""
    from bench.report.tables import record_text

    if as_json:
        typer.echo((run.folder / "record.json").read_text().rstrip())
        return
    typer.echo(record_text(record, floor=floor))
    typer.echo(f"record   {run.folder / 'record.json'}")
    typer.echo(f"pictures {run.folder / 'contact.png'}  (condition, sample, target)")
    typer.echo(f"         {run.folder / 'work' / 'samples.png'}  (all samples)")


@app.command("run")
@guarded
def run_command(
    method: Methods = "bps", task: Tasks = "sketch", suite: SuiteName = "emoji",
    budget: BudgetName = None, seed: Seed = 0, results: Results = RESULTS, device: Device = "auto",
    base: BaseFolder = None, option: Options = None, learning_rate: Rate = None, batch: Batch = 32,
    checkpoint_every: Every = 100, side: Side = None, shuffled: Shuffled = True, jobs: Jobs = 1,
    as_json: AsJson = False, allow_leak: AllowLeak = False, weights: WeightsPath = None,
    train: Trained = True, condition_channels: ConditionChannels = "same",
    invert_condition: Inverted = False,
    seeds: Annotated[str | None, typer.Option(help="Several seeds, for example 0,1,2.")] = None,
    again: Annotated[bool, typer.Option(help="Redo a finished run.")] = False,
    floor: Annotated[bool, typer.Option(help="Also run text-only, the floor.")] = True,
) -> None:  # fmt: skip
    """Train, sample, score and record; several methods, tasks or seeds make a grid of runs."""
    from bench.commands import Request, grid_of, run_cells, run_one
    from bench.console import console_hooks
    from bench.types import BenchError

    request = Request(
        suite=suite, budget=budget, results=results, device=device, base=base, batch=batch,
        option=option or (), learning_rate=learning_rate, checkpoint_every=checkpoint_every, side=side,
        shuffled=shuffled, allow_leak=allow_leak, weights=weights, train=train,
        condition_channels=condition_channels, invert_condition=invert_condition,
    )  # fmt: skip
    cells = grid_of(catalogue(), request, method=method, task=task, seeds=seeds or str(seed))
    if again and len(cells) > 1:
        raise BenchError("--again redoes one run at a time. Name one method, task and seed.")
    with console_hooks() as hooks:
        if len(cells) > 1:
            outcomes = run_cells(catalogue(), cells, hooks=hooks, say=_aside, jobs=jobs)
        else:
            request, name, on, number = cells[0]
            done = run_one(catalogue(), request, method=name, task=on, seed=number, hooks=hooks,
                           again=again, floor=floor)  # fmt: skip
    if len(cells) > 1:
        _end(outcomes, as_json=as_json)
    else:
        _show(done[0], done[1], floor=done[2], as_json=as_json)


def _aside(text: str) -> None:
    typer.echo(text, err=True)


def _end(outcomes: list[Any], *, as_json: bool = False) -> None:
    """Say which runs of a grid failed and how to do them again; exit code 1 if any did."""
    failed = [o for o in outcomes if o.error]
    if as_json:
        said = {o.cell.name: o.error or o.refused or str(o.folder) for o in outcomes}
        typer.echo(json.dumps(said, indent=1))
    _aside(f"{sum(o.record is not None for o in outcomes)} of {len(outcomes)} runs have a record")
    for outcome in failed:
        words = shlex.join(["bench", *outcome.cell.arguments])
        _aside(f"FAILED {outcome.cell.name}: {outcome.error}\n  again: {words}")
    if failed:
        raise typer.Exit(1)


@app.command("tune")
@guarded
def tune_command(
    method: Methods = "paper", task: TaskName = "sketch", suite: SuiteName = "emoji",
    budget: BudgetName = "standard", seed: Seed = 0, device: Device = "auto", base: BaseFolder = None,
    batch: Batch = 32, side: Side = "val", jobs: Jobs = 1,
    rates: Annotated[str, typer.Option(help="The grid, the same for all methods.")] = RATES,
    results: Annotated[Path, typer.Option(help="Folder of the trials.")] = RESULTS / "tuning",
    out: Annotated[Path, typer.Option(help="Folder for the evidence.")] = Path("results/tuning"),
) -> None:  # fmt: skip
    """Choose each method's learning rate on the validation side, by one grid for all."""
    from bench.commands import Request, tune_rates
    from bench.console import console_hooks

    request = Request(suite=suite, budget=budget, results=results, device=device, base=base,
                      batch=batch, side=side)  # fmt: skip
    with console_hooks() as hooks:
        files, outcomes = tune_rates(
            catalogue(), request, method=method, task=task, seed=seed, rates=rates, out=out,
            hooks=hooks, say=_aside, jobs=jobs,
        )  # fmt: skip
    for path in files:
        typer.echo(path)
    _end(outcomes)


@app.command("cost")
@guarded
def cost_command(
    method: Methods = "all", task: TaskName = "sketch", suite: SuiteName = "emoji",
    results: Results = RESULTS, device: Device = "auto", base: BaseFolder = None, batch: Batch = 32,
    steps: Annotated[int, typer.Option(min=2, help="Optimiser steps measured.")] = 30,
    batches: Annotated[int, typer.Option(min=1, help="Sampled batches measured.")] = 2,
) -> None:  # fmt: skip
    """Measure times and memory, one method at a time on a quiet machine, for reports of --results."""
    from bench.commands import Request, measure_costs

    request = Request(suite=suite, results=results, device=device, base=base, batch=batch)
    typer.echo(measure_costs(catalogue(), request, method=method, task=task, steps=steps,
                             batches=batches, say=_aside))  # fmt: skip


def _stage(name: str, act: Callable[[Any], str], text: str) -> None:
    """Add the command of one stage; all have the options of `bench run`."""

    @app.command(name, help=text)
    @guarded
    def command(
        method: MethodName = "bps", task: TaskName = "sketch", suite: SuiteName = "emoji",
        budget: BudgetName = None, seed: Seed = 0, results: Results = RESULTS,
        device: Device = "auto", base: BaseFolder = None, option: Options = None,
        learning_rate: Rate = None, batch: Batch = 32, checkpoint_every: Every = 100,
        side: Side = None, allow_leak: AllowLeak = False,
    ) -> None:  # fmt: skip
        _act(
            act, method=method, task=task, seed=seed, suite=suite, budget=budget, results=results,
            device=device, base=base, batch=batch, option=option, learning_rate=learning_rate,
            checkpoint_every=checkpoint_every, side=side, allow_leak=allow_leak,
        )  # fmt: skip


def _act(
    act: Callable[[Any], str], *, method: str, task: str, seed: int, option: list[str] | None,
    **asked: Any,
) -> None:  # fmt: skip
    """Do one stage of a run and print what it says."""
    from bench.commands import Request, make_run
    from bench.console import console_hooks

    request = Request(option=option or (), **asked)
    with console_hooks() as hooks:
        said = act(make_run(catalogue(), request, method=method, task=task, seed=seed, hooks=hooks))
        hooks.close()
    typer.echo(said)


def _trained(run: Any) -> str:
    result = run.train()
    return f"trained {result.images} images in {result.seconds:.1f} s -> {run.folder / 'work'}"


def _sampled(run: Any) -> str:
    return f"{run.sample():.3f} s an image -> {run.folder / 'work' / 'samples'}"


def _scored(run: Any) -> str:
    from bench.report.tables import record_text

    return record_text(run.score())


_stage("train", _trained, "Train a method (or go on training); nothing else.")
_stage("sample", _sampled, "Sample the evaluation items of a trained method.")
app.command("score")(score_or(functools.partial(_act, _scored)))
app.command("tools")(tools_command)
app.command("export")(exporting(catalogue))


@app.command("report")
@guarded
def report_command(
    results: Results = RESULTS,
    out: Annotated[Path | None, typer.Option(help="Else <results>/report.")] = None,
    mixed: Annotated[bool, typer.Option(help="Allow several protocols; rows are marked.")] = False,
) -> None:
    """Make tables, figures (PNG, PDF) and an offline HTML page of all records in a folder."""
    from bench.report import make_report

    for path in make_report(results, out or results / "report", mixed=mixed):
        typer.echo(path)


@app.command("list")
@guarded
def list_command(as_json: AsJson = False) -> None:
    """List methods, tasks, suites and budgets."""
    from bench.arguments import outline
    from bench.commands import described
    from bench.suites import SUITES
    from bench.tasks import TASKS

    table = {
        "methods": {n: described(_method(n)) for n in methods()},
        "variants": {n: {"of": m, **o} for n, (m, o) in catalogue().variants.items()},
        "tasks": {n: f"{t().channels} condition channel(s)" for n, t in TASKS.items()},
        "suites": {s.name: {"about": s.about, "tasks": list(s.tasks), "budgets": {
            b.name: f"{b.train_images} training images, {b.eval_items or 'all'} evaluation items"
            for b in s.budgets.values()}} for s in SUITES.values()},
    }  # fmt: skip
    typer.echo(json.dumps(table, indent=1) if as_json else outline(table))


@app.command("check")
@guarded
def check_command(
    method: MethodName = "bps", task: TaskName = "sketch", suite: SuiteName = "emoji",
    base: BaseFolder = None, option: Options = None,
) -> None:  # fmt: skip
    """Check that a method is wired into the base: equal at the start, gradients, frozen prior."""
    from bench.check import check_run
    from bench.commands import Request, make_run

    request = Request(suite=suite, results=RESULTS, device="cpu", base=base, option=option or ())
    run = make_run(catalogue(), request, method=method, task=task, seed=0)
    findings = check_run(run)
    for finding in findings:
        typer.echo(f"{'ok  ' if finding.holds else 'FAIL'} {finding.statement} ({finding.detail})")
    if not all(f.holds for f in findings):
        raise typer.Exit(1)


@data_app.command("verify")
@guarded
def verify_command(suite: SuiteName = "emoji") -> None:
    """Re-check the digests of a suite's data and look for leaks between its sides."""
    from bench.data.splits import verify
    from bench.suites import SUITES
    from bench.types import unknown

    if suite not in SUITES:
        raise unknown("suite", suite, SUITES)
    dataset, splits = SUITES[suite].dataset(), SUITES[suite].splits()
    findings = verify(dataset, splits)
    for finding in findings:
        typer.echo(f"FAIL {finding.kind}: {finding.message}", err=True)
    if findings:
        raise typer.Exit(1)
    counts = ", ".join(f"{side} {len(splits.side(side))}" for side in ("train", "val", "test"))
    typer.echo(f"ok   {dataset.name}: {len(dataset.ids)} items ({counts}); digests hold, no leaks")


@data_app.command("export")
@guarded
def export_command(
    out: Annotated[Path, typer.Argument(help="Folder for <id>.png.")],
    suite: SuiteName = "emoji",
    side: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    items: Annotated[int | None, typer.Option(min=1, help="How many, by a fixed rule.")] = None,
) -> None:
    """Write the images of a side as PNG files, as a reference for `bench score A B`."""
    from bench.artifacts import pick_items
    from bench.sample import export_images
    from bench.suites import SUITES
    from bench.types import unknown

    if suite not in SUITES:
        raise unknown("suite", suite, SUITES)
    dataset, splits = SUITES[suite].dataset(), SUITES[suite].splits()
    ids = pick_items(splits.side(side), items)
    export_images(dataset, ids, out)
    typer.echo(f"{len(ids)} images of {dataset.name}, {side} -> {out}")


@app.command("pretrain")
@guarded
def pretrain_command(
    out: Annotated[Path, typer.Option(help="Folder for the finished emoji-sd.")],
    families: Annotated[
        Path | None, typer.Option(help="The unpacked icon families; else <cache>/families.")
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="Checkpoints to resume from; else <cache>/pretrain.")
    ] = None,
    until: Annotated[str, typer.Option(help="A stage: collection to report.")] = "report",
    report: Annotated[Path, typer.Option(help="Folder for curve, grid and figures.")] = PRETRAINING,
    steps: Annotated[int | None, typer.Option(min=1, help="Stop the prior at this step.")] = None,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    start: Annotated[Path | None, typer.Option(help="An exported base to go on from.")] = None,
) -> None:
    """Make the embedded base model anew (hours); no user of the benchmark needs this."""
    from bench.console import console_hooks
    from bench.content import Cache
    from bench.emoji.pretrain import pretrain

    cache = Cache().folder
    with console_hooks() as hooks:
        lines = pretrain(
            families or cache / "families", out=out, work=work or cache / "pretrain",
            until=until, steps=steps, threads=threads, report=report, hooks=hooks, start=start,
        )  # fmt: skip
        for line in lines:
            typer.echo(line)


app.command("coverage")(coverage_command)


if __name__ == "__main__":
    sys.exit(app())
