"""`bench run` and its stages, `bench ablate` and `bench tune`: what trains, samples and scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.options import AsJson, Asked, Places, configured, guarded, split, taking
from bench.cli.terminal import aside, console_hooks, say, to_json
from bench.config import OUTSIDE, RESULTS

if TYPE_CHECKING:
    from bench.ablations import Ablation
    from bench.config import RunConfig
    from bench.grid import Outcome, Planned

_VARIED = ("options", "train_items", "guidance", "sampling_steps", "leaky", *OUTSIDE)


@guarded
@configured()
@taking(Places, "where")
def run(
    *,
    asked: Asked,
    where: Places,
    again: Annotated[bool, typer.Option("--again", help="Redo a finished run.")] = False,
    floor: Annotated[bool, typer.Option(help="Also run text-only, the floor.")] = True,
    tuned: Annotated[
        Path | None, typer.Option(help="Each method at the rate that `bench tune` chose: its folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train, sample, score and record; several methods, tasks or seeds make a grid of runs."""
    from bench.grid import run_grid
    from bench.running import run_with_floor
    from bench.suites import resolve
    from bench.tune import tuned_rate
    from bench.types import BenchError

    configs = asked.cells()
    if tuned is not None:
        configs = [replace(c, learning_rate=tuned_rate(tuned, resolve(c))) for c in configs]
    if len(configs) == 1 and where.ray is None and where.processes == 1:
        flags = {"--again": again, "--no-floor": not floor, "--json": as_json}
        share("run", configs[0], *(name for name, given in flags.items() if given))
        with console_hooks() as hooks:
            done = run_with_floor(configs[0], hooks=hooks, again=again, floor=floor)
        _show(*done, as_json=as_json)
        return
    if again:
        raise BenchError("--again redoes one run at a time, here. Name one method, task and seed.")
    with where.open() as place:
        outcomes = run_grid(configs, **place)
    end(outcomes, as_json=as_json)


def share(command: str, config: RunConfig, *more: str) -> None:
    """Do a command of one run in processes that share the cores, and exit; return where one is enough.

    One that cannot be is refused here, once; one that is done needs no others.
    """
    import json

    from bench.child import together
    from bench.running import finished, identify
    from bench.suites import resolve
    from bench.training.engine import count_processes

    spec = resolve(config)
    count = count_processes(spec)
    done = count > 1 and finished(config.results / identify(spec).run_id) and "--again" not in more
    if count > 1 and not done:
        raise typer.Exit(together([command, *more, "--config", json.dumps(config.as_dict())], count=count))


def stage(about: str, act: Callable[[Any], str], *, name: str | None = None) -> Callable[..., None]:
    """Return the command of one stage of a run; all have the options of `bench run`.

    name: of a stage that several processes share.
    """

    @guarded
    @configured()
    def command(*, asked: Asked) -> None:
        from bench.running import Run
        from bench.suites import resolve
        from bench.training.engine import speaks

        if name is not None:
            share(name, asked.one)
        with console_hooks() as hooks:
            said = act(Run(resolve(asked.one), hooks))
            hooks.close()
        if speaks():
            say(said)

    command.__doc__ = about
    return command


def _trained(run: Any) -> str:
    result = run.train()
    return f"trained {result.images} images in {result.seconds:.1f} s -> {run.folder / 'work'}"


def _sampled(run: Any) -> str:
    seconds = run.sample()
    pace = "all were there" if seconds is None else f"{seconds:.3f} s an image"
    return f"{pace} -> {run.folder / 'work' / 'samples'}"


def _scored(run: Any) -> str:
    from bench.reporting.tables import record_text

    return record_text(run.score())


train = stage("Train a method (or go on training); nothing else.", _trained, name="train")
sample = stage("Sample the evaluation items of a trained method.", _sampled, name="sample")
score = stage("Score the samples of a run and write its record.", _scored, name="score")


@guarded
@configured(without=_VARIED, method=(), task=(), seed=(0, 1, 2))
@taking(Places, "where")
def ablate(
    name: Annotated[str, typer.Argument(help="prior, schedule, sites, data, budget, guidance or steps.")],
    *,
    asked: Asked,
    where: Places,
    plan: Annotated[bool, typer.Option("--plan", help="Say what is missing, and stop.")] = False,
    tuned: Annotated[
        Path | None, typer.Option(help="Each variant at the rate that `bench tune` chose: its folder.")
    ] = None,
) -> None:
    """Compare the variants of one design choice: runs that exist are used, missing ones made."""
    from bench import registry
    from bench.ablations import find_ablation
    from bench.grid import do_ablation, plan_ablation
    from bench.tune import tuned_rate

    ablation, methods = find_ablation(name), registry.names("method", asked.each["method"])
    rate_of = partial(tuned_rate, tuned) if tuned else None
    tasks, seeds = asked.each["task"], asked.each["seed"]
    planned = plan_ablation(ablation.only(methods), asked.config, tasks=tasks, seeds=seeds, rate_of=rate_of)
    (say if plan else aside)(plan_text(ablation, planned, results=asked.config.results))
    if plan:
        return
    with where.open() as place:
        outcomes = do_ablation(planned, **place)
    say(result_text(ablation, planned))
    end(outcomes)


def plan_text(ablation: Ablation, planned: Sequence[Planned], *, results: Path) -> str:
    """Return the question, every run with its state and about how long it takes, and the sum."""
    from bench.grid import CANNOT, EXISTS, MISSING, duration, records_of_paces, seconds_of
    from bench.reporting.render import to_plain

    records = records_of_paces(results)
    lines = [["task", "variant", "seed", "run", "state", "takes"]]
    seconds: list[float | None] = []
    for entry in planned:
        takes = ""
        if entry.state == MISSING and entry.identity is not None:
            trains, sets = entry.trains, 1 + len(entry.spec.config.wrong_conditions)
            items = entry.identity.items * entry.spec.suite.sampler.draws * sets
            seconds.append(seconds_of(entry.spec, records, items=items, trains=trains))
            takes = "unknown" if seconds[-1] is None else duration(seconds[-1])
        state = f"{entry.state} ({entry.why})" if entry.why else entry.state
        where = [entry.spec.task.name, entry.variant.called, str(entry.spec.config.seed), entry.folder.name]
        lines.append([*where, state, takes])
    counts = {state: sum(entry.state == state for entry in planned) for state in (EXISTS, MISSING, CANNOT)}
    text = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    lacking = seconds.count(None)
    if len(seconds) > lacking:
        text += f"; {duration(sum(s for s in seconds if s))}, one after the other, starting not counted"
    if lacking:
        text += f"; {lacking} of unknown length, as nothing like them has run"
    return f"{ablation.question}\nHeld fixed: {ablation.fixed}.\n\n{to_plain(lines, left=6)}\n{text}."


def result_text(ablation: Ablation, planned: Sequence[Planned]) -> str:
    """Return the tables of the runs that were planned and now have a record."""
    from bench.packed import load_run
    from bench.record import RECORD_FILE
    from bench.reporting.compare import build_ablations
    from bench.reporting.tables import ablation_text

    folders = [entry.folder for entry in planned if (entry.folder / RECORD_FILE).exists()]
    tables = build_ablations([load_run(folder) for folder in folders], only=ablation)
    if not tables:
        return "Nothing to compare yet: the reference and another variant need a record each."
    return "\n".join(ablation_text(table) for table in tables)


@guarded
@configured(
    without=("learning_rate", *OUTSIDE),
    method=("paper",),
    budget="standard",
    results=RESULTS / "tuning",
)
@taking(Places, "where")
def tune(
    *,
    asked: Asked,
    where: Places,
    rate: Annotated[
        list[str] | None,
        typer.Option("--rates", help="The grid, the same for all methods; else the suite's."),
    ] = None,
    extend: Annotated[
        bool, typer.Option("--extend", help="Go on beyond the grid until no best rate lies at its edge.")
    ] = False,
    ablation: Annotated[
        str | None, typer.Option(help="Each variant of this ablation, in place of --method.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the evidence.")] = Path("results/tuning"),
) -> None:
    """Choose each method's learning rate on the validation side, by one grid for all."""
    from bench import registry
    from bench.ablations import find_ablation
    from bench.tune import tune_rates

    configs = asked.cells()
    if ablation is not None:
        rounds = replace(asked, each={**asked.each, "method": ("bps",)}).cells()
        configs = [replace(c, **kind) for c in rounds for kind in find_ablation(ablation).kinds]
    rates = split(rate or []) or registry.load("suite", asked.config.suite).rates
    with where.open() as place:
        files, outcomes = tune_rates(configs, rates=rates, out=out, extend=extend, **place)
    for path in files:
        say(path)
    end(outcomes)


def end(outcomes: Sequence[Outcome], *, as_json: bool = False) -> None:
    """Say which runs of a grid failed and how to do them again; exit code 1 if any did."""
    failed = [o for o in outcomes if o.error]
    if as_json:
        say(to_json({o.name: o.error or o.refused or str(o.folder) for o in outcomes}))
    if outcomes:  # an ablation whose runs all exist has made none
        made = sum(o.record is not None for o in outcomes)
        aside(f"{made} of {len(outcomes)} runs have a record")
    for outcome in failed:
        aside(f"FAILED {outcome.name}: {outcome.error}\n  again: {outcome.config.command()}")
    if failed:
        raise typer.Exit(1)


def _show(run: Any, record: Any, floor: Any, *, as_json: bool) -> None:
    """Print the table with the floor's row, or the record as JSON."""
    from bench.content import read_json
    from bench.reporting.tables import record_text
    from bench.training.engine import speaks

    if not speaks():
        return
    if as_json:
        say(to_json(read_json(run.folder / "record.json")))
        return
    say(record_text(record, floor=floor))
    say(f"record   {run.folder / 'record.json'}")
    say(f"pictures {run.folder / 'contact.png'}  (rows: condition, sample, target)")
    say(f"         {run.folder / 'work' / 'samples'}  (all samples)")
