"""`bench plan`, `bench cost` and `bench check`: before anything is spent."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.options import AsJson, Asked, configured, guarded
from bench.cli.terminal import aside, say, to_json
from bench.config import OUTSIDE, READING

if TYPE_CHECKING:
    from bench.config import RunConfig
    from bench.cost import Timings
    from bench.plan import Plan, Work

_NOT_PLANNED = ("seed", "learning_rate", "track", *OUTSIDE)
_MEASURED = (
    *("method", "task", "suite", "results", "base", "base_variant", "data", "train_batch", "precision"),
    *("device", "sample_batch", "micro_batch", "gradient_checkpointing", "compile", "fused", *READING),
)


@guarded
@configured(without=_NOT_PLANNED, method=("all",), suite="coco17")
def plan(
    *,
    asked: Asked,
    like: Annotated[str, typer.Option(help="Where the suite has no base: sd15, sd21 or sdxl.")] = "sd15",
    size: Annotated[int | None, typer.Option(min=64, help="Image size in pixels; else the base's.")] = None,
    gpu: Annotated[str, typer.Option(help="h100, h200, a100-80, ..., or cpu: this machine.")] = "h100",
    gpus: Annotated[int, typer.Option(min=1, help="Processes, one a GPU.")] = 1,
    mfu: Annotated[
        float | None, typer.Option(min=0.01, max=1, help="Share of the peak rate; else as published runs.")
    ] = None,
    timings: Annotated[
        Path, typer.Option(help="Folder with timings.json of bench cost, for --gpu cpu.")
    ] = Path("results/emoji"),
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Take ten steps of every stage here, and plan by them.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what runs need before they start: parameters, memory, disk, steps, hours; what won't fit."""
    from bench.training.engine import launched, speaks

    machine: dict[str, Any] = {"gpu": gpu, "gpus": gpus, "mfu": mfu, "like": like, "size": size}
    if rehearse:
        machine |= {"gpus": launched(), "gpu": _gpu_here(asked.config.device, gpu)}
    planned = _planned(asked.cells(), machine, timings=timings, rehearse=rehearse)
    if speaks():
        say(to_json(planned["values"]) if as_json else planned["text"])


def _planned(
    configs: Sequence[RunConfig], machine: dict[str, Any], *, timings: Path, rehearse: bool
) -> dict[str, Any]:
    """Return plans as JSON values and text; those of published shapes are kept and need no torch again."""
    from bench.content import Cache

    said: list[str] = []

    def tell(line: str) -> None:
        said.append(line)
        aside(line)

    def count() -> dict[str, Any]:
        from bench import measure
        from bench.plan import plan_runs

        how = measure.rehearse if rehearse else None
        work, plans = plan_runs(configs, timings=timings, say=tell, rehearse=how, **machine)
        return {"values": plan_dict(work, plans), "text": plan_text(work, plans), "said": said}

    suite, asked = configs[0].suite, [config.as_dict() for config in configs]
    own = any(":" in config.method or config.base or config.data for config in configs)
    if rehearse or own or machine["gpu"] == "cpu" or suite != "coco17" or os.environ.get("BENCH_COCO17"):
        return count()
    import numpy as np

    from bench.record import digest_sources

    versions = {name: metadata.version(name) for name in ("torch", "diffusers", "transformers")}
    key = {"kind": "plan", "configs": asked, "machine": machine, "versions": versions}
    found = Cache().load_or_make(
        {**key, "sources": digest_sources()}, lambda: {"plan": np.array(json.dumps(count()))}
    )
    kept: dict[str, Any] = json.loads(str(found["plan"]))
    for line in kept["said"] if not said else ():
        aside(line)
    return kept


def _gpu_here(device: str, named: str) -> str:
    """Return which of the known GPUs this machine has, as named where it is unknown, "cpu" without any."""
    from bench.measure import machine
    from bench.plan import recognise
    from bench.record import device_words
    from bench.training.engine import find_device

    here = find_device(device)
    found = recognise(device_words(machine(here)))
    return "cpu" if here == "cpu" else found.name if found else named


@guarded
@configured(*_MEASURED, method=("all",))
def cost(
    *,
    asked: Asked,
    steps: Annotated[int, typer.Option("--train-steps", min=1, help="Optimiser steps measured.")] = 30,
    batches: Annotated[int, typer.Option("--sample-batches", min=1, help="Sampled batches measured.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds over the methods; the fastest counts.")] = 3,
    random: Annotated[
        str | None, typer.Option(help="On random weights like sd15, sd21 or sdxl instead, beside yardsticks.")
    ] = None,
    width: Annotated[int, typer.Option(help="With --random: of the UNet's first level.")] = 320,
    size: Annotated[int | None, typer.Option(min=64, help="With --random: image size in pixels.")] = None,
) -> None:
    """Measure times and memory, one method at a time on a quiet machine, for reports of --results."""
    from bench.cost import load_timings
    from bench.measure import Amount, measure_costs

    amount = Amount(
        steps=steps, batches=batches, rounds=rounds, random=random, width=width, size=size if random else None
    )
    path = measure_costs(asked.cells(), amount, say=aside)
    timings = load_timings(path.parent)
    say(f"{path}\n{timings_text(timings) if timings else ''}")


@guarded
@configured("method", "options", "task", "suite", "base", "base_variant", "data", *READING)
def check(*, asked: Asked) -> None:
    """Check that a method is wired into the base: equal at the start, gradients, frozen prior."""
    from bench.check import check_method
    from bench.running import Run
    from bench.suites import resolve

    run = Run(resolve(replace(asked.one, device="cpu")))
    findings = check_method(
        run.spec.method, base=run.base, task=run.task, data=run.eval_data, options=run.options
    )
    for finding in findings:
        say(f"{'ok  ' if finding.holds else 'FAIL'} {finding.statement} ({finding.detail})")
    if not all(f.holds for f in findings):
        raise typer.Exit(1)


def plan_dict(work: Work, plans: Sequence[Plan]) -> dict[str, Any]:
    """Return work and plans as plain values."""
    return {
        "suite": work.suite.name,
        "task": work.task.name,
        "budget": work.budget.name,
        "base": work.shape.name,
        "size": work.shape.size,
        "batch": work.setting.training.batch,
        "device": work.device,
        "gpus": work.setting.processes,
        "precision": work.setting.training.precision,
        "items": list(work.items),
        "usable_bytes": work.usable,
        "assumed": work.assumptions,
        "data_bytes": work.disk_of_data,
        "encode_hours": work.encode_hours,
        "host_bytes": work.host,
        "hours": _sum(plans),
        "methods": [
            {**asdict(p), "footprint": {**asdict(p.footprint), "peak": p.footprint.peak}} for p in plans
        ],
    }


def plan_text(work: Work, plans: Sequence[Plan]) -> str:
    """Return plans as plain tables with what they assume and what does not fit."""
    from bench.data.latents import size_words
    from bench.plan import gib, tuning_hours

    training, (train, evaluation) = work.setting.training, work.items
    seen = work.budget.train_items or train
    asked = min(evaluation, work.budget.eval_items or evaluation)
    needs, memory = [], []
    for p in plans:
        count = p.footprint
        needs.append(
            {
                "method": p.title,
                "parameters": f"{count.parameters / 1e6:.1f} M",
                "trained": f"{count.trainable / 1e6:.1f} M",
                "dead": f"{count.dead / 1e6:.1f} M" if count.dead else "0",
                "steps": str(p.steps),
                "training": _hours(p.train_hours),
                "sampling": _hours(p.sample_hours),
                "memory": gib(p.needed),
                "fits": "yes" if p.fits else "NO",
                "saving": _hours(p.saving_hours),
                "judging": _hours(p.judge_hours) if p.judge_hours is not None else "",
                "checkpoints": size_words(p.checkpoints),
                "written in all": "unknown" if p.written is None else size_words(p.written),
                "samples": size_words(p.samples),
            }
        )
        parts = {title: getattr(count, name) for name, title in _PARTS.items()}
        sizes = {title: f"{part / 2**30:.2f}" if part else "" for title, part in parts.items()}
        memory.append({"GiB, at once": p.title, **sizes})
    disk = ", ".join(f"{size_words(count)} of {name}" for name, count in work.disk_of_data.items())
    once = f"data of {train} + {evaluation} items on disk: {disk}; encoding them once: "
    lines = [
        f"suite {work.suite.name}, {work.task.name}, budget {work.budget.name}: base {work.shape.name}, "
        f"{work.shape.size} px, batch {training.batch}, {training.precision}, "
        f"{work.setting.processes} x {work.device} ({gib(work.usable)} usable)",
        f"{work.budget.train_images:,} training images, {work.budget.train_images / seen:.3g} times "
        f"{seen:,} items; {asked:,} evaluation items",
        "",
        _table(needs),
        _table(memory),
        *([once + _hours(work.encode_hours)] if disk else []),
        f"scoring holds {gib(work.host)} of the machine's own memory at most",
        f"all runs one after another: {_hours(_sum(plans))}",
        f"learning rates beforehand, bench tune --budget quick --side {work.suite.choose_side}: "
        f"{len(work.suite.rates)} rates ({', '.join(work.suite.rates)}) of every method that trains, "
        f"{_hours(tuning_hours(work, plans))} a seed",
        "",
        *(f"{p.title} does NOT fit. {p.advice}" for p in plans if not p.fits),
        *work.assumptions,
    ]
    return "\n".join(lines)


_PARTS = {
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


def _sum(plans: Sequence[Plan]) -> float | None:
    """Return the hours of all runs one after another; None where one is unknown."""
    parts = [plan.hours for plan in plans]
    return None if None in parts else sum(hours for hours in parts if hours is not None)


def timings_text(timings: Timings) -> str:
    """Return timings as a plain table; where the GPU is known, with the share of its peak rate."""
    from bench.cost import machine_words
    from bench.plan import gib, recognise
    from bench.record import device_words

    gpu, rows = recognise(device_words(timings.machine)), []
    for t in timings.entries:
        rate = (t.train_images_per_second or 0) * (t.train_flops or 0)
        peak = gpu.peak(str(t.setup.get("precision"))) if gpu is not None else 0
        rows.append(
            {
                "method": t.method,
                "on": ", ".join(f"{k} {v}" for k, v in t.setup.items()),
                "training images/s": f"{t.train_images_per_second:.3g}" if t.train_images_per_second else "",
                "sampling, s an image": f"{t.sample_seconds_per_image:.3g}",
                "memory": gib(t.peak_memory_bytes),
                "planned": gib(t.planned_memory_bytes) if t.planned_memory_bytes else "",
                "TFLOP/s": f"{rate / 1e12:.3g}" if rate else "",
                "of the peak rate": f"{rate / peak:.1%}" if rate and peak else "",
            }
        )
    return f"{machine_words(timings.machine)}\n{_table(rows)}"


def _table(rows: Sequence[dict[str, str]]) -> str:
    """Return rows of cells by column as a plain table without the columns that are empty."""
    from bench.reporting.render import to_plain

    columns = [name for name in (rows[0] if rows else {}) if any(row[name] for row in rows)]
    return to_plain([columns, *([row[name] for name in columns] for row in rows)]) if columns else ""


def _hours(hours: float | None) -> str:
    if hours is None:
        return "unknown"
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
