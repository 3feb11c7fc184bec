"""`bench plan`, `bench cost` and `bench check`: before anything is spent."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.cli.options import AsJson, Asked, configured, taking
from bench.cli.terminal import aside, say, to_json
from bench.config import OUTSIDE, READING, Amount, Machine

if TYPE_CHECKING:
    from bench.config import RunConfig
    from bench.cost import Timings
    from bench.plan import Plan, Work

_NOT_PLANNED = ("seed", "learning_rate", "track", *OUTSIDE)
_MEASURED = (
    *("method", "task", "suite", "results", "base", "base_variant", "data", "train_batch", "precision"),
    *("device", "sample_batch", "micro_batch", "gradient_checkpointing", "compile", "fused", *READING),
)


@configured(without=_NOT_PLANNED, method=("all",), suite="coco17")
@taking(Machine, "machine")
def plan(
    *,
    asked: Asked,
    machine: Machine,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Take ten steps of every stage here, and plan by them.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what runs need before they start: parameters, memory, disk, steps, hours; what won't fit."""
    from bench.training.engine import launched, speaks

    if rehearse:
        machine = replace(machine, gpus=launched(), gpu=_gpu_here(asked.config.device, machine.gpu))
    values = _planned(asked.cells(), machine, rehearse=rehearse)
    if speaks():
        say(to_json(values) if as_json else plan_text(values))


def _planned(configs: Sequence[RunConfig], machine: Machine, *, rehearse: bool) -> dict[str, Any]:
    """Return plans as JSON values; those of published shapes are kept and need no torch again."""
    said: list[str] = []

    def tell(line: str) -> None:
        said.append(line)
        aside(line)

    def count() -> dict[str, Any]:
        from bench import measure
        from bench.plan import plan_runs

        how = measure.rehearse if rehearse else None
        return {"values": plan_values(*plan_runs(configs, machine, say=tell, rehearse=how)), "said": said}

    own = any(":" in c.method or c.base or c.data or c.suite != "coco17" for c in configs)
    if own or rehearse or machine.gpu == "cpu" or os.environ.get("BENCH_COCO17"):
        return count()["values"]
    import numpy as np

    from bench.content import Cache
    from bench.record import digest_sources

    versions = {name: metadata.version(name) for name in ("torch", "diffusers", "transformers")}
    key: dict[str, Any] = {"kind": "plan", "versions": versions, "sources": digest_sources()}
    key |= {"configs": [config.as_dict() for config in configs], "machine": asdict(machine)}
    kept = Cache().load_or_make(key, lambda: {"plan": np.array(json.dumps(count()))})
    found: dict[str, Any] = json.loads(str(kept["plan"]))
    for line in found["said"][len(said) :]:
        aside(line)
    return found["values"]


def _gpu_here(device: str, named: str) -> str:
    """Return which of the known GPUs this machine has, as named where it is unknown, "cpu" without any."""
    from bench.measure import machine
    from bench.plan import recognise
    from bench.record import device_words
    from bench.training.engine import find_device

    here = find_device(device)
    found = recognise(device_words(machine(here)))
    return "cpu" if here == "cpu" else found.name if found else named


@configured(*_MEASURED, method=("all",))
@taking(Amount, "amount")
def cost(*, asked: Asked, amount: Amount) -> None:
    """Measure times and memory, one method at a time on a quiet machine, for reports of --results."""
    from bench.cost import load_timings
    from bench.measure import measure_costs

    path = measure_costs(asked.cells(), amount, say=aside)
    timings = load_timings(path.parent)
    say(f"{path}\n{timings_text(timings) if timings else ''}")


@configured("method", "options", "task", "suite", "base", "base_variant", "data", *READING)
def check(*, asked: Asked) -> None:
    """Check that a method is wired into the base: equal at the start, gradients, frozen prior."""
    from bench.check import check_method
    from bench.running import Run
    from bench.suites import resolve

    run = Run(resolve(replace(asked.one, device="cpu")))
    given: dict[str, Any] = {"base": run.base, "task": run.task, "data": run.eval_data}
    findings = check_method(run.spec.method, **given, options=run.options)
    for finding in findings:
        say(f"{'ok  ' if finding.holds else 'FAIL'} {finding.statement} ({finding.detail})")
    if not all(f.holds for f in findings):
        raise typer.Exit(1)


def plan_values(work: Work, plans: Sequence[Plan]) -> dict[str, Any]:
    """Return work and plans as plain values; hours of all runs are one after another, None where unknown."""
    from bench.plan import tuning_hours

    hours = [plan.hours for plan in plans]
    return {
        "suite": work.suite.name,
        "task": work.task.name,
        "budget": work.budget.name,
        "base": work.shape.name,
        "size": work.shape.size,
        "batch": work.setting.training.batch,
        "device": work.device.name,
        "gpus": work.setting.processes,
        "precision": work.setting.training.precision,
        "items": list(work.items),
        "train_images": work.budget.train_images,
        "train_items": work.budget.train_items or work.items[0],
        "eval_items": work.evaluated(),
        "usable_bytes": work.device.usable,
        "assumed": work.assumptions,
        "data_bytes": work.disk_of_data,
        "encode_hours": work.encode_hours,
        "host_bytes": work.host,
        "hours": None if None in hours else sum(filter(None, hours)),
        "choose_side": work.suite.choose_side,
        "rates": list(work.suite.rates),
        "tuning_hours": tuning_hours(work, plans),
        "methods": [asdict(plan) for plan in plans],
    }


_PARTS = (
    *("weights", "beside", "encoders", "gradients", "buckets", "optimiser", "average", "activations"),
    *("train_peak", "sample_peak", "decode_peak"),
)


def plan_text(values: Mapping[str, Any]) -> str:
    """Return plans as plain tables with what they assume and what does not fit."""
    from bench.cost import gib
    from bench.data.latents import size_words
    from bench.reporting.render import filled

    needs, memory = [], []
    for plan in values["methods"]:
        counted, line = plan["footprint"], {"method": plan["title"]}
        line |= {name: f"{counted[name] / 1e6:.1f} M" for name in ("parameters", "trainable", "dead")}
        line |= {"steps": str(plan["steps"])}
        line |= {name: _hours(plan[f"{name}_hours"]) for name in ("train", "sample", "saving", "judge")}
        if plan["judge_hours"] is None:  # without a rehearsal
            line["judge"] = ""
        line |= {"memory": gib(plan["needed"]), "fits": "yes" if plan["fits"] else "NO"}
        for name in ("checkpoints", "written", "samples"):
            line[name] = "unknown" if plan[name] is None else size_words(plan[name])
        needs.append(line)
        parts = {name.replace("_", " "): counted[name] / 2**30 for name in _PARTS}
        filled_in = {title: f"{part:.2f}" if part else "" for title, part in parts.items()}
        memory.append({"GiB, at once": plan["title"], **filled_in})
    how = {"table": _table, "words": _hours, "gib": gib, "gb": size_words}
    return filled("plan.txt", **values, needs=needs, memory=memory, **how).rstrip()


def timings_text(timings: Timings) -> str:
    """Return timings as a plain table; where the GPU is known, with the share of its peak rate."""
    from bench.cost import gib, machine_words
    from bench.plan import recognise
    from bench.record import device_words

    gpu, rows = recognise(device_words(timings.machine)), []
    for t in timings.entries:
        images = t.train_images_per_second or 0
        rate = images * (t.train_flops or 0)
        peak = gpu.peak(str(t.setup.get("precision"))) if gpu is not None else 0
        line = {"method": t.method, "on": ", ".join(f"{k} {v}" for k, v in t.setup.items())}
        line |= {"training images/s": f"{images:.3g}" if images else ""}
        line |= {"sampling, s an image": f"{t.sample_seconds_per_image:.3g}"}
        planned = gib(t.planned_memory_bytes) if t.planned_memory_bytes else ""
        line |= {"memory": gib(t.peak_memory_bytes), "planned": planned}
        line |= {"TFLOP/s": f"{rate / 1e12:.3g}" if rate else ""}
        rows.append(line | {"of the peak rate": f"{rate / peak:.1%}" if rate and peak else ""})
    return f"{machine_words(timings.machine)}\n{_table(rows)}"


def _table(rows: Sequence[dict[str, str]]) -> str:
    from bench.reporting.render import to_plain

    columns = [name for name in (rows[0] if rows else {}) if any(row[name] for row in rows)]
    return to_plain([columns, *([row[name] for name in columns] for row in rows)]) if columns else ""


def _hours(hours: float | None) -> str:
    if hours is None:
        return "unknown"
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
