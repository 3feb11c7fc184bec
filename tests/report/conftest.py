"""Small synthetic runs, written through the real record code."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench.content import write_json
from bench.record import (
    ITEMS_FILE,
    Cost,
    MetricValue,
    RunRecord,
    SplitInfo,
    Splits,
    write_record,
)
from bench.report import load_run, make_report
from bench.report.runs import Run
from bench.report.sheet import contact_sheet

JUDGE = "EfficientNet-Lite0"
IDS = tuple(f"{i:04X}" for i in range(40))
KINDS: Mapping[str, tuple[str, str, str]] = {
    "fd": (JUDGE, "squared feature distance", "lower"),
    "kid": (JUDGE, "squared feature distance", "lower"),
    "cosine": (JUDGE, "cosine", "higher"),
    "retrieval": ("none", "fraction", "higher"),
    "sketch_f1": ("none", "fraction", "higher"),
    "mae": ("none", "fraction", "lower"),
    "clip": ("emoji-clip", "cosine", "higher"),
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


def value(
    metric: str, number: float | None, *, half: float = 0.02, n: int = 40, **changes: Any
) -> MetricValue:
    """A metric's number with a symmetric interval; a judge and scale as real runs write them."""
    judge, scale, better = KINDS.get(metric, ("none", "fraction", "higher"))
    low, high = (None, None) if number is None else (number - half, number + half)
    made = MetricValue(
        value=number, low=low, high=high, n=n, judge=judge, scale=scale, better=better
    )
    return replace(made, **changes)


def spread(mean: float, *, seed: int, width: float = 0.1) -> list[float]:
    """Scores of 40 items whose mean is `mean` to within rounding."""
    noise = np.random.default_rng(seed).normal(0.0, width, len(IDS))
    return [float(x) for x in mean + noise - noise.mean()]


def record(method: str, **changes: Any) -> RunRecord:
    """A record of the embedded suite; `changes` replace fields."""
    splits = Splits(
        train=SplitInfo(name="train", n=3000, digest="aa"),
        eval=SplitInfo(name="eval", n=len(IDS), digest="bb"),
        overlap=0,
    )
    base: dict[str, Any] = {
        "run_id": f"{method}-sketch-s{changes.get('seed', 0)}",
        "suite": "emoji",
        "task": "sketch",
        "method": method,
        "options": {},
        "budget": "default",
        "seed": 0,
        "protocol_hash": "0123456789abcdef" * 4,
        "protocol": {"task": "sketch", "sampler": {"steps": 20, "guidance": 3.0}},
        "splits": splits,
        "metrics": {},
        "cost": COST,
        "environment": {"python": "3.11", "processor": "a_cpu", "device": "cpu", "threads": 2},
        "artifacts": {},
        "attribution": "All drawings by the test.",
        "started": "2024-01-01T00:00:00+00:00",
        "finished": "2024-01-01T00:20:00+00:00",
    }
    return RunRecord(**base | changes)


def references() -> dict[str, dict[str, MetricValue]]:
    """The rows that every record of a protocol must hold alike."""
    ceiling = {"fd": 4.2, "kid": 0.001, "cosine": 0.97, "sketch_f1": 0.98, "mae": 0.02}
    return {
        "real training images": {
            "fd": value("fd", 31.25, half=1.5),
            "kid": value("kid", 0.0102, half=0.002),
        },
        "autoencoder": {m: value(m, x, half=0.005) for m, x in ceiling.items()},
    }


def sheet_rows(seed: int = 0, n: int = 12) -> dict[str, np.ndarray]:
    """Images of a contact sheet, [12,64,64,3] uint8 a row."""
    draw = np.random.default_rng(seed)
    return {
        name: draw.integers(0, 256, (n, 64, 64, 3), dtype=np.uint8)
        for name in ("condition", "sample", "target")
    }


Writer = Callable[..., Run]


@pytest.fixture(scope="session")
def build() -> SimpleNamespace:
    """The builders of this file, for tests to call."""
    makers = (value, spread, record, references, sheet_rows)
    return SimpleNamespace(cost=COST, **{maker.__name__: maker for maker in makers})


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """An empty folder for runs."""
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


@pytest.fixture
def add_run(results: Path) -> Writer:
    """A function that writes a run into `results` and loads it again, see `write_run`."""
    return partial(write_run, results)


def write_run(
    results: Path,
    method: str,
    levels: Mapping[str, float | None],
    *,
    shuffled: Mapping[str, float | None] | None = None,
    items: bool = True,
    sheet: bool = False,
    item_ids: Sequence[str] = IDS,
    item_rows: Mapping[str, Mapping[str, Sequence[float | None]]] | None = None,
    **changes: Any,
) -> Run:
    """Write a run and load it again.

    levels: mean per metric of the samples; shuffled: the same for the shuffled row; items: whether
    to write per-item scores; sheet: whether to write a contact sheet; changes: of record fields.
    """
    rows: dict[str, Mapping[str, MetricValue]] = dict(references())
    rows["samples"] = {m: _measured(m, x) for m, x in levels.items()}
    if shuffled is not None:
        rows["shuffled"] = {m: _measured(m, x) for m, x in shuffled.items()}
    made = record(method, **{"metrics": rows["samples"], "rows": rows} | changes)
    folder = results / made.run_id
    write_record(folder, made)
    if items:
        scores = item_rows or _scores(made, levels, shuffled)
        write_json(folder / ITEMS_FILE, {"ids": list(item_ids), "rows": scores})
    if sheet:
        contact_sheet(sheet_rows(made.seed, n=2), folder / "contact.png", title=made.run_id)
    return load_run(folder)


def _measured(metric: str, number: float | None) -> MetricValue:
    return value(metric, number, half=1.2 if metric == "fd" else 0.002 if metric == "kid" else 0.02)


def _scores(
    made: RunRecord, levels: Mapping[str, float | None], shuffled: Mapping[str, float | None] | None
) -> dict[str, dict[str, list[float]]]:
    """Per-item scores of the paired metrics; the set metrics fd and kid have none."""
    sides = {"samples": levels, **({"shuffled": shuffled} if shuffled is not None else {})}
    return {
        side: {
            metric: spread(number, seed=_seed(made.method, made.seed, side, metric))
            for metric, number in numbers.items()
            if number is not None and metric not in {"fd", "kid"}
        }
        for side, numbers in sides.items()
    }


def _seed(*parts: object) -> int:
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16)


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods, one with three seeds, a floor, sheets: the report as it will be; read only."""
    results = tmp_path_factory.mktemp("full")
    for seed, shift in enumerate((0.0, 0.01, -0.013)):
        own = _levels(38.0 + 90 * shift, 0.52 + shift)
        write_run(results, "bps", own, shuffled=_levels(44.0, 0.11), seed=seed, sheet=True)
    other = _levels(40.5, 0.505)
    write_run(results, "t2i-adapter", other, shuffled=_levels(45.0, 0.12), sheet=True)
    untrained = replace(
        COST,
        parameters_trainable=0,
        parameters_dead=0,
        train_seconds=None,
        train_images=0,
        train_images_per_second=None,
    )
    write_run(results, "text-only", _levels(47.3, 0.10), cost=untrained, sheet=True)
    return results


@pytest.fixture(scope="session")
def report(full: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the report of `full`; read only."""
    out = tmp_path_factory.mktemp("report")
    make_report(full, out)
    return out


def _levels(fd: float, f1: float) -> dict[str, float | None]:
    return {
        "fd": fd,
        "kid": fd / 2000,
        "cosine": 0.4 + 0.5 * f1,
        "retrieval": 0.9 * f1,
        "sketch_f1": f1,
        "mae": 0.3 - 0.2 * f1,
        "clip": 0.31,
    }
