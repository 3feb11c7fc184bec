"""`bench plan` and `bench speed`: what runs will need, before anything is spent, and how fast steps are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.app.options import (
    LIST,
    AsJson,
    BaseFolder,
    Batch,
    BudgetName,
    Device,
    Methods,
    Options,
    Shuffled,
    SuiteName,
    TaskName,
    guarded,
    with_execution,
)
from bench.terminal import aside, say, to_json

if TYPE_CHECKING:
    from bench.plan import Plan, Work

Like = Annotated[str, typer.Option(help="Where the suite has no base: sd15 or sd21.")]
Width = Annotated[int, typer.Option(help="Of the UNet's first level; 320 is the real width.")]
SPEED = Path("results/speed")
Size = Annotated[int | None, typer.Option(min=64, help="Image size in pixels; else the base's.")]


def plan_or(catalogue: Any) -> Any:
    """Return the command; catalogue: () -> the joined tables of methods."""

    @guarded
    @with_execution
    def command(
        method: Methods = "all",
        task: TaskName = "sketch",
        suite: SuiteName = "coco17",
        budget: BudgetName = None,
        base: BaseFolder = None,
        like: Like = "sd15",
        size: Size = None,
        batch: Batch = 32,
        option: Options = None,
        shuffled: Shuffled = True,
        gpu: Annotated[str, typer.Option(help="h100, h200, a100-80, ..., or cpu: this machine.")] = "h100",
        gpus: Annotated[int, typer.Option(min=1, help="Processes, one a GPU.")] = 1,
        mfu: Annotated[
            float | None, typer.Option(min=0.01, max=1, help="Share of the peak rate, by bench speed.")
        ] = None,
        timings: Annotated[
            Path, typer.Option(help="Folder with timings.json of bench cost, for --gpu cpu.")
        ] = Path("results/emoji"),
        as_json: AsJson = False,
        *,
        execution: dict[str, Any],
    ) -> None:
        """Say what runs need before they start: parameters, memory, disk, steps, hours; what won't fit."""
        from bench.plans import Ask, plan_runs

        ask = Ask(
            method=method,
            task=task,
            suite=suite,
            budget=budget,
            base=base,
            like=like,
            size=size,
            batch=batch,
            option=option or (),
            shuffled=shuffled,
            gpu=gpu,
            gpus=gpus,
            mfu=mfu,
            timings=timings,
            execution=execution,
        )
        work, plans = plan_runs(catalogue(), ask, say=aside)
        say(to_json(plan_dict(work, plans)) if as_json else plan_text(work, plans))

    return command


def speed_or(catalogue: Any) -> Any:
    """Return the command; catalogue: () -> the joined tables of methods."""

    @guarded
    @with_execution
    def command(
        method: Annotated[
            str,
            typer.Option("--method", metavar=LIST, help="Methods as elsewhere, all, or yardsticks."),
        ] = "all,yardsticks",
        task: TaskName = "sketch",
        like: Like = "sd15",
        width: Width = 320,
        size: Size = None,
        batch: Annotated[int, typer.Option(min=1, help="Images of a training step.")] = 16,
        sampled: Annotated[int, typer.Option(min=1, help="Images of a sampling step.")] = 16,
        rounds: Annotated[int, typer.Option(min=1, help="Measured steps, after one.")] = 5,
        device: Device = "auto",
        out: Annotated[Path, typer.Option(help="Folder.")] = SPEED,
        *,
        execution: dict[str, Any],
    ) -> None:
        """Measure steps on random weights: seconds, peak memory, share of the peak rate; a process each."""
        from bench.speeds import SpeedAsk, measure_speeds

        ask = SpeedAsk(
            method=method,
            task=task,
            like=like,
            width=width,
            size=size,
            batch=batch,
            sampled=sampled,
            rounds=rounds,
            device=device,
            out=out,
            execution=execution,
        )
        for path in measure_speeds(catalogue(), ask, say=aside):
            say(path)

    return command


def plan_dict(work: Work, plans: Sequence[Plan]) -> dict[str, Any]:
    """Return work and plans as plain values."""
    from bench.plan import assumptions, disk_of_data, encode_hours, total_hours

    return {
        "suite": work.suite.name,
        "task": work.task.name,
        "budget": work.budget.name,
        "base": work.shape.name,
        "size": work.shape.size,
        "batch": work.suite.training.batch,
        "device": work.device,
        "gpus": work.gpus,
        "precision": work.suite.training.precision,
        "items": list(work.items),
        "usable_bytes": work.usable,
        "assumed": assumptions(work),
        "data_bytes": disk_of_data(work),
        "encode_hours": encode_hours(work),
        "hours": total_hours(plans),
        "methods": [p.as_dict() for p in plans],
    }


def plan_text(work: Work, plans: Sequence[Plan]) -> str:
    """Return plans as plain tables with what they assume and what does not fit."""
    from bench.plan import assumptions, gib, total_hours
    from bench.report.grid import to_plain

    training = work.suite.training
    head = (
        f"suite {work.suite.name}, {work.task.name}, budget {work.budget.name}: base {work.shape.name}, "
        f"{work.shape.size} px, batch {training.batch}, {training.precision}, "
        f"{work.gpus} x {work.device} ({gib(work.usable)} usable)"
    )
    hours = total_hours(plans)
    lines = [
        head,
        "",
        to_plain(_needs(plans)),
        to_plain(_memory(plans)),
        *_data(work),
        f"all runs one after another: {_hours(hours)}",
        "",
        *(f"{p.title} does NOT fit. {p.advice}" for p in plans if not p.fits),
        *assumptions(work),
    ]
    return "\n".join(lines)


def _data(work: Work) -> list[str]:
    from bench.plan import disk_of_data, encode_hours
    from bench.shards import size_words

    disk = [f"{size_words(b)} of {n}" for n, b in disk_of_data(work).items()]
    if not disk:
        return []
    train, evaluation = work.items
    return [
        f"data of {train} + {evaluation} items on disk: {', '.join(disk)}; encoding them once: "
        f"{_hours(encode_hours(work))}"
    ]


def _needs(plans: Sequence[Plan]) -> list[list[Any]]:
    from bench.plan import gib
    from bench.shards import size_words

    rows: list[list[Any]] = [
        [
            "method",
            "parameters",
            "trained",
            "dead",
            "steps",
            "training",
            "sampling",
            "memory",
            "fits",
            "checkpoints",
            "samples",
        ]
    ]
    for p in plans:
        f = p.footprint
        rows.append(
            [
                p.title,
                f"{f.parameters / 1e6:.1f} M",
                f"{f.trainable / 1e6:.1f} M",
                f"{f.dead / 1e6:.1f} M" if f.dead else "0",
                str(p.steps),
                _hours(p.train_hours),
                _hours(p.sample_hours),
                gib(p.needed),
                "yes" if p.fits else "NO",
                size_words(p.checkpoints),
                size_words(p.samples),
            ]
        )
    return rows


def _memory(plans: Sequence[Plan]) -> list[list[Any]]:
    from bench.gpus import GIB

    parts = {
        "weights": "weights",
        "beside": "base's copy",
        "encoders": "VAE, text",
        "gradients": "gradients",
        "buckets": "buckets",
        "optimiser": "AdamW",
        "average": "EMA",
        "activations": "activations",
        "train_peak": "training peak",
        "sample_peak": "sampling peak",
        "decode_peak": "decoding peak",
    }
    shown = [n for n in parts if any(getattr(p.footprint, n) for p in plans)]
    rows: list[list[Any]] = [["GiB, at once", *(parts[n] for n in shown)]]
    for p in plans:
        rows.append([p.title, *(f"{getattr(p.footprint, n) / GIB:.2f}" for n in shown)])
    return rows


def _hours(hours: float | None) -> str:
    if hours is None:
        return "unknown"
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
