"""Two folders of images compared: every metric with its interval, and how far it moves for nothing.

The sets are taken as independent (a model's images against a reference), so KID is the published
estimator, own pairs and all, and no set metric depends on how files are called; folders that hold
the same stems get the paired metrics besides, and intervals that leave pairs out together.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.data.folder import (
    AS_GIVEN,
    Change,
    Manifest,
    Reading,
    Tick,
    left_out,
    manifest_of,
    paired_stems,
    read_folders,
    readable,
)
from bench.judges import Judge, JudgeCard
from bench.metrics.intervals import (
    Interval,
    Resamples,
    Statistic,
    jackknife_interval,
    jackknife_replicates,
    mean_interval,
)
from bench.metrics.kernel import kernel_distance_subsets
from bench.metrics.neighbours import NAMES as PRDC
from bench.metrics.neighbours import NEAREST, SHARES
from bench.metrics.paired import cosine_to_target, retrieval_hits
from bench.metrics.two_sets import (
    Deal,
    TwoSetCmmd,
    TwoSetExtrapolated,
    TwoSetFrechet,
    TwoSetKernel,
    TwoSetPrdc,
    deal,
)
from bench.picture import FRAMES, LOSSY, ODD, ROTATED, TRANSPARENT, decode
from bench.record import MetricValue
from bench.types import BenchError, MetricSpec

FLOOR = 20
"""Fewer images a folder are refused: half of them, the smallest part that any number here is taken
of (extrapolation, KID subsets, sensitivity), would be fewer than 10, twice the 5 nearest neighbours
and the fewest groups of a jackknife."""
FEW = 2048
"""Below this a Fréchet distance is mostly bias; the covariance of 2,048 features is singular."""
MOST_PAIRS = 10_000
"""Images a folder that metrics of all pairs hold in memory at once (three matrices of 0.8 GB)."""

RESAMPLES, SEED = 1000, 0
_BLOCKS, _FEW_BLOCKS, _MANY = 50, 20, 1000

_SPECS = (
    MetricSpec(name="fd", scale="squared Fréchet distance", better="lower", judge="features"),
    MetricSpec(name="kid", scale="MMD^2, cubic kernel, unbiased", better="lower", judge="features"),
    MetricSpec(
        name="fd_infinite", scale="squared Fréchet distance, N extrapolated", better="lower", judge="features"
    ),
    *(MetricSpec(name=name, scale=f"{NEAREST} nearest", better="higher", judge="features") for name in PRDC),
    MetricSpec(name="cmmd", scale="MMD^2 x 1000, Gaussian kernel", better="lower", judge="clip"),
    MetricSpec(name="cosine", scale="cosine", better="higher", judge="features"),
    MetricSpec(name="retrieval", scale="R@1 in [0, 1]", better="higher", judge="features"),
    MetricSpec(name="mae", scale="[0, 1]", better="lower"),
)
SPECS = {spec.name: spec for spec in _SPECS}
PAIRED = ("cosine", "retrieval", "mae")
_DROPPED = {
    TRANSPARENT: "dropped, as torch-fidelity and clean-fid do; lay them on a background first",
    ROTATED: "not applied, as in torch-fidelity and clean-fid; turn the pixels first",
    FRAMES: "only the first is taken, as in torch-fidelity and clean-fid",
    ODD: "Pillow warns of them; their pixels are taken",
}


def _bilinear(image: np.ndarray, side: int | None) -> np.ndarray:
    from PIL import Image

    if side is None:
        return image
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))


def _jpeg(image: np.ndarray, side: int | None) -> np.ndarray:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=95)
    return decode(file.getvalue()).pixels


CHANGES: Mapping[str, Change] = {
    "resizer": Change(says="both folders resized by Pillow, bilinear, before the judge", apply=_bilinear),
    "jpeg95": Change(
        says="the first folder stored as JPEG, quality 95 (Pillow)", apply=_jpeg, generated_only=True
    ),
}
HALF = "half"
SAYS = {**{name: change.says for name, change in CHANGES.items()}, HALF: "half of each folder"}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `bench compare A B` tells.

    metrics: by name, value None where it could not be measured; reasons says why. kid_error: standard
    error of KID from subsets. sensitivity: change -> metric -> its value then, None where missing; the
    changes are named in SAYS. folders: n, digest, sizes and what was skipped, first A then B.
    """

    folders: tuple[Mapping[str, Any], Mapping[str, Any]]
    judges: Mapping[str, JudgeCard]
    metrics: Mapping[str, MetricValue]
    reasons: Mapping[str, str]
    kid_error: float | None
    warnings: tuple[str, ...]
    sensitivity: Mapping[str, Mapping[str, float | None]]

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON value."""
        return {**asdict(self), "changes": {name: SAYS[name] for name in self.sensitivity}}


def compare(
    first: Path,
    second: Path,
    *,
    features: Judge,
    clip: Judge | None = None,
    batch: int = 32,
    sensitivity: bool = False,
    intervals: bool = True,
    tick: Tick | None = None,
) -> Comparison:
    """Compare a folder of generated images with a reference.

    features, clip: judges; without a CLIP judge CMMD is missing. sensitivity: measure again under
    each of SAYS. intervals: 95%, by the jackknife over blocks of both sets (bootstrap over items for
    paired metrics). BenchError for a missing folder, fewer than FLOOR images or a broken one.
    """
    manifests = manifest_of(first), manifest_of(second)
    for manifest in manifests:
        _refuse_few(manifest)
    judges = {"features": features} | ({"clip": clip} if clip is not None else {})
    changes = CHANGES if sensitivity else {}
    a, b, errors = read_folders(*manifests, judges=judges, changes=changes, batch=batch, tick=tick)
    paired = paired_stems(*manifests)
    sets = _sets(a, b, AS_GIVEN, paired=paired)
    found = sets.measured(intervals=intervals)
    if errors is not None:
        found["mae"] = _mean(errors) if intervals else float(errors.mean())
    return Comparison(
        folders=(_facts(a), _facts(b)),
        judges={role: judge.card for role, judge in judges.items()},
        metrics={
            name: _metric(spec, found.get(name), judges, n=len(a.digests)) for name, spec in SPECS.items()
        },
        reasons=_reasons(sets, errors),
        kid_error=kernel_distance_subsets(sets.a, sets.b, seed=SEED).standard_error,
        warnings=tuple(_warnings(a, b)),
        sensitivity=_sensitivity(a, b, paired=paired) if sensitivity else {},
    )


@dataclass(frozen=True, kw_only=True)
class _Sets:
    """Features of both folders, [N,D] and [M,D], and of the CLIP judge where there is one.

    order_a, order_b: [N] and [M] texts, of the pixels alone, by which rows are ordered where names
    must not matter.
    """

    a: np.ndarray
    b: np.ndarray
    order_a: np.ndarray
    order_b: np.ndarray
    read_a: np.ndarray | None
    read_b: np.ndarray | None
    paired: bool

    @property
    def largest(self) -> int:
        """Number of rows of the larger set."""
        return max(len(self.a), len(self.b))

    def half(self) -> _Sets:
        """Return a random half of each set; of pairs, the same half."""
        left, right = _some(len(self.a), len(self.a) // 2), _some(len(self.b), len(self.b) // 2)
        return _Sets(
            a=self.a[left],
            b=self.b[right],
            order_a=self.order_a[left],
            order_b=self.order_b[right],
            paired=self.paired,
            read_a=None if self.read_a is None else self.read_a[left],
            read_b=None if self.read_b is None else self.read_b[right],
        )

    def points(self) -> dict[str, float]:
        """Return every number that can be measured, without intervals."""
        found = {name: _whole(*pair) for name, pair in self._statistics().items()}
        return found | {name: float(values.mean()) for name, values in self._items().items()}

    def measured(self, *, intervals: bool) -> dict[str, Interval | float]:
        """Return every number that can be measured, with its interval where one is wanted."""
        if not intervals:
            return dict(self.points())
        found: dict[str, Interval | float] = {}
        for name, (statistic, blocks) in self._statistics().items():
            resamples = Resamples(n_items=blocks, n_replicates=20, seed=SEED)
            replicates = jackknife_replicates(statistic, resamples=resamples, groups=blocks)
            fewest = min(len(self.a), len(self.b), MOST_PAIRS)
            found[name] = jackknife_interval(
                _whole(statistic, blocks), replicates, share_of=fewest if name in SHARES else None
            )
        return found | {name: _mean(values) for name, values in self._items().items()}

    def _statistics(self) -> dict[str, tuple[Statistic, int]]:
        """Return each set metric as a function of block counts, with its number of blocks."""
        fine = _BLOCKS if self.largest <= _MANY else _FEW_BLOCKS
        dealt, coarse = self._deal(fine), self._deal(_FEW_BLOCKS)
        by_a, by_b = (np.argsort(order, kind="stable") for order in (self.order_a, self.order_b))
        apart = TwoSetFrechet(self.a[by_a], self.b[by_b], coarse)
        found: dict[str, tuple[Statistic, int]] = {
            "fd": (TwoSetFrechet(self.a, self.b, dealt), dealt.blocks),
            "kid": (TwoSetKernel(self.a, self.b, dealt), dealt.blocks),
            "fd_infinite": (TwoSetExtrapolated(apart), coarse.blocks),
        }
        left, right = (_some(len(x), MOST_PAIRS) for x in (self.a, self.b))
        near = deal(len(left), len(right), blocks=fine, seed=SEED)
        neighbours = TwoSetPrdc(self.a[left], self.b[right], near)
        found |= {name: (neighbours.statistic(name), near.blocks) for name in PRDC}
        if self.read_a is not None and self.read_b is not None:
            found["cmmd"] = (TwoSetCmmd(self.read_a, self.read_b, dealt), dealt.blocks)
        return found

    def _deal(self, blocks: int) -> Deal:
        return deal(len(self.a), len(self.b), blocks=blocks, seed=SEED)

    def _items(self) -> dict[str, np.ndarray]:
        """Return the values of pairs, [N] each; none where the folders do not pair up."""
        if not self.paired:
            return {}
        items = {"cosine": cosine_to_target(self.a, self.b)}
        if self.largest <= MOST_PAIRS:
            items["retrieval"] = retrieval_hits(self.a, self.b)
        return items


def _sets(a: Reading, b: Reading, change: str, *, paired: bool) -> _Sets:
    return _Sets(
        a=a.features["features", change],
        b=b.features["features", change],
        order_a=np.array(a.contents),
        order_b=np.array(b.contents),
        paired=paired,
        read_a=a.features.get(("clip", change)),
        read_b=b.features.get(("clip", change)),
    )


def _some(n: int, most: int) -> np.ndarray:
    """Return at most `most` of n rows, in order, the same for equal n."""
    return np.sort(np.random.default_rng(SEED).permutation(n)[:most])


def _whole(statistic: Statistic, blocks: int) -> float:
    return statistic(np.ones(blocks, dtype=np.uint16))


def _mean(values: np.ndarray) -> Interval:
    return mean_interval(values, resamples=Resamples(n_items=len(values), n_replicates=RESAMPLES, seed=SEED))


def _metric(
    spec: MetricSpec, found: Interval | float | None, judges: Mapping[str, Judge], *, n: int
) -> MetricValue:
    interval = found if isinstance(found, Interval) else None
    judge = judges.get(spec.judge)
    return MetricValue(
        value=interval.value if interval else found if isinstance(found, float) else None,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        n=n,
        judge=judge.name if judge is not None else "none",
        scale=spec.scale,
        better=spec.better,
    )


def _sensitivity(a: Reading, b: Reading, *, paired: bool) -> dict[str, dict[str, float | None]]:
    """Return every metric under each change and for half of the images; MAE is of pixels: missing."""
    sets = {name: _sets(a, b, name, paired=paired) for name in CHANGES}
    sets[HALF] = _sets(a, b, AS_GIVEN, paired=paired).half()
    found = {name: one.points() for name, one in sets.items()}
    return {name: {metric: points.get(metric) for metric in SPECS} for name, points in found.items()}


def _reasons(sets: _Sets, errors: np.ndarray | None) -> dict[str, str]:
    """Say why a metric is missing, or of what part it is."""
    reasons = {}
    if sets.read_a is None:
        reasons["cmmd"] = "no CLIP judge given (--clip)"
    if not sets.paired:
        reasons |= {name: "the folders do not hold the same file stems" for name in PAIRED}
    elif errors is None:
        reasons["mae"] = "sizes of paired images differ"
    if sets.paired:
        reasons["fd_infinite"] = "subsets drawn from each folder apart, whatever the names"
    if sets.largest > MOST_PAIRS:
        reasons |= {name: f"of {MOST_PAIRS:,} images a folder" for name in PRDC}
        if sets.paired:
            reasons["retrieval"] = f"not measured above {MOST_PAIRS:,} images"
    return reasons


def _refuse_few(manifest: Manifest) -> None:
    if len(manifest.files) < FLOOR:
        raise BenchError(
            f"{manifest.folder} holds {len(manifest.files)} image(s)"
            f"{' and ' + left_out(manifest.skipped) if manifest.skipped else ''}; at least {FLOOR} "
            "are needed, below which no distance between sets means anything. Make more images."
        )


def _facts(reading: Reading) -> dict[str, Any]:
    manifest = reading.manifest
    return {
        "folder": readable(str(manifest.folder)),
        "n": len(manifest.files),
        "digest": reading.digest,
        "sizes": {f"{width}x{height}": n for (height, width), n in sorted(reading.sizes.items())},
        "skipped": dict(manifest.skipped),
    }


def _warnings(a: Reading, b: Reading) -> Iterator[str]:
    """Say what makes the numbers less than they seem."""
    fewest = min(len(a.digests), len(b.digests))
    if fewest < FEW:
        yield (
            f"{fewest} images are fewer than {FEW:,}: the Fréchet distance is biased upwards by an "
            "amount that depends on their number; compare it at equal numbers only, and read KID."
        )
    shared = len(set(a.digests) & set(b.digests))
    if shared:
        yield f"{shared} files are in both folders, byte for byte."
    lossy = [(x.notes[LOSSY] > 0, x.notes[LOSSY] < len(x.digests)) for x in (a, b)]
    if lossy[0] != lossy[1]:
        yield "only one folder holds lossy files (JPEG, WebP): formats move distances, see --sensitivity."
    for note, meaning in _DROPPED.items():
        if a.notes[note] or b.notes[note]:
            yield f"{note} in {a.notes[note]} files of A and {b.notes[note]} of B: {meaning}."
    if set(a.sizes) != set(b.sizes):
        yield "image sizes differ between the folders: resizing moves distances, see --sensitivity."
