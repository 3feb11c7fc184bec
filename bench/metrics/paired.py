"""Metrics of one item at a time: a sample with its own target, or with its caption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bench.content import check_array
from bench.metrics.frechet import checked_features, checked_pair
from bench.metrics.intervals import of_clip, of_features
from bench.types import BenchError, MetricSpec, Scored


@dataclass(frozen=True)
class ItemMetric:
    """A number an item; see `bench.types.Metric`."""

    spec: MetricSpec
    items: Callable[[Scored], np.ndarray | None]


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Return features [N,D] with rows of length 1, float64; BenchError for a row of zeros."""
    rows = checked_features(features, least=1)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not lengths.all():
        raise BenchError(f"{int((lengths == 0).sum())} feature rows are zero and have no direction")
    return np.asarray(rows / lengths)


def cosine_to_target(sample: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the cosine of each row of samples to the same of targets, [N,D] -> [N] float64 in [-1, 1]."""
    first, second = unit_rows(sample), unit_rows(target)
    if first.shape != second.shape:
        raise BenchError(f"samples and targets must pair up: {first.shape} and {second.shape}")
    return np.clip((first * second).sum(axis=1), -1.0, 1.0)


def retrieval_hits(queries: np.ndarray, gallery: np.ndarray, *, k: int = 1, tie: float = 1e-6) -> np.ndarray:
    """Return for each query whether its own row of the gallery is among the k nearest, [N] float64.

    queries, gallery: [N,D], row i of both belonging to item i; nearness is the cosine. Gallery rows
    within `tie` of the true row's cosine are tied with it: the value is then the chance that a
    random order of the tied rows puts the true one among the first k, so that a constant answer
    scores k/N and two equal targets share one hit.
    """
    first, second = checked_pair(unit_rows(queries), unit_rows(gallery))
    if len(first) != len(second):
        raise BenchError(f"queries and gallery must pair up: {len(first)} and {len(second)}")
    if not 1 <= k <= len(second):
        raise BenchError(f"k must be between 1 and {len(second)}, got {k}")
    cosines = first @ second.T
    own = np.diagonal(cosines)[:, None]
    better = (cosines > own + tie).sum(axis=1)
    tied = (np.abs(cosines - own) <= tie).sum(axis=1)
    return np.clip((k - better) / tied, 0.0, 1.0)


def pixel_error(sample: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return each item's mean absolute error of pixels, [N,H,W,3] uint8 twice -> [N] float64 in [0, 1]."""
    check_array(sample, "images", dtype=np.uint8, shape=(None, None, None, 3))
    check_array(target, "their targets", dtype=np.uint8, shape=sample.shape)
    gaps = (np.abs(a.astype(np.int16) - b.astype(np.int16)) for a, b in zip(sample, target, strict=True))
    return np.array([gap.mean() / 255.0 for gap in gaps], dtype=np.float64)


def clip_score(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Return the raw cosine of each image to its own caption, [N] float64 in [-1, 1].

    images, texts: embeddings [N,D] of one CLIP judge. No factor and no floor: published "CLIP scores"
    are this times 1, 2.5 or 100, some cut at 0 (Hessel et al. 2021,
    https://arxiv.org/abs/2104.08718, has 2.5 and the cut), so the header states the judge and that
    this is the cosine.
    """
    return cosine_to_target(images, texts)


COSINE = ItemMetric(
    of_features(name="cosine", title="cosine to target", scale="cosine", better="higher", place=71),
    lambda scored: cosine_to_target(scored.features, scored.target_features),
)
RETRIEVAL = ItemMetric(
    of_features(name="retrieval", title="R@1", scale="R@1 in [0, 1]", better="higher", place=72),
    lambda scored: retrieval_hits(scored.features, scored.target_features),
)
MAE = ItemMetric(
    MetricSpec(name="mae", title="MAE", scale="[0, 1]", better="lower", place=90),
    lambda scored: pixel_error(scored.images, scored.targets),
)
CLIP = ItemMetric(
    of_clip(name="clip", title="CLIP score", scale="cosine", better="higher", scale_shown=True, place=91),
    lambda x: None if x.read is None or x.text is None else clip_score(x.read, x.text),
)
