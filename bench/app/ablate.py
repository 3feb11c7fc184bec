"""`bench ablate`: do what is missing of an ablation, and show its table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.app.options import (
    LIST,
    RESULTS,
    BaseFolder,
    Batch,
    BudgetName,
    CpusPerRun,
    DataFolder,
    Device,
    Every,
    GpusPerRun,
    Jobs,
    Ray,
    Results,
    Seeds,
    SuiteName,
    Variant,
    guarded,
)
from bench.app.outcomes import end
from bench.terminal import aside, say

if TYPE_CHECKING:
    from bench.ablate import Planned
    from bench.ablations import Ablation
    from bench.forecast import Forecast


def ablate_of(catalogue: Callable[[], Any]) -> Callable[..., None]:
    """Return `bench ablate`; catalogue: gives the tables of methods, which the command line joins."""

    @guarded
    def ablate(
        name: Annotated[str, typer.Argument(help="prior, schedule, sites, data, guidance or steps.")],
        task: Annotated[
            str | None, typer.Option("--task", metavar=LIST, help="Tasks: a,b or all; else its own.")
        ] = None,
        seeds: Seeds = "0,1,2",
        suite: SuiteName = "emoji",
        budget: BudgetName = None,
        jobs: Jobs = 1,
        results: Results = RESULTS,
        device: Device = "auto",
        base: BaseFolder = None,
        batch: Batch = 32,
        checkpoint_every: Every = 100,
        data: DataFolder = None,
        weights: Variant = None,
        ray: Ray = None,
        cpus_per_run: CpusPerRun = 1,
        gpus_per_run: GpusPerRun = 0,
        plan: Annotated[bool, typer.Option("--plan", help="Say what is missing, and stop.")] = False,
    ) -> None:
        """Compare the variants of one design choice: runs that exist are used, missing ones made."""
        from bench.ablate import do_ablation, plan_ablation
        from bench.ablations import ABLATIONS
        from bench.cluster import placed
        from bench.commands import Request
        from bench.console import console_hooks
        from bench.forecast import Forecast
        from bench.types import unknown

        if name not in ABLATIONS:
            raise unknown("ablation", name, ABLATIONS)
        ablation, tables = ABLATIONS[name], catalogue()
        request = Request(
            suite=suite,
            budget=budget,
            results=results,
            device=device,
            base=base,
            batch=batch,
            checkpoint_every=checkpoint_every,
            data=data,
            variant=weights,
        )
        planned = plan_ablation(tables, ablation, request, task=task, seeds=seeds)
        (say if plan else aside)(plan_text(ablation, planned, Forecast(results)))
        if plan:
            return
        with console_hooks() as hooks, placed(ray, cpus=cpus_per_run, gpus=gpus_per_run) as start:
            outcomes = do_ablation(tables, ablation, planned, hooks=hooks, say=aside, jobs=jobs, start=start)
        say(_tables(ablation, planned, results))
        end(outcomes)

    return ablate


def plan_text(ablation: Ablation, planned: Sequence[Planned], forecast: Forecast) -> str:
    """Return the question, every run with its state and about how long it takes, and the sum."""
    from bench.ablate import MISSING
    from bench.forecast import duration
    from bench.report.grid import to_plain

    lines = [["task", "variant", "seed", "run", "state", "takes"]]
    for one in planned:
        seconds = forecast.seconds(one)
        takes = "unknown" if seconds is None else duration(seconds)
        takes = takes if one.state == MISSING else ""
        state = f"{one.state} ({one.why})" if one.why else one.state
        lines.append([one.spec.task, one.variant.called, str(one.seed), one.folder.name, state, takes])
    return (
        f"{ablation.question}\nHeld fixed: {ablation.fixed}.\n\n{to_plain(lines, left=6)}\n"
        f"{forecast.words(planned)}"
    )


def _tables(ablation: Ablation, planned: Sequence[Planned], results: Path) -> str:
    """Return the tables of the runs that were planned and now have a record."""
    from bench.record import RECORD_FILE
    from bench.report.ablation_tables import ablation_text
    from bench.report.ablations import build_ablations
    from bench.report.runs import load_run

    folders = [one.folder for one in planned if (one.folder / RECORD_FILE).exists()]
    tables = build_ablations([load_run(folder) for folder in folders], only=ablation)
    if not tables:
        return "Nothing to compare yet: the reference and another variant need a record each."
    return "\n".join(ablation_text(table) for table in tables)
