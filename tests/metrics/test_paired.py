"""Metrics of one item, and CLIP agreement."""

from __future__ import annotations

import numpy as np
import pytest

from bench.metrics.paired import clip_score, cosine_to_target, pixel_error, retrieval_hits
from bench.types import BenchError


def features(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def test_cosine_by_hand_and_whatever_the_length() -> None:
    a = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    b = np.array([[3.0, 0.0], [0.0, -1.0], [0.0, 5.0]])
    np.testing.assert_allclose(cosine_to_target(a, b), [1.0, -1.0, np.sqrt(0.5)])
    np.testing.assert_allclose(cosine_to_target(7 * a, b), cosine_to_target(a, b))
    assert cosine_to_target(b, b) == pytest.approx(1.0)


def test_retrieval_finds_itself_and_not_a_shuffled_target() -> None:
    target = features(40, 16, 1)
    sample = target + 0.1 * features(40, 16, 2)
    assert retrieval_hits(sample, target).mean() == 1.0
    assert retrieval_hits(np.roll(sample, 1, axis=0), target).mean() < 0.1


def test_ties_count_by_chance() -> None:
    constant = np.ones((10, 4))
    np.testing.assert_allclose(retrieval_hits(constant, constant), 0.1)
    np.testing.assert_allclose(retrieval_hits(constant, constant, k=3), 0.3)
    twins = features(6, 8, 1)
    twins[1] = 2 * twins[0]  # the same direction: two equal targets share one hit
    hits = retrieval_hits(twins, twins)
    np.testing.assert_allclose(hits, [0.5, 0.5, 1, 1, 1, 1])
    np.testing.assert_allclose(retrieval_hits(twins, twins, k=2), 1.0)


def test_rounding_noise_does_not_break_a_tie() -> None:
    twins = features(4, 8, 1).astype(np.float32)
    twins[1] = twins[0] * (1 + 1e-7)
    assert retrieval_hits(twins, twins)[:2] == pytest.approx(0.5)


def test_recall_grows_with_k_to_one() -> None:
    queries, gallery = features(30, 6, 1), features(30, 6, 2)
    recalls = [retrieval_hits(queries, gallery, k=k).mean() for k in (1, 5, 10, 30)]
    assert recalls == sorted(recalls)
    assert recalls[-1] == 1.0
    assert recalls[0] < 0.3


def test_clip_score_is_the_raw_cosine() -> None:
    images, texts = features(8, 5, 1), features(8, 5, 2)
    np.testing.assert_allclose(clip_score(images, texts), cosine_to_target(images, texts))
    assert clip_score(images, -images) == pytest.approx(-1.0)  # no cut at zero


def test_pixel_error_by_hand() -> None:
    black = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    other = black.copy()
    other[1] = 255
    other[0, 0, 0, 0] = 51
    np.testing.assert_allclose(pixel_error(other, black), [0.2 / 48, 1.0])
    np.testing.assert_allclose(pixel_error(black, other), pixel_error(other, black))


def test_refuses_what_does_not_pair_up() -> None:
    a = features(4, 3, 1)
    for broken in (a[:3], a[:, :2], np.zeros_like(a)):
        with pytest.raises(BenchError):
            cosine_to_target(a, broken)
    with pytest.raises(BenchError, match="k must be"):
        retrieval_hits(a, a, k=5)
    image = np.zeros((1, 2, 2, 3), dtype=np.uint8)
    for broken in (image[0], image.astype(np.float32), np.zeros((2, 2, 2, 3), dtype=np.uint8)):
        with pytest.raises(BenchError):
            pixel_error(image, broken)
