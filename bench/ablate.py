"""Ablations as runs: which exist, which are missing, how long those take, and doing them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench import registry
from bench.ablations import ABLATIONS_FOLDER, Ablation, Variant
from bench.config import RunConfig, RunSpec
from bench.grid import Outcome, Start, run_grid
from bench.hooks import Hooks
from bench.pace import Paces, duration
from bench.record import RECORD_FILE
from bench.running import Identity, finished, identify
from bench.suites import changes, resolve
from bench.trained import find_trained
from bench.types import BenchError

EXISTS, MISSING, CANNOT = "exists", "missing", "cannot be"


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One run of an ablation. folder: where it lies or will lie; why: what is wrong with it.

    state: "exists", "missing" or "cannot be". trains: whether it will train, or takes over the weights
    of another run.
    """

    variant: Variant
    spec: RunSpec
    folder: Path
    state: str
    identity: Identity | None = None
    trains: bool = False
    why: str = ""

    @property
    def config(self) -> RunConfig:
        """What the run is asked to be."""
        return self.spec.config

    @property
    def name(self) -> str:
        """What messages call it: the variant, not the options behind it."""
        return f"{self.variant.called}, {self.spec.task.name}, seed {self.config.seed}"


def plan_ablation(
    ablation: Ablation, config: RunConfig, *, tasks: Sequence[str], seeds: Sequence[int]
) -> list[Planned]:
    """Return every run of an ablation, seeds outermost, then tasks: each round is a comparison.

    config: suite, base, device, results; its budget None is the ablation's. tasks: its own where none
    are named. A run whose protocol is the suite's own belongs into the results folder, others into
    `ablations` below it.
    """
    asked = replace(config, budget=config.budget or ablation.budget, shuffled=False)
    named = registry.names("task", tasks) or ablation.tasks
    planned: dict[Path, Planned] = {}
    trained: set[str] = set()
    for seed in seeds:
        for task in named:
            for variant in ablation.variants:
                one = _planned(replace(asked, seed=seed, task=task), variant)
                if one.folder in planned:
                    continue  # a number that is the suite's own
                if ablation.resamples and one.state == MISSING:
                    one = _shared(one, config.results, trained)
                planned[one.folder] = one
    return list(planned.values())


def do_ablation(
    ablation: Ablation,
    planned: Sequence[Planned],
    *,
    hooks: Hooks,
    say: Callable[[str], None],
    jobs: int = 1,
    start: Start | None = None,
) -> list[Outcome]:
    """Do the missing runs; one that fails does not stop the others.

    Where one training serves several variants it is done before those that take it over.
    """
    missing = [one for one in planned if one.state == MISSING]
    first = [one for one in missing if one.trains or not ablation.resamples]
    later = [one for one in missing if not any(one is other for other in first)]
    outcomes: list[Outcome] = []
    for part in (first, later):
        configs, names = [one.config for one in part], [one.name for one in part]
        outcomes += run_grid(configs, names=names, hooks=hooks, say=say, jobs=jobs, start=start)
    return outcomes


def plan_text(ablation: Ablation, planned: Sequence[Planned], *, results: Path) -> str:
    """Return the question, every run with its state and about how long it takes, and the sum."""
    from bench.reporting.grid import to_plain

    paces = Paces(results)
    lines = [["task", "variant", "seed", "run", "state", "takes"]]
    seconds: list[float | None] = []
    for one in planned:
        takes = ""
        if one.state == MISSING:
            assert one.identity is not None, "what can be is identified"
            seconds.append(paces.seconds(one.spec, items=one.identity.items, trains=one.trains))
            takes = "unknown" if seconds[-1] is None else duration(seconds[-1])
        state = f"{one.state} ({one.why})" if one.why else one.state
        where = [one.spec.task.name, one.variant.called, str(one.config.seed), one.folder.name]
        lines.append([*where, state, takes])
    counts = {state: sum(one.state == state for one in planned) for state in (EXISTS, MISSING, CANNOT)}
    text = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    lacking = seconds.count(None)
    if len(seconds) > lacking:
        text += f"; {duration(sum(s for s in seconds if s))}, one after the other, starting not counted"
    if lacking:
        text += f"; {lacking} of unknown length: measure with `bench cost`"
    return f"{ablation.question}\nHeld fixed: {ablation.fixed}.\n\n{to_plain(lines, left=6)}\n{text}."


def result_text(ablation: Ablation, planned: Sequence[Planned]) -> str:
    """Return the tables of the runs that were planned and now have a record."""
    from bench.packed import load_run
    from bench.reporting.ablation_tables import ablation_text
    from bench.reporting.ablations import build_ablations

    folders = [one.folder for one in planned if (one.folder / RECORD_FILE).exists()]
    tables = build_ablations([load_run(folder) for folder in folders], only=ablation)
    if not tables:
        return "Nothing to compare yet: the reference and another variant need a record each."
    return "\n".join(ablation_text(table) for table in tables)


def _planned(config: RunConfig, variant: Variant) -> Planned:
    config = replace(
        config,
        method=variant.method,
        options=dict(variant.options),
        train_items=variant.train_items,
        guidance=variant.guidance,
        sampling_steps=variant.steps,
    )
    spec = resolve(config)
    home = config.results if _is_main(spec) else config.results / ABLATIONS_FOLDER
    try:
        identity = identify(spec)
    except BenchError as error:
        spec = replace(spec, config=replace(config, results=home))
        return Planned(variant=variant, spec=spec, folder=home / variant.called, state=CANNOT, why=str(error))
    places = [f / identity.run_id for f in (home, config.results, config.results / ABLATIONS_FOLDER)]
    folder = next((p for p in places if (p / RECORD_FILE).exists()), places[0])
    spec = replace(spec, config=replace(config, results=folder.parent))
    one = Planned(variant=variant, spec=spec, identity=identity, folder=folder, state=MISSING, trains=True)
    try:
        return one if finished(folder) is None else replace(one, state=EXISTS, trains=False)
    except BenchError as error:
        return replace(one, why=str(error))


def _is_main(spec: RunSpec) -> bool:
    """Tell whether a run has the protocol that main tables of the suite have."""
    return spec.budget.name == spec.suite.default_budget and not changes(spec.config)


def _shared(one: Planned, results: Path, trained: set[str]) -> Planned:
    """Say whether a run trains itself or takes over what another has trained, or will have."""
    assert one.identity is not None, "what is missing is identified"
    key = one.identity.training
    if key in trained or find_trained(results, key) is not None:
        return replace(one, trains=False)
    trained.add(key)
    return one
