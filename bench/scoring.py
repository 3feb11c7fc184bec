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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.content import Cache, digest_arrays, sha256_file, write_npz
from bench.data import folder
from bench.data.folder import AS_GIVEN, CHANGES, Manifest, Reading, Tick, manifest_of
from bench.data.picture import stacked
from bench.judges import Judge, JudgeCard
from bench.metrics import OF_ITEMS, OF_SETS, SPECS, check_tools, tool_values
from bench.metrics import intervals as resampling
from bench.metrics.frechet import Moments, frechet_from_moments
from bench.metrics.intervals import Deal, Estimates, Interval, SetMetric, crossed_interval
from bench.metrics.neighbours import NEIGHBOURS
from bench.metrics.paired import CLIP, COSINE, RETRIEVAL, clip_score
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

    replicates: of metrics of the whole set, [G] each, see `Estimates.of_replicates`. draws: of each metric,
    its value at each draw; all else is a mean over them. seconds: of scoring, whether or not the cache
    helped.
    """

    metrics: dict[str, MetricValue] = field(default_factory=dict)
    items: dict[str, np.ndarray] = field(default_factory=dict)
    replicates: dict[str, np.ndarray] = field(default_factory=dict)
    draws: dict[str, list[float | None]] = field(default_factory=dict)
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Known:
    """A reference that many runs share: the digests that decide it, a JSON value, and -> [N,H,W,3] uint8."""

    of: Any
    read: Callable[[], np.ndarray]


class Evaluator:
    """Scores sets of images against the same targets, with the same judges and groups.

    examples: the N items, read one at a time; task: None without a condition; judges: by role, "features"
    and, if any, "clip"; training: at least N-1 real training images for the memorisation check; metrics:
    besides the task's; groups: of items that are not independent, [N] int. Features come from the cache,
    keyed by pixels and judge.
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
        ours, theirs = (*SPECS, *(task.metrics if task is not None else ())), [m.spec for m in metrics]
        counts = Counter(spec.name for spec in (*ours, *theirs))
        twice = [spec.name for spec in theirs if counts[spec.name] > 1]
        if twice:
            raise BenchError(f"two metrics are called '{twice[0]}'. Give yours a name of its own.")
        self.examples, self.task, self.cache, self.metrics = examples, task, cache, tuple(metrics)
        self.judges, self.groups, clip = judges, groups, judges.get("clip")
        self.dealt = Deal.of_pairs(len(self.examples), groups=groups, seed=_SEED)
        self.targets = stacked(len(examples), lambda row: examples[row].image)
        self._seen = self._features(self.targets)[0]
        self._text = clip.text([e.caption for e in examples]) if clip is not None else None
        self._training = None
        if training is not None:
            count, judge = len(examples) - 1, judges["features"]
            key = {"kind": "known features", "judge": judge.digest, "of": training.of, "count": count}
            known = cache.load_or_make(key, lambda: {"features": self.features_of(training.read(), judge)})
            self._training = known["features"][:count]

    def features_of(self, images: np.ndarray, judge: Any) -> np.ndarray:
        """Return a judge's features of images [N,H,W,3] uint8, [N,D] float32, cached by content."""
        return self._timed_features(images, judge)[0]

    def _timed_features(self, images: np.ndarray, judge: Any) -> tuple[np.ndarray, float]:
        key = {"kind": "features", "judge": judge.digest, "images": digest_arrays(images=images)}

        def make() -> dict[str, np.ndarray]:
            begun = time.perf_counter()
            features = judge.features(images)
            return {"features": features, "seconds": np.array(time.perf_counter() - begun)}

        arrays = self.cache.load_or_make({**key, "version": 2}, make)
        return arrays["features"], float(arrays["seconds"])

    def _features(self, images: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
        timed = {role: self._timed_features(images, judge) for role, judge in self.judges.items()}
        return {role: features for role, (features, _) in timed.items()}, sum(s for _, s in timed.values())

    def evaluate(self, images: np.ndarray) -> Scores:
        """Score images [N,H,W,3] uint8, image i belonging to item i."""
        return self.evaluate_draws([images])

    def evaluate_known(self, known: Known, *, items: str) -> Scores:
        """Score a reference, from the cache where this code has; items: the digest of those evaluated."""
        if self.metrics or self.task is None:
            return self.evaluate(known.read())
        code = [digest_sources(), sha256_file(inspect.getfile(type(self.task)))]
        key = {"kind": "known scores", "code": code, "of": known.of, "items": items, "task": self.task.name}
        key |= {"judges": {role: judge.digest for role, judge in self.judges.items()}}
        key |= {"redrawn": self.examples[0].redraw is not None}  # where the lines' detector is at hand
        key |= {"groups": None if self.groups is None else self.groups.tolist()}

        def make() -> dict[str, np.ndarray]:
            scores = asdict(self.evaluate(known.read()))
            return {"told": np.array(json.dumps(scores, default=lambda array: array.tolist()))}

        told = json.loads(str(self.cache.load_or_make(key, make)["told"]))
        for kind in ("items", "replicates"):
            told[kind] = {name: np.array(values) for name, values in told[kind].items()}
        return Scores(**told | {"metrics": {n: MetricValue(**m) for n, m in told["metrics"].items()}})

    def evaluate_draws(self, draws: Iterable[np.ndarray]) -> Scores:
        """Score several sets, each of an image an item: the means of their numbers, at the same N."""
        sets, items, seconds = zip(*(self._measured(images) for images in draws), strict=True)
        scores = Scores(seconds=sum(seconds))
        for name, (spec, *_) in sets[0].items():
            values = [numbers[name][1] for numbers in sets]
            drawn = np.mean([numbers[name][2] for numbers in sets], axis=0)
            interval = _interval(spec, float(np.mean(values)), drawn, dealt=self.dealt)
            scores.metrics[name] = metric_value(spec, interval, n=len(self.examples), judges=self.judges)
            scores.replicates[name], scores.draws[name] = drawn, values
        for name, (spec, _) in items[0].items():
            each = [values[name][1] for values in items]
            scores.items[name] = np.mean(each, axis=0)
            known, n = mean_of_known(scores.items[name], groups=self.groups)
            scores.metrics[name] = metric_value(spec, known, n=n, judges=self.judges)
            finite = [values[np.isfinite(values)] for values in each]
            scores.draws[name] = [float(values.mean()) if len(values) else None for values in finite]
        return scores

    def _measured(self, images: np.ndarray) -> tuple[dict[str, Any], dict[str, Any], float]:
        """Return, by metric: spec, number, replicates of the set; spec, values of items; and seconds."""
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
        items = {one[0].name: one for one in self._items(scored)}
        return sets, items, seconds + time.perf_counter() - begun

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
                shape = (
                    f"an array of shape {values.shape}, or infinite values, for {len(self.examples)} images"
                )
                raise BenchError(
                    f"metric '{metric.spec.name}' gave {shape}. Return a finite number, or NaN, for each."
                )
            yield metric.spec, values


def measured(
    metric: SetMetric, scored: Scored, dealt: Deal, *, groups: int | None = None
) -> Iterator[tuple[MetricSpec, float, np.ndarray]]:
    """Give each number of a set metric with its jackknife replicates, [G]; nothing without its judge.

    groups: left out in turn, else the metric's own number; 0 for no replicates.
    """
    statistic = metric.statistic(scored, dealt)
    if statistic is None:
        return
    groups = metric.groups if groups is None else groups
    added = statistic.influence() if groups and dealt.paired and hasattr(statistic, "influence") else None
    values = np.atleast_1d(statistic(dealt.whole))
    replicates = np.empty((0, len(values)))
    if added is not None:
        replicates = resampling.linear_replicates(float(values[0]), added, dealt=dealt)
    elif groups:
        replicates = resampling.jackknife_replicates(statistic, blocks=dealt.blocks, groups=groups)
    columns = replicates.reshape(-1, len(values)).T
    yield from zip(metric.specs, values.tolist(), columns, strict=True)


def _interval(spec: MetricSpec, value: float, replicates: np.ndarray, *, dealt: Deal) -> Interval:
    return crossed_interval(Estimates.of_replicates(value, replicates, dealt=dealt), share=spec.share)


def mean_of_known(values: np.ndarray, *, groups: np.ndarray | None = None) -> tuple[Interval | None, int]:
    """Return the interval of the mean of the known values, None below two groups, and how many they are."""
    known = np.isfinite(values)
    groups, count = np.arange(len(values)) if groups is None else groups, int(known.sum())
    labels = np.unique(groups[known], return_inverse=True)[1]
    if not count or labels.max() < 1:
        return None, count
    return crossed_interval(Estimates.of_items(values[known], groups=labels)), count


def metric_value(
    spec: MetricSpec, found: Interval | float | None, *, n: int, judges: Mapping[str, Any]
) -> MetricValue:
    """Return a number as records hold it, with its interval where it has one; judges: by role."""
    ends = (found.value, found.low, found.high) if isinstance(found, Interval) else (found, None, None)
    judge = judges[spec.judge].name if spec.judge in judges else ROLES.get(spec.judge, spec.judge)
    told: dict[str, Any] = dict(zip(("value", "low", "high"), ends, strict=True))
    return MetricValue(**told, n=n, judge=judge, scale=spec.scale, better=spec.better)


def items_json(
    ids: Sequence[str],
    rows: Mapping[str, Scores],
    *,
    groups: np.ndarray | None = None,
    curve: Sequence[Sequence[float]] = (),
) -> dict[str, Any]:
    """Return what a report needs beyond the record, as JSON values.

    "ids", "groups" (where there are any), "rows" of scores (6 decimals, null where missing), "replicates" (9
    digits), "curve" of training, [step, loss].
    """

    def listed(kind: str, rounded: Callable[[float], float | None]) -> dict[str, Any]:
        each = {row: getattr(scores, kind) for row, scores in rows.items()}
        return {row: {n: [rounded(v) for v in each[row][n]] for n in each[row]} for row in each}

    return {
        "ids": list(ids),
        **({} if groups is None else {"groups": groups.tolist()}),
        "rows": listed("items", lambda v: round(float(v), 6) if math.isfinite(v) else None),
        "replicates": listed("replicates", lambda v: float(f"{v:.9g}")),
        "curve": [list(point) for point in curve],
    }


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
    sensitivity: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    also: Mapping[str, Mapping[str, float] | str] = field(default_factory=dict)

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

    judges: by role; without "clip" CMMD is missing. sensitivity: again under each of SAYS. intervals: 95%, by
    the jackknife over blocks of both sets, over items for paired metrics. also: tools of `bench.metrics`. Of
    statistics there is the Fréchet distance alone. BenchError for a missing folder, fewer than FLOOR images
    or a broken one.
    """
    check_tools(also)
    with folder.opened(first) as one, folder.opened(second) as other:
        if isinstance(one, Moments) or isinstance(other, Moments):
            return _by_statistics((first, one), (second, other), judges=judges, batch=batch, tick=tick)
        for manifest in (one, other):
            _refuse_few(manifest)
        changes = CHANGES if sensitivity else {}
        a, b, errors = folder.read_folders(one, other, judges=judges, changes=changes, batch=batch, tick=tick)
    paired, given = folder.paired_stems(one, other), _sets(a, b)
    numbers = _compared(*given, paired=paired, intervals=intervals)
    if errors is not None:
        numbers["mae"] = _mean(errors, intervals=intervals)
    moved: dict[str, Any] = {}
    if sensitivity:  # MAE is of pixels: missing
        sizes = [len(side["features"]) for side in given]
        half = [_rows(s, _some(n, n // 2)) for s, n in zip(given, sizes, strict=True)]  # same for pairs
        for name, sets in {**{name: _sets(a, b, name) for name in CHANGES}, HALF: half}.items():
            values = _compared(*sets, paired=paired, intervals=False)
            moved[name] = {spec.name: values.get(spec.name) for spec in _COMPARED}
    reasons = _reasons(max(len(a.digests), len(b.digests)), numbers, paired=paired)
    told: dict[str, Any] = {"folders": (a.facts, b.facts), "reasons": reasons, "judges": judges}
    told["also"] = {n: tool_values(n, *(side["features"] for side in given)) for n in also}
    return _comparison(numbers, **told, warnings=tuple(folder.doubts(a, b)), sensitivity=moved)


def _comparison(numbers: Mapping[str, Any], *, judges: Mapping[str, Judge], **told: Any) -> Comparison:
    n, cards = told["folders"][0]["n"], {role: judge.card for role, judge in judges.items()}
    metrics = {s.name: metric_value(s, numbers.get(s.name), n=n, judges=judges) for s in _COMPARED}
    return Comparison(metrics=metrics, judges=cards, **told)


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
            unknown = {"n": 0, "sizes": {}, "skipped": {}}
            facts.append({"folder": str(path), **unknown, "digest": sha256_file(path)})
    widths = [len(side.mean) for side in moments]
    if len(set(widths)) > 1:
        both = f"{sides[0][0]} have width {widths[0]}, those of {sides[1][0]} {widths[1]}"
        raise BenchError(f"features of {both}. Name the network of the statistics with --judge.")
    doubt = "that the statistics are of this judge, and of how many images, is for you to know."
    reasons = {s.name: "of statistics FD alone is known" for s in _COMPARED if s.name != "fd"}
    told: dict[str, Any] = {"folders": tuple(facts), "reasons": reasons, "warnings": (doubt,)}
    return _comparison({"fd": frechet_from_moments(*moments)}, judges={"features": judge}, **told)


def _read(
    manifest: Manifest, judges: Mapping[str, Judge], *, batch: int, tick: Tick | None = None
) -> Reading:
    _refuse_few(manifest)
    reading = Reading(manifest, judges=judges, changes={})
    while reading.read(len(reading.digests), batch):
        if tick is not None:
            tick(len(reading.digests), len(manifest.files))
    return reading


def save_statistics(images: Path, out: Path, *, judge: Judge, batch: int = 32) -> None:
    """Write mean and covariance of features of images as mu and sigma, as pytorch-fid reads them."""
    with folder.opened(images) as found:
        if isinstance(found, Manifest):
            found = Moments.of(_read(found, {"features": judge}, batch=batch).features("features"))
    write_npz(out, {"mu": found.mean, "sigma": found.covariance})


def caption_score(path: Path, captions: Mapping[str, str], *, clip: Judge, batch: int = 32) -> MetricValue:
    """Return the CLIP score of a folder's images with captions, by file name, each of which has the other."""
    manifest = manifest_of(path)
    names = [file.name for file in manifest.files]
    if missing := {*names} - {*captions}:
        raise BenchError(f"{len(missing)} images of {path} have no caption: {some(sorted(missing))}.")
    if missing := {*captions} - {*names}:
        raise BenchError(f"{len(missing)} captions name no image of {path}: {some(sorted(missing))}.")
    assert clip.text is not None, "the command takes CLIP judges alone"
    images = _read(manifest, {"clip": clip}, batch=batch).features("clip")
    values = clip_score(images, clip.text([captions[name] for name in names]))
    return metric_value(CLIP.spec, mean_of_known(values)[0], n=len(names), judges={"clip": clip})


_Side = dict[str, Any]
"""Of each image of a folder: its features by role, [N,D] or None, and a text of its pixels alone, [N]."""


def _sets(a: Reading, b: Reading, change: str = AS_GIVEN) -> list[_Side]:
    return [
        {"contents": np.array(side.contents), **{r: side.features(r, change) for r in ROLES}}
        for side in (a, b)
    ]


def _rows(side: _Side, rows: np.ndarray) -> _Side:
    return {name: None if values is None else values[rows] for name, values in side.items()}


def _compared(a: _Side, b: _Side, *, paired: bool, intervals: bool) -> dict[str, Interval | float]:
    """Return every number of two sets that can be measured, a float, or an Interval where one is wanted."""
    numbers: dict[str, Interval | float] = {}
    sizes = [len(side["features"]) for side in (a, b)]
    blocks = 50 if max(sizes) <= 1000 else 20
    for metric in OF_SETS:
        sides = [a, b]
        if metric.all_pairs:
            sides = [_rows(s, _some(n, MOST_PAIRS)) for s, n in zip(sides, sizes, strict=True)]
        if metric.by_order:  # names must not matter
            sides = [_rows(s, np.argsort(s["contents"], kind="stable")) for s in (a, b)]
        scored = _scored(*sides)
        dealt = Deal.of(
            len(scored.features), len(scored.target_features), blocks=min(blocks, metric.groups), seed=_SEED
        )
        for spec, value, drawn in measured(metric, scored, dealt, groups=intervals * dealt.blocks):
            numbers[spec.name] = _interval(spec, value, drawn, dealt=dealt) if intervals else value
    for of_items in (COSINE, RETRIEVAL) if paired else ():
        if of_items is COSINE or max(sizes) <= MOST_PAIRS:
            values = of_items.items(_scored(a, b))
            assert values is not None, "both read features alone"
            numbers[of_items.spec.name] = _mean(values, intervals=intervals)
    return numbers


def _scored(a: _Side, b: _Side) -> Scored:
    nothing = np.empty(0)
    return Scored(
        images=nothing,
        targets=nothing,
        examples=(),
        features=a["features"],
        target_features=b["features"],
        read=a["clip"],
        read_targets=b["clip"],
    )


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
        skipped = f" and {folder.left_out(manifest.skipped)}" if manifest.skipped else ""
        held = f"{manifest.folder} holds {len(manifest.files)} image(s){skipped}"
        raise BenchError(
            f"{held}; at least {FLOOR} are needed for a distance between sets. Make more images."
        )
