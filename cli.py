"""The command line of BPS-Bench. Heavy imports happen inside commands, so that help is instant."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from bench import child
from bench.app.ablate import ablate_of
from bench.app.audit import audit_command
from bench.app.base import base_app
from bench.app.coverage import coverage_command
from bench.app.data import data_app
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
    CpusPerRun,
    DataFolder,
    Device,
    Every,
    GpusPerRun,
    Guidance,
    Inverted,
    Jobs,
    MethodName,
    Methods,
    Options,
    Rate,
    Rates,
    Ray,
    Results,
    Seed,
    Seeds,
    Shell,
    Shuffled,
    Side,
    Steps,
    SuiteName,
    TaskName,
    Tasks,
    Trained,
    TrainItems,
    Variant,
    WeightsPath,
    guarded,
    with_execution,
)
from bench.app.outcomes import end
from bench.app.plan import plan_or, speed_or
from bench.app.show import show_command
from bench.app.study import study_app
from bench.terminal import aside, say, substitute_what_it_lacks, to_json

app = Shell(
    help="Compare ways of adding an image condition to a text-to-image diffusion model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
@guarded
def begin() -> None:
    child.end_with_parent()
    child.check_program(Path(__file__))
    substitute_what_it_lacks()


app.add_typer(data_app, name="data")
app.add_typer(study_app, name="study")
app.add_typer(base_app, name="base")
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


app.command("plan")(plan_or(catalogue))
app.command("speed")(speed_or(catalogue))


def _method(name: str) -> Any:
    return catalogue().find(name)[0]


def _show(run: Any, record: Any, *, floor: Any, as_json: bool) -> None:
    """Print the table with the floor's row, or the record as JSON."""
    from bench.content import read_json
    from bench.processes import speaks
    from bench.report.tables import record_text

    if not speaks():
        return
    if as_json:
        say(to_json(read_json(run.folder / "record.json")))
        return
    say(record_text(record, floor=floor))
    say(f"record   {run.folder / 'record.json'}")
    say(f"pictures {run.folder / 'contact.png'}  (condition, sample, target)")
    say(f"         {run.folder / 'work' / 'samples.png'}  (all samples)")


@app.command("run")
@guarded
@with_execution
def run_command(
    method: Methods = "bps",
    task: Tasks = "sketch",
    suite: SuiteName = "emoji",
    budget: BudgetName = None,
    seeds: Seeds = "0",
    results: Results = RESULTS,
    device: Device = "auto",
    base: BaseFolder = None,
    option: Options = None,
    learning_rate: Rate = None,
    batch: Batch = 32,
    checkpoint_every: Every = 100,
    side: Side = None,
    shuffled: Shuffled = True,
    jobs: Jobs = 1,
    ray: Ray = None,
    cpus_per_run: CpusPerRun = 1,
    gpus_per_run: GpusPerRun = 0,
    as_json: AsJson = False,
    allow_leak: AllowLeak = False,
    data: DataFolder = None,
    variant: Variant = None,
    train_items: TrainItems = None,
    guidance: Guidance = None,
    steps: Steps = None,
    weights: WeightsPath = None,
    train: Trained = True,
    condition_channels: ConditionChannels = "same",
    invert_condition: Inverted = False,
    again: Annotated[bool, typer.Option(help="Redo a finished run.")] = False,
    floor: Annotated[bool, typer.Option(help="Also run text-only, the floor.")] = True,
    *,
    execution: dict[str, Any],
) -> None:
    """Train, sample, score and record; several methods, tasks or seeds make a grid of runs."""
    from bench.cluster import placed
    from bench.commands import Request, grid_of, run_cells, run_one
    from bench.console import console_hooks
    from bench.types import BenchError

    request = Request(
        suite=suite,
        budget=budget,
        results=results,
        device=device,
        base=base,
        batch=batch,
        option=option or (),
        learning_rate=learning_rate,
        checkpoint_every=checkpoint_every,
        side=side,
        shuffled=shuffled,
        allow_leak=allow_leak,
        data=data,
        variant=variant,
        train_items=train_items,
        guidance=guidance,
        steps=steps,
        weights=weights,
        train=train,
        condition_channels=condition_channels,
        invert_condition=invert_condition,
        **execution,
    )
    cells = grid_of(catalogue(), request, method=method, task=task, seeds=seeds)
    if again and (len(cells) > 1 or ray is not None):
        raise BenchError("--again redoes one run at a time, here. Name one method, task and seed.")
    many = len(cells) > 1 or ray is not None
    with console_hooks() as hooks, placed(ray, cpus=cpus_per_run, gpus=gpus_per_run) as start:
        if many:
            outcomes = run_cells(catalogue(), cells, hooks=hooks, say=aside, jobs=jobs, start=start)
        else:
            request, name, on, number = cells[0]
            done = run_one(
                catalogue(), request, method=name, task=on, seed=number, hooks=hooks, again=again, floor=floor
            )
    if many:
        end(outcomes, as_json=as_json)
    else:
        _show(done[0], done[1], floor=done[2], as_json=as_json)


@app.command("tune")
@guarded
def tune_command(
    method: Methods = "paper",
    task: TaskName = "sketch",
    suite: SuiteName = "emoji",
    budget: BudgetName = "standard",
    seed: Seed = 0,
    device: Device = "auto",
    base: BaseFolder = None,
    batch: Batch = 32,
    side: Side = "val",
    jobs: Jobs = 1,
    data: DataFolder = None,
    variant: Variant = None,
    rates: Rates = RATES,
    results: Annotated[Path, typer.Option(help="Folder of the trials.")] = RESULTS / "tuning",
    out: Annotated[Path, typer.Option(help="Folder for the evidence.")] = Path("results/tuning"),
) -> None:
    """Choose each method's learning rate on the validation side, by one grid for all."""
    from bench.commands import Request, tune_rates
    from bench.console import console_hooks

    request = Request(
        suite=suite,
        budget=budget,
        results=results,
        device=device,
        base=base,
        batch=batch,
        side=side,
        data=data,
        variant=variant,
    )
    with console_hooks() as hooks:
        files, outcomes = tune_rates(
            catalogue(),
            request,
            method=method,
            task=task,
            seed=seed,
            rates=rates,
            out=out,
            hooks=hooks,
            say=aside,
            jobs=jobs,
        )
    for path in files:
        say(path)
    end(outcomes)


@app.command("cost")
@guarded
def cost_command(
    method: Methods = "all",
    task: TaskName = "sketch",
    suite: SuiteName = "emoji",
    results: Results = RESULTS,
    device: Device = "auto",
    base: BaseFolder = None,
    batch: Batch = 32,
    data: DataFolder = None,
    steps: Annotated[int, typer.Option(min=2, help="Optimiser steps measured.")] = 30,
    batches: Annotated[int, typer.Option(min=1, help="Sampled batches measured.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds over the methods; the fastest counts.")] = 3,
    further: Annotated[bool, typer.Option("--further", help="Add rounds to earlier ones.")] = False,
    variant: Variant = None,
) -> None:
    """Measure times and memory, one method at a time on a quiet machine, for reports of --results."""
    from bench.commands import Request, measure_costs

    request = Request(
        suite=suite, results=results, device=device, base=base, batch=batch, data=data, variant=variant
    )
    say(
        measure_costs(
            catalogue(),
            request,
            method=method,
            task=task,
            steps=steps,
            batches=batches,
            rounds=rounds,
            further=further,
            say=aside,
        )
    )


def _stage(name: str, act: Callable[[Any], str], text: str) -> None:
    """Add the command of one stage; all have the options of `bench run`."""

    @app.command(name, help=text)
    @guarded
    @with_execution
    def command(
        method: MethodName = "bps",
        task: TaskName = "sketch",
        suite: SuiteName = "emoji",
        budget: BudgetName = None,
        seed: Seed = 0,
        results: Results = RESULTS,
        device: Device = "auto",
        base: BaseFolder = None,
        option: Options = None,
        learning_rate: Rate = None,
        batch: Batch = 32,
        checkpoint_every: Every = 100,
        side: Side = None,
        allow_leak: AllowLeak = False,
        data: DataFolder = None,
        variant: Variant = None,
        train_items: TrainItems = None,
        guidance: Guidance = None,
        steps: Steps = None,
        *,
        execution: dict[str, Any],
    ) -> None:
        _act(
            act,
            method=method,
            task=task,
            seed=seed,
            suite=suite,
            budget=budget,
            results=results,
            device=device,
            base=base,
            batch=batch,
            option=option,
            learning_rate=learning_rate,
            checkpoint_every=checkpoint_every,
            side=side,
            allow_leak=allow_leak,
            data=data,
            variant=variant,
            train_items=train_items,
            guidance=guidance,
            steps=steps,
            **execution,
        )


def _act(
    act: Callable[[Any], str],
    *,
    method: str,
    task: str,
    seed: int,
    option: list[str] | None,
    **asked: Any,
) -> None:
    """Do one stage of a run and print what it says."""
    from bench.commands import Request, make_run
    from bench.console import console_hooks
    from bench.processes import speaks

    request = Request(option=option or (), **asked)
    with console_hooks() as hooks:
        said = act(make_run(catalogue(), request, method=method, task=task, seed=seed, hooks=hooks))
        hooks.close()
    if speaks():
        say(said)


def _trained(run: Any) -> str:
    result = run.train()
    return f"trained {result.images} images in {result.seconds:.1f} s -> {run.folder / 'work'}"


def _sampled(run: Any) -> str:
    from bench.report.names import amount

    return f"{amount(run.sample(), 's')} an image -> {run.folder / 'work' / 'samples'}"


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
    long: Annotated[bool, typer.Option("--long", help="LaTeX of differences and distributions too.")] = False,
    readme: Annotated[
        Path | None, typer.Option(help="Also write a page of published results, README.md.")
    ] = None,
) -> None:
    """Make tables, figures (PNG, PDF) and an offline HTML page of all records in a folder."""
    from bench.report import make_report

    for path in make_report(results, out or results / "report", mixed=mixed, long=long, readme=readme):
        say(path)


@app.command("list")
@guarded
def list_command(as_json: AsJson = False) -> None:
    """List methods, tasks, suites and budgets."""
    from bench.ablations import ABLATIONS
    from bench.arguments import outline
    from bench.commands import described
    from bench.suites import SUITES
    from bench.tasks import TASKS

    table = {
        "methods": {n: described(_method(n)) for n in methods()},
        "variants": {n: {"of": m, **o} for n, (m, o) in catalogue().variants.items()},
        "ablations": {a.name: a.question for a in ABLATIONS.values()},
        "tasks": {n: f"{t().channels} condition channel(s)" for n, t in TASKS.items()},
        "suites": {
            s.name: {
                "about": s.about,
                "tasks": list(s.tasks),
                "budgets": {
                    b.name: f"{b.train_images} training images, {b.eval_items or 'all'} evaluation items"
                    for b in s.budgets.values()
                },
            }
            for s in SUITES.values()
        },
    }
    say(to_json(table) if as_json else outline(table))


@app.command("check")
@guarded
def check_command(
    method: MethodName = "bps",
    task: TaskName = "sketch",
    suite: SuiteName = "emoji",
    base: BaseFolder = None,
    option: Options = None,
    data: DataFolder = None,
    variant: Variant = None,
) -> None:
    """Check that a method is wired into the base: equal at the start, gradients, frozen prior."""
    from bench.check import check_run
    from bench.commands import Request, make_run

    request = Request(
        suite=suite, results=RESULTS, device="cpu", base=base, data=data, variant=variant, option=option or ()
    )
    run = make_run(catalogue(), request, method=method, task=task, seed=0)
    findings = check_run(run)
    for finding in findings:
        say(f"{'ok  ' if finding.holds else 'FAIL'} {finding.statement} ({finding.detail})")
    if not all(f.holds for f in findings):
        raise typer.Exit(1)


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
            families or cache / "families",
            out=out,
            work=work or cache / "pretrain",
            until=until,
            steps=steps,
            threads=threads,
            report=report,
            hooks=hooks,
            start=start,
        )
        for line in lines:
            say(line)


app.command("coverage")(coverage_command)
app.command("ablate")(ablate_of(catalogue))


if __name__ == "__main__":
    sys.exit(app(prog_name="bench"))
