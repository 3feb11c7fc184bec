"""What is asked and what is fair: the configuration of a run, and the types of suite and protocol.

`RunConfig` is the one description of a run: the command line's options are made from its fields, a YAML
file holds it, other processes and the record are handed it as it is.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from annotated_types import Ge, Gt, Le

from bench.types import BenchError, Dataset, Method, Task, unknown

if TYPE_CHECKING:
    from bench.base.weights import Weights
    from bench.data.splits import Splits

METRIC_VERSION = 2  # raise it when a metric changes meaning: old and new numbers never share a table
RESULTS = Path("results/runs")
WHAT, PROTOCOL, DATA, EXECUTION = "What runs", "Protocol", "Base, data, weights", "How it is carried out"
OUTSIDE = ("weights", "train", "condition_channels", "invert_condition")
READING = ("image_column", "caption_column", "conditioning_column", "lines", "resolution", "shares", "strict")

Side = Literal["val", "test", "tune"]
Style = Literal["brackets", "±", "none"]
Columns = Literal["one", "two"]
Figures = Literal["screen", "paper"]
Form = Literal["same", "repeat"]
Precision = Literal["fp32", "bf16", "fp16"]
Captions = Literal["one", "random"]
Lines = Literal["canny", "hed", "pidinet"]
Seed = Annotated[int, Ge(0), Le(2**63 - 1)]
Many = Annotated[int, Ge(1), Le(10**9)]
SIDES, PRECISIONS = get_args(Side)[:2], get_args(Precision)


def _asked(default: Any, help: str, panel: str, *, flag: str = "") -> Any:
    """A field with what the command line needs: help, panel and, where it is not the name, the flag."""
    given = {"default_factory": default} if callable(default) else {"default": default}
    return field(**given, metadata={"help": help, "panel": panel, "flag": flag})


def _report(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What a report shows and how; the options of `bench report` are made from its fields.

    methods, metrics: these alone, where any is named. readme: a folder of its figures goes beside it.
    """

    methods: tuple[str, ...] = _report((), "These alone: names or titles, a,b.")
    metrics: tuple[str, ...] = _report((), "These alone: names as in records, a,b.")
    style: Style = _report("brackets", "Of intervals.")
    columns: Columns = _report("two", "Of a page of two columns that a LaTeX table or figure takes.")
    figures: Figures = _report("screen", "paper: 3.25 or 6.75 inches by --columns, 8 points, no titles.")
    mixed: bool = _report(False, "Allow several protocols in a table; rows are marked.")
    readme: Path | None = _report(None, "Also write a page of published results, README.md.")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What a run is asked to be. None stands for what suite, budget or method say.

    Fields of the panel "Protocol", suite, task, base, data and weights can move a number; those of
    EXECUTION cannot, but for rounding. `make_config` checks what comes from outside.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}

    method: str = _asked("bps", "A method or variant of `bench list`, or module:Name.", WHAT)
    task: str = _asked("sketch", "A task of `bench list`, or module:Name.", WHAT)
    suite: str = _asked("emoji", "emoji (embedded), coco17, folder, micro, or module:NAME.", WHAT)
    seed: Seed = _asked(0, "Training and sampling seed.", WHAT)
    options: Mapping[str, Any] = _asked(
        dict, "A method's option, name=value (JSON); see `bench list METHOD`.", WHAT, flag="--option"
    )
    metrics: tuple[str, ...] = _asked((), "Further metrics: names, or module:Name.", WHAT, flag="--metric")
    results: Path = _asked(RESULTS, "Folder that holds the run folders.", WHAT)

    budget: str | None = _asked(
        None, "quick, short, standard, full; equal-time (emoji), paper (coco17).", PROTOCOL
    )
    train_images: Many | None = _asked(None, "Training images in all; else the budget's.", PROTOCOL)
    epochs: Annotated[float, Ge(0.001), Le(1e6)] | None = _asked(
        None, "Training images as so many times the items trained on.", PROTOCOL
    )
    train_batch: Many | None = _asked(None, "Images of an optimiser step; else the suite's.", PROTOCOL)
    train_items: Many | None = _asked(None, "Train on so many items; else on all.", PROTOCOL)
    train_subset: Seed | None = _asked(None, "Which random choice of --train-items; else 0.", PROTOCOL)
    limit: Annotated[int, Ge(10), Le(10**9)] | None = _asked(
        None, "Evaluate so many items, 10 or more; else the budget's.", PROTOCOL
    )
    side: Side | None = _asked(None, "Side to evaluate on; else the suite's.", PROTOCOL)
    as_released: bool = _asked(False, "Train by the recipe of the paper's release.", PROTOCOL)
    captions: Captions | None = _asked(None, "Of several: one, or a random one each visit.", PROTOCOL)
    leaky: bool = _asked(
        False, "Train on the evaluation items too, as the paper's release; marked LEAK.", PROTOCOL
    )
    learning_rate: Annotated[float, Ge(1e-12), Le(1e6)] | None = _asked(
        None, "Else the method's in the suite.", PROTOCOL
    )
    guidance: Annotated[float, Ge(1), Le(1e6)] | None = _asked(
        None, "Guidance in sampling; else the suite's.", PROTOCOL
    )
    sampling_steps: Many | None = _asked(None, "Steps of the sampler; else the suite's.", PROTOCOL)
    draws: Many | None = _asked(None, "Noises an item; scores are means over them.", PROTOCOL)
    precision: Precision | None = _asked(None, "Else the suite's.", PROTOCOL)
    ema: Annotated[float, Ge(0), Le(0.999999)] | None = _asked(
        None, "Decay of averaged weights; else the suite's.", PROTOCOL
    )
    judge: str | None = _asked(None, "The network of FD, KID, ...; else the suite's.", PROTOCOL)
    clip: str | None = _asked(None, "The CLIP judge, or none; else the suite's.", PROTOCOL)
    shuffled: bool = _asked(
        True, "Sample once more under other items' conditions (grids: first seed).", PROTOCOL
    )
    blank: bool | None = _asked(
        None, "Sample once more under an empty condition; else as --shuffled.", PROTOCOL
    )
    forgetting: bool = _asked(
        False, "Sample captions of the base's own styles, without a condition, beside the base.", PROTOCOL
    )
    allow_leak: bool = _asked(
        False, "Go on although evaluation items were seen in training; marked.", PROTOCOL
    )

    base: Path | None = _asked(
        None, "Your own Stable Diffusion: a diffusers folder, one file, or org/name[@revision].", DATA
    )
    base_variant: str | None = _asked(None, "Which of the base's weights, e.g. non_ema or fp16.", DATA)
    data: Path | None = _asked(None, "Data of a suite that brings none: a folder; or a hub id.", DATA)
    image_column: str | None = _asked(None, "Of suite folder: pictures; else image.", DATA)
    caption_column: str | None = _asked(None, "Of suite folder: captions; else text.", DATA)
    conditioning_column: str | None = _asked(
        None, "Of suite folder: conditions; else conditioning_image where there is one.", DATA
    )
    lines: Lines | None = _asked(None, "Of suite folder: what draws sketches; else canny.", DATA)
    resolution: Many | None = _asked(None, "Of suite folder: pixels of a side; else 512.", DATA)
    shares: tuple[float, ...] = _asked((), "Of suite folder: of train, val and test; else 0.6,0.1,0.3.", DATA)
    strict: bool = _asked(False, "Of suite folder: refuse broken pictures, do not leave them out.", DATA)
    weights: Path | None = _asked(None, "Begin with these: a folder diffusers loads, or a checkpoint.", DATA)
    train: bool = _asked(True, "Train, or evaluate --weights as they are.", DATA)
    condition_channels: Form = _asked(
        "same", "For --weights: repeat gives the one channel three times.", DATA
    )
    invert_condition: bool = _asked(False, "For --weights: give them 1 - x, dark lines on white.", DATA)

    device: Literal["auto", "cpu", "cuda"] = _asked("auto", "Else the first GPU, if any.", EXECUTION)
    sample_batch: Many = _asked(32, "Images sampled at once.", EXECUTION)
    checkpoint_minutes: Annotated[float, Gt(0), Le(1e6)] = _asked(
        15.0, "Minutes of training between checkpoints.", EXECUTION
    )
    checkpoint_every: Many | None = _asked(None, "Steps between them instead.", EXECUTION)
    micro_batch: Many | None = _asked(None, "Images trained at once in a process.", EXECUTION)
    gradient_checkpointing: bool = _asked(False, "Recompute activations: less memory, more time.", EXECUTION)
    compile: bool = _asked(False, "Compile the transformer blocks.", EXECUTION)
    fused: bool = _asked(
        True, "AdamW in one pass over a tensor, not an operation after the other.", EXECUTION
    )
    track: tuple[str, ...] = _asked((), "Trackers of accelerate, e.g. tensorboard, wandb, mlflow.", EXECUTION)

    def __post_init__(self) -> None:
        """Refuse what concerns weights from outside where there are none."""
        if self.weights is None and (
            not self.train or self.condition_channels != "same" or self.invert_condition
        ):
            raise BenchError(
                "--no-train, --condition-channels and --invert-condition need --weights PATH: a folder "
                "that diffusers loads, or a checkpoint file."
            )

    @property
    def wrong_conditions(self) -> tuple[str, ...]:
        """Under which conditions but its own a method is sampled besides: "shuffled", "blank"."""
        blank = self.shuffled if self.blank is None else self.blank
        return ("shuffled",) * self.shuffled + ("blank",) * blank

    def as_dict(self) -> dict[str, Any]:
        """Return what is not at its default as JSON values, of which `make_config` makes an equal one."""
        from pydantic import TypeAdapter

        plain: dict[str, Any] = TypeAdapter(RunConfig).dump_python(self, mode="json", exclude_defaults=True)
        return plain

    def told(self) -> RunConfig:
        """Return what a record may tell of it: folders of this machine by their names alone."""
        paths = {name: getattr(self, name) for name in ("base", "data", "weights")}
        names: dict[str, Any] = {n: Path(p.name) for n, p in paths.items() if p and p.is_absolute()}
        return replace(self, results=RESULTS, **names)

    def command(self) -> str:
        """Return the command line that asks for this run alone, quoted for a POSIX shell."""
        argv = ["bench", "run", "--method", self.method, "--task", self.task]
        for known in fields(self):
            value = getattr(self, known.name)
            if known.name not in {"method", "task"} and value != getattr(_DEFAULTS, known.name):
                argv += _flags(flag(known), value)
        return shlex.join(argv)

    def without_weights(self) -> RunConfig:
        """Return the same without weights from outside, options and learning rate: what the floor needs."""
        names = ("options", "learning_rate", *OUTSIDE)
        defaults: dict[str, Any] = {name: getattr(_DEFAULTS, name) for name in names}
        return replace(self, **defaults)


def flag(known: Field[Any]) -> str:
    """Return the flag of a field on the command line."""
    return str(known.metadata["flag"] or f"--{known.name.replace('_', '-')}")


def _flags(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [name if value else name.replace("--", "--no-", 1)]
    if isinstance(value, Mapping):
        return [word for k, v in sorted(value.items()) for word in (name, f"{k}={option_text(v)}")]
    if isinstance(value, tuple):
        return [name, ",".join(map(str, value))]
    short = isinstance(value, float) and value == float(f"{value:g}")
    return [name, f"{value:g}" if short else str(value)]


def option_text(value: Any) -> str:
    """Return an option's value as the command line takes it: JSON, but plain text without quotes.

    Text that would read as JSON ("1", "true") keeps its quotes, so that it comes back as text.
    """
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return value
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


_DEFAULTS = RunConfig()


def make_config(values: Mapping[str, Any]) -> RunConfig:
    """Return the configuration with these JSON values; BenchError for a name or value that cannot be."""
    from bench.content import validated

    plain = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
    remedy = "See `bench run -h`."
    config: RunConfig = validated(plain, RunConfig, "the configuration", remedy=remedy, strict=True)
    return config


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """A configuration whose names are resolved: what a run works with.

    config: as asked. task: its name. options: the method's own, defaults filled in. device: "cpu" or
    "cuda". weights: to begin with, from outside.
    """

    config: RunConfig
    suite: Suite
    task: Task
    method: Method
    budget: Budget
    options: Mapping[str, Any]
    learning_rate: float
    device: str = "cpu"
    weights: Weights | None = None


def run_id(spec: RunSpec, options: Mapping[str, Any], protocol: Protocol) -> str:
    """Name a run by what it is: suite, task, method, budget, seed and a hash of the rest."""
    from bench.content import digest_json

    rest = {"protocol": protocol.hash, "options": dict(options), "learning_rate": spec.learning_rate}
    parts = (spec.suite.name, spec.task.name, spec.method.name, spec.budget.name, f"s{spec.config.seed}")
    return "-".join((*parts, digest_json(rest)[:8]))


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much of everything: the same number of training images for every method of a table.

    eval_items: how many evaluation items, in the order of their hashed ids; None for all. images_of:
    training images of single methods where time, not images, is to be equal. train_items: how many
    items of the train side are trained on, picked by the same rule, so that fewer are a part of more;
    None for all. train_subset: which random choice of them, whatever the training seed.
    """

    name: str
    train_images: int
    eval_items: int | None
    images_of: Mapping[str, int] = field(default_factory=dict)
    train_items: int | None = None
    train_subset: int = 0

    def images(self, method: str) -> int:
        """Return the training images of a method."""
        return self.images_of.get(method, self.train_images)

    def asked(
        self, *, images: int | None, items: int | None, limit: int | None, subset: int | None = None
    ) -> Budget:
        """Return the budget with other training images, training or evaluation items ("short-10").

        None leaves what it is. Images that are asked for are every method's.
        """
        parts = [self.name]
        parts += [] if images is None else [f"{images}images"]
        parts += [] if items is None else [str(items)]
        parts += [f"choice{subset}"] if subset else []
        parts += [] if limit is None else [f"{limit}eval"]
        return replace(
            self,
            name="-".join(parts),
            train_images=self.train_images if images is None else images,
            images_of=self.images_of if images is None else {},
            train_items=self.train_items if items is None else items,
            train_subset=self.train_subset if subset is None else subset,
            eval_items=self.eval_items if limit is None else limit,
        )


@dataclass(frozen=True, kw_only=True)
class Training:
    """The fair loop's settings, equal for all methods of a suite.

    loss: "eps" is the plain eps error of the paper; "v" weighs it by 1 + 1/SNR, which equals the
    error of v (arXiv 2202.00512), the parametrisation the emoji base was trained in. latents: "mode"
    of the autoencoder's posterior, or "sample": a draw of it at every visit. schedule: of the rate after the
    warm-up, "cosine" down to 0 or "constant". clip_norm: 0 for none. captions: "one" of an item's by a fixed
    rule, or a "random" one at every visit. leaky: whether the evaluation items are trained on too.
    precision, ema: see the engine.
    """

    batch: int = 64
    weight_decay: float = 0.01
    warmup_share: float = 0.05
    drop_caption: float = 0.1
    mirror: bool = True
    loss: str = "v"
    clip_norm: float = 1.0
    latents: str = "mode"
    precision: str = "fp32"
    ema: float = 0.0
    schedule: str = "cosine"
    captions: str = "one"
    leaky: bool = False


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """name: "ddim" (eta 0) or "dpm++" (DPM-Solver++ 2M); guidance 1 asks for the prompt alone.

    draws: noises an item; numbers are means over as many sets of all items.
    """

    name: str = "dpm++"
    steps: int = 20
    guidance: float = 2.5
    draws: int = 1


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A benchmark: data, base and protocol.

    dataset, splits: loaders. at: where the user brings the data, a configuration -> such loaders. base:
    folder or hub id of the frozen base; None where the user brings it; variant: which of its weights, None
    for the plain ones. storage: encoded items are held in "memory", or in "shards" on disk (text in
    float16), for data sets that no memory holds; part of what the suite is, so that equal suites read equal
    numbers.
    choose_side, rates: where `bench tune` chooses, and from what.
    learning_rate: of methods that are not among learning_rates, which `bench tune` chose: by method or
    variant, or by (task, method or variant) where a task has its own. feature_judge, clip_judge: names in
    bench.judges.
    """

    name: str
    about: str
    dataset: Callable[[], Dataset]
    splits: Callable[[], Splits]
    base: Path | None
    tasks: tuple[str, ...]
    feature_judge: str
    clip_judge: str | None
    learning_rate: float
    budgets: Mapping[str, Budget]
    training: Training = field(default_factory=Training)
    sampler: Sampler = field(default_factory=Sampler)
    learning_rates: Mapping[str | tuple[str, str], float] = field(default_factory=dict)
    default_budget: str = "standard"
    eval_side: str = "test"
    choose_side: str = "val"
    rates: tuple[str, ...] = ("1e-4", "3e-4", "1e-3", "3e-3", "1e-2", "3e-2")
    at: Callable[[RunConfig], tuple[Callable[[], Dataset], Callable[[], Splits]]] | None = None
    variant: str | None = None
    storage: str = "memory"

    def budget(self, name: str | None) -> Budget:
        """Return a budget by name (default: the suite's); BenchError for an unknown one."""
        chosen = name or self.default_budget
        if chosen not in self.budgets:
            raise unknown("budget", chosen, self.budgets)
        return self.budgets[chosen]


_LATER: tuple[tuple[str, str, Any], ...] = (
    ("budget", "images_of", {}),
    ("budget", "train_items", None),
    ("budget", "train_subset", 0),
    ("training", "precision", Training.precision),
    ("training", "ema", Training.ema),
    ("training", "latents", Training.latents),
    ("training", "schedule", Training.schedule),
    ("training", "captions", Training.captions),
    ("training", "leaky", Training.leaky),
    ("sampler", "draws", Sampler.draws),
)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything that can move a number, as one value; equal hashes may share a table.

    data: how the user's data were prepared, in words (the data set's digest covers it).
    """

    suite: str
    task: str
    dataset: str
    splits: str
    base: str
    eval_side: str
    budget: Budget
    training: Training
    sampler: Sampler
    judges: Mapping[str, Mapping[str, str]]
    task_version: int
    metric_version: int = METRIC_VERSION
    data: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the protocol as plain JSON values; what is not used of it is left out.

        So are settings that came later while they have their default: hashes of old records hold.
        """
        values = asdict(self)
        if not values["data"]:
            del values["data"]
        for part, name, default in _LATER:
            if values[part][name] == default:
                del values[part][name]
        return values

    @property
    def hash(self) -> str:
        """SHA-256 of the protocol, 64 hexadecimal digits; tables show the first 12."""
        from bench.content import digest_json  # numpy comes with it, which help does not need

        return digest_json(self.as_dict())
