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
Device = Literal["auto", "cpu", "cuda"]
Seed = Annotated[int, Ge(0), Le(2**63 - 1)]
Many = Annotated[int, Ge(1), Le(10**9)]
Ten = Annotated[int, Ge(10), Le(10**9)]
Times = Annotated[float, Ge(0.001), Le(1e6)]
Rate = Annotated[float, Ge(1e-12), Le(1e6)]
Guidance = Annotated[float, Ge(1), Le(1e6)]
Decay = Annotated[float, Ge(0), Le(0.999999)]
Minutes = Annotated[float, Gt(0), Le(1e6)]
ASPECTS = ("fidelity", "quality")
MOST_TEXT = 500  # letters of a text of a study
SIDES, PRECISIONS = get_args(Side)[:2], get_args(Precision)


def option(default: Any, help: str, panel: str | None = None, **more: Any) -> Any:
    """A field of which the command line makes an option; see `bench.cli.options`.

    panel: of the help, where another begins. more: flags, min, max; each, where a list makes a grid.
    """
    given = {"default_factory" if callable(default) else "default": default}
    return field(**given, metadata={"help": help, "panel": panel, **more})


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What a report shows and how; the options of `bench report` are made from its fields.

    methods, metrics: these alone, where any is named. readme: a folder of its figures goes beside it.
    """

    methods: tuple[str, ...] = option((), "These alone: names or titles, a,b.")
    metrics: tuple[str, ...] = option((), "These alone: names as in records, a,b.")
    style: Style = option("brackets", "Of intervals.")
    columns: Columns = option("two", "Of a page of two columns that a LaTeX table or figure takes.")
    figures: Figures = option("screen", "paper: 3.25 or 6.75 inches by --columns, 8 points, no titles.")
    mixed: bool = option(False, "Allow several protocols in a table; rows are marked.")
    readme: Path | None = option(None, "Also write a page of published results, README.md.")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """For what `bench plan` plans; mfu: share of the peak rate, None for that of published runs."""

    like: str = option("sd15", "Where the suite has no base: sd15, sd21 or sdxl.")
    size: int | None = option(None, "Image size in pixels; else the base's.", min=64)
    gpu: str = option("h100", "h100, h200, a100-80, ..., or cpu: this machine.")
    gpus: int = option(1, "Processes, one a GPU.", min=1)
    mfu: float | None = option(None, "Share of the peak rate; else as published runs.", min=0.01, max=1)


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much `bench cost` measures, and on what; its options are made from the fields.

    random: a name in bench.base.random.LIKENESSES, whose likeness with random weights stands in for the
    suite's base, and random items for its data.
    """

    rounds: int = option(3, "Rounds over the methods; the fastest counts.", min=1)
    steps: int = option(30, "Optimiser steps measured.", min=1, flags=["--train-steps"])
    batches: int = option(2, "Sampled batches measured.", min=1, flags=["--sample-batches"])
    random: str | None = option(None, "On random weights like sd15, sd21 or sdxl instead, beside yardsticks.")
    width: int = option(320, "With --random: of the UNet's first level.")
    size: int | None = option(None, "With --random: image size in pixels.", min=64)


@dataclass(frozen=True, kw_only=True)
class Design:
    """What a user study asks; the options of `bench study make` are made from its fields."""

    pairs: int | None = option(None, "Pairs that a person sees; else 40, or all there are.", min=1)
    seed: int = option(0, "Of the pairs, their sides and codes.", min=0)
    title: str = option("Which picture is better?", "Shown to people; name no method.")
    ask: str = option("both", "fidelity, quality or both.")
    checks: float = option(0.1, "Share of attention checks, 0 to 0.5.")

    def __post_init__(self) -> None:
        """Refuse what no study may be."""
        if self.ask not in ("both", *ASPECTS):
            raise unknown("aspect", self.ask, ("both", *ASPECTS))
        if not 0 < len(self.title.strip()) <= len(self.title) <= MOST_TEXT:
            raise BenchError(f"the title must have 1 to {MOST_TEXT} characters, got {len(self.title)}.")
        if not 0 <= self.checks <= 0.5:
            raise BenchError(f"the share of attention checks must be in 0 to 0.5, got {self.checks:g}.")

    @property
    def aspects(self) -> tuple[str, ...]:
        """What is asked of each pair."""
        return ASPECTS if self.ask == "both" else (self.ask,)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What a run is asked to be. None stands for what suite, budget or method say.

    Fields of the panel "Protocol", suite, task, base, data and weights can move a number; those of
    EXECUTION cannot, but for rounding. `make_config` checks what comes from outside.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}

    method: str = option("bps", "A method or variant of `bench list`, or module:Name.", WHAT, each=True)
    task: str = option("sketch", "A task of `bench list`, or module:Name.", each=True)
    suite: str = option("emoji", "emoji (embedded), coco17, folder, micro, or module:NAME.")
    seed: Seed = option(0, "Training and sampling seed.", each=True, flags=["--seed", "--seeds"])
    options: Mapping[str, Any] = option(
        dict, "A method's option, name=value (JSON); see `bench list METHOD`.", flags=["--option"]
    )
    metrics: tuple[str, ...] = option((), "Further metrics: names, or module:Name.", flags=["--metric"])
    results: Path = option(RESULTS, "Folder that holds the run folders.")

    budget: str | None = option(
        None, "quick, short, standard, full; equal-time (emoji), paper (coco17).", PROTOCOL
    )
    train_images: Many | None = option(None, "Training images in all; else the budget's.")
    epochs: Times | None = option(None, "Training images as so many times the items trained on.")
    train_batch: Many | None = option(None, "Images of an optimiser step; else the suite's.")
    train_items: Many | None = option(None, "Train on so many items; else on all.")
    train_subset: Seed | None = option(None, "Which random choice of --train-items; else 0.")
    limit: Ten | None = option(None, "Evaluate so many items, 10 or more; else the budget's.")
    side: Side | None = option(None, "Side to evaluate on; else the suite's.")
    as_released: bool = option(False, "Train by the recipe of the paper's release.")
    captions: Captions | None = option(None, "Of several: one, or a random one each visit.")
    leaky: bool = option(False, "Train on the evaluation items too, as the paper's release; marked LEAK.")
    learning_rate: Rate | None = option(None, "Else the method's in the suite.")
    guidance: Guidance | None = option(None, "Guidance in sampling; else the suite's.")
    sampling_steps: Many | None = option(None, "Steps of the sampler; else the suite's.")
    draws: Many | None = option(None, "Noises an item; scores are means over them.")
    precision: Precision | None = option(None, "Else the suite's.")
    ema: Decay | None = option(None, "Decay of averaged weights; else the suite's.")
    judge: str | None = option(None, "The network of FD, KID, ...; else the suite's.")
    clip: str | None = option(None, "The CLIP judge, or none; else the suite's.")
    shuffled: bool = option(True, "Sample once more under other items' conditions (grids: first seed).")
    blank: bool | None = option(None, "Sample once more under an empty condition; else as --shuffled.")
    forgetting: bool = option(
        False, "Sample captions of the base's own styles, without a condition, beside the base."
    )
    allow_leak: bool = option(False, "Go on although evaluation items were seen in training; marked.")

    base: Path | None = option(
        None, "Your own Stable Diffusion: a diffusers folder, one file, or org/name[@revision].", DATA
    )
    base_variant: str | None = option(None, "Which of the base's weights, e.g. non_ema or fp16.")
    data: Path | None = option(None, "Data of a suite that brings none: a folder; or a hub id.")
    image_column: str | None = option(None, "Of suite folder: pictures; else image.")
    caption_column: str | None = option(None, "Of suite folder: captions; else text.")
    conditioning_column: str | None = option(
        None, "Of suite folder: conditions; else conditioning_image where there is one."
    )
    lines: Lines | None = option(None, "Of suite folder: what draws sketches; else canny.")
    resolution: Many | None = option(None, "Of suite folder: pixels of a side; else 512.")
    shares: tuple[float, ...] = option((), "Of suite folder: of train, val and test; else 0.6,0.1,0.3.")
    strict: bool = option(False, "Of suite folder: refuse broken pictures, do not leave them out.")
    weights: Path | None = option(None, "Begin with these: a folder diffusers loads, or a checkpoint.")
    train: bool = option(True, "Train, or evaluate --weights as they are.")
    condition_channels: Form = option("same", "For --weights: repeat gives the one channel three times.")
    invert_condition: bool = option(False, "For --weights: give them 1 - x, dark lines on white.")

    device: Device = option("auto", "Else the first GPU, if any.", EXECUTION)
    sample_batch: Many = option(32, "Images sampled at once.")
    checkpoint_minutes: Minutes = option(15.0, "Minutes of training between checkpoints.")
    checkpoint_every: Many | None = option(None, "Steps between them instead.")
    micro_batch: Many | None = option(None, "Images trained at once in a process.")
    gradient_checkpointing: bool = option(False, "Recompute activations: less memory, more time.")
    compile: bool = option(False, "Compile the transformer blocks.")
    fused: bool = option(True, "AdamW in one pass over a tensor, not an operation after the other.")
    track: tuple[str, ...] = option((), "Trackers of accelerate, e.g. tensorboard, wandb, mlflow.")

    def __post_init__(self) -> None:
        """Refuse what concerns weights from outside where there are none."""
        if self.weights is None and (
            not self.train or self.condition_channels != "same" or self.invert_condition
        ):
            given = "--no-train, --condition-channels and --invert-condition"
            raise BenchError(
                f"{given} need --weights PATH: a folder that diffusers loads, or a checkpoint file."
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
        start = ["bench", "run", "--method", self.method, "--task", self.task]
        return shlex.join(start + argv(replace(self, method=_DEFAULTS.method, task=_DEFAULTS.task)))

    def without_weights(self) -> RunConfig:
        """Return the same without weights from outside, options and learning rate: what the floor needs."""
        defaults = {name: getattr(_DEFAULTS, name) for name in ("options", "learning_rate", *OUTSIDE)}
        return replace(self, **defaults)


def flags(known: Field[Any]) -> list[str]:
    """Return the flags of a field on the command line."""
    return list(known.metadata.get("flags") or [f"--{known.name.replace('_', '-')}"])


def argv(asked: Any) -> list[str]:
    """Return the words by which a command is asked for such options, defaults left out."""
    plain, words = type(asked)(), list[str]()
    for known in fields(asked):
        name, value = flags(known)[0], getattr(asked, known.name)
        if value == getattr(plain, known.name):
            continue
        if isinstance(value, bool):
            words.append(name if value else name.replace("--", "--no-", 1))
        elif isinstance(value, Mapping):
            words += [word for k, v in sorted(value.items()) for word in (name, f"{k}={option_text(v)}")]
        elif isinstance(value, tuple):
            words += [name, ",".join(map(str, value))]
        else:
            short = isinstance(value, float) and value == float(f"{value:g}")
            words += [name, f"{value:g}" if short else str(value)]
    return words


def option_text(value: Any) -> str:
    """Return an option's value as the command line takes it: JSON, but text plain unless it reads as JSON."""
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

    eval_items, train_items: how many of a side, in the order of hashed ids, so that fewer are a part of
    more; None for all. images_of: training images of single methods where time, not images, is to be equal.
    train_subset: which random choice of train_items, whatever the training seed.
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
        """Return the budget with other images or items (None: as they are), named so ("short-10")."""
        words = {"train_images": "{}images", "train_items": "{}", "train_subset": "choice{}"}
        words["eval_items"] = "{}eval"
        asked = zip(words, (images, items, subset or None, limit), strict=True)
        given: dict[str, Any] = {name: value for name, value in asked if value is not None}
        name = "-".join([self.name, *(words[n].format(value) for n, value in given.items())])
        return replace(self, name=name, images_of=self.images_of if images is None else {}, **given)


@dataclass(frozen=True, kw_only=True)
class Training:
    """The fair loop's settings, equal for all methods of a suite.

    loss: "eps", the paper's, or "v", which weighs it by 1 + 1/SNR and so is the error of v (arXiv
    2202.00512), in which the emoji base was trained. latents: "mode" of the autoencoder's posterior, or a
    "sample" at every visit. schedule: of the rate after the warm-up, "cosine" down to 0 or "constant".
    clip_norm: 0 for none. captions: "one" of an item's by a fixed rule, or a "random" one at every visit.
    leaky: whether the evaluation items are trained on too. precision, ema: see the engine.
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
    folder or hub id of the frozen base, None where the user brings it; variant: which of its weights.
    storage: encoded items are held in "memory", or in "shards" on disk (text in float16). choose_side,
    rates: where `bench tune` chooses, and from what; learning_rates: what it chose, by method or variant,
    or by (task, method or variant); learning_rate: of all others. feature_judge, clip_judge: names of judges.
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


_NO_BUDGET = Budget(name="", train_images=0, eval_items=None)
_LATER: Mapping[str, tuple[Any, tuple[str, ...]]] = {  # defaults, and the settings that came later
    "budget": (_NO_BUDGET, ("images_of", "train_items", "train_subset")),
    "training": (Training(), ("precision", "ema", "latents", "schedule", "captions", "leaky")),
    "sampler": (Sampler(), ("draws",)),
}


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
        for part, (plain, names) in _LATER.items():
            later = {name: getattr(plain, name) for name in names}
            values[part] = {k: v for k, v in values[part].items() if k not in later or v != later[k]}
        return values

    @property
    def hash(self) -> str:
        """SHA-256 of the protocol, 64 hexadecimal digits; tables show the first 12."""
        from bench.content import digest_json  # numpy comes with it, which help does not need

        return digest_json(self.as_dict())
