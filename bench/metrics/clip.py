"""Agreement of images with their captions in the space of a CLIP judge."""

from __future__ import annotations

import numpy as np

from bench.metrics.paired import cosine_to_target, retrieval_hits


def clip_score(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Return the raw cosine of each image to its own caption, [N] float64 in [-1, 1].

    images, texts: embeddings [N,D] of one judge. No factor and no floor: published "CLIP scores"
    are this times 1, 2.5 or 100, some cut at 0 (Hessel et al. 2021,
    https://arxiv.org/abs/2104.08718, has 2.5 and the cut), so the header states the judge and that
    this is the cosine.
    """
    return cosine_to_target(images, texts)


def retrieval_recall(queries: np.ndarray, gallery: np.ndarray, *, k: int) -> float:
    """Return the share of queries whose own gallery row is among the k nearest, in [0, 1].

    queries, gallery: embeddings [N,D], row i of both belonging to item i (captions -> images or
    images -> captions); ties count by chance, see `bench.metrics.paired.retrieval_hits`.
    """
    return float(retrieval_hits(queries, gallery, k=k).mean())
