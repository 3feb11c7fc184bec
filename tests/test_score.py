"""The evaluator on real drawings: identity, corruption, and rows that mean what they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from bench import registry
from bench.content import Cache
from bench.data.openmoji import OpenMoji64, openmoji64_splits
from bench.judges import load_judge
from bench.metrics.intervals import Estimates, crossed_interval, linear_replicates
from bench.metrics.kernel import MeanDiscrepancy, polynomial_kernel
from bench.metrics.neighbours import NEIGHBOURS, SHARES
from bench.scoring import Evaluator, Known, Scores, items_json, mean_of_known

PRDC = [spec.name for spec in NEIGHBOURS.specs]

COUNT = 16


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    data, ids = OpenMoji64(), openmoji64_splits().val[:COUNT]
    return Evaluator(
        examples=[data[i] for i in ids],
        task=registry.load("task", "sketch"),
        judges={"features": load_judge("efficientnet-lite0")},
        cache=Cache(tmp_path_factory.mktemp("score")),
    )


@pytest.fixture(scope="module")
def perfect(evaluator: Evaluator) -> Scores:
    return evaluator.evaluate(evaluator.targets)


def test_targets_against_themselves_are_perfect(perfect: Scores) -> None:
    values = {name: metric.value for name, metric in perfect.metrics.items()}
    assert values["fd"] == pytest.approx(0.0, abs=1e-3)
    assert values["cosine"] == pytest.approx(1.0, abs=1e-6)
    assert values["retrieval"] == 1.0 and values["mae"] == 0.0
    assert values["sketch_f1"] is not None and values["sketch_f1"] >= 0.95


def test_several_draws_score_the_mean_of_each(evaluator: Evaluator, perfect: Scores) -> None:
    """Of values, of items and of replicates: what a report pairs keeps its shape."""
    blurred = ndimage.gaussian_filter(evaluator.targets, sigma=(0, 1, 1, 0))
    other, both = evaluator.evaluate(blurred), evaluator.evaluate_draws([evaluator.targets, blurred])
    for name, metric in both.metrics.items():
        each = [perfect.metrics[name].value, other.metrics[name].value]
        assert both.draws[name] == pytest.approx(each) and metric.n == COUNT
        assert metric.value == pytest.approx(float(np.mean(both.draws[name])), abs=1e-12), name
    for kind in ("items", "replicates"):
        found, first, second = (getattr(s, kind) for s in (both, perfect, other))
        for name, values in found.items():
            np.testing.assert_allclose(values, (first[name] + second[name]) / 2, atol=1e-12)


def test_every_metric_falls_as_images_get_worse(evaluator: Evaluator, perfect: Scores) -> None:
    worse = [perfect]
    for sigma in (1.0, 2.5):
        blurred = ndimage.gaussian_filter(evaluator.targets, sigma=(0, sigma, sigma, 0))
        worse.append(evaluator.evaluate(blurred))
    for name, first in perfect.metrics.items():
        values = [scores.metrics[name].value for scores in worse]
        assert None not in values
        if name in PRDC:  # 16 items have too few neighbours to fall one by one
            continue
        sign = 1 if first.better == "higher" else -1
        steps = np.diff([sign * float(v) for v in values if v is not None])
        assert (steps <= 1e-9).all() and steps.sum() < 0, name
    together = [sum(float(s.metrics[name].value or 0.0) for name in PRDC) for s in worse]
    assert together[0] > together[1] > together[2]


def test_wrong_items_are_seen_by_paired_metrics_and_not_by_the_distance(
    evaluator: Evaluator, perfect: Scores
) -> None:
    shuffled = evaluator.evaluate(np.roll(evaluator.targets, 1, axis=0))
    assert shuffled.metrics["fd"].value == pytest.approx(perfect.metrics["fd"].value, abs=1e-3)
    for name in ("cosine", "retrieval", "sketch_f1"):
        before, after = perfect.metrics[name].value, shuffled.metrics[name].value
        assert before is not None and after is not None and after < before - 0.3, name


def test_values_are_means_of_the_items_and_intervals_hold_them(perfect: Scores) -> None:
    for name, items in perfect.items.items():
        metric = perfect.metrics[name]
        assert items.shape == (COUNT,) and metric.n == COUNT
        assert metric.value == pytest.approx(items.mean())
        assert metric.low is not None and metric.high is not None
        assert metric.low <= metric.value <= metric.high  # type: ignore[operator]


def test_headers_name_the_judge(perfect: Scores) -> None:
    judges = {name: metric.judge for name, metric in perfect.metrics.items()}
    assert judges["fd"] == judges["kid"] == judges["cosine"] == "EfficientNet-Lite0"
    assert judges["mae"] == judges["sketch_f1"] == "none"


def test_features_come_from_the_cache_by_content(tmp_path: Path) -> None:
    data, ids = OpenMoji64(), openmoji64_splits().val[:2]

    class Counting:
        name = digest = "counting"
        calls = 0

        def features(self, images: np.ndarray) -> np.ndarray:
            Counting.calls += 1
            return images.reshape(len(images), -1)[:, :7].astype(np.float32) + 1

    made = Evaluator(
        examples=[data[i] for i in ids],
        task=registry.load("task", "sketch"),
        judges={"features": Counting()},
        cache=Cache(tmp_path),
    )
    made.features_of(made.targets, made.judges["features"])
    assert Counting.calls == 1
    changed = made.targets.copy()
    changed[0, 0, 0, 0] ^= 1
    made.features_of(changed, made.judges["features"])
    assert Counting.calls == 2


def test_shares_of_neighbours_keep_an_interval_at_their_end(perfect: Scores) -> None:
    for name in SHARES:
        found = perfect.metrics[name]
        assert found.value == found.high == 1 and found.low is not None and found.low < 0.98


def test_items_are_written_by_row(perfect: Scores) -> None:
    written = items_json([str(i) for i in range(COUNT)], {"samples": perfect})
    assert written["ids"] == [str(i) for i in range(COUNT)]
    assert len(written["rows"]["samples"]["cosine"]) == COUNT


def test_replicates_give_the_interval_and_pair_two_methods(evaluator: Evaluator, perfect: Scores) -> None:
    blurred = ndimage.gaussian_filter(evaluator.targets, sigma=(0, 1, 1, 0))
    scores, whole = evaluator.evaluate(blurred), evaluator.dealt.whole
    judge = evaluator.judges["features"]
    targets = evaluator.features_of(evaluator.targets, judge)
    for name in ("fd", "kid"):
        metric, stored = scores.metrics[name], scores.replicates[name]
        assert metric.value is not None and metric.low is not None
        again = crossed_interval(Estimates.of_replicates(metric.value, stored, dealt=evaluator.dealt))
        assert again.low == pytest.approx(metric.low, rel=1e-12)
    a, b = (
        MeanDiscrepancy(
            evaluator.features_of(images, judge).astype(float),
            targets.astype(float),
            evaluator.dealt,
            kernel=polynomial_kernel,
        )
        for images in (blurred, evaluator.targets)
    )
    added = a.influence() - b.influence()
    drawn = linear_replicates(a(whole) - b(whole), added, dealt=evaluator.dealt)
    direct = crossed_interval(Estimates.of_replicates(a(whole) - b(whole), drawn, dealt=evaluator.dealt))
    values = [s.metrics["kid"].value for s in (scores, perfect)]
    difference = scores.replicates["kid"] - perfect.replicates["kid"]
    value = float(values[0] or 0) - float(values[1] or 0)
    paired = crossed_interval(Estimates.of_replicates(value, difference, dealt=evaluator.dealt))
    assert (paired.low, paired.high) == pytest.approx((direct.low, direct.high), rel=1e-6)


def test_an_item_without_a_value_is_left_out_and_never_counts_as_zero(perfect: Scores) -> None:
    values = np.linspace(0.2, 0.8, COUNT)
    values[3] = np.nan
    known, n = mean_of_known(values)
    assert n == COUNT - 1
    assert known is not None and known.value == pytest.approx(np.delete(values, 3).mean())
    assert mean_of_known(np.full(COUNT, np.nan)) == (None, 0)
    holes = replace(perfect, items={"x": values})
    stored = items_json([str(i) for i in range(COUNT)], {"samples": holes}, curve=[(1, 0.5)])
    assert stored["rows"]["samples"]["x"][3] is None
    assert stored["curve"] == [[1, 0.5]] and len(stored["replicates"]["samples"]["fd"]) == COUNT


def test_references_are_read_and_scored_once_for_all_runs(evaluator: Evaluator, perfect: Scores) -> None:
    reads: list[int] = []

    def read() -> np.ndarray:
        reads.append(1)
        return evaluator.targets

    def again(of: str, items: str = "these") -> Scores:
        return evaluator.evaluate_known(Known(of=of, read=read), items=items)

    first, second = again("targets"), again("targets")
    assert len(reads) == 1 and first.metrics == second.metrics == perfect.metrics
    for kind in ("items", "replicates"):
        for name, values in getattr(perfect, kind).items():
            np.testing.assert_array_equal(getattr(second, kind)[name], values)
    assert second.draws == perfect.draws and second.seconds == first.seconds
    again("others"), again("targets", "those")
    assert len(reads) == 3


def test_both_frechet_distances_share_their_decompositions(
    evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All items and five shares of them need six: thirteen where nothing is shared."""
    calls: list[tuple[int, ...]] = []
    svd = np.linalg.svd
    monkeypatch.setattr(np.linalg, "svd", lambda x, **how: (calls.append(x.shape), svd(x, **how))[1])
    images = ndimage.gaussian_filter(evaluator.targets, sigma=(0, 1, 0, 0))
    evaluator.evaluate(images)
    assert len(calls) == 6
