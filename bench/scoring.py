"""The only evaluator: a run's images against their targets, or any two folders of images.

It goes through the metrics of `bench.metrics`, those of the task and those from outside. A run's sets are
paired: row i of both is item i. Folders are taken as independent, so KID is the published estimator, own
pairs and all, and no set metric depends on how files are called; folders that hold the same stems get
the metrics of items besides, and intervals that leave pairs out together.
"""

from __future__ import annotations

import inspect
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.content import Cache, digest_arrays, sha256_file, validated, write_npz
from bench.data.folder import (
    AS_GIVEN,
    CHANGES,
    Manifest,
    Reading,
    Tick,
    doubts,
    left_out,
    manifest_of,
    opened,
    paired_stems,
    read_folders,
)
from bench.data.picture import stacked
from bench.judges import Judge, JudgeCard
from bench.metrics import OF_ITEMS, OF_SETS, SPECS, check_tools, tool_values
from bench.metrics.frechet import Moments, frechet_from_moments
from bench.metrics.intervals import (
    Deal,
    Estimates,
    Interval,
    SetMetric,
    crossed_interval,
    jackknife_replicates,
    linear_replicates,
)
from bench.metrics.neighbours import NEIGHBOURS
from bench.metrics.paired import CLIP, clip_score, cosine_to_target, retrieval_hits
from bench.record import MetricValue, digest_sources
from bench.types import BenchError, Example, Metric, MetricSpec, Scored, Task, some

FLOOR = 20
"""Fewer images a folder are refused: half of them, the smallest part that any number here is taken
of (extrapolation, sensitivity), would be fewer than 10, twice the 5 nearest neighbours and the fewest
groups of a jackknife."""
MOST_PAIRS = 10_000
"""Images a folder that metrics of all pairs hold in memory at once (three matrices of 0.8 GB)."""
HALF = "half"
SAYS = {**{name: change.says for name, change in CHANGES.items()}, HALF: "half of each folder"}
ROLES = {"features": "none", "clip": "none"}  # names of judges that a run has, and has not
_SEED = 0
_KEPT = ("items", "replicates")  # arrays of Scores
_UNBIASED = "MMD^2, cubic kernel, unbiased"  # KID of sets whose own pairs are not left out
_PAIRED = ("cosine", "retrieval", "mae")
_COMPARED = tuple(
    replace(spec, scale=_UNBIASED) if spec.name == "kid" else spec
    for spec in SPECS
    if spec.name in _PAIRED or any(spec in metric.specs for metric in OF_SETS)
)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Metrics with intervals, and the per-item values they are means of ([N] each).

    replicates: of the metrics of the whole set, [G] each, as `metrics.intervals.Estimates.of_replicates`
    takes them. draws: of each metric, its value at each draw; all else is a mean over them. seconds: what
    scoring these images takes, whether or not features came from the cache.
    """

    metrics: dict[str, MetricValue]
    items: dict[str, np.ndarray]
    replicates: dict[str, np.ndarray]
    draws: dict[str, list[float | None]]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What one set of images scores: numbers of the set with replicates, values of items, by metric."""

    sets: dict[str, tuple[MetricSpec, float, np.ndarray]]
    items: dict[str, tuple[MetricSpec, np.ndarray]]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Known:
    """A reference that is the same for many runs, read where the cache does not know what is asked of it.

    of: the digests that decide it, a JSON value. read: -> [N,H,W,3] uint8.
    """

    of: Any
    read: Callable[[], np.ndarray]


class Evaluator:
    """Scores sets of images against the same targets, with the same judges and groups.

    examples: the N items, read one at a time; task: None where there is no condition; judges: by role,
    "features" and, where there is one, "clip"; training: at least N-1 real training images for the
    memorisation check, None to leave it out. metrics: others, besides the task's. targets: the items'
    images, [N,H,W,3] uint8. groups: of items that are not independent, [N] int; None for none.
    Features of images seen before come from the cache, keyed by pixels and judge.
    """

    def __init__(
        self,
        *,
        examples: Sequence[Example],
        task: Task | None,
        judges: Mapping[str, Any],
        cache: Cache,
        training: Known | None = None,
        metrics: Sequence[Metric] = (),
        groups: np.ndarray | None = None,
    ) -> None:
        taken = {spec.name for spec in (*SPECS, *(task.metrics if task is not None else ()))}
        for metric in metrics:
            if metric.spec.name in taken:
                raise BenchError(
                    f"two metrics are called '{metric.spec.name}'. Give yours a name of its own."
                )
            taken.add(metric.spec.name)
        self.examples, self.task, self.cache, self.metrics = examples, task, cache, tuple(metrics)
        self.judges, clip = judges, judges.get("clip")
        self.groups = groups
        self.dealt = Deal.of_pairs(len(self.examples), groups=groups, seed=_SEED)
        self.targets = stacked(len(examples), lambda row: examples[row].image)
        self._seen = self._features(self.targets)[0]
        self._text = clip.text([e.caption for e in examples]) if clip is not None else None
        self._training = None if training is None else self._known_features(training, judges["features"])

    def _known_features(self, known: Known, judge: Any) -> np.ndarray:
        """Return the features of N-1 known images."""
        count = len(self.examples) - 1
        key = {"kind": "known features", "judge": judge.digest, "of": known.of, "count": count}

        def make() -> dict[str, np.ndarray]:
            return {"features": self.features_of(known.read(), judge)[:count]}

        return self.cache.load_or_make(key, make)["features"]

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

    def _features(self, images: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
        """Return the features of each judge, by its role, and the seconds of all."""
        timed = {role: self._timed_features(images, judge) for role, judge in self.judges.items()}
        return {role: features for role, (features, _) in timed.items()}, sum(s for _, s in timed.values())

    def evaluate(self, images: np.ndarray) -> Scores:
        """Score images [N,H,W,3] uint8, image i belonging to item i."""
        return self.evaluate_draws([images])

    def evaluate_known(self, known: Known, *, items: str) -> Scores:
        """Score a reference, from the cache where this very code scored it before by metrics of ours.

        items: the digest of the evaluated items.
        """
        if self.metrics or self.task is None:
            return self.evaluate(known.read())
        code = [digest_sources(), sha256_file(inspect.getfile(type(self.task)))]
        key = {"kind": "known scores", "code": code, "of": known.of, "items": items, "task": self.task.name}
        key |= {"judges": {role: judge.digest for role, judge in self.judges.items()}}
        key |= {"redrawn": self.examples[0].redraw is not None}  # where the lines' detector is at hand
        key |= {"groups": None if self.groups is None else self.groups.tolist()}

        def make() -> dict[str, np.ndarray]:
            scores = self.evaluate(known.read())
            told = {**vars(scores), "metrics": {n: asdict(m) for n, m in scores.metrics.items()}}
            arrays = {f"{kind} {n}": a for kind in _KEPT for n, a in told.pop(kind).items()}
            return {**arrays, "told": np.array(json.dumps(told))}

        arrays = self.cache.load_or_make(key, make)
        told = json.loads(str(arrays["told"]))
        told["metrics"] = validated(told["metrics"], dict[str, MetricValue], "the cache", remedy="Clear it.")
        for kind in _KEPT:
            names = [n.removeprefix(f"{kind} ") for n in arrays if n.startswith(f"{kind} ")]
            told[kind] = {name: arrays[f"{kind} {name}"] for name in names}
        return Scores(**told)

    def evaluate_draws(self, draws: Iterable[np.ndarray]) -> Scores:
        """Score several sets, each of an image an item: the means of their numbers, at the same N."""
        each = [self._measured(images) for images in draws]
        metrics, items, replicates = {}, {}, {}
        values: dict[str, list[float | None]] = {}
        for name, (spec, _, _) in each[0].sets.items():
            found = [float(draw.sets[name][1]) for draw in each]
            drawn = np.mean([draw.sets[name][2] for draw in each], axis=0)
            estimates = Estimates.of_replicates(float(np.mean(found)), drawn, dealt=self.dealt)
            interval = crossed_interval(estimates, share=spec.share)
            metrics[name] = metric_value(spec, interval, n=len(self.examples), judges=self.judges)
            replicates[name], values[name] = drawn, list(found)
        for name, (spec, _) in each[0].items.items():
            of_draws = [draw.items[name][1] for draw in each]
            items[name] = np.mean(of_draws, axis=0)
            known, n = mean_of_known(items[name], groups=self.groups)
            metrics[name] = metric_value(spec, known, n=n, judges=self.judges)
            values[name] = [_mean_or_none(scores) for scores in of_draws]
        seconds = sum(draw.seconds for draw in each)
        return Scores(metrics=metrics, items=items, replicates=replicates, draws=values, seconds=seconds)

    def _measured(self, images: np.ndarray) -> _Measured:
        features, seconds = self._features(images)
        begun = time.perf_counter()
        scored = Scored(
            images=images,
            targets=self.targets,
            examples=self.examples,
            features=features["features"],
            target_features=self._seen["features"],
            read=features.get("clip"),
            read_targets=self._seen.get("clip"),
            text=self._text,
            training=self._training,
        )
        sets = {one[0].name: one for metric in OF_SETS for one in measured(metric, scored, self.dealt)}
        items = {spec.name: (spec, values) for spec, values in self._items(scored)}
        return _Measured(sets=sets, items=items, seconds=seconds + time.perf_counter() - begun)

    def _items(self, scored: Scored) -> Iterator[tuple[MetricSpec, np.ndarray]]:
        """Give the metrics of items with their values, [N] float64, NaN where an item has none."""
        if self.task is not None:
            pairs = zip(scored.images, self.examples, strict=True)
            fidelity = [self.task.fidelity(image, example) for image, example in pairs]
            for spec in self.task.metrics:
                yield spec, np.array([values[spec.name] for values in fidelity])
        for metric in (*OF_ITEMS, *self.metrics):
            given = metric.items(scored)
            if given is None:
                continue
            values = np.asarray(given, dtype=np.float64)
            if values.shape != (len(self.examples),) or np.isinf(values).any():
                raise BenchError(
                    f"metric '{metric.spec.name}' gave an array of shape {values.shape}, or infinite values, "
                    f"for {len(self.examples)} images. Return a finite number, or NaN, for each."
                )
            yield metric.spec, values


def measured(
    metric: SetMetric, scored: Scored, dealt: Deal, *, groups: int | None = None
) -> Iterator[tuple[MetricSpec, float, np.ndarray]]:
    """Give each number of a set metric with its jackknife replicates, [G]; nothing without its judge.

    groups: left out in turn, the metric's own number by default; 0 for no replicates.
    """
    statistic = metric.statistic(scored, dealt)
    if statistic is None:
        return
    groups = metric.groups if groups is None else groups
    added = statistic.influence() if groups and dealt.paired and hasattr(statistic, "influence") else None
    values = np.atleast_1d(statistic(dealt.whole))
    if not groups:
        replicates = np.empty((0, len(values)))
    elif added is not None:
        replicates = linear_replicates(float(values[0]), added, dealt=dealt)
    else:
        replicates = jackknife_replicates(statistic, blocks=dealt.blocks, groups=groups)
    columns = replicates.reshape(-1, len(values)).T
    for spec, value, drawn in zip(metric.specs, values, columns, strict=True):
        yield spec, float(value), drawn


def mean_of_known(values: np.ndarray, *, groups: np.ndarray | None = None) -> tuple[Interval | None, int]:
    """Average over the items that have a value: which do is a property of the item, not of a method.

    groups: of the items, [N] int. Returns the mean with its interval, None where fewer than two groups
    have one, and how many items have.
    """
    known = np.isfinite(values)
    groups = np.arange(len(values)) if groups is None else groups
    labels = np.unique(groups[known], return_inverse=True)[1]
    if not known.any() or labels.max() < 1:
        return None, int(known.sum())
    return crossed_interval(Estimates.of_items(values[known], groups=labels)), int(known.sum())


def _mean_or_none(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def metric_value(
    spec: MetricSpec, found: Interval | float | None, *, n: int, judges: Mapping[str, Any]
) -> MetricValue:
    """Return a number as records hold it, with its interval where it has one; judges: by role."""
    ends = (found.low, found.high) if isinstance(found, Interval) else (None, None)
    return MetricValue(
        value=found.value if isinstance(found, Interval) else found,
        low=ends[0],
        high=ends[1],
        n=n,
        judge=judges[spec.judge].name if spec.judge in judges else ROLES.get(spec.judge, spec.judge),
        scale=spec.scale,
        better=spec.better,
    )


def items_json(
    ids: Sequence[str],
    rows: Mapping[str, Scores],
    *,
    groups: np.ndarray | None = None,
    curve: Sequence[Sequence[float]] = (),
) -> dict[str, Any]:
    """Return what a report needs beyond the record, as JSON values.

    "ids"; "groups": the number of each item's, where there are any; "rows": per-item scores, 6 decimals;
    "replicates": jackknife replicates of set metrics, 9 significant digits; "curve": the training curve,
    [step, loss].
    """
    return {
        "ids": list(ids),
        **({} if groups is None else {"groups": groups.tolist()}),
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


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `bench compare A B` tells.

    metrics: by name, value None where it could not be measured; reasons says why. sensitivity: change
    -> metric -> its value then, None where missing; the changes are named in SAYS. folders: n, digest,
    sizes and what was skipped, first A then B. also: FD and KID by other tools, or why they failed.
    """

    folders: tuple[Mapping[str, Any], Mapping[str, Any]]
    judges: Mapping[str, JudgeCard]
    metrics: Mapping[str, MetricValue]
    reasons: Mapping[str, str]
    warnings: tuple[str, ...]
    sensitivity: Mapping[str, Mapping[str, float | None]]
    also: Mapping[str, Mapping[str, float] | str]

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON value."""
        return {**asdict(self), "changes": {name: SAYS[name] for name in self.sensitivity}}


def compare(
    first: Path,
    second: Path,
    *,
    judges: Mapping[str, Judge],
    batch: int = 32,
    sensitivity: bool = False,
    intervals: bool = True,
    also: Sequence[str] = (),
    tick: Tick | None = None,
) -> Comparison:
    """Compare generated images with a reference, each a folder or what `bench.data.folder.opened` takes.

    Of statistics there is the Fréchet distance alone, without an interval.
    judges: by role, "features" and "clip"; without a CLIP judge CMMD is missing. sensitivity: measure
    again under each of SAYS. intervals: 95%, by the jackknife over blocks of both sets, over items for
    paired metrics. also: names of `bench.metrics`, asked on the same features.
    BenchError for a missing folder, fewer than FLOOR images or a broken one.
    """
    check_tools(also)
    with opened(first) as one, opened(second) as other:
        if isinstance(one, Moments) or isinstance(other, Moments):
            return _by_statistics((first, one), (second, other), judges=judges, batch=batch, tick=tick)
        manifests = one, other
        for manifest in manifests:
            _refuse_few(manifest)
        changes = CHANGES if sensitivity else {}
        a, b, errors = read_folders(*manifests, judges=judges, changes=changes, batch=batch, tick=tick)
    paired = paired_stems(*manifests)
    sets = _Sets.of(a, b, AS_GIVEN, paired=paired)
    numbers = sets.measure(intervals=intervals)
    if errors is not None:
        numbers["mae"] = _mean(errors, intervals=intervals)
    moved: dict[str, dict[str, Any]] = {}
    if sensitivity:  # MAE is of pixels: missing
        changed = {name: _Sets.of(a, b, name, paired=paired) for name in CHANGES} | {HALF: sets.half()}
        moved = {name: dict(part.measure(intervals=False)) for name, part in changed.items()}
    return Comparison(
        folders=(a.facts, b.facts),
        judges={role: judge.card for role, judge in judges.items()},
        metrics={
            s.name: metric_value(s, numbers.get(s.name), n=len(a.digests), judges=judges) for s in _COMPARED
        },
        reasons=_reasons(max(len(a.digests), len(b.digests)), numbers, paired=paired),
        warnings=tuple(doubts(a, b)),
        sensitivity={
            name: {spec.name: values.get(spec.name) for spec in _COMPARED} for name, values in moved.items()
        },
        also={n: tool_values(n, sets.scored.features, sets.scored.target_features) for n in also},
    )


def _by_statistics(
    *sides: tuple[Path, Manifest | Moments], judges: Mapping[str, Judge], batch: int, tick: Tick | None
) -> Comparison:
    judge, moments, facts = judges["features"], [], []
    for path, side in sides:
        if isinstance(side, Manifest):
            reading = _read(side, {"features": judge}, batch=batch, tick=tick)
            moments.append(Moments.of(reading.features("features")))
            facts.append(reading.facts)
        else:
            moments.append(side)
            facts.append(
                {"folder": str(path), "n": 0, "digest": sha256_file(path), "sizes": {}, "skipped": {}}
            )
    widths = [len(side.mean) for side in moments]
    if len(set(widths)) > 1:
        raise BenchError(
            f"features of {sides[0][0]} have width {widths[0]}, those of {sides[1][0]} {widths[1]}: they are "
            f"of two networks. Name that of the statistics with --judge, now {judge.card.name}."
        )
    numbers = {"fd": frechet_from_moments(*moments)}
    return Comparison(
        folders=(facts[0], facts[1]),
        judges={"features": judge.card},
        metrics={
            s.name: metric_value(s, numbers.get(s.name), n=facts[0]["n"], judges=judges) for s in _COMPARED
        },
        reasons={s.name: "of statistics FD alone is known" for s in _COMPARED if s.name not in numbers},
        warnings=("that the statistics are of this judge, and of how many images, is for you to know.",),
        sensitivity={},
        also={},
    )


def _read(
    manifest: Manifest, judges: Mapping[str, Judge], *, batch: int, tick: Tick | None = None
) -> Reading:
    """Read one folder whole."""
    _refuse_few(manifest)
    reading = Reading(manifest, judges=judges, changes={})
    while reading.read(len(reading.digests), batch):
        if tick is not None:
            tick(len(reading.digests), len(manifest.files))
    return reading


def save_statistics(images: Path, out: Path, *, judge: Judge, batch: int = 32) -> None:
    """Write mean and covariance of features as mu and sigma, as pytorch-fid reads them.

    images: what `bench.data.folder.opened` takes.
    """
    with opened(images) as found:
        if isinstance(found, Manifest):
            found = Moments.of(_read(found, {"features": judge}, batch=batch).features("features"))
    write_npz(out, {"mu": found.mean, "sigma": found.covariance})


def caption_score(folder: Path, captions: Mapping[str, str], *, clip: Judge, batch: int = 32) -> MetricValue:
    """Return the CLIP score of a folder's images with their captions, by file name, and its interval.

    BenchError for images without a caption, and captions without an image.
    """
    manifest = manifest_of(folder)
    names = [path.name for path in manifest.files]
    for what, missing in (
        ("images of {} have no caption", set(names) - set(captions)),
        ("captions name no image of {}", set(captions) - set(names)),
    ):
        if missing:
            raise BenchError(f"{len(missing)} {what.format(folder)}: {some(sorted(missing))}. Give one each.")
    assert clip.text is not None, "the command takes CLIP judges alone"
    images = _read(manifest, {"clip": clip}, batch=batch).features("clip")
    values = clip_score(images, clip.text([captions[name] for name in names]))
    return metric_value(CLIP.spec, mean_of_known(values)[0], n=len(names), judges={"clip": clip})


@dataclass(frozen=True, kw_only=True)
class _Sets:
    """Features of both folders; contents: [N] and [M] texts, of the pixels alone, by which rows are
    ordered where names must not matter.
    """

    scored: Scored
    contents: tuple[np.ndarray, np.ndarray]
    paired: bool

    @classmethod
    def of(cls, a: Reading, b: Reading, change: str, *, paired: bool) -> _Sets:
        nothing = np.empty(0)
        scored = Scored(
            images=nothing,
            targets=nothing,
            examples=(),
            features=a.features("features", change),
            target_features=b.features("features", change),
            read=a.features("clip", change),
            read_targets=b.features("clip", change),
        )
        return cls(scored=scored, contents=(np.array(a.contents), np.array(b.contents)), paired=paired)

    @property
    def sizes(self) -> tuple[int, int]:
        return len(self.scored.features), len(self.scored.target_features)

    def take(self, left: np.ndarray, right: np.ndarray) -> _Sets:
        """Return these rows of both, [n] and [m] int."""
        s = self.scored
        part = replace(
            s,
            features=s.features[left],
            target_features=s.target_features[right],
            read=None if s.read is None else s.read[left],
            read_targets=None if s.read_targets is None else s.read_targets[right],
        )
        return replace(self, scored=part, contents=(self.contents[0][left], self.contents[1][right]))

    def half(self) -> _Sets:
        """Return a random half of each set; of pairs, the same half."""
        return self.take(*(_some(n, n // 2) for n in self.sizes))

    def measure(self, *, intervals: bool) -> dict[str, Interval | float]:
        """Return every number that can be measured, a float, or an Interval where one is wanted."""
        numbers: dict[str, Interval | float] = {}
        blocks = 50 if max(self.sizes) <= 1000 else 20
        for metric in OF_SETS:
            part = self
            if metric.all_pairs:
                part = self.take(*(_some(n, MOST_PAIRS) for n in self.sizes))
            if metric.by_order:
                part = self.take(*(np.argsort(order, kind="stable") for order in self.contents))
            dealt = Deal.of(*part.sizes, blocks=min(blocks, metric.groups), seed=_SEED)
            for spec, value, drawn in measured(metric, part.scored, dealt, groups=intervals * dealt.blocks):
                numbers[spec.name] = value
                if intervals:
                    estimates = Estimates.of_replicates(value, drawn, dealt=dealt)
                    numbers[spec.name] = crossed_interval(estimates, share=spec.share)
        s = self.scored
        if self.paired:
            numbers["cosine"] = _mean(cosine_to_target(s.features, s.target_features), intervals=intervals)
        if self.paired and max(self.sizes) <= MOST_PAIRS:
            numbers["retrieval"] = _mean(retrieval_hits(s.features, s.target_features), intervals=intervals)
        return numbers


def _some(n: int, most: int) -> np.ndarray:
    """Return at most `most` of n rows, in order, the same for equal n."""
    return np.sort(np.random.default_rng(_SEED).permutation(n)[:most])


def _mean(values: np.ndarray, *, intervals: bool) -> Interval | float:
    interval = mean_of_known(values)[0] if intervals else None
    return interval or float(values.mean())


def _reasons(largest: int, numbers: Mapping[str, Any], *, paired: bool) -> dict[str, str]:
    """Say why a metric is missing, or of what part it is; largest: images of the larger folder."""
    reasons = {}
    if "cmmd" not in numbers:
        reasons["cmmd"] = "no CLIP judge given (--clip)"
    if not paired:
        reasons |= dict.fromkeys(_PAIRED, "the folders do not hold the same file stems")
    else:
        reasons["fd_infinite"] = "subsets drawn from each folder apart, whatever the names"
        reasons |= {} if "mae" in numbers else {"mae": "sizes of paired images differ"}
    if largest > MOST_PAIRS:
        reasons |= {spec.name: f"of {MOST_PAIRS:,} images a folder" for spec in NEIGHBOURS.specs}
        reasons |= {"retrieval": f"not measured above {MOST_PAIRS:,} images"} if paired else {}
    return reasons


def _refuse_few(manifest: Manifest) -> None:
    if len(manifest.files) < FLOOR:
        raise BenchError(
            f"{manifest.folder} holds {len(manifest.files)} image(s)"
            f"{' and ' + left_out(manifest.skipped) if manifest.skipped else ''}; at least {FLOOR} "
            "are needed, below which no distance between sets means anything. Make more images."
        )
