"""Suites: what is fair. A suite fixes data, base, judges, training, sampler and budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from bench.content import digest_json
from bench.data.splits import Splits
from bench.types import BenchError, Dataset, unknown

ASSETS = Path(__file__).parent / "emoji" / "assets"
METRIC_VERSION = 2  # raise it when a metric changes meaning: old and new numbers never share a table


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much of everything: the same number of training images for every method of a table.

    eval_items: how many evaluation items, in the order of their hashed ids; None for all. images_of:
    training images of single methods where time, not images, is to be equal. train_items: how many
    items of the train side are trained on, picked by the same rule, so that fewer are a part of more;
    None for all.
    """

    name: str
    train_images: int
    eval_items: int | None
    images_of: Mapping[str, int] = field(default_factory=dict)
    train_items: int | None = None

    def images(self, method: str) -> int:
        """Return the training images of a method."""
        return self.images_of.get(method, self.train_images)

    def with_items(self, train_items: int | None) -> Budget:
        """Return the budget on so many training items ("short-10"), itself for None."""
        if train_items is None:
            return self
        return replace(self, name=f"{self.name}-{train_items}", train_items=train_items)


@dataclass(frozen=True, kw_only=True)
class Training:
    """The fair loop's settings, equal for all methods of a suite.

    loss: "eps" is the plain eps error of the paper; "v" weighs it by 1 + 1/SNR, which equals the
    error of v (arXiv 2202.00512), the parametrisation the emoji base was trained in. latents: "mode"
    of the autoencoder's posterior, or "sample": a draw of it at every visit.
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


_LATER = ("precision", "ema", "latents")


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """name: "ddim" (eta 0) or "dpm++" (DPM-Solver++ 2M); guidance 1 asks for the prompt alone."""

    name: str = "dpm++"
    steps: int = 20
    guidance: float = 2.5


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A benchmark: data, base and protocol.

    dataset, splits: loaders. at: where the user brings the data, a prepared folder (None: that of the
    environment) -> such loaders. base: folder or hub id of the frozen base; None where the user brings
    it; variant: which of its weights, None for the plain ones. storage: encoded items are
    held in "memory", or in "shards" on disk (text in float16), for data sets that no memory holds; part
    of what the suite is, so that equal suites read equal numbers.
    learning_rate: of methods that are not among learning_rates, which `bench tune` chose on the val
    side by method. feature_judge, clip_judge: names in bench.judges.
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
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    default_budget: str = "standard"
    eval_side: str = "test"
    at: Callable[[Path | None], tuple[Callable[[], Dataset], Callable[[], Splits]]] | None = None
    variant: str | None = None
    storage: str = "memory"

    def budget(self, name: str | None) -> Budget:
        """Return a budget by name (default: the suite's); BenchError for an unknown one."""
        chosen = name or self.default_budget
        if chosen not in self.budgets:
            raise unknown("budget", chosen, self.budgets)
        return self.budgets[chosen]

    def check_task(self, task: str) -> None:
        """Raise BenchError if the suite does not have the task."""
        if task not in self.tasks:
            raise unknown(f"task of suite {self.name}", task, self.tasks)


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
        if not values["budget"]["images_of"]:
            del values["budget"]["images_of"]
        if values["budget"]["train_items"] is None:
            del values["budget"]["train_items"]
        for name in _LATER:
            if values["training"][name] == getattr(Training, name):
                del values["training"][name]
        return values

    @property
    def hash(self) -> str:
        """SHA-256 of the protocol, 64 hexadecimal digits; tables show the first 12."""
        return digest_json(self.as_dict())


def _openmoji() -> Dataset:
    from bench.data.openmoji import OpenMoji64

    return OpenMoji64()


def _openmoji_splits() -> Splits:
    from bench.data.openmoji import openmoji64_splits

    return openmoji64_splits()


EMOJI = Suite(
    name="emoji",
    about="OpenMoji at 64 px on the shipped miniature Stable Diffusion; a laptop CPU, offline",
    dataset=_openmoji,
    splits=_openmoji_splits,
    base=ASSETS / "emoji-sd-v1",
    tasks=("sketch", "segmentation", "layout", "drawing"),
    feature_judge="efficientnet-lite0",
    clip_judge="emoji-clip",
    learning_rate=1e-3,
    budgets={
        "quick": Budget(name="quick", train_images=1_600, eval_items=96),
        "short": Budget(name="short", train_images=1_600, eval_items=None),
        "standard": Budget(name="standard", train_images=3_200, eval_items=None),
        "full": Budget(name="full", train_images=64_000, eval_items=None),
        "equal-time": Budget(
            name="equal-time",
            train_images=3_200,
            eval_items=None,
            images_of={  # what each method manages while BPS trains on 3,200, by results/emoji/timings.json
                "controlnet": 4_256,
                "controlnet-xs": 4_480,
                "lora-concat": 4_784,
                "sd-finetune": 3_712,
                "t2i-adapter": 7_088,
            },
        ),
    },
    training=Training(batch=16),
    sampler=Sampler(name="dpm++", steps=10),
    learning_rates={  # chosen on val, see results/tuning
        "bps": 1e-3,
        "controlnet": 3e-3,
        "controlnet-xs": 1e-2,
        "lora-concat": 3e-3,
        "sd-finetune": 3e-3,
        "t2i-adapter": 1e-2,
    },
)

MICRO = replace(
    EMOJI,
    name="micro",
    about="a few items on a base of your own, for tests and for trying a new method",
    base=None,
    clip_judge=None,
    default_budget="quick",
    budgets={
        "quick": Budget(name="quick", train_images=48, eval_items=12),
        "standard": Budget(name="standard", train_images=120, eval_items=12),
    },
    training=Training(batch=8),
    learning_rates={},
    sampler=Sampler(name="dpm++", steps=3),
)


def _coco17_at(folder: Path | None) -> tuple[Callable[[], Dataset], Callable[[], Splits]]:
    @cache
    def load() -> Any:
        from bench.data.coco.dataset import Coco17, find_folder

        return Coco17(find_folder(folder))

    def splits() -> Splits:
        from bench.data.coco.dataset import splits_of

        return splits_of(load())

    return load, splits


_COCO17_TRAIN = 118_287

COCO17 = Suite(
    name="coco17",
    about="COCO 2017 at 512 px on your own Stable Diffusion 1.5 (--base, --data): the paper's suite",
    dataset=lambda: _coco17_at(None)[0](),
    splits=lambda: _coco17_at(None)[1](),
    at=_coco17_at,
    base=None,
    tasks=("sketch", "segmentation", "layout", "drawing"),
    feature_judge="inception-v3",
    clip_judge="open-clip/ViT-B-16",
    learning_rate=1e-5,
    budgets={
        "quick": Budget(name="quick", train_images=3_200, eval_items=1_000),
        "standard": Budget(name="standard", train_images=_COCO17_TRAIN, eval_items=None),
        "paper": Budget(name="paper", train_images=16 * _COCO17_TRAIN, eval_items=None),
    },
    training=Training(batch=16, mirror=False, loss="eps"),
    sampler=Sampler(name="ddim", steps=50, guidance=7.5),
    storage="shards",
    eval_side="val",
)

SUITES: Mapping[str, Suite] = {"emoji": EMOJI, "micro": MICRO, "coco17": COCO17}


SIDES = ("val", "test")


def find_data(name: str, folder: Path | None = None) -> Suite:
    """Return a suite by name, over the user's prepared data where it takes such.

    folder: where they lie; else the environment says. BenchError for an unknown suite and for a folder
    given to a suite that brings its own data.
    """
    if name not in SUITES:
        raise unknown("suite", name, SUITES)
    suite = SUITES[name]
    if suite.at is not None:
        dataset, splits = suite.at(folder)
        return replace(suite, dataset=dataset, splits=splits)
    if folder is not None:
        raise BenchError(f"suite '{name}' brings its own data; leave --data {folder} away.")
    return suite


def find_suite(
    name: str,
    *,
    base: Path | None = None,
    side: str | None = None,
    data: Path | None = None,
    variant: str | None = None,
    guidance: float | None = None,
    steps: int | None = None,
) -> Suite:
    """Return a suite by name, with the user's base, variant, data, side and sampling where given.

    Raises BenchError for an unknown suite and where the suite needs a base and none came.
    """
    suite = find_data(name, data)
    suite = suite if base is None else replace(suite, base=base)
    suite = suite if variant is None else replace(suite, variant=variant)
    if side is not None:
        if side not in SIDES:
            raise unknown("side", side, SIDES)
        suite = replace(suite, eval_side=side)
    if suite.base is None:
        raise BenchError(
            f"suite '{name}' brings no base model. Give the folder of a Stable Diffusion in "
            "diffusers' format with --base FOLDER."
        )
    sampler = suite.sampler
    return replace(
        suite,
        sampler=replace(
            sampler,
            guidance=sampler.guidance if guidance is None else float(guidance),
            steps=sampler.steps if steps is None else steps,
        ),
    )


def changes(suite: Suite, budget: Budget) -> dict[str, Any]:
    """Return what differs from the suite of that name: "guidance", "steps", "train_items"."""
    own, now = SUITES.get(suite.name, suite).sampler, suite.sampler
    found = {k: getattr(now, k) for k in ("guidance", "steps") if getattr(now, k) != getattr(own, k)}
    return found | ({} if budget.train_items is None else {"train_items": budget.train_items})
