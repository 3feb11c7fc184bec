"""`bench plan`, `bench cost` and `bench check`: before anything is spent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.options import AsJson, Asked, configured, guarded
from bench.config import OUTSIDE
from bench.terminal import aside, say, to_json

if TYPE_CHECKING:
    from bench.plan import Plan, Work

_ELSEWHERE = ("seed", "results", "learning_rate", "data", "checkpoint_every", "track", "allow_leak", *OUTSIDE)


@guarded
@configured(without=_ELSEWHERE, method=("all",), suite="coco17")
def plan(
    *,
    asked: Asked,
    like: Annotated[str, typer.Option(help="Where the suite has no base: sd15 or sd21.")] = "sd15",
    size: Annotated[int | None, typer.Option(min=64, help="Image size in pixels; else the base's.")] = None,
    gpu: Annotated[str, typer.Option(help="h100, h200, a100-80, ..., or cpu: this machine.")] = "h100",
    gpus: Annotated[int, typer.Option(min=1, help="Processes, one a GPU.")] = 1,
    mfu: Annotated[float | None, typer.Option(min=0.01, max=1, help="Share of the peak rate.")] = None,
    timings: Annotated[
        Path, typer.Option(help="Folder with timings.json of bench cost, for --gpu cpu.")
    ] = Path("results/emoji"),
    as_json: AsJson = False,
) -> None:
    """Say what runs need before they start: parameters, memory, disk, steps, hours; what won't fit."""
    from bench.plan import Machine, plan_runs

    machine = Machine(gpu=gpu, gpus=gpus, mfu=mfu, timings=timings, like=like, size=size)
    work, plans = plan_runs(asked.cells(), machine, say=aside)
    say(to_json(plan_dict(work, plans)) if as_json else plan_text(work, plans))


@guarded
@configured(
    "method",
    "task",
    "suite",
    "results",
    "base",
    "base_variant",
    "data",
    "train_batch",
    "precision",
    "device",
    "sample_batch",
    "micro_batch",
    "gradient_checkpointing",
    "compile",
    "fused",
    method=("all",),
)
def cost(
    *,
    asked: Asked,
    steps: Annotated[int, typer.Option("--train-steps", min=2, help="Optimiser steps measured.")] = 30,
    batches: Annotated[int, typer.Option("--sample-batches", min=1, help="Sampled batches measured.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds over the methods; the fastest counts.")] = 3,
    further: Annotated[bool, typer.Option("--further", help="Add rounds to earlier ones.")] = False,
    random: Annotated[
        str | None,
        typer.Option(help="Steps on random weights like sd15 or sd21 instead, beside yardsticks."),
    ] = None,
    width: Annotated[int, typer.Option(help="With --random: of the UNet's first level.")] = 320,
    size: Annotated[int | None, typer.Option(min=64, help="With --random: image size in pixels.")] = None,
    out: Annotated[Path, typer.Option(help="With --random: folder of the table.")] = Path("results/speed"),
    yardstick: Annotated[str | None, typer.Option(help="With --random: that one alone.")] = None,
) -> None:
    """Measure times and memory, one method at a time on a quiet machine, for reports of --results."""
    from bench.measure import Amount, measure_costs
    from bench.speed import Stand, measure_speeds

    if random is not None:
        stand = Stand(like=random, width=width, size=size, rounds=rounds, out=out)
        for path in measure_speeds(asked.cells(), stand, yardstick=yardstick, say=aside):
            say(path)
        return
    amount = Amount(steps=steps, batches=batches, rounds=rounds, further=further)
    say(measure_costs(asked.cells(), amount, say=aside))


@guarded
@configured("method", "options", "task", "suite", "base", "base_variant", "data")
def check(*, asked: Asked) -> None:
    """Check that a method is wired into the base: equal at the start, gradients, frozen prior."""
    from dataclasses import replace

    from bench.check import check_run
    from bench.running import Run
    from bench.suites import resolve

    findings = check_run(Run(resolve(replace(asked.one, device="cpu"))))
    for finding in findings:
        say(f"{'ok  ' if finding.holds else 'FAIL'} {finding.statement} ({finding.detail})")
    if not all(f.holds for f in findings):
        raise typer.Exit(1)


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
    from bench.reporting.grid import to_plain

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
    from bench.data.latents import size_words
    from bench.plan import disk_of_data, encode_hours

    disk = [f"{size_words(b)} of {n}" for n, b in disk_of_data(work).items()]
    if not disk:
        return []
    train, evaluation = work.items
    return [
        f"data of {train} + {evaluation} items on disk: {', '.join(disk)}; encoding them once: "
        f"{_hours(encode_hours(work))}"
    ]


def _needs(plans: Sequence[Plan]) -> list[list[Any]]:
    from bench.data.latents import size_words
    from bench.plan import gib

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
