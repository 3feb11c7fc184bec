"""Many runs: each in a process of its own, some at once; the runs of an ablation; how long they take.

A process a run keeps peak memory honest and lets the grid go on when one run is killed; without a GPU it is
a fork of one that has imported what all need.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median_low
from typing import Any

from bench import registry
from bench.ablations import ABLATIONS_FOLDER, Ablation, Variant
from bench.child import LOOK_SECONDS, STOPPED, Fork, Process, Remote, can_fork, child
from bench.config import RunConfig, RunSpec, Training, option_text
from bench.packed import kept_records
from bench.record import RECORD_FILE, RunRecord, load_record
from bench.running import Identity, finished, identify
from bench.suites import changes, check_shared, resolve
from bench.training.checkpoint import find_trained
from bench.training.engine import find_device, launched
from bench.types import BenchError, Hooks, Refused, Stopped

EXISTS, MISSING, CANNOT = "exists", "missing", "cannot be"
PUBLISHED = Path("results/emoji")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a run: a record and its folder, or what went wrong, or why it cannot be."""

    name: str
    config: RunConfig
    record: RunRecord | None = None
    folder: Path | None = None
    error: str | None = None
    refused: str | None = None

    @property
    def state(self) -> str:
        """What became of it in words."""
        return self.error or self.refused or "done"


Started = Process | Fork | Remote
Start = Callable[[Sequence[str]], Started]
"""Starts this program's command line with some arguments, see `bench.child`."""
RateOf = Callable[[RunSpec], float | None]
"""Chooses a run's learning rate; None leaves the suite's."""


def run_grid(
    configs: Sequence[RunConfig],
    *,
    names: Sequence[str] | None = None,
    hooks: Hooks | None = None,
    say: Callable[[str], None] = lambda text: None,
    start: Start | None = None,
    jobs: int = 1,
    processes: int = 1,
) -> list[Outcome]:
    """Do every run that has no valid record yet; one that fails does not stop the others.

    names: what messages call each. start: starts a run elsewhere, where there is room; None: here, `jobs` at
    once with their share of the cores, each by so many processes. Raises Stopped where somebody asked to
    stop, after the running ones have saved their work, and BenchError in one of a launcher's processes.
    """
    _check_grid(configs, processes=processes)
    names = names or [describe(config) for config in configs]
    most = jobs if start is None else len(configs)
    if start is None:
        forks = all(can_fork(find_device(device)) for device in {config.device for config in configs})
        start = starter(jobs, processes=processes, forks=forks)
    ended: dict[int, Outcome] = {}
    running: dict[int, tuple[Outcome, Started | None]] = {}
    while len(ended) < len(configs):
        while len(running) < most and (number := len(ended) + len(running)) < len(configs):
            running[number] = _begun(Outcome(name=names[number], config=configs[number]), start)
        for number, (outcome, process) in list(running.items()):
            code = 0 if process is None else process.poll()
            if code is not None:
                del running[number]
                _stop_at(code if code in STOPPED else None, running)
                ended[number] = outcome if process is None else _ended(outcome, process, code)
                say(f"[{len(ended)}/{len(configs)}] {names[number]}: {ended[number].state}")
        _stop_at((hooks or Hooks()).stop(), running)
        if running:
            time.sleep(LOOK_SECONDS)
    return [ended[number] for number in range(len(configs))]


def _check_grid(configs: Sequence[RunConfig], *, processes: int) -> None:
    """Raise BenchError for what no grid can do, before any of it begins."""
    if configs and launched() > 1:
        raise BenchError(
            f"{len(configs)} runs were asked of {launched()} launched processes, which share one run. "
            "Launch one method, task and seed at a time."
        )
    if processes > 1 and any(config.as_released and not config.train_batch for config in configs):
        raise BenchError(f"--as-released takes 16 images a process: say --train-batch {16 * processes}.")
    methods = sorted({config.method for config in configs if config.weights is not None})
    if len(methods) > 1:
        raise BenchError(
            f"--weights {configs[0].weights} belong to one method, got {', '.join(methods)}. Name one with "
            "--method."
        )
    for config in {config.task: config for config in configs}.values():
        check_shared(config)


def _begun(outcome: Outcome, start: Start) -> tuple[Outcome, Started | None]:
    """Start a run, unless it has a record or cannot be."""
    config = outcome.config
    try:
        folder = config.results / identify(resolve(config)).run_id
        outcome = replace(outcome, record=finished(folder), folder=folder)
    except Refused as reason:
        return replace(outcome, refused=str(reason)), None
    except (BenchError, OSError) as error:
        return replace(outcome, error=str(error)), None
    if outcome.record is not None:
        return outcome, None
    return outcome, start(("run", "--no-floor", "--config", json.dumps(config.as_dict())))


def _ended(outcome: Outcome, process: Started, code: int) -> Outcome:
    if code:
        return replace(outcome, error=f"failed with exit code {code}, {process.last_line()}")
    try:
        return replace(outcome, record=load_record(outcome.folder or Path()))
    except (BenchError, OSError) as error:
        return replace(outcome, error=str(error))


def _stop_at(code: int | None, running: Mapping[int, tuple[Outcome, Started | None]]) -> None:
    """With a code, ask every run to save its work, wait for it and raise Stopped."""
    if code is None:
        return
    processes = [process for _, process in running.values() if process is not None]
    for process in processes:
        process.terminate()
    while any(process.poll() is None for process in processes):
        time.sleep(LOOK_SECONDS)
    raise Stopped(code)


def describe(config: RunConfig) -> str:
    """Return what messages call a run: method, task, seed and what is set apart."""
    rate = [] if config.learning_rate is None else [f"learning rate {config.learning_rate:g}"]
    options = [f"{name}={option_text(value)}" for name, value in config.options.items()]
    more = [f"{name.replace('_', ' ')} {value}" for name, value in changes(config).items()]
    return ", ".join([config.method, config.task, f"seed {config.seed}", *rate, *options, *more])


def starter(jobs: int, *, processes: int = 1, forks: bool = False) -> Start:
    """Return what starts a run here; jobs share the cores unless the user has set OMP_NUM_THREADS."""
    share = str(max(1, (os.cpu_count() or 1) // jobs))
    threads = {} if jobs == 1 or "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": share}
    if forks and processes == 1:
        return partial(Fork, alone=jobs == 1, added=threads)
    return partial(child, alone=jobs == 1, added=threads, processes=processes)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One run of an ablation: folder, EXISTS, MISSING or CANNOT, and why; no identity where it cannot be.

    trains: whether it will train, or takes over the weights of another run.
    """

    variant: Variant
    spec: RunSpec
    folder: Path
    state: str
    identity: Identity | None = None
    trains: bool = False
    why: str = ""

    @property
    def name(self) -> str:
        """What messages call it: the variant, not the options behind it."""
        choice = f", choice {self.spec.budget.train_subset}" if self.variant.subsets > 1 else ""
        return f"{self.variant.called}{choice}, {self.spec.task.name}, seed {self.spec.config.seed}"


def plan_ablation(
    ablation: Ablation,
    config: RunConfig,
    *,
    tasks: Sequence[str],
    seeds: Sequence[int],
    rate_of: RateOf | None = None,
) -> list[Planned]:
    """Return every run of an ablation, seeds outermost, then tasks: each round is a comparison.

    tasks: the ablation's own where none are named, as its budget. A run whose protocol is the suite's own
    belongs into the results folder, others into `ablations` below. Where variants differ in sampling alone,
    one training serves all. Of a learning curve the first seed is sampled under wrong conditions too.
    """
    tasks = registry.names("task", tasks) or ablation.tasks
    for task in tasks:
        check_shared(replace(config, task=task))
    asked = replace(config, budget=config.budget or ablation.budget)
    variants = [(v, subset) for v in ablation.variants for subset in range(v.subsets)]
    planned: dict[Path, Planned] = {}
    trained: set[str] = set()
    for seed, task, (variant, subset) in itertools.product(seeds, tasks, variants):
        gains = config.shuffled and ablation.gains and seed == seeds[0]
        own = replace(asked, seed=seed, task=task, shuffled=gains, train_subset=subset or None)
        entry = _planned(own, variant, rate_of)
        if entry.folder in planned:
            continue  # a number that is the suite's own
        if ablation.resamples and entry.identity is not None and entry.state == MISSING:
            key = entry.identity.training
            shared = key in trained or find_trained(config.results, key) is not None
            trained.add(key)
            entry = replace(entry, trains=not shared)
        planned[entry.folder] = entry
    return list(planned.values())


def _planned(config: RunConfig, variant: Variant, rate_of: RateOf | None) -> Planned:
    config = replace(
        config,
        method=variant.method,
        options=dict(variant.options),
        train_items=variant.train_items,
        train_images=variant.train_images or config.train_images,
        guidance=variant.guidance,
        sampling_steps=variant.steps,
        leaky=variant.leaky,
    )
    if rate_of is not None:
        config = replace(config, learning_rate=rate_of(resolve(config)))
    spec, beside = resolve(config), config.results / ABLATIONS_FOLDER
    main = spec.budget.name == spec.suite.default_budget and not changes(config) and not variant.leaky
    home = config.results if main else beside
    entry = Planned(variant=variant, spec=spec, folder=home / variant.called, state=CANNOT)
    try:
        identity = identify(spec)
        places = [folder / identity.run_id for folder in (home, config.results, beside)]
        folder = next((place for place in places if (place / RECORD_FILE).exists()), places[0])
        spec = replace(spec, config=replace(config, results=folder.parent))
        entry = replace(entry, spec=spec, identity=identity, folder=folder, state=MISSING, trains=True)
        return entry if finished(folder) is None else replace(entry, state=EXISTS, trains=False)
    except BenchError as error:
        return replace(entry, why=str(error))


def do_ablation(
    planned: Sequence[Planned], *, hooks: Hooks, say: Callable[[str], None], **where: Any
) -> list[Outcome]:
    """Do the missing runs, those that train before those that take weights over, see `run_grid`."""
    outcomes: list[Outcome] = []
    for trains in (True, False):
        part = [entry for entry in planned if entry.state == MISSING and entry.trains == trains]
        names = [entry.name for entry in part]
        outcomes += run_grid([e.spec.config for e in part], names=names, hooks=hooks, say=say, **where)
    return outcomes


def records_of_paces(results: Path) -> list[RunRecord]:
    """Return the records of a results folder and the published ones; a damaged one counts for nothing."""
    places = ((results, ""), (results, ABLATIONS_FOLDER), (PUBLISHED, ""))
    return [record for place in places for record in kept_records(*place, skip_damaged=True)]


def seconds_of(
    spec: RunSpec, records: Sequence[RunRecord], *, items: int, trains: bool = True
) -> float | None:
    """Return about how long a run of `items` evaluation items takes, None where nothing like it ran.

    The middle of the records of its suite, device, precision and method, of its options where there are any.
    """

    def kind(record: RunRecord) -> tuple[object, ...]:
        precision = record.protocol.get("training", {}).get("precision", Training.precision)
        return record.suite, record.environment.get("device"), record.method, precision

    wanted = (spec.suite.name, spec.device, spec.method.name, spec.suite.training.precision)
    asked = json.loads(json.dumps(dict(spec.options)))
    known = [record for record in records if kind(record) == wanted]
    alike = [r for r in known if {k: v for k, v in r.options.items() if k != "learning_rate"} == asked]
    costs = [(r, r.cost) for r in alike or known]
    steps = [s / r.protocol["sampler"]["steps"] for r, c in costs if (s := c.sample_seconds_per_image)]
    if not steps:
        return None
    scoring = [s / r.splits.eval.n for r, c in costs if (s := c.score_seconds)] or [0.0]
    rates = [rate for _, c in costs if (rate := c.train_images_per_second)]
    seconds_per_item = spec.suite.sampler.steps * median_low(steps) + median_low(scoring)
    training = spec.budget.images(spec.method.name) / median_low(rates) if trains and rates else 0.0
    return training + items * seconds_per_item


def duration(seconds: float) -> str:
    """Return a time in words: "about 40 s", "about 12 min", "about 3.5 h"."""
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
