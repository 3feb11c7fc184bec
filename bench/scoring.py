"""The only evaluator: per-item scores and set distances of images against their targets."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.content import Cache, digest_arrays
from bench.metrics.clip import clip_score
from bench.metrics.cmmd import PairedCmmd
from bench.metrics.frechet import ExtrapolatedFrechet, PairedFrechet
from bench.metrics.intervals import (
    Interval,
    Resamples,
    Statistic,
    jackknife_interval,
    jackknife_replicates,
    linear_replicates,
    mean_interval,
)
from bench.metrics.kernel import PairedKernel
from bench.metrics.memorisation import nearer_to_training
from bench.metrics.neighbours import NAMES as PRDC
from bench.metrics.neighbours import NEAREST, SHARES, PairedPrdc
from bench.metrics.paired import cosine_to_target, pixel_error, retrieval_hits
from bench.record import MetricValue
from bench.types import BenchError, Example, Metric, MetricSpec, Scored, Task

RESAMPLES = 1000
BOOTSTRAP_SEED = 0

_SETS = (
    MetricSpec(name="fd", scale="squared Fréchet distance", better="lower", judge="features"),
    MetricSpec(name="kid", scale="MMD^2, cubic kernel, own pairs left out", better="lower", judge="features"),
    MetricSpec(
        name="fd_infinite", scale="squared Fréchet distance, N extrapolated", better="lower", judge="features"
    ),
    *(MetricSpec(name=name, scale=f"{NEAREST} nearest", better="higher", judge="features") for name in PRDC),
    MetricSpec(name="cmmd", scale="MMD^2 x 1000, Gaussian kernel", better="lower", judge="clip"),
)
SET_METRICS = {spec.name: spec for spec in _SETS}
FEWER_GROUPS = {"fd_infinite": 20}  # each replicate of it costs as much as six of the others
ITEM_METRICS = (
    MetricSpec(name="cosine", scale="cosine", better="higher", judge="features"),
    MetricSpec(name="retrieval", scale="R@1 in [0, 1]", better="higher", judge="features"),
    MetricSpec(name="mae", scale="[0, 1]", better="lower"),
)
NEARNESS_METRIC = MetricSpec(
    name="nearer_training",
    scale="share nearer to training than to test",
    better="none",
    judge="features",
)
CLIP_METRIC = MetricSpec(name="clip", scale="cosine", better="higher", judge="clip")
_OWN = (*ITEM_METRICS, NEARNESS_METRIC, CLIP_METRIC)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Metrics with intervals, and the per-item values they are means of ([N] each).

    replicates: of the metrics of the whole set, [G] each, as `metrics.intervals.jackknife_interval` takes
    them: `linear_replicates` of the Fréchet distance, `jackknife_replicates` of the others.
    seconds: what scoring these images takes, whether or not features came from the cache.
    """

    metrics: dict[str, MetricValue]
    items: dict[str, np.ndarray]
    replicates: dict[str, np.ndarray]
    seconds: float


class Evaluator:
    """Scores sets of images against the same targets, with the same judges and resamples.

    examples: the N items; clip: a judge or None; training: [>= N-1,H,W,3] uint8 real training images
    for the memorisation check, None to leave it out. metrics: others, besides the task's. targets: the
    items' images, [N,H,W,3] uint8.
    Features of images seen before come from the cache, keyed by pixels and judge.
    """

    def __init__(
        self,
        *,
        examples: Sequence[Example],
        task: Task,
        features: Any,
        clip: Any,
        cache: Cache,
        training: np.ndarray | None = None,
        metrics: Sequence[Metric] = (),
    ) -> None:
        self.metrics = _distinct(metrics, task)
        self.examples, self.task, self.cache = list(examples), task, cache
        self.feature_judge, self.clip_judge = features, clip
        self.targets = np.stack([e.image for e in examples])
        self.resamples = Resamples(n_items=len(self.examples), n_replicates=RESAMPLES, seed=BOOTSTRAP_SEED)
        self.target_features = self.features_of(self.targets, features)
        self.text = clip.text([e.caption for e in examples]) if clip is not None else None
        self.read_targets = self.features_of(self.targets, clip) if clip is not None else None
        self.training_features = None
        if training is not None:
            self.training_features = self.features_of(training, features)[: len(self.examples) - 1]

    def features_of(self, images: np.ndarray, judge: Any) -> np.ndarray:
        """Return a judge's features of images [N,H,W,3] uint8, [N,D] float32, cached by content."""
        return self._timed_features(images, judge)[0]

    def _timed_features(self, images: np.ndarray, judge: Any) -> tuple[np.ndarray, float]:
        """Return features and the seconds they took when they were made."""
        key = {"kind": "features", "judge": judge.digest, "images": digest_arrays(images=images)}

        def make() -> dict[str, np.ndarray]:
            begun = time.perf_counter()
            features = judge.features(images)
            return {"features": features, "seconds": np.array(time.perf_counter() - begun)}

        arrays = self.cache.load_or_make({**key, "version": 2}, make)
        return arrays["features"], float(arrays["seconds"])

    def evaluate(self, images: np.ndarray) -> Scores:
        """Score images [N,H,W,3] uint8, image i belonging to item i."""
        features, seconds = self._timed_features(images, self.feature_judge)
        read = None
        if self.clip_judge is not None:
            read, more = self._timed_features(images, self.clip_judge)
            seconds += more
        begun = time.perf_counter()
        items = self._items(images, features, read)
        specs = {s.name: s for s in (*_OWN, *self.task.metrics, *(m.spec for m in self.metrics))}
        metrics, replicates = self._sets(features, read)
        for name, values in items.items():
            metrics[name] = self._item_metric(specs[name], values)
        seconds += time.perf_counter() - begun
        return Scores(metrics=metrics, items=items, replicates=replicates, seconds=seconds)

    def _items(
        self, images: np.ndarray, features: np.ndarray, read: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        items = {
            "cosine": cosine_to_target(features, self.target_features),
            "retrieval": retrieval_hits(features, self.target_features),
            "mae": pixel_error(images, self.targets),
        }
        if self.training_features is not None:
            items["nearer_training"] = nearer_to_training(
                features, self.target_features, self.training_features
            )
        obeyed = [self.task.fidelity(i, e) for i, e in zip(images, self.examples, strict=True)]
        for spec in self.task.metrics:
            items[spec.name] = np.array([o[spec.name] for o in obeyed])
        if read is not None and self.text is not None:
            items["clip"] = clip_score(read, self.text)
        return items | self._further(images, features, read)

    def _further(
        self, images: np.ndarray, features: np.ndarray, read: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        """Return the values of metrics from outside; BenchError where one is not a number an item."""
        scored = Scored(
            images=images,
            targets=self.targets,
            examples=self.examples,
            features=features,
            target_features=self.target_features,
            read=read,
            text=self.text,
        )
        found = {}
        for metric in self.metrics:
            values = np.asarray(metric.items(scored), dtype=np.float64)
            if values.shape != (len(images),) or np.isinf(values).any():
                raise BenchError(
                    f"metric '{metric.spec.name}' gave an array of shape {values.shape}, or infinite values, "
                    f"for {len(images)} images. Return a finite number, or NaN, for each."
                )
            found[metric.spec.name] = values
        return found

    def _sets(
        self, features: np.ndarray, read: np.ndarray | None
    ) -> tuple[dict[str, MetricValue], dict[str, np.ndarray]]:
        """Return the metrics of the whole set and their jackknife replicates."""
        values, replicates = {}, {}
        whole = np.ones(len(self.examples), dtype=np.uint16)
        for name, statistic in self._statistics(features, read).items():
            value = statistic(whole)
            if isinstance(statistic, PairedFrechet):
                drawn = linear_replicates(value, statistic.influence(), resamples=self.resamples)
            else:
                groups = FEWER_GROUPS.get(name, 100)
                drawn = jackknife_replicates(statistic, resamples=self.resamples, groups=groups)
            items = len(self.examples)
            interval = jackknife_interval(value, drawn, share_of=items if name in SHARES else None)
            values[name] = self._value(SET_METRICS[name], interval, n=len(self.examples))
            replicates[name] = drawn
        return values, replicates

    def _statistics(self, features: np.ndarray, read: np.ndarray | None) -> dict[str, Statistic]:
        """Return each metric of the whole set as a function of item counts.

        A sample resembles its own target, which biases the plain KID: own pairs are left out.
        """
        pair = (features, self.target_features)
        found: dict[str, Statistic] = {
            "fd": PairedFrechet(*pair),
            "kid": PairedKernel(*pair, own_pairs=False),
            "fd_infinite": ExtrapolatedFrechet(*pair, seed=BOOTSTRAP_SEED),
        }
        if len(self.examples) >= 2 * NEAREST:
            neighbours = PairedPrdc(*pair)
            found |= {name: neighbours.statistic(name) for name in PRDC}
        if read is not None and self.read_targets is not None:
            found["cmmd"] = PairedCmmd(read, self.read_targets)
        return found

    def _item_metric(self, spec: MetricSpec, values: np.ndarray) -> MetricValue:
        """Average over the items that have a value: which do is a property of the item, not of a method."""
        known = values[np.isfinite(values)]
        if len(known) < 2:
            return self._value(spec, None, n=len(known))
        whole = len(known) == len(values)
        drawn = self.resamples if whole else Resamples(n_items=len(known), seed=BOOTSTRAP_SEED)
        return self._value(spec, mean_interval(known, resamples=drawn), n=len(known))

    def _value(self, spec: MetricSpec, interval: Interval | None, *, n: int) -> MetricValue:
        judges = {"features": self.feature_judge, "clip": self.clip_judge}
        judge = judges.get(spec.judge)
        return MetricValue(
            value=interval.value if interval else None,
            low=interval.low if interval else None,
            high=interval.high if interval else None,
            n=n,
            judge=judge.name if judge is not None else "none",
            scale=spec.scale,
            better=spec.better,
        )


def _distinct(metrics: Sequence[Metric], task: Task) -> tuple[Metric, ...]:
    """Return metrics from outside; BenchError where one has a name that another has."""
    taken = {spec.name for spec in (*_OWN, *_SETS, *task.metrics)}
    for metric in metrics:
        if metric.spec.name in taken:
            raise BenchError(f"two metrics are called '{metric.spec.name}'. Give yours a name of its own.")
        taken.add(metric.spec.name)
    return tuple(metrics)


def items_json(
    ids: Sequence[str], rows: Mapping[str, Scores], *, curve: Sequence[Sequence[float]] = ()
) -> dict[str, Any]:
    """Return what a report needs beyond the record, as JSON values.

    "ids"; "rows": per-item scores, 6 decimals; "replicates": jackknife replicates of set metrics, 9
    significant digits; "curve": the training curve, [step, loss].
    """
    return {
        "ids": list(ids),
        "rows": {
            row: {name: [_six(v) for v in values] for name, values in s.items.items()}
            for row, s in rows.items()
        },
        "replicates": {
            row: {n: [float(f"{v:.9g}") for v in values] for n, values in s.replicates.items()}
            for row, s in rows.items()
        },
        "curve": [list(point) for point in curve],
    }


def _six(value: float) -> float | None:
    """Round to 6 decimals; a missing value is null, never 0."""
    return round(float(value), 6) if math.isfinite(value) else None
