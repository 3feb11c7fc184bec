"""The command line of BPS-Bench. Heavy imports happen inside commands, so that help is instant."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Compare ways of adding an image condition to a text-to-image diffusion model.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip
data_app = typer.Typer(help="The data sets and their splits.", no_args_is_help=True)
app.add_typer(data_app, name="data")

MethodName = Annotated[str, typer.Option("--method", help="A method; see `bench list`.")]
TaskName = Annotated[str, typer.Option("--task", help="A task; see `bench list`.")]
SuiteName = Annotated[str, typer.Option("--suite", help="emoji (embedded) or another suite.")]
BudgetName = Annotated[str | None, typer.Option("--budget", help="quick, standard or full.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Training and sampling seed.")]
Results = Annotated[Path, typer.Option("--results", help="Folder that holds the run folders.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
BaseFolder = Annotated[
    Path | None, typer.Option("--base", help="Your own Stable Diffusion, a diffusers folder.")
]
Options = Annotated[
    list[str] | None, typer.Option("--option", help="A method's option, name=value (JSON).")
]
Rate = Annotated[float | None, typer.Option("--learning-rate", min=1e-12, help="Else the suite's.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Images sampled at once.")]
Every = Annotated[int, typer.Option("--checkpoint-every", min=1, help="Steps between checkpoints.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
RESULTS = Path("results/runs")
PRETRAINING = Path("results/pretraining")


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn errors for the user into one message and exit code 2, and stops into 130 or 143."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            _fail("stopped; finished work is kept, the same command goes on.", 130)
        except Exception as error:
            from bench.checkpoint import Stopped
            from bench.types import BenchError

            if isinstance(error, Stopped):
                _fail("stopped; work is saved, the same command goes on where it was.", error.code)
            if isinstance(error, (BenchError, OSError)):
                _fail(f"error: {error}", 2)
            raise

    return wrapper


def _fail(message: str, code: int) -> None:
    typer.echo(message, err=True)
    raise typer.Exit(code) from None


def methods() -> dict[str, str]:
    """Join the tables of methods: name -> "module:Class"."""
    import baselines
    import bps

    return {**bps.METHODS, **baselines.METHODS}


def _method(name: str) -> Any:
    from baselines import load
    from bench.types import unknown

    if name not in methods():
        raise unknown("method", name, methods())
    return load(methods()[name])()


def _run(hooks: Any, *, method: str, task: str, suite: str, budget: str | None, seed: int,
         results: Path, device: str, base: Path | None, option: list[str] | None,
         learning_rate: float | None, batch: int, checkpoint_every: int = 100) -> Any:  # fmt: skip
    from bench.run import Run, RunSpec
    from bench.suites import find_suite
    from bench.tasks import find_task

    chosen = _method(method)
    find_task(task)
    found = find_suite(suite, base=base)
    spec = RunSpec(
        suite=found, task=task, method=chosen, budget=found.budget(budget), seed=seed,
        results=results, options=_options(option), learning_rate=learning_rate,
        device=_device(device), batch=batch, checkpoint_every=checkpoint_every,
    )  # fmt: skip
    return Run(spec, hooks)


def _options(pairs: list[str] | None) -> dict[str, Any]:
    from bench.types import BenchError

    options: dict[str, Any] = {}
    for pair in pairs or []:
        name, mark, value = pair.partition("=")
        if not mark:
            raise BenchError(f"--option '{pair}' is not name=value. Write for example prior=free.")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def _device(name: str) -> str:
    import torch

    from bench.types import BenchError, unknown

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in {"cpu", "cuda"}:
        raise unknown("device", name, ["auto", "cpu", "cuda"])
    if name == "cuda" and not torch.cuda.is_available():
        raise BenchError("--device cuda: torch sees no CUDA device here. Use --device cpu.")
    return name


def _show(run: Any, record: Any, *, floor: Any, as_json: bool) -> None:
    """Print the table with the floor's row, or the record as JSON."""
    from bench.report.tables import record_text

    if as_json:
        typer.echo((run.folder / "record.json").read_text().rstrip())
        return
    typer.echo(record_text(record, floor=floor))
    typer.echo(f"record   {run.folder / 'record.json'}")
    typer.echo(f"pictures {run.folder / 'contact.png'}  (condition, sample, target)")
    typer.echo(f"         {run.folder / 'samples.png'}  (all samples)")


@app.command("run")
@guarded
def run_command(
    method: MethodName = "bps", task: TaskName = "sketch", suite: SuiteName = "emoji",
    budget: BudgetName = None, seed: Seed = 0, results: Results = RESULTS, device: Device = "auto",
    base: BaseFolder = None, option: Options = None, learning_rate: Rate = None, batch: Batch = 32,
    checkpoint_every: Every = 100, as_json: AsJson = False,
    again: Annotated[bool, typer.Option(help="Redo a finished run.")] = False,
    floor: Annotated[bool, typer.Option(help="Also run text-only, the floor.")] = True,
) -> None:  # fmt: skip
    """Train, sample, score and record one method on one task; a killed run goes on."""
    from bench.console import console_hooks

    shared: dict[str, Any] = {
        "task": task, "suite": suite, "budget": budget, "seed": seed, "results": results,
        "device": device, "base": base, "batch": batch,
    }  # fmt: skip
    with console_hooks() as hooks:
        own = functools.partial(
            _run, hooks, method=method, option=option, learning_rate=learning_rate,
            checkpoint_every=checkpoint_every, **shared,
        )  # fmt: skip
        chosen, lowest = own(), None
        if again:
            chosen.forget()
        if floor and method != "text-only":
            chosen.denoiser  # noqa: B018  a wrong option fails now, not after the floor
            del chosen  # the floor goes first and alone, so that its peak memory is its own
            floor_run = _run(hooks, method="text-only", option=None, learning_rate=None, **shared)
            lowest = floor_run.all()
            del floor_run
            chosen = own()
        record = chosen.all()
    _show(chosen, record, floor=lowest, as_json=as_json)


def _stage(name: str, act: Callable[[Any], str], text: str) -> None:
    """Add the command of one stage; all have the options of `bench run`."""

    @app.command(name, help=text)
    @guarded
    def command(
        method: MethodName = "bps", task: TaskName = "sketch", suite: SuiteName = "emoji",
        budget: BudgetName = None, seed: Seed = 0, results: Results = RESULTS,
        device: Device = "auto", base: BaseFolder = None, option: Options = None,
        learning_rate: Rate = None, batch: Batch = 32, checkpoint_every: Every = 100,
    ) -> None:  # fmt: skip
        from bench.console import console_hooks

        with console_hooks() as hooks:
            chosen = _run(
                hooks, method=method, task=task, suite=suite, budget=budget, seed=seed,
                results=results, device=device, base=base, option=option,
                learning_rate=learning_rate, batch=batch, checkpoint_every=checkpoint_every,
            )  # fmt: skip
            said = act(chosen)
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
_stage("score", _scored, "Score the samples of a run and write its record.")


@app.command("report")
@guarded
def report_command(
    results: Results = RESULTS,
    out: Annotated[Path | None, typer.Option(help="Else <results>/report.")] = None,
    mixed: Annotated[bool, typer.Option(help="Allow several protocols; rows are marked.")] = False,
) -> None:
    """Make the tables (Markdown, LaTeX, CSV) and figures of all records in a folder."""
    from bench.report import make_report

    for path in make_report(results, out or results / "report", mixed=mixed):
        typer.echo(path)


@app.command("list")
@guarded
def list_command(as_json: AsJson = False) -> None:
    """List methods, tasks, suites and budgets."""
    from bench.suites import SUITES
    from bench.tasks import TASKS

    table = {
        "methods": {n: {"source": _method(n).source, "options": _method(n).options} for n in methods()},
        "tasks": {n: f"{t().channels} condition channel(s)" for n, t in TASKS.items()},
        "suites": {s.name: {"about": s.about, "tasks": list(s.tasks), "budgets": {
            b.name: f"{b.train_images} training images, {b.eval_items or 'all'} evaluation items"
            for b in s.budgets.values()}} for s in SUITES.values()},
    }  # fmt: skip
    typer.echo(json.dumps(table, indent=1) if as_json else _outline(table))


def _outline(value: Any, depth: int = 0) -> str:
    """Show nested tables as indented lines."""
    pad, lines = "  " * depth, []
    for key, entry in value.items():
        if isinstance(entry, dict):
            lines += [f"{pad}{key}", _outline(entry, depth + 1)] if entry else [f"{pad}{key}: none"]
        else:
            shown = ", ".join(map(str, entry)) if isinstance(entry, (list, tuple)) else entry
            lines.append(f"{pad}{key}: {shown}")
    return "\n".join(lines)


@app.command("show")
@guarded
def show_command(
    run: Annotated[Path, typer.Argument(help="A run folder, or its record.json.")],
    as_json: AsJson = False,
) -> None:
    """Show the record of a run, after checking its artifacts."""
    from bench.record import load_record
    from bench.report.tables import record_text

    folder = run.parent if run.name == "record.json" else run
    record = load_record(folder)
    typer.echo((folder / "record.json").read_text().rstrip() if as_json else record_text(record))


@app.command("check")
@guarded
def check_command(
    method: MethodName = "bps", task: TaskName = "sketch", suite: SuiteName = "emoji",
    base: BaseFolder = None, option: Options = None,
) -> None:  # fmt: skip
    """Check that a method is wired into the base: equal at the start, gradients, frozen prior."""
    from bench.check import check_run
    from bench.run import Hooks

    run = _run(Hooks(), method=method, task=task, suite=suite, budget=None, seed=0, results=RESULTS,
               device="cpu", base=base, option=option, learning_rate=None, batch=4)  # fmt: skip
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


if __name__ == "__main__":
    sys.exit(app())
