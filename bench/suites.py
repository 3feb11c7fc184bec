"""Suites: what is fair. A suite fixes data, base, judges, training, sampler and budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import registry
from bench.base.snapshot import find_snapshot
from bench.base.weights import Weights
from bench.config import READING, Budget, RunConfig, RunSpec, Sampler, Suite, Training
from bench.training.engine import find_device, launched
from bench.types import BenchError, Dataset, Method, Task, unknown

if TYPE_CHECKING:
    from bench.data.splits import Splits

ASSETS = Path(__file__).parent / "emoji" / "assets"


def _later(target: str) -> Callable[[], Any]:
    """Return what calls "module:name" when first asked: what a run loads, help need not."""

    @cache
    def load() -> Any:
        module, _, name = target.partition(":")
        return getattr(import_module(module), name)()

    return load


EMOJI = Suite(
    name="emoji",
    about="OpenMoji at 64 px on the shipped miniature Stable Diffusion; a laptop CPU, offline",
    dataset=_later("bench.data.openmoji:OpenMoji64"),
    splits=_later("bench.data.openmoji:openmoji64_splits"),
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
        "style-only": 3e-3,  # as sd-finetune, which it is without the condition
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


_Loaders = tuple[Callable[[], Dataset], Callable[[], "Splits"]]


def _coco17_at(config: RunConfig) -> _Loaders:
    @cache
    def load() -> Any:
        from bench.data.coco.dataset import Coco17, find_folder

        data = Coco17(find_folder(config.data))
        if config.as_released and not data.recipe.released:
            raise BenchError(
                f"--as-released: {data.folder} was not prepared as the release does. Prepare it with "
                "--resize squash --lines photo."
            )
        return data

    def splits() -> Splits:
        from bench.data.coco.dataset import splits_of

        return splits_of(load(), tune=config.side == "tune")

    return load, splits


_COCO17_TRAIN = 118_287

COCO17 = Suite(
    name="coco17",
    about="COCO 2017 at 512 px on your own Stable Diffusion 1.5 (--base, --data): the paper's suite",
    dataset=lambda: _coco17_at(RunConfig())[0](),
    splits=lambda: _coco17_at(RunConfig())[1](),
    at=_coco17_at,
    base=None,
    tasks=("sketch", "segmentation", "layout", "drawing"),
    feature_judge="inception-v3",
    clip_judge="open-clip/ViT-B-16-quickgelu/openai",
    learning_rate=1e-5,
    budgets={
        "rehearsal": Budget(name="rehearsal", train_images=320, eval_items=200),
        "quick": Budget(name="quick", train_images=3_200, eval_items=1_000),
        "standard": Budget(name="standard", train_images=_COCO17_TRAIN, eval_items=None),
        "paper": Budget(name="paper", train_images=16 * _COCO17_TRAIN, eval_items=None),
    },
    training=Training(batch=16, mirror=False, loss="eps"),
    sampler=Sampler(name="ddim", steps=50, guidance=7.5),
    storage="shards",
    eval_side="val",
    choose_side="tune",
    rates=("3e-6", "1e-5", "3e-5", "1e-4"),
)

RELEASED: Mapping[str, Any] = {
    "schedule": "constant",
    "warmup_share": 0.0,
    "clip_norm": 0.0,
    "drop_caption": 0.0,
    "latents": "sample",
}
"""Training as in the release of BPS, whose batch is 16 in each process besides."""


def _folder_at(config: RunConfig) -> _Loaders:
    @cache
    def load() -> Any:
        from bench.data.imagefolder import ImageFolder, Reading

        if config.data is None:
            raise BenchError(
                "suite 'folder' needs pictures with captions: --data FOLDER, with metadata.jsonl (file_name, "
                "text), or a data set's hub id."
            )
        names = ("image", "caption", "condition", "lines", "size", "shares", "strict")
        asked = {name: getattr(config, known) for name, known in zip(names, READING, strict=True)}
        return ImageFolder(config.data, Reading(**{name: value for name, value in asked.items() if value}))

    return load, lambda: load().splits


FOLDER = Suite(
    name="folder",
    about="your own pictures and captions (--data) on your own Stable Diffusion (--base)",
    dataset=lambda: _folder_at(RunConfig())[0](),
    splits=lambda: _folder_at(RunConfig())[1](),
    at=_folder_at,
    base=None,
    tasks=("image", "image-grey", "image-rgba", "sketch"),
    feature_judge="efficientnet-lite0",
    clip_judge=None,
    learning_rate=1e-4,
    learning_rates={"sd-finetune": 1e-5, "style-only": 1e-5},  # by custom; `bench tune` chooses yours
    budgets={
        "quick": Budget(name="quick", train_images=1_600, eval_items=100),
        "standard": Budget(name="standard", train_images=16_000, eval_items=1_000),
        "full": Budget(name="full", train_images=64_000, eval_items=None),
    },
    training=Training(batch=8, mirror=False, loss="eps"),
    sampler=Sampler(name="dpm++", steps=20, guidance=7.5),
    storage="shards",
)


def find_data(config: RunConfig) -> Suite:
    """Return the suite of a configuration, over the user's data where it takes such.

    BenchError for an unknown suite and for data, or ways to read them, that the suite does not take.
    """
    suite: Suite = registry.load("suite", config.suite)
    given = [name for name in READING if getattr(config, name)]
    if given and suite.at is not _folder_at:
        raise BenchError(
            f"--{given[0].replace('_', '-')} is for suite 'folder'; suite '{config.suite}' knows its own."
        )
    if suite.at is not None:
        dataset, splits = suite.at(config)
        return replace(suite, dataset=dataset, splits=splits)
    if config.data is not None:
        raise BenchError(f"suite '{config.suite}' brings its own data; leave --data {config.data} away.")
    return suite


def suite_of(config: RunConfig) -> Suite:
    """Return the suite of a configuration, with its base, data, side, training and sampling in place."""
    suite = find_data(config)
    side, splits = config.side or suite.eval_side, suite.splits
    names = ("precision", "ema", "captions", "leaky")
    training = {"batch": config.train_batch, **{name: getattr(config, name) for name in names}}
    if config.as_released:
        training |= {"batch": config.train_batch or 16 * launched(), **RELEASED}
    return replace(
        suite,
        base=config.base or suite.base,
        variant=config.base_variant or suite.variant,
        eval_side=side,
        splits=(lambda: splits().leaking(side)) if config.leaky else splits,
        feature_judge=config.judge or suite.feature_judge,
        clip_judge={None: suite.clip_judge, "none": None}.get(config.clip, config.clip),
        training=replace(suite.training, **_given(training)),
        sampler=replace(suite.sampler, **_given(_sampling(config))),
    )


def with_base(suite: Suite) -> Suite:
    """Return a suite that has a base; BenchError where none came."""
    if suite.base is None:
        raise BenchError(
            f"suite '{suite.name}' brings no base model. Give the folder of a Stable Diffusion in "
            "diffusers' format with --base FOLDER."
        )
    return suite


def check_shared(config: RunConfig) -> None:
    """Raise BenchError where base or data cannot be read or lack the task: runs of a grid share these."""
    suite, task = with_base(suite_of(config)), task_of(config)
    budget_of(config, suite)
    find_snapshot(suite.base or "", variant=suite.variant)
    task.condition(suite.dataset()[suite.splits().side("train")[0]])


def budget_of(config: RunConfig, suite: Suite, *, items: int | None = None) -> Budget:
    """Return the budget of a configuration in its suite; BenchError for an unknown one, or two.

    items: on the train side, None to count them; epochs become training images.
    """
    budget, images, epochs = suite.budget(config.budget), config.train_images, config.epochs
    if epochs is not None:
        if images is not None:
            raise BenchError(
                f"--epochs {epochs:g} and --train-images {images} both say how much is trained. Give one."
            )
        known = config.train_items or budget.train_items or items or len(suite.splits().side("train"))
        images = max(suite.training.batch, round(epochs * known))
    if config.train_subset and config.train_items is None:
        raise BenchError(
            f"--train-subset {config.train_subset} is a choice of items: give --train-items too."
        )
    given = {"items": config.train_items, "limit": config.limit, "subset": config.train_subset}
    return budget.asked(images=images, **given)


def task_of(config: RunConfig) -> Task:
    """Return the task of a configuration; BenchError for one that is unknown or not the suite's."""
    suite: Suite = registry.load("suite", config.suite)
    task: Task = registry.load("task", config.task)
    known = registry.rows("task").get(config.task)
    if known is not None and not known.package and config.task not in suite.tasks:  # an outsider's may try
        raise unknown(f"task of suite {suite.name}", config.task, suite.tasks)
    return task


def method_of(config: RunConfig) -> tuple[Method, dict[str, Any]]:
    """Return the method of a configuration and its options for the task; BenchError for an unknown one."""
    method: Method = registry.load("method", config.method)
    given = {**registry.row("method", config.method).options, **config.options}
    for name in given:
        if name not in method.options:
            raise unknown(f"option of {method.name}", name, method.options)
    return method, _settled(method, given, task_of(config))


def _settled(method: Method, given: Mapping[str, Any], task: Task) -> dict[str, Any]:
    options, settled = {**method.options, **given}, getattr(method, "settled", None)
    return options if settled is None else dict(settled(options, task))


def rate_of(suite: Suite, method: Method, *, task: Task, options: Mapping[str, Any]) -> float:
    """Return a suite's learning rate of a method with options: the task's before that of every task, of
    either a variant's own before the method's.
    """
    rows = {n: row for n, row in registry.rows("method").items() if row.variant_of == method.name}
    names = [n for n, row in rows.items() if _settled(method, row.options, task) == dict(options)]
    names.append(method.name)
    keys: list[str | tuple[str, str]] = [*((task.name, name) for name in names), *names]
    rates = suite.learning_rates
    return next((rates[key] for key in keys if key in rates), suite.learning_rate)


def resolve(config: RunConfig) -> RunSpec:
    """Return what a configuration names, loaded as far as names go.

    Raises BenchError for a wrong name, and where the suite needs a base and none came.
    """
    method, options = method_of(config)
    suite, task = with_base(suite_of(config)), task_of(config)
    path, channels, invert = config.weights, config.condition_channels, config.invert_condition
    return RunSpec(
        config=config,
        suite=suite,
        task=task,
        method=method,
        budget=budget_of(config, suite),
        options=options,
        learning_rate=config.learning_rate or rate_of(suite, method, task=task, options=options),
        device=find_device(config.device),
        weights=None
        if path is None
        else Weights(path=path, train=config.train, channels=channels, invert=invert),
    )


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _sampling(config: RunConfig) -> dict[str, Any]:
    """Return what a configuration asks of the sampler, by its names."""
    return {"guidance": config.guidance, "steps": config.sampling_steps, "draws": config.draws}


def changes(config: RunConfig) -> dict[str, Any]:
    """Return what a configuration sets apart from its suite and budget, by the names records have."""
    sampler = registry.load("suite", config.suite).sampler
    asked = {n: value for n, value in _sampling(config).items() if value != getattr(sampler, n)}
    names = ("train_items", "train_images", "epochs", "train_batch", "limit")
    asked |= {"train_subset": config.train_subset or None, **{n: getattr(config, n) for n in names}}
    return _given(asked)
