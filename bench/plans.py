"""From words to plans: what `bench plan` asks for, method by method."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.arguments import parse_options
from bench.commands import Catalogue, Request
from bench.cost import libraries_bytes
from bench.gpus import find_gpu
from bench.plan import HOST_SHARE, ITEMS, MFU, Plan, Work, plan_method
from bench.shapes import Shape, shape_like, shape_of
from bench.spec import check_options
from bench.suites import Suite, find_data
from bench.tasks import find_task
from bench.timings import Timing, load_timings
from bench.types import BenchError, refusal


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What the options of `bench plan` ask for. execution: those of `with_execution`."""

    method: str
    task: str
    suite: str
    budget: str | None = None
    base: Path | None = None
    like: str = "sd15"
    size: int | None = None
    batch: int = 32
    option: Sequence[str] = ()
    shuffled: bool = True
    gpu: str = "h100"
    gpus: int = 1
    mfu: float | None = None
    timings: Path | None = None
    execution: Mapping[str, Any] = field(default_factory=dict)


def plan_runs(catalogue: Catalogue, ask: Ask, *, say: Callable[[str], None]) -> tuple[Work, list[Plan]]:
    """Plan the runs of some methods; say gets a line for each that cannot do the task.

    Raises BenchError for unknown names and for what the device or the suite cannot do.
    """
    work = work_of(ask)
    known = load_timings(ask.timings) if ask.timings is not None and work.gpu is None else None
    plans = []
    for name in catalogue.names(ask.method):
        method, preset = catalogue.find(name)
        options = check_options(method, {**preset, **parse_options(ask.option)})
        reason = refusal(method, work.task)
        if reason:
            say(f"{method.title} cannot do {ask.task}: {reason}")
            continue
        timing: Timing | None = known.find(method.name, options) if known is not None else None
        plans.append(plan_method(method, options=options, work=work, timing=timing))
        say(f"{method.title}: counted")
    return work, plans


def work_of(ask: Ask) -> Work:
    """Return what is to be done, checked; BenchError for what is not allowed."""
    request = Request(suite=ask.suite, results=Path(), **ask.execution)
    suite = request.trained_as_asked(find_data(ask.suite))
    suite.check_task(ask.task)
    precision, gpu = suite.training.precision, None if ask.gpu == "cpu" else find_gpu(ask.gpu)
    if gpu is None and (ask.gpus > 1 or precision == "fp16"):
        raise BenchError("--gpu cpu: one process, fp32 or bf16. Name a GPU for anything else.")
    if gpu is not None and precision == "bf16" and not gpu.bfloat16:
        raise BenchError(f"--precision bf16: {gpu.name} has no bfloat16. Use fp16 or fp32.")
    work = Work(
        suite=suite,
        budget=suite.budget(ask.budget),
        task=find_task(ask.task),
        shape=_shape(suite, ask),
        items=_items(suite),
        gpu=gpu,
        gpus=ask.gpus,
        execution=request.execution(),
        sampled=ask.batch,
        shuffled=ask.shuffled,
        mfu=MFU if ask.mfu is None else ask.mfu,
        process=libraries_bytes(),
        available=round(HOST_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
    )
    work.check()
    return work


def _shape(suite: Suite, ask: Ask) -> Shape:
    folder = ask.base or suite.base
    return shape_like(ask.like, size=ask.size) if folder is None else shape_of(folder, size=ask.size)


def _items(suite: Suite) -> tuple[int, int]:
    """Count the items of both sides; where the user's data are not there yet, those of the original."""
    try:
        splits = suite.splits()
    except BenchError:
        if suite.name not in ITEMS:
            raise
        return ITEMS[suite.name]
    return len(splits.side("train")), len(splits.side(suite.eval_side))
