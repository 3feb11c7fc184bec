"""Ablations: what each asks, the variants it compares and what it holds fixed.

Two variants of one row differ in nothing but what the row declares: method or options, number of
training items or images, guidance or sampling steps. The same items, noise and images are the suite's and
the budget's, and so is each method's learning rate where no tuned one is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bench.registry import FLOOR
from bench.types import unknown

ABLATIONS_FOLDER = "ablations"
"""Below a results folder: runs of another protocol than the suite's own, kept out of main tables."""

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "bps": {
        "schedule": "head_heavy",
        "prior": "frozen",
        "sites": ["encoder", "middle", "decoder"],
        "modules": "both",
    },
    "controlnet": {"conditioning_scale": 1.0},
    "t2i-adapter": {"timesteps": "cubic"},
    "sd-finetune": {},
    "style-only": {},
    "lora-concat": {"rank": 16},
    FLOOR: {},
}
"""The options of the methods below as their papers have them: what a variant does not change."""

OF_TASKS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {"bps": {"layout": {"schedule": "uniform"}}}
"""Where a paper's options differ by task."""


def settings_of(method: str, task: str) -> dict[str, Any]:
    """Return the options of a method on a task as its paper has them; none of one that is not above."""
    return {**SETTINGS.get(method, {}), **OF_TASKS.get(method, {}).get(task, {})}


FEW_ITEMS = (10, 40, 160, 640)
SUBSETS: Mapping[int | None, int] = {10: 3, 40: 3, 160: 3}
"""Random choices of so many items, whose difference counts like that of seeds."""
MANY_IMAGES = (1_600, None, 6_400, 12_800, 25_600)
"""Of the learning curve; None stands for the budget's own, 3,200 in standard."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One setting of an ablation.

    options: of the method, where they differ from SETTINGS. train_items None: all; train_images, guidance,
    steps None: the budget's and suite's own. leaky: trained on the evaluation items too. subsets: how many
    random choices of the items are trained on.
    """

    name: str
    method: str = "bps"
    options: Mapping[str, Any] = field(default_factory=dict)
    train_items: int | None = None
    train_images: int | None = None
    guidance: float | None = None
    steps: int | None = None
    leaky: bool = False
    subsets: int = 1

    def settings(self, task: str) -> dict[str, Any]:
        """Return all options of the method under this variant, as a record of a task has them."""
        return {**settings_of(self.method, task), **self.options}

    def is_plain(self, task: str) -> bool:
        """Tell whether the method runs on a task as its paper has it."""
        return self.settings(task) == replace(self, options={}).settings(task)

    @property
    def called(self) -> str:
        """The name with the number of training items or images, where it has one of its own."""
        own = f"{self.train_items}" if self.train_items else f"{self.train_images} images"
        return f"{self.name} ({own})" if any(self.amount) else self.name

    @property
    def amount(self) -> tuple[int | None, int | None]:
        """On how much is trained: equal ones are compared."""
        return self.train_items, self.train_images


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """A row of the table.

    question: what is asked, in words. reference: name of the variants that have the paper's setting;
    others are compared with the one of equally many training items and images. fixed: what is held equal,
    in words. axis: what a curve is drawn over ("train_items", "train_images", "guidance", "steps"), "" for
    bars.
    """

    name: str
    question: str
    variants: tuple[Variant, ...]
    reference: str
    fixed: str
    tasks: tuple[str, ...] = ("sketch",)
    budget: str = "standard"
    axis: str = ""

    @property
    def resamples(self) -> bool:
        """Whether variants differ in sampling alone, so that one training serves all of them."""
        return self.axis in {"guidance", "steps"}

    @property
    def gains(self) -> bool:
        """Whether the first seed is sampled under wrong conditions too, for the condition gains."""
        return self.axis == "train_images"

    @property
    def kinds(self) -> list[dict[str, Any]]:
        """What is trained under a learning rate of its own: each method with its options, once."""
        every = [{"method": v.method, "options": dict(v.options)} for v in self.variants]
        return [kind for i, kind in enumerate(every) if kind not in every[:i]]

    def reference_of(self, variant: Variant) -> Variant:
        """Return the reference that a variant is compared with: its own method's where sampling differs."""
        if self.resamples:
            own = [v for v in self.variants if v.method == variant.method]
            return next(v for v in own if v.guidance is None and v.steps is None)
        return next(v for v in self.variants if v.name == self.reference and v.amount == variant.amount)

    def only(self, methods: Sequence[str]) -> Ablation:
        """Return the same with variants of some methods, or of these names, alone; all where none is named.

        BenchError where none is left.
        """
        kept = tuple(v for v in self.variants if not methods or {v.method, v.name} & set(methods))
        if not kept:
            raise unknown(f"method of ablation {self.name}", methods[0], {v.method for v in self.variants})
        return replace(self, variants=kept)


_IMAGES = "images, batches, noise, prompts, learning rate, sampler and seeds"
_PAPERS_OWN = "head-heavy 16-8-4-2"
_HEAD_HEAVY = {"schedule": "head_heavy"}
_MATCHED = {"schedule": "uniform", "emit_rate": "head_heavy"}
_CURVE_METHODS = ("bps", "controlnet", "t2i-adapter", "lora-concat", "sd-finetune", "style-only")
_GUIDANCES = ((None, "the suite's guidance"), *((g, f"guidance {g:g}") for g in (1.0, 2.0, 4.0, 7.5)))
_DATA_METHODS: Mapping[str, Mapping[str, Any]] = {
    "bps": {"method": "bps"},
    "controlnet": {"method": "controlnet"},
    "t2i-adapter-uniform": {"method": "t2i-adapter", "options": {"timesteps": "uniform"}},
    "sd-finetune": {"method": "sd-finetune"},
}
"""T2I-Adapter as the published runs have it; at cubic timesteps, its default, once these are made anew."""
_SITES = ("encoder", "middle", "decoder", "encoder middle", "encoder decoder", "middle decoder")


def _levels(ratio: float) -> list[float]:
    """Return 13 weights from 16 at the shallowest level, falling by a ratio a level; middle 16."""
    levels = [round(16.0 / ratio**level, 4) for level in range(4)]
    return [w for level in levels for w in (level, level, 1.0)] + [16.0]


def _of_bps(settings: Mapping[str, Mapping[str, Any]], **more: Any) -> tuple[Variant, ...]:
    """Return variants of BPS: name -> options."""
    return tuple(Variant(name=name, options=options, **more) for name, options in settings.items())


_TABLE = (
    Ablation(
        name="prior",
        question="What is the Bayesian prior worth: the pretrained UNet frozen, trained along from the "
        "same start, or without its pretrained weights, trained along or frozen?",
        variants=tuple(
            variant
            for items in (None, 160)
            for variant in _of_bps(
                {
                    "frozen prior": {},
                    "free prior": {"prior": "free"},
                    "no prior": {"prior": "none"},
                    "no prior, frozen": {"prior": "none-frozen"},
                },
                train_items=items,
            )
        ),
        reference="frozen prior",
        fixed=f"architecture of adapter and UNet, schedule, sites, training items, {_IMAGES}",
        tasks=("sketch", "segmentation"),
    ),
    Ablation(
        name="schedule",
        question="Does it matter that steering is strong at the head and light at the foot?",
        variants=_of_bps(
            {
                _PAPERS_OWN: _HEAD_HEAVY,
                "uniform 1-1-1-1": {"schedule": "uniform"},
                "foot-heavy 2-4-8-16": {"schedule": "foot_heavy"},
                "uniform, emitting rates times 16-8-4-2": _MATCHED,
                "head-heavy, emitting rates over 16-8-4-2": {**_HEAD_HEAVY, "emit_rate": "inverse"},
                "learned": {"schedule": "learned"},
                "learned as logarithms": {"schedule": "learned_log", "weights_rate": 30.0},
                "steeper 16-4-1-0.25": {"schedule": _levels(4.0)},
                "flatter 16-11.3-8-5.7": {"schedule": _levels(math.sqrt(2.0))},
            }
        ),
        reference=_PAPERS_OWN,
        fixed=f"prior, sites, training items, {_IMAGES}. Numbers are the weights of the encoder's "
        "levels from the shallowest; the middle has 16 but under uniform, where it has 1",
    ),
    Ablation(
        name="sites",
        question="Where must the UNet be steered: encoder, middle, decoder; resnets, attentions?",
        variants=_of_bps(
            {
                "every site": {},
                **{f"{sites.replace(' ', ' + ')} only": {"sites": sites.split()} for sites in _SITES},
                "resnets only": {"modules": "resnets"},
                "attentions only": {"modules": "attentions"},
                "output only": {"sites": ["output"]},
                "blind to time": {"time_aware": False},
            }
        ),
        reference="every site",
        fixed=f"prior, schedule, training items, {_IMAGES}. Fewer sites are fewer parameters: what an "
        "adapter does not steer it does not build. Attentions alone leave those levels unsteered where "
        "the base has none",
    ),
    Ablation(
        name="data",
        question="How little data is enough for each method?",
        variants=(
            *(
                Variant(name=name, **what, train_items=items, subsets=SUBSETS.get(items, 1))
                for items in (*FEW_ITEMS, None)
                for name, what in _DATA_METHODS.items()
            ),
            Variant(name=FLOOR, method=FLOOR),
        ),
        reference="bps",
        fixed=f"options of each method, {_IMAGES}: fewer items are seen more often. Fewer items are a "
        "part of more, the same for every method and seed; where several random choices of them were run, "
        "intervals are over choices too",
        tasks=("sketch", "segmentation"),
        budget="short",
        axis="train_items",
    ),
    Ablation(
        name="budget",
        question="How does each method go on with more training images?",
        variants=tuple(
            Variant(name=name, method=method, options=options, train_images=images)
            for images in MANY_IMAGES
            for name, method, options in (
                *((method, method, {}) for method in _CURVE_METHODS),
                ("BPS, uniform at matched rates", "bps", _MATCHED),
            )
        ),
        reference="bps",
        fixed="training items, batches, noise, prompts, sampler and seeds; as many images for each method",
        axis="train_images",
    ),
    Ablation(
        name="guidance",
        question="How strong should guidance by the prompt be, for each method?",
        variants=tuple(
            Variant(name=name if method == "bps" else f"{method}, {name}", method=method, guidance=guidance)
            for method in _CURVE_METHODS
            for guidance, name in _GUIDANCES
        ),
        reference="the suite's guidance",
        fixed="the trained weights, sampling steps, initial noise, prompts and seeds",
        axis="guidance",
    ),
    Ablation(
        name="steps",
        question="How many sampling steps are enough?",
        variants=(
            Variant(name="the suite's sampling"),
            *(Variant(name=f"{n}-step sampling", steps=n) for n in (5, 10, 20, 50)),
        ),
        reference="the suite's sampling",
        fixed="the trained weights, guidance, initial noise, prompts and seeds",
        axis="steps",
    ),
    Ablation(
        name="leak",
        question="How much better does a method look that was trained on the evaluation items too, as the "
        "release of BPS was?",
        variants=(Variant(name="clean"), Variant(name="trained on the evaluation items too", leaky=True)),
        reference="clean",
        fixed=f"options, number of training images, {_IMAGES}",
    ),
)

ABLATIONS: Mapping[str, Ablation] = {ablation.name: ablation for ablation in _TABLE}


def find_ablation(name: str) -> Ablation:
    """Return an ablation by name; BenchError with a "did you mean" otherwise."""
    if name not in ABLATIONS:
        raise unknown("ablation", name, ABLATIONS)
    return ABLATIONS[name]
