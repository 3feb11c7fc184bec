"""`bench run` and its stages, `bench ablate` and `bench tune`: what trains, samples and scores."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.options import AsJson, Asked, Places, configured, split, taking
from bench.cli.terminal import aside, console_hooks, say, to_json
from bench.config import OUTSIDE, RESULTS

if TYPE_CHECKING:
    from bench.ablations import Ablation
    from bench.config import RunConfig
    from bench.grid import Outcome, Planned

_VARIED = ("options", "train_items", "guidance", "sampling_steps", "leaky", *OUTSIDE)
Tuned = Annotated[
    Path | None, typer.Option(help="Everything at the rate that `bench tune` chose for it: its folder.")
]


@configured()
@taking(Places, "where")
def run(
    *,
    asked: Asked,
    where: Places,
    again: Annotated[bool, typer.Option("--again", help="Redo a finished run.")] = False,
    floor: Annotated[bool, typer.Option(help="Also run text-only, the floor.")] = True,
    tuned: Tuned = None,
    as_json: AsJson = False,
) -> None:
    """Train, sample, score and record; several methods, tasks or seeds make a grid of runs."""
    from bench.child import expect_forks
    from bench.grid import run_grid
    from bench.running import run_with_floor
    from bench.suites import resolve
    from bench.tune import tuned_rate
    from bench.types import BenchError

    configs = asked.cells()
    if len(configs) > 1 and where.ray is None:
        expect_forks(asked.config.device)
    if tuned is not None:
        configs = [replace(c, learning_rate=tuned_rate(tuned, resolve(c))) for c in configs]
    if len(configs) == 1 and where.ray is None and where.processes == 1:
        flags = ["--again"] * again + ["--no-floor"] * (not floor) + ["--json"] * as_json
        share("run", configs[0], *flags)
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
    from bench.child import expect_forks, together

    if os.environ.get("OMP_NUM_THREADS") != "1":
        expect_forks(config.device)
    from bench.running import finished, identify
    from bench.suites import resolve
    from bench.training.engine import count_processes

    spec = resolve(config)
    count = count_processes(spec)
    if count > 1 and not (finished(config.results / identify(spec).run_id) and "--again" not in more):
        raise typer.Exit(together([command, *more, "--config", json.dumps(config.as_dict())], count=count))


def _stage(name: str, about: str, told: Callable[[Any, Any], str]) -> Callable[..., None]:
    """Return the command of one stage of a run; told: what is said of it and of what the stage returned."""

    @configured()
    def command(*, asked: Asked) -> None:
        from bench.running import Run
        from bench.suites import resolve
        from bench.training.engine import speaks

        share(name, asked.one)
        with console_hooks() as hooks:
            run = Run(resolve(asked.one), hooks)
            said = told(run, getattr(run, name)())
        if speaks():
            say(said)

    command.__doc__ = about
    return command


def _scored(_: Any, record: Any) -> str:
    from bench.reporting.tables import record_text

    return record_text(record)


train = _stage(
    "train",
    "Train a method (or go on training); nothing else.",
    lambda run, done: f"trained {done.images} images in {done.seconds:.1f} s -> {run.work}",
)
sample = _stage(
    "sample",
    "Sample the evaluation items of a trained method.",
    lambda run, pace: f"{f'{pace:.3f} s an image' if pace else 'all were there'} -> {run.work / 'samples'}",
)
score = _stage("score", "Score the samples of a run and write its record.", _scored)


@configured(without=_VARIED, method=(), task=(), seed=(0, 1, 2))
@taking(Places, "where")
def ablate(
    name: Annotated[str, typer.Argument(help="prior, schedule, sites, data, budget, guidance or steps.")],
    *,
    asked: Asked,
    where: Places,
    plan: Annotated[bool, typer.Option("--plan", help="Say what is missing, and stop.")] = False,
    tuned: Tuned = None,
) -> None:
    """Compare the variants of one design choice: runs that exist are used, missing ones made."""
    from bench.child import expect_forks

    if not plan and where.ray is None:
        expect_forks(asked.config.device)
    from bench import registry
    from bench.ablations import find_ablation
    from bench.grid import do_ablation, plan_ablation
    from bench.tune import tuned_rate

    ablation = find_ablation(name)
    planned = plan_ablation(
        ablation.only(registry.names("method", asked.each["method"])),
        asked.config,
        tasks=asked.each["task"],
        seeds=asked.each["seed"],
        rate_of=partial(tuned_rate, tuned) if tuned else None,
    )
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
        takes, spec = "", entry.spec
        if entry.state == MISSING and entry.identity is not None:
            sets = spec.suite.sampler.draws * (1 + len(spec.config.wrong_conditions))
            items = entry.identity.items * sets
            seconds.append(seconds_of(spec, records, items=items, trains=entry.trains))
            takes = "unknown" if seconds[-1] is None else duration(seconds[-1])
        state = f"{entry.state} ({entry.why})" if entry.why else entry.state
        what = [spec.task.name, entry.variant.called, str(spec.config.seed), entry.folder.name]
        lines.append([*what, state, takes])
    counts, known = Counter(entry.state for entry in planned), [s for s in seconds if s is not None]
    text = ", ".join(f"{counts[state]} {state}" for state in (EXISTS, MISSING, CANNOT) if counts[state])
    text += f"; {duration(sum(known))}, one after the other, starting not counted" if known else ""
    if len(known) < len(seconds):
        text += f"; {len(seconds) - len(known)} of unknown length, as nothing like them has run"
    return f"{ablation.question}\nHeld fixed: {ablation.fixed}.\n\n{to_plain(lines, left=6)}\n{text}."


def result_text(ablation: Ablation, planned: Sequence[Planned]) -> str:
    """Return the tables of the runs that were planned and now have a record."""
    from bench.packed import load_run
    from bench.record import RECORD_FILE
    from bench.reporting.compare import build_ablations
    from bench.reporting.tables import ablation_text

    folders = [entry.folder for entry in planned if (entry.folder / RECORD_FILE).exists()]
    tables = build_ablations([load_run(folder) for folder in folders], only=ablation)
    nothing = "Nothing to compare yet: the reference and another variant need a record each."
    return "\n".join(map(ablation_text, tables)) or nothing


@configured(
    without=("learning_rate", *OUTSIDE), method=("paper",), budget="standard", results=RESULTS / "tuning"
)
@taking(Places, "where")
def tune(
    *,
    asked: Asked,
    where: Places,
    rate: Annotated[
        list[str] | None, typer.Option("--rates", help="The grid, the same for all; else the suite's.")
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
    from bench.child import expect_forks

    if where.ray is None:
        expect_forks(asked.config.device)
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
        aside(f"{sum(o.record is not None for o in outcomes)} of {len(outcomes)} runs have a record")
    for outcome in failed:
        aside(f"FAILED {outcome.name}: {outcome.error}\n  again: {outcome.config.command()}")
    if failed:
        raise typer.Exit(1)


def _show(run: Any, record: Any, floor: Any, *, as_json: bool) -> None:
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
    say(f"         {run.work / 'samples'}  (all samples)")
