"""Precision, recall, density, coverage, and the memorisation check."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from bench.metrics.intervals import Deal, jackknife_replicates
from bench.metrics.neighbours import NEIGHBOURS, Neighbours, nearer_to_training
from bench.types import BenchError

NAMES = [spec.name for spec in NEIGHBOURS.specs]


def prdc(sample: np.ndarray, target: np.ndarray, **k: int) -> dict[str, float]:
    dealt = Deal.of(len(sample), len(target), blocks=1)
    return dict(zip(NAMES, Neighbours(sample, target, dealt, **k)(dealt.whole), strict=True))


def drawn(seed: int, n: int, d: int = 8, *, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, scale, (n, d))


def by_definition(sample: np.ndarray, target: np.ndarray, k: int) -> dict[str, float]:
    """Follow the papers' formulas point by point."""

    def reach(points: np.ndarray) -> list[float]:
        return [sorted(np.linalg.norm(points - p, axis=1))[k] for p in points]

    far = np.linalg.norm(sample[:, None] - target[None], axis=2)
    own, other = reach(sample), reach(target)
    n, m = far.shape
    inside = [[far[i, j] < other[j] for j in range(m)] for i in range(n)]
    return {
        "precision": sum(any(row) for row in inside) / n,
        "recall": sum(any(far[i, j] < own[i] for i in range(n)) for j in range(m)) / m,
        "density": sum(map(sum, inside)) / (k * n),
        "coverage": sum(far[:, j].min() < other[j] for j in range(m)) / m,
    }


@pytest.mark.parametrize(("n", "m", "shift"), [(40, 40, 0.0), (30, 50, 0.8), (25, 25, 6.0)])
def test_the_four_numbers_follow_their_definitions(n: int, m: int, shift: float) -> None:
    sample, target = drawn(0, n, shift=shift, scale=0.8), drawn(1, m)
    assert prdc(sample, target, k=3) == pytest.approx(by_definition(sample, target, 3))


def test_the_package_of_the_paper_agrees() -> None:
    package = pytest.importorskip("prdc")
    sample, target = drawn(2, 60, 16, shift=0.4), drawn(3, 80, 16)
    theirs = package.compute_prdc(real_features=target, fake_features=sample, nearest_k=5)
    assert prdc(sample, target) == pytest.approx({k: float(v) for k, v in theirs.items()}, rel=1e-9)


def test_equal_sets_are_perfect_far_sets_share_nothing_and_a_copied_mode_loses_recall() -> None:
    target = drawn(4, 50)
    same = prdc(target, target)
    assert same["precision"] == same["recall"] == same["coverage"] == 1.0
    assert set(prdc(target + 100.0, target).values()) == {0.0}
    narrow = target[:1] + 1e-3 * drawn(5, 50)
    assert prdc(narrow, target)["precision"] == 1.0 and prdc(narrow, target)["recall"] < 0.2


def test_it_needs_more_items_than_neighbours() -> None:
    sample, target = drawn(6, 30, shift=0.5), drawn(7, 30)
    with pytest.raises(BenchError, match="more than k"):
        prdc(sample[:5], target)


def test_jackknife_errors_of_the_four_are_near_the_true_ones() -> None:
    values, errors = [], []
    dealt = Deal.of_pairs(80)
    for trial in range(40):
        target = drawn(100 + trial, 80, 6)
        four = Neighbours(0.8 * target + drawn(500 + trial, 80, 6, scale=0.9), target, dealt)
        values.append(four(dealt.whole))
        replicates = jackknife_replicates(four, blocks=80)
        errors.append(np.sqrt(79**2 / 80 * replicates.var(axis=0)))
    ratios = np.mean(errors, axis=0) / np.std(values, axis=0)
    assert (ratios > 0.7).all() and (ratios < 2.0).all(), dict(zip(NAMES, ratios, strict=True))


def test_copies_of_training_images_are_seen() -> None:
    n, d = 200, 16
    target, training = drawn(12, n, d), drawn(13, n - 1, d)
    fresh = nearer_to_training(drawn(14, n, d), target, training)
    assert 0.4 < fresh.mean() < 0.6, "an independent sample has an even chance"
    copied = training[np.arange(n) % (n - 1)] + 0.01 * drawn(15, n, d)
    assert nearer_to_training(copied, target, training).mean() > 0.99
    other = np.roll(target, 1, axis=0)
    assert nearer_to_training(other, target, training).mean() < 0.01
    own = nearer_to_training(target, target, training)
    assert 0.3 < own.mean() < 0.7, "its own target is left out"
    with pytest.raises(BenchError, match="N - 1 training images"):
        nearer_to_training(target, target, drawn(13, n, d))


def test_all_pairs_are_not_held_at_once() -> None:
    n, rng = 3000, np.random.default_rng(0)
    a, b = rng.normal(size=(n, 4)), rng.normal(size=(n, 4))
    tracemalloc.start()
    Neighbours(a, b, Deal.of_pairs(n))(np.ones(n, dtype=bool))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * n * n  # one of the three matrices of all pairs
