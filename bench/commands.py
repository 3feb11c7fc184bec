"""From words to runs: what `bench run`, its stages, grids and `bench tune` share.

The tables of methods are handed in, since only the command line joins them.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.arguments import parse_device, parse_names, parse_numbers, parse_options
from bench.child import child
from bench.engine import Execution
from bench.grid import Cell, Child, Outcome, run_grid
from bench.hooks import Hooks
from bench.measure import machine, measure
from bench.processes import launched
from bench.record import RunRecord
from bench.run import Run
from bench.spec import RunSpec
from bench.suites import Suite, find_suite
from bench.tasks import TASKS, find_task
from bench.timings import (
    TIMINGS_FILE,
    Timings,
    add_timing,
    load_timings,
    timing_key,
    with_timing_added,
)
from bench.tune import Trial, evidence, write_evidence
from bench.types import BenchError, refusal, unknown
from bench.weights import Weights

FLOOR = "text-only"
_NO_WEIGHTS: dict[str, Any] = {
    "weights": None,
    "train": True,
    "condition_channels": "same",
    "invert_condition": False,
}
PAPER = ("bps", "controlnet", "t2i-adapter", "sd-finetune", FLOOR)


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """The tables of methods.

    methods: name -> "module:Class"; variants: short name -> (method, options); load: imports one.
    """

    methods: Mapping[str, str]
    variants: Mapping[str, tuple[str, Mapping[str, Any]]]
    load: Callable[[str], Any]

    def names(self, text: str) -> list[str]:
        """Return the methods and variants of a comma list; groups: paper, all, variants."""
        groups = {"paper": PAPER, "all": tuple(self.methods), "variants": tuple(self.variants)}
        allowed = [*self.methods, *self.variants]
        return parse_names("method", text, allowed=allowed, groups=groups)

    def find(self, name: str) -> tuple[Any, dict[str, Any]]:
        """Return the method of a name with the options that a variant's name sets."""
        real, preset = self.variants.get(name, (name, {}))
        if real not in self.methods:
            raise unknown("method", name, [*self.methods, *self.variants])
        return self.load(self.methods[real])(), dict(preset)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the options of `bench run` ask for, beside method, task and seed.

    precision, ema: None for the suite's own. micro_batch to track: see bench.engine.Execution.
    weights: a folder or file to begin with; train, condition_channels and invert_condition: how.
    """

    suite: str
    results: Path
    budget: str | None = None
    device: str = "auto"
    base: Path | None = None
    data: Path | None = None
    variant: str | None = None
    option: Sequence[str] = field(default_factory=tuple)
    learning_rate: float | None = None
    batch: int = 32
    checkpoint_every: int = 100
    side: str | None = None
    shuffled: bool = True
    allow_leak: bool = False
    train_items: int | None = None
    guidance: float | None = None
    steps: int | None = None
    precision: str | None = None
    ema: float | None = None
    micro_batch: int | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    fused: bool = False
    track: str | None = None
    weights: Path | None = None
    train: bool = True
    condition_channels: str = "same"
    invert_condition: bool = False

    def execution(self) -> Execution:
        """Return how training is to be carried out."""
        names = [name.strip() for name in (self.track or "").split(",")]
        return Execution(
            micro_batch=self.micro_batch,
            gradient_checkpointing=self.gradient_checkpointing,
            compile=self.compile,
            fused=self.fused,
            track=tuple(n for n in names if n),
        )

    def trained_as_asked(self, suite: Suite) -> Suite:
        """Return the suite with the precision and average asked for, which its protocol then tells."""
        asked: dict[str, Any] = {"precision": self.precision, "ema": self.ema}
        changed = {name: value for name, value in asked.items() if value is not None}
        return replace(suite, training=replace(suite.training, **changed))

    @property
    def given(self) -> Weights | None:
        """The weights from outside; BenchError for options that need them where there are none."""
        if self.weights is not None:
            return Weights(
                path=self.weights,
                train=self.train,
                channels=self.condition_channels,
                invert=self.invert_condition,
            )
        if not self.train or self.condition_channels != "same" or self.invert_condition:
            raise BenchError(
                "--no-train, --condition-channels and --invert-condition need --weights PATH: a folder "
                "that diffusers loads, or a checkpoint file."
            )
        return None

    def words(self, *, method: str, task: str, seed: int) -> tuple[str, ...]:
        """Return the command line that asks for one run, without its floor."""
        words = ["run", "--no-floor", "--method", method, "--task", task, "--seed", str(seed)]
        asked = asdict(self)
        for name in _NO_WEIGHTS if self.weights is None else ():
            del asked[name]
        for name, value in asked.items():
            if isinstance(value, bool):
                words.append(f"--{'' if value else 'no-'}{name.replace('_', '-')}")
                continue
            for one in value if isinstance(value, (list, tuple)) else [value]:
                words += [] if one is None else [f"--{name.replace('_', '-')}", str(one)]
        return tuple(words)


def make_run(
    catalogue: Catalogue,
    request: Request,
    *,
    method: str,
    task: str,
    seed: int,
    hooks: Hooks | None = None,
) -> Run:
    """Return the Run of one method, task and seed, checked and loaded but not started."""
    return Run(make_spec(catalogue, request, method=method, task=task, seed=seed), hooks)


def make_spec(catalogue: Catalogue, request: Request, *, method: str, task: str, seed: int) -> RunSpec:
    """Return what one run is to do; wrong names are errors, nothing is loaded."""
    chosen, preset = catalogue.find(method)
    find_task(task)
    found = find_suite(
        request.suite,
        base=request.base,
        side=request.side,
        data=request.data,
        variant=request.variant,
        guidance=request.guidance,
        steps=request.steps,
    )
    suite = request.trained_as_asked(found)
    return RunSpec(
        suite=suite,
        task=task,
        method=chosen,
        budget=suite.budget(request.budget).with_items(request.train_items),
        seed=seed,
        results=request.results,
        options={**preset, **parse_options(request.option)},
        learning_rate=request.learning_rate,
        device=parse_device(request.device),
        batch=request.batch,
        checkpoint_every=request.checkpoint_every,
        shuffled=request.shuffled,
        allow_leak=request.allow_leak,
        execution=request.execution(),
        weights=request.given,
    )


def run_one(
    catalogue: Catalogue,
    request: Request,
    *,
    method: str,
    task: str,
    seed: int,
    hooks: Hooks,
    again: bool = False,
    floor: bool = True,
) -> tuple[Run, RunRecord, RunRecord | None]:
    """Do one run, and its floor where wanted; return run, record and the floor's record."""
    where: dict[str, Any] = {"task": task, "seed": seed, "hooks": hooks}
    chosen = make_run(catalogue, request, method=method, **where)
    lowest = None
    if again:
        chosen.forget()
    if floor and method != FLOOR:
        chosen.denoiser  # noqa: B018  a wrong option fails now, not after the floor
        del chosen  # the floor goes first and alone, so that its peak memory is its own
        plain = replace(request, option=(), learning_rate=None, **_NO_WEIGHTS)
        lowest = make_run(catalogue, plain, method=FLOOR, **where).all(wait=True)
        chosen = make_run(catalogue, request, method=method, **where)
    return chosen, chosen.all(), lowest


def cells_of(catalogue: Catalogue, *, method: str, task: str, seeds: str) -> list[tuple[str, str, int]]:
    """Return (method, task, seed) of comma lists, seeds outermost: each round is a comparison."""
    tasks = parse_names("task", task, allowed=TASKS, groups={"all": tuple(TASKS)})
    numbers = parse_numbers("--seeds", seeds, kind=int)
    return [(m, t, s) for s in numbers for t in tasks for m in catalogue.names(method)]


def grid_of(
    catalogue: Catalogue, request: Request, *, method: str, task: str, seeds: str
) -> list[tuple[Request, str, str, int]]:
    """Return (request, method, task, seed) of comma lists.

    Shuffled conditions tell what a metric can see, not how good a method is: the first seed alone
    is sampled under them.
    """
    cells = cells_of(catalogue, method=method, task=task, seeds=seeds)
    named = {m for m, _, _ in cells}
    if request.weights is not None and len(named) > 1:
        raise BenchError(
            f"--weights {request.weights} belong to one method, got {', '.join(sorted(named))}. Name one "
            "with --method."
        )
    first = cells[0][2]
    return [(replace(request, shuffled=request.shuffled and s == first), m, t, s) for m, t, s in cells]


def run_cells(
    catalogue: Catalogue,
    cells: Sequence[tuple[Request, str, str, int]],
    *,
    hooks: Hooks,
    say: Callable[[str], None],
    jobs: int = 1,
    start: Callable[[Sequence[str]], Child] | None = None,
    names: Sequence[str] | None = None,
) -> list[Outcome]:
    """Do a grid of (request, method, task, seed), each run in a process of its own, `jobs` at once.

    names: what messages call each; its method and options where None. start: starts one elsewhere,
    where as many run at once as there is room for. Raises BenchError in one of several processes of
    a launcher: each would start the whole grid.
    """
    if launched() > 1:
        raise BenchError(
            f"{len(cells)} runs were asked of {launched()} launched processes, which share one run. "
            "Launch one method, task and seed at a time."
        )
    table: dict[Cell, tuple[Request, str, str, int]] = {}
    for one, name in zip(cells, names or [""] * len(cells), strict=True):
        request, method, task, seed = one
        words = request.words(method=method, task=task, seed=seed)
        table[Cell(name=name or _name(*one), arguments=words)] = one

    def prepare(cell: Cell) -> Run:
        request, method, task, seed = table[cell]
        return make_run(catalogue, request, method=method, task=task, seed=seed)

    jobs = jobs if start is None else len(table)
    return run_grid(list(table), prepare=prepare, hooks=hooks, say=say, jobs=jobs, start=start)


def _name(request: Request, method: str, task: str, seed: int) -> str:
    rate = "" if request.learning_rate is None else f", learning rate {request.learning_rate:g}"
    given = {"items": request.train_items, "guidance": request.guidance, "steps": request.steps}
    more = [*request.option, *(f"{k} {v:g}" for k, v in given.items() if v is not None)]
    return ", ".join([f"{method}, {task}, seed {seed}{rate}", *more])


def tune_rates(
    catalogue: Catalogue,
    request: Request,
    *,
    method: str,
    task: str,
    seed: int,
    rates: str,
    out: Path,
    hooks: Hooks,
    say: Callable[[str], None],
    jobs: int = 1,
) -> tuple[list[Path], list[Outcome]]:
    """Try every rate with every trained method; write the evidence and return its files."""
    tried = [
        (name, rate, replace(request, learning_rate=rate, shuffled=False))
        for name in catalogue.names(method)
        if name != FLOOR
        for rate in parse_numbers("--rates", rates)
    ]
    cells = [(own, name, task, seed) for name, _, own in tried]
    outcomes = run_cells(catalogue, cells, hooks=hooks, say=say, jobs=jobs)
    trials = [
        Trial(method=name, rate=rate, outcome=outcome)
        for (name, rate, _), outcome in zip(tried, outcomes, strict=True)
    ]
    return write_evidence(out, evidence(trials)), outcomes


def measure_costs(
    catalogue: Catalogue,
    request: Request,
    *,
    method: str,
    task: str,
    steps: int,
    batches: int,
    rounds: int,
    further: bool,
    say: Callable[[str], None],
) -> Path:
    """Measure what methods take, each in a process of its own and alone; return the timings' file.

    rounds: over all methods, of which the fastest counts; in turns, so that a slow spell of the
    machine does not meet one method alone. further: see `add_timing`. What was measured earlier
    stays until a method's last round is done.
    """
    names = catalogue.names(method)
    if len(names) == 1 and rounds == 1:
        run = make_run(catalogue, request, method=names[0], task=task, seed=0)
        timing = measure(run, steps=steps, batches=batches)
        return add_timing(request.results, timing, machine=machine(run), further=further)
    given = {
        "task": task,
        "suite": request.suite,
        "device": request.device,
        "base": request.base,
        "data": request.data,
        "variant": request.variant,
        "batch": request.batch,
        "steps": steps,
        "batches": batches,
    }
    words = [w for k, v in given.items() if v is not None for w in (f"--{k}", str(v))]
    names = _timed_once(catalogue, names)
    turns = list(itertools.product(range(rounds), names))
    with tempfile.TemporaryDirectory() as scratch:
        for number, (turn, name) in enumerate(turns, start=1):
            made = _round_of(name, words, folder=Path(scratch) / name)
            say(f"[{number}/{len(turns)}] {name}: measured")
            keep = add_timing if turn == rounds - 1 else with_timing_added  # refuses early
            keep(request.results, made.entries[0], machine=made.machine, further=further)
    return request.results / TIMINGS_FILE


def _round_of(name: str, words: Sequence[str], *, folder: Path) -> Timings:
    """Measure a method once more in a process of its own; return what its folder holds by then."""
    own = ["--method", name, "--rounds", "1", "--further", "--results", str(folder)]
    code = child(["cost", *words, *own], alone=True).wait()
    made = load_timings(folder)
    if code or made is None:
        raise BenchError(f"{name} could not be measured (exit code {code}), see above.")
    return made


def _timed_once(catalogue: Catalogue, names: Sequence[str]) -> list[str]:
    """Return the names without those whose options cost what an earlier one's do."""
    found: dict[str, str] = {}
    for name in names:
        method, preset = catalogue.find(name)
        found.setdefault(timing_key(method.name, {**method.options, **preset}), name)
    return list(found.values())


def described(method: Any) -> dict[str, Any]:
    """Return what `bench list` says of a method; its tasks only where it cannot do them all."""
    refused = {name: reason for name in TASKS if (reason := refusal(method, find_task(name)))}
    cannot = {"cannot do": refused} if refused else {}
    return {"title": method.title, "source": method.source, "options": method.options, **cannot}
