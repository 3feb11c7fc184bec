"""Runs of a few items in memory: what a table of ten lines needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.packed import Run
from bench.record import Cost, ItemScores, MetricValue, RunRecord, SplitInfo, Splits

IDS = tuple(f"{i:02}" for i in range(40))
JUDGE = "EfficientNet-Lite0"
KINDS = {  # metric -> judge, scale, better
    "fd": (JUDGE, "squared distance", "lower"),
    "kid": (JUDGE, "squared distance", "lower"),
    "cosine": (JUDGE, "cosine", "higher"),
    "clip": ("emoji-clip", "cosine", "higher"),
    "mae": ("none", "fraction", "lower"),
    "colour_error": ("none", "fraction", "lower"),
}
COST = Cost(
    parameters=5_600_000,
    parameters_trainable=1_234_567,
    parameters_dead=98_304,
    macs=512_000_000,
    macs_guided=900_000_000,
    macs_encode=0,
    train_seconds=840.0,
    train_images=64_000,
    train_images_per_second=76.19,
    sample_seconds_per_image=0.25,
    score_seconds=12.0,
    peak_memory_bytes=3 * 2**30,
)
PROTOCOL = {
    "sampler": {"steps": 10, "guidance": 2.5},
    "budget": {"name": "standard", "train_images": 3200},
}
Scores = Mapping[str, float | Sequence[float] | None]


def value(metric: str, number: float | None, *, half: float = 0.02, n: int = 40, **more: Any) -> MetricValue:
    """A metric's number with a symmetric interval."""
    judge, scale, better = KINDS.get(metric, ("none", "fraction", "higher"))
    low, high = (None, None) if number is None else (number - half, number + half)
    fields = {"value": number, "low": low, "high": high, "n": n, "judge": judge, "scale": scale}
    return MetricValue(**{**fields, "better": better, **more})


def spread(mean: float, *, seed: int, width: float = 0.1) -> list[float]:
    """Scores of 40 items whose mean is `mean` to within rounding."""
    noise = np.random.default_rng(seed).normal(0.0, width, len(IDS))
    return [float(x) for x in mean + noise - noise.mean()]


def made(
    method: str,
    scores: Scores,
    *,
    shuffled: Scores | None = None,
    references: Scores | None = None,
    replicates: Mapping[str, Sequence[float]] | None = None,
    ids: Sequence[str] = IDS,
    groups: tuple[int, ...] = (),
    **fields: Any,
) -> Run:
    """A run; scores: a number, or one an item, by metric. fields: of its record."""
    sides = {"samples": scores, "shuffled": shuffled, "autoencoder": references}
    kept = {name: side for name, side in sides.items() if side is not None}
    items = {n: {m: np.asarray(x) for m, x in s.items() if isinstance(x, list)} for n, s in kept.items()}
    rows = {n: {m: _measured(m, x) for m, x in side.items()} for n, side in kept.items()}
    of_sets = {"samples": {m: np.asarray(x) for m, x in (replicates or {}).items()}}
    values = ItemScores(ids=tuple(ids), groups=groups, rows=items, replicates=of_sets)
    return Run(record=record(method, **{"metrics": rows["samples"], "rows": rows, **fields}), items=values)


def _measured(metric: str, x: float | Sequence[float] | None) -> MetricValue:
    mean = float(np.nanmean(x)) if isinstance(x, list) else x
    return value(metric, mean)  # type: ignore[arg-type]


def record(method: str, *, train_items: int | None = None, **fields: Any) -> RunRecord:
    """A record of the embedded suite."""
    train = SplitInfo(name="train", n=train_items or 2900, digest="aa")
    sides = Splits(train=train, eval=SplitInfo(name="eval", n=len(IDS), digest="bb"), overlap=0)
    base: dict[str, Any] = {
        "run_id": f"{method}-{fields.get('task', 'sketch')}-s{fields.get('seed', 0)}",
        "suite": "emoji",
        "task": "sketch",
        "method": method,
        "options": {},
        "budget": "standard",
        "seed": 0,
        "protocol_hash": "0123456789abcdef" * 4,
        "protocol": PROTOCOL,
        "splits": sides,
        "metrics": {},
        "cost": COST,
        "environment": {"processor": "a_cpu", "device": "cpu", "threads": 2},
        "artifacts": {},
        "attribution": "",
        "started": "2024-01-01T00:00:00+00:00",
        "finished": "2024-01-01T00:20:00+00:00",
    }
    return RunRecord(**base | fields)
