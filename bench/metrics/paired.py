"""Metrics of one item at a time: a sample with its own target, or with its caption."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bench.metrics.frechet import checked_features, checked_pair
from bench.types import BenchError, MetricSpec, Scored


@dataclass(frozen=True, kw_only=True)
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
    """Return the cosine of each sample's features to its target's, [N] float64 in [-1, 1].

    sample, target: [N,D], row i belonging to item i.
    """
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
    """Return each item's mean absolute error of pixels, [N] float64 in [0, 1].

    sample, target: [N,H,W,3] uint8.
    """
    if sample.shape != target.shape or sample.ndim != 4:
        raise BenchError(f"images must be [N,H,W,3] of one shape: {sample.shape}, {target.shape}")
    if sample.dtype != np.uint8 or target.dtype != np.uint8:
        raise BenchError(f"images must be uint8, got {sample.dtype} and {target.dtype}")
    errors = [
        np.abs(one.astype(np.int16) - other.astype(np.int16)).mean() / 255.0
        for one, other in zip(sample, target, strict=True)
    ]
    return np.asarray(errors, dtype=np.float64)


def clip_score(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Return the raw cosine of each image to its own caption, [N] float64 in [-1, 1].

    images, texts: embeddings [N,D] of one CLIP judge. No factor and no floor: published "CLIP scores"
    are this times 1, 2.5 or 100, some cut at 0 (Hessel et al. 2021,
    https://arxiv.org/abs/2104.08718, has 2.5 and the cut), so the header states the judge and that
    this is the cosine.
    """
    return cosine_to_target(images, texts)


COSINE = ItemMetric(
    spec=MetricSpec(
        name="cosine",
        title="cosine to target",
        scale="cosine",
        better="higher",
        judge="features",
        place=71,
    ),
    items=lambda scored: cosine_to_target(scored.features, scored.target_features),
)
RETRIEVAL = ItemMetric(
    spec=MetricSpec(
        name="retrieval", title="R@1", scale="R@1 in [0, 1]", better="higher", judge="features", place=72
    ),
    items=lambda scored: retrieval_hits(scored.features, scored.target_features),
)
MAE = ItemMetric(
    spec=MetricSpec(name="mae", title="MAE", scale="[0, 1]", better="lower", place=90),
    items=lambda scored: pixel_error(scored.images, scored.targets),
)
CLIP = ItemMetric(
    spec=MetricSpec(
        name="clip",
        title="CLIP score",
        scale="cosine",
        better="higher",
        judge="clip",
        scale_shown=True,
        place=91,
    ),
    items=lambda scored: (
        None if scored.read is None or scored.text is None else clip_score(scored.read, scored.text)
    ),
)
