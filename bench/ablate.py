"""Ablations from words to runs: which exist, which are missing, how long those take, and doing them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.ablations import ABLATIONS_FOLDER, Ablation, Variant
from bench.arguments import parse_names, parse_numbers
from bench.commands import Catalogue, Request, make_run, make_spec, run_cells
from bench.grid import Child, Outcome
from bench.hooks import Hooks
from bench.record import RECORD_FILE, load_record
from bench.report.names import option_text
from bench.run import Run
from bench.spec import RunSpec, check_options, learning_rate, run_id, train_items
from bench.suites import changes, find_suite
from bench.tasks import TASKS, find_task
from bench.trained import find_trained, training_key
from bench.types import BenchError, refusal

EXISTS, MISSING, CANNOT = "exists", "missing", "cannot be"


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One run of an ablation. folder: where it lies or will lie; why: what is wrong with it.

    state: "exists", "missing" or "cannot be". training: its key, see `bench.trained`; trains: whether
    it will train, or takes over the weights of another run.
    """

    variant: Variant
    request: Request
    spec: RunSpec
    seed: int
    folder: Path
    state: str
    training: str
    trains: bool
    items: int
    why: str = ""

    @property
    def name(self) -> str:
        """What messages call it: the variant, not the options behind it."""
        return f"{self.variant.called}, {self.spec.task}, seed {self.seed}"

    @property
    def cell(self) -> tuple[Request, str, str, int]:
        """What `run_cells` takes."""
        return self.request, self.variant.method, self.spec.task, self.seed


def plan_ablation(
    catalogue: Catalogue, ablation: Ablation, request: Request, *, task: str | None, seeds: str
) -> list[Planned]:
    """Return every run of an ablation, seeds outermost, then tasks: each round is a comparison.

    request: suite, base, device, results; its budget None is the ablation's. A run whose protocol is
    the suite's own belongs into the results folder, others into `ablations` below it.
    """
    budget = request.budget or ablation.budget
    asked = replace(request, budget=budget, shuffled=False)
    suite = find_suite(asked.suite, base=asked.base, data=asked.data)
    tasks = _tasks(ablation, task)
    for name in tasks:
        suite.check_task(name)
    suite.budget(budget)
    known = {name: _known(catalogue, asked, task=name) for name in tasks}
    planned: dict[Path, Planned] = {}
    trained: set[str] = set()
    for seed in parse_numbers("--seeds", seeds, kind=int):
        for name in tasks:
            for variant in ablation.variants:
                one = _planned(catalogue, asked, variant, run=known[name], seed=seed)
                if one.folder in planned:
                    continue  # a number that is the suite's own
                if ablation.resamples and one.state == MISSING:
                    one = _shared(one, request.results, trained)
                planned[one.folder] = one
    return list(planned.values())


def do_ablation(
    catalogue: Catalogue,
    ablation: Ablation,
    planned: Sequence[Planned],
    *,
    hooks: Hooks,
    say: Callable[[str], None],
    jobs: int = 1,
    start: Callable[[Sequence[str]], Child] | None = None,
) -> list[Outcome]:
    """Do the missing runs; one that fails does not stop the others. start: see `run_cells`.

    Where one training serves several variants it is done before those that take it over.
    """
    missing = [one for one in planned if one.state == MISSING]
    first = [one for one in missing if one.trains or not ablation.resamples]
    later = [one for one in missing if not any(one is other for other in first)]
    outcomes: list[Outcome] = []
    for part in (first, later):
        if part:
            outcomes += run_cells(
                catalogue,
                [one.cell for one in part],
                names=[one.name for one in part],
                hooks=hooks,
                say=say,
                jobs=jobs,
                start=start,
            )
    return outcomes


def _tasks(ablation: Ablation, task: str | None) -> list[str]:
    if task is None:
        return list(ablation.tasks)
    return parse_names("task", task, allowed=TASKS, groups={"all": tuple(TASKS)})


def _known(catalogue: Catalogue, request: Request, *, task: str) -> Run:
    """Load data, base and judges of a task once: every run of it has the same."""
    return make_run(catalogue, request, method="text-only", task=task, seed=0)


def _planned(catalogue: Catalogue, request: Request, variant: Variant, *, run: Run, seed: int) -> Planned:
    option = [f"{key}={option_text(value)}" for key, value in variant.options.items()]
    own = replace(
        request,
        option=option,
        train_items=variant.train_items,
        guidance=variant.guidance,
        steps=variant.steps,
    )
    spec = make_spec(catalogue, own, method=variant.method, task=run.spec.task, seed=seed)
    protocol = replace(run.protocol, budget=spec.budget, sampler=spec.suite.sampler)
    options = check_options(spec.method, spec.options)
    name = run_id(spec, options, protocol)
    home = request.results if _is_main(spec) else request.results / ABLATIONS_FOLDER
    places = [home / name, request.results / name, request.results / ABLATIONS_FOLDER / name]
    folder = next((p for p in places if (p / RECORD_FILE).exists()), places[0])
    own = replace(own, results=folder.parent)
    state, why = _state(spec, run, folder)
    key = training_key(
        protocol.as_dict(),
        method=spec.method.name,
        options=options,
        seed=seed,
        learning_rate=learning_rate(spec),
        device=spec.device,
    )
    return Planned(
        variant=variant,
        request=own,
        spec=spec,
        seed=seed,
        folder=folder,
        state=state,
        why=why,
        training=key,
        trains=state == MISSING,
        items=len(run.eval_ids),
    )


def _is_main(spec: RunSpec) -> bool:
    """Tell whether a run has the protocol that main tables of the suite have."""
    own = spec.budget.name == spec.suite.default_budget
    return own and not changes(spec.suite, spec.budget)


def _state(spec: RunSpec, run: Run, folder: Path) -> tuple[str, str]:
    """Return a run's state and what is wrong with it."""
    try:
        reason = refusal(spec.method, find_task(spec.task))
        train_items(run.splits.side("train"), spec.budget)
    except BenchError as error:
        reason = str(error)
    if reason:
        return CANNOT, reason
    if not (folder / RECORD_FILE).exists():
        return MISSING, ""
    try:
        load_record(folder)
    except BenchError as error:
        return MISSING, str(error)
    return EXISTS, ""


def _shared(one: Planned, results: Path, trained: set[str]) -> Planned:
    """Say whether a run trains itself or takes over what another has trained, or will have."""
    if one.training in trained or find_trained(results, one.training) is not None:
        return replace(one, trains=False)
    trained.add(one.training)
    return one
