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
from bench.metrics.frechet import PairedFrechet
from bench.metrics.kernel import PairedKernel
from bench.metrics.paired import cosine_to_target, pixel_error, retrieval_hits
from bench.record import MetricValue
from bench.stats import (
    Interval,
    Resamples,
    Statistic,
    jackknife_interval,
    jackknife_replicates,
    mean_interval,
)
from bench.types import Example, MetricSpec, Task

RESAMPLES = 1000
BOOTSTRAP_SEED = 0

SET_METRICS = (
    MetricSpec(name="fd", scale="squared Fréchet distance", better="lower", judge="features"),
    MetricSpec(
        name="kid",
        scale="MMD^2, cubic kernel, own pairs left out",
        better="lower",
        judge="features",
    ),
)
ITEM_METRICS = (
    MetricSpec(name="cosine", scale="cosine", better="higher", judge="features"),
    MetricSpec(name="retrieval", scale="R@1 in [0, 1]", better="higher", judge="features"),
    MetricSpec(name="mae", scale="[0, 1]", better="lower"),
)
CLIP_METRIC = MetricSpec(name="clip", scale="cosine", better="higher", judge="clip")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Metrics with intervals, and the per-item values they are means of ([N] each).

    replicates: jackknife replicates of the metrics of the whole set, [G] each; see
    `bench.stats.jackknife_replicates`. seconds: what scoring these images takes, whether or not
    features came from the cache.
    """

    metrics: dict[str, MetricValue]
    items: dict[str, np.ndarray]
    replicates: dict[str, np.ndarray]
    seconds: float


class Evaluator:
    """Scores sets of images against the same targets, with the same judges and resamples.

    targets [N,H,W,3] uint8; examples: the N items, in the same order; clip: a judge or None.
    Features of images seen before come from the cache, keyed by pixels and judge.
    """

    def __init__(
        self, *, examples: Sequence[Example], task: Task, features: Any, clip: Any, cache: Cache
    ) -> None:
        self.examples, self.task, self.cache = list(examples), task, cache
        self.feature_judge, self.clip_judge = features, clip
        self.targets = np.stack([e.image for e in examples])
        self.resamples = Resamples(
            n_items=len(self.examples), n_replicates=RESAMPLES, seed=BOOTSTRAP_SEED
        )
        self.target_features = self.features_of(self.targets, features)
        self.text = clip.text([e.caption for e in examples]) if clip is not None else None

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
        specs = {s.name: s for s in (*ITEM_METRICS, CLIP_METRIC, *self.task.metrics)}
        sets = {s.name: self._set_metric(s, features) for s in SET_METRICS}
        metrics = {name: value for name, (value, _) in sets.items()}
        for name, values in items.items():
            metrics[name] = self._item_metric(specs[name], values)
        seconds += time.perf_counter() - begun
        replicates = {name: values for name, (_, values) in sets.items()}
        return Scores(metrics=metrics, items=items, replicates=replicates, seconds=seconds)

    def _items(
        self, images: np.ndarray, features: np.ndarray, read: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        items = {
            "cosine": cosine_to_target(features, self.target_features),
            "retrieval": retrieval_hits(features, self.target_features),
            "mae": pixel_error(images, self.targets),
        }
        obeyed = [self.task.fidelity(i, e) for i, e in zip(images, self.examples, strict=True)]
        for spec in self.task.metrics:
            items[spec.name] = np.array([o[spec.name] for o in obeyed])
        if read is not None and self.text is not None:
            items["clip"] = clip_score(read, self.text)
        return items

    def _set_metric(self, spec: MetricSpec, features: np.ndarray) -> tuple[MetricValue, np.ndarray]:
        statistic: Statistic = PairedFrechet(features, self.target_features)
        if (
            spec.name == "kid"
        ):  # a sample resembles its own target, which biases the plain estimator
            statistic = PairedKernel(features, self.target_features, own_pairs=False)
        replicates = jackknife_replicates(statistic, resamples=self.resamples)
        value = statistic(np.ones(len(self.examples), dtype=np.uint16))
        return self._value(
            spec, jackknife_interval(value, replicates), n=len(self.examples)
        ), replicates

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
            value=interval.value if interval else None, low=interval.low if interval else None,
            high=interval.high if interval else None, n=n,
            judge=judge.name if judge is not None else "none", scale=spec.scale, better=spec.better,
        )  # fmt: skip


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
