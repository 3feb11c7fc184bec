"""From words to runs: what `bench run`, its stages, grids and `bench tune` share.

The tables of methods are handed in, since only the command line joins them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.arguments import parse_device, parse_names, parse_numbers, parse_options
from bench.grid import Cell, Outcome, Process, run_grid
from bench.measure import machine, measure
from bench.record import RunRecord
from bench.run import Hooks, Run, RunSpec
from bench.suites import find_suite
from bench.tasks import TASKS, find_task
from bench.timings import TIMINGS_FILE, add_timing
from bench.tune import Trial, evidence, write_evidence
from bench.types import BenchError, refusal, unknown
from bench.weights import Weights

FLOOR = "text-only"
_NO_WEIGHTS: dict[str, Any] = {
    "weights": None, "train": True, "condition_channels": "same", "invert_condition": False,
}  # fmt: skip
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

    weights: a folder or file to begin with; train, condition_channels and invert_condition: how.
    """

    suite: str
    results: Path
    budget: str | None = None
    device: str = "auto"
    base: Path | None = None
    option: Sequence[str] = field(default_factory=tuple)
    learning_rate: float | None = None
    batch: int = 32
    checkpoint_every: int = 100
    side: str | None = None
    shuffled: bool = True
    allow_leak: bool = False
    weights: Path | None = None
    train: bool = True
    condition_channels: str = "same"
    invert_condition: bool = False

    @property
    def given(self) -> Weights | None:
        """The weights from outside; BenchError for options that need them where there are none."""
        if self.weights is not None:
            return Weights(
                path=self.weights, train=self.train, channels=self.condition_channels,
                invert=self.invert_condition,
            )  # fmt: skip
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
    catalogue: Catalogue, request: Request, *, method: str, task: str, seed: int,
    hooks: Hooks | None = None,
) -> Run:  # fmt: skip
    """Return the Run of one method, task and seed, checked and loaded but not started."""
    chosen, preset = catalogue.find(method)
    find_task(task)
    suite = find_suite(request.suite, base=request.base, side=request.side)
    spec = RunSpec(
        suite=suite, task=task, method=chosen, budget=suite.budget(request.budget), seed=seed,
        results=request.results, options={**preset, **parse_options(request.option)},
        learning_rate=request.learning_rate, device=parse_device(request.device),
        batch=request.batch, checkpoint_every=request.checkpoint_every, shuffled=request.shuffled,
        allow_leak=request.allow_leak, weights=request.given,
    )  # fmt: skip
    return Run(spec, hooks)


def run_one(
    catalogue: Catalogue, request: Request, *, method: str, task: str, seed: int, hooks: Hooks,
    again: bool = False, floor: bool = True,
) -> tuple[Run, RunRecord, RunRecord | None]:  # fmt: skip
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
        lowest = make_run(catalogue, plain, method=FLOOR, **where).all()
        chosen = make_run(catalogue, request, method=method, **where)
    return chosen, chosen.all(), lowest


def cells_of(
    catalogue: Catalogue, *, method: str, task: str, seeds: str
) -> list[tuple[str, str, int]]:
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
    return [
        (replace(request, shuffled=request.shuffled and s == first), m, t, s) for m, t, s in cells
    ]


def run_cells(
    catalogue: Catalogue, cells: Sequence[tuple[Request, str, str, int]], *, hooks: Hooks,
    say: Callable[[str], None], jobs: int = 1,
) -> list[Outcome]:  # fmt: skip
    """Do a grid of (request, method, task, seed), each run in a process of its own, `jobs` at once."""
    table = {
        Cell(name=_name(r, m, t, s), arguments=r.words(method=m, task=t, seed=s)): (r, m, t, s)
        for r, m, t, s in cells
    }

    def prepare(cell: Cell) -> Run:
        request, method, task, seed = table[cell]
        return make_run(catalogue, request, method=method, task=task, seed=seed)

    return run_grid(list(table), prepare=prepare, hooks=hooks, say=say, jobs=jobs)


def _name(request: Request, method: str, task: str, seed: int) -> str:
    rate = "" if request.learning_rate is None else f", learning rate {request.learning_rate:g}"
    return f"{method}, {task}, seed {seed}{rate}"


def tune_rates(
    catalogue: Catalogue, request: Request, *, method: str, task: str, seed: int, rates: str,
    out: Path, hooks: Hooks, say: Callable[[str], None], jobs: int = 1,
) -> tuple[list[Path], list[Outcome]]:  # fmt: skip
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
    catalogue: Catalogue, request: Request, *, method: str, task: str, steps: int, batches: int,
    say: Callable[[str], None],
) -> Path:  # fmt: skip
    """Measure what methods take, each in a process of its own and alone; return the timings' file."""
    names = catalogue.names(method)
    if len(names) == 1:
        run = make_run(catalogue, request, method=names[0], task=task, seed=0)
        timing = measure(run, steps=steps, batches=batches)
        return add_timing(request.results, timing, machine=machine(run))
    given = {
        "task": task, "suite": request.suite, "results": request.results, "device": request.device,
        "base": request.base, "batch": request.batch, "steps": steps, "batches": batches,
    }  # fmt: skip
    words = [w for k, v in given.items() if v is not None for w in (f"--{k}", str(v))]
    for number, name in enumerate(names, start=1):
        code = Process(["cost", "--method", name, *words], alone=True).wait()
        say(f"[{number}/{len(names)}] {name}: {'measured' if not code else f'exit code {code}'}")
        if code:
            raise BenchError(f"{name} could not be measured, see above.")
    return request.results / TIMINGS_FILE


def described(method: Any) -> dict[str, Any]:
    """Return what `bench list` says of a method; its tasks only where it cannot do them all."""
    refused = {name: reason for name in TASKS if (reason := refusal(method, find_task(name)))}
    cannot = {"cannot do": refused} if refused else {}
    return {"title": method.title, "source": method.source, "options": method.options, **cannot}
