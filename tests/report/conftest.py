"""Small synthetic runs, written through the real record code."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from bench.ablations import settings_of
from bench.content import write_json
from bench.data.picture import TILES_FILE, write_tiles
from bench.packed import Run, load_run
from bench.record import (
    ITEMS_FILE,
    MetricValue,
    RunRecord,
    SplitInfo,
    Splits,
    write_record,
)
from bench.reporting import figures, make_report
from tests.report.small import COST, JUDGE

IDS = tuple(f"{i:04X}" for i in range(40))
KINDS: Mapping[str, tuple[str, str, str]] = {
    "fd": (JUDGE, "squared feature distance", "lower"),
    "kid": (JUDGE, "squared feature distance", "lower"),
    "cosine": (JUDGE, "cosine", "higher"),
    "retrieval": ("none", "fraction", "higher"),
    "sketch_f1": ("none", "fraction", "higher"),
    "mae": ("none", "fraction", "lower"),
    "clip": ("emoji-clip", "cosine", "higher"),
    "miou": ("none", "mean IoU in [0, 1]", "higher"),
    "box_recall": ("none", "fraction", "higher"),
    "colour_error": ("none", "fraction", "lower"),
}


def value(
    metric: str, number: float | None, *, half: float = 0.02, n: int = 40, **changes: Any
) -> MetricValue:
    """A metric's number with a symmetric interval; a judge and scale as real runs write them."""
    judge, scale, better = KINDS.get(metric, ("none", "fraction", "higher"))
    low, high = (None, None) if number is None else (number - half, number + half)
    made = MetricValue(value=number, low=low, high=high, n=n, judge=judge, scale=scale, better=better)
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


def sheet_rows(seed: int = 0, n: int = 12, *, size: int = 64) -> dict[str, np.ndarray]:
    """Images of tiles or a contact sheet, [N,H,W,3] uint8 a row; only the sample depends on the seed."""
    fixed, draw = np.random.default_rng(0), np.random.default_rng(seed)
    condition, target = fixed.integers(0, 256, (2, n, size, size, 3), dtype=np.uint8)
    sample = draw.integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    return {"condition": condition, "sample": sample, "target": target}


def replicates(value: float, *, width: float, seed: int, groups: int = 40) -> list[float]:
    """Jackknife replicates [G] about a value: what all methods share, and a little of their own."""
    shared = np.random.default_rng(0).normal(0.0, width, groups)
    own = np.random.default_rng(seed).normal(0.0, width / 4, groups)
    return [float(x) for x in value + shared + own]


Writer = Callable[..., Run]


@pytest.fixture(scope="session")
def build() -> SimpleNamespace:
    """The builders of this file, for tests to call."""
    makers = (value, spread, record, references, sheet_rows, replicates, write_run)
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
    tiles: bool = False,
    sets: bool = False,
    size: int = 16,
    curve: Sequence[tuple[int, float]] = (),
    item_ids: Sequence[str] = IDS,
    item_rows: Mapping[str, Mapping[str, Sequence[float | None]]] | None = None,
    **changes: Any,
) -> Run:
    """Write a run and load it again.

    levels: mean per metric of the samples; shuffled: the same for the shuffled row; items: whether
    to write per-item scores; tiles: whether to write tiles; sets: whether to write the
    replicates of FD and KID and the curve, which older runs lack; size: of pictures; changes: of
    record fields.
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
        found = {"ids": list(item_ids), "rows": scores}
        extra = {"replicates": _replicates(made, levels, shuffled), "curve": [list(p) for p in curve]}
        write_json(folder / ITEMS_FILE, found | (extra if sets else {}))
    if tiles:
        pictures = sheet_rows(_seed(made.method, made.seed), n=24, size=size)
        write_tiles(folder / TILES_FILE, pictures, [f"item {k:02}" for k in range(24)])
    return load_run(folder)


def _replicates(
    made: RunRecord, levels: Mapping[str, float | None], shuffled: Mapping[str, float | None] | None
) -> dict[str, dict[str, list[float]]]:
    widths = {"fd": 0.08, "kid": 0.0001}
    return {
        side: {
            metric: replicates(number, width=widths[metric], seed=_seed(made.run_id, *place, metric))
            for metric, number in (numbers or {}).items()
            if metric in widths and number is not None
        }
        for side, numbers, place in (("samples", levels, ()), ("shuffled", shuffled, ("shuffled",)))
    }


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


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that `make` fills, once for all workers of a test session; read only."""
    own = factory.getbasetemp()
    place = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder, done = place / name, place / f"{name}.done"
    with FileLock(place / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@contextmanager
def dots_for_figures() -> Iterator[None]:
    """Save a dot of one pixel in place of each figure, where a test looks at none."""

    def save(_: Any, sheet: figures.Sheet, **__: Any) -> Path:
        path = sheet.path
        path.parent.mkdir(parents=True, exist_ok=True)
        for end in (".png", ".pdf"):
            Image.new("RGB", (1, 1)).save(path.with_suffix(end), format="PNG")
        return path

    with pytest.MonkeyPatch.context() as patch:
        for draw in ("dot_figure", "plane_figure", "gallery_figure"):
            patch.setattr(figures, draw, save)
        yield


@pytest.fixture
def no_drawing() -> Iterator[None]:
    """See `dots_for_figures`."""
    with dots_for_figures():
        yield


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods, one with three seeds, a floor, tiles: the report as it will be; read only."""
    return made_once(tmp_path_factory, "full", _write_full)


def _write_full(results: Path) -> None:
    for seed, shift in enumerate((0.0, 0.01, -0.013)):
        own = _levels(38.0 + 90 * shift, 0.52 + shift)
        write_run(
            results,
            "bps",
            own,
            shuffled=_levels(44.0, 0.11),
            seed=seed,
            tiles=True,
            sets=True,
            curve=_curve(0.52, seed),
        )
    other = _levels(40.5, 0.3)
    write_run(
        results,
        "t2i-adapter",
        other,
        shuffled=_levels(45.0, 0.12),
        tiles=True,
        sets=True,
        curve=_curve(0.5, 0),
    )
    untrained = replace(
        COST,
        parameters_trainable=0,
        parameters_dead=0,
        train_seconds=None,
        train_images=0,
        train_images_per_second=None,
    )
    write_run(results, "text-only", _levels(47.3, 0.10), cost=untrained, tiles=True, sets=True)


@pytest.fixture(scope="session")
def report(full: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the report of `full`; read only."""
    return made_once(tmp_path_factory, "report", lambda out: make_report(full, out))


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


# Method -> FD and share of the ceiling's fidelity, trainable parameters and training seconds.
METHODS: Mapping[str, tuple[float, float, float, float]] = {
    "bps": (33.9, 0.62, 8.4e6, 512.0),
    "controlnet": (34.9, 0.60, 8.1e6, 640.0),
    "lora-concat": (38.2, 0.45, 0.3e6, 505.0),
    "sd-finetune": (35.0, 0.615, 10.8e6, 590.0),
    "t2i-adapter": (36.5, 0.51, 2.1e6, 470.0),
}
FIDELITY: Mapping[str, tuple[str, ...]] = {
    "drawing": ("sketch_f1", "colour_error"),
    "layout": ("box_recall",),
    "segmentation": ("miou",),
    "sketch": ("sketch_f1",),
}
SEEDS = (0, 1, 2)


def write_suite(results: Path) -> None:
    """Write five methods by four tasks by three seeds, a variant on sketch, one row of one seed.

    layout has no controlnet, so that a number is missing; text-only has one seed.
    """
    for task in FIDELITY:
        _write_task(results, task, "text-only", (47.3, 0.12, 0.0, 0.0), seeds=SEEDS[:1])
        for method, numbers in METHODS.items():
            if (task, method) != ("layout", "controlnet"):
                seeds = SEEDS[:1] if (task, method) == ("drawing", "sd-finetune") else SEEDS
                _write_task(results, task, method, numbers, seeds=seeds)
    uniform = (34.4, 0.59, 8.4e6, 515.0)
    _write_task(results, "sketch", "bps", uniform, seeds=SEEDS, schedule="uniform")


def _write_task(
    results: Path,
    task: str,
    method: str,
    numbers: tuple[float, float, float, float],
    *,
    seeds: Sequence[int],
    schedule: str = "",
) -> None:
    fd, share, parameters, seconds = numbers
    options = {"learning_rate": 0.001 if task == "sketch" else 0.0005, **settings_of(method, task)}
    options |= {"schedule": schedule} if schedule else {}
    cost = replace(
        COST,
        parameters_trainable=int(parameters),
        parameters_dead=0,
        train_seconds=seconds or None,
        train_images=16_384 if seconds else 0,
        train_images_per_second=16_384 / seconds if seconds else None,
    )
    for seed in seeds:
        shift = np.random.default_rng(_seed(task, method, schedule, seed)).normal(0.0, 1.0, 2)
        levels = _task_levels(task, fd + 0.25 * shift[0], share + 0.012 * shift[1])
        write_run(
            results,
            method,
            levels,
            task=task,
            seed=seed,
            options=options,
            cost=cost,
            run_id=f"emoji-{task}-{method}-{schedule}-s{seed}",
            tiles=seed == 0,
            sets=True,
            size=16,
            curve=_curve(share, seed) if seconds else (),
            protocol_hash=hashlib.sha256(task.encode()).hexdigest(),
            budget="standard",
        )


def _task_levels(task: str, fd: float, share: float) -> dict[str, float | None]:
    levels: dict[str, float | None] = {"fd": fd, "kid": fd / 2000, "cosine": 0.4 + 0.5 * share}
    for metric in FIDELITY[task]:
        levels[metric] = 0.3 - 0.3 * share if metric == "colour_error" else share
    return levels | {"mae": 0.3 - 0.2 * share, "clip": 0.31}


def _curve(share: float, seed: int) -> list[tuple[int, float]]:
    noise = np.random.default_rng(seed).normal(0.0, 0.02, 256)
    return [
        (step, round(float(0.35 - 0.1 * share + 0.2 * np.exp(-step / 40) + x), 6))
        for step, x in enumerate(noise, start=1)
    ]


@pytest.fixture(scope="session")
def suite_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of `write_suite`; read only."""
    return made_once(tmp_path_factory, "suite", write_suite)


@pytest.fixture(scope="session")
def suite_report(suite_results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the report of `suite_results`, without its figures; read only."""

    def make(out: Path) -> None:
        with dots_for_figures():
            make_report(suite_results, out)

    return made_once(tmp_path_factory, "suite-report", make)
