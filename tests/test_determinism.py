"""Equal runs: the same bits on one machine, the stated tolerances over threads, batches, processes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from bench.content import read_json
from bench.grid import run_grid
from bench.judges import Judge, load_judge
from bench.record import RECORD_FILE, load_record
from bench.running import ADAPTER
from bench.sampling import load_images
from bench.types import BenchError, Hooks
from tests.asking import made, micro
from tests.tolerances import TOLERANCES


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def finished(folder: Path, base: Path, *, batch: int = 4, number: int = 1) -> Any:
    with threads(number):
        run = made(micro(base, folder, sample_batch=batch, shuffled=False, train_images=16))
        run.all()
    return run


@pytest.fixture(scope="module")
def one(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return finished(tmp_path_factory.mktemp("one"), micro_folder)


def recorded(run: Any) -> Any:
    return load_record(run.folder)


def pixels(run: Any) -> np.ndarray:
    return load_images(run.work / "samples", run.eval_ids).astype(int)


def weights(run: Any) -> dict[str, np.ndarray]:
    return dict(load_file(run.folder / ADAPTER))


def check_near(run: Any, other: Any) -> None:
    """Everything that a table can show of two runs lies within the stated tolerances."""
    assert run.id == other.id
    assert np.abs(pixels(run) - pixels(other)).max() <= TOLERANCES.levels
    ours, theirs = (weights(r) for r in (run, other))
    for name, tensor in ours.items():
        assert np.abs(tensor - theirs[name]).max() <= TOLERANCES.weights, name
    items, others = (read_json(r.folder / "items.json")["rows"]["samples"] for r in (run, other))
    for name, values in items.items():
        pairs = list(zip(values, others[name], strict=True))
        assert all((a is None) == (b is None) for a, b in pairs), f"{name}: the same items lack it"
        gaps = [abs(a - b) for a, b in pairs if a is not None and b is not None]
        assert max(gaps, default=0.0) <= TOLERANCES.items, name
    for name in ("fd", "cosine", "mae"):
        a, b = (recorded(r).metrics[name].value for r in (run, other))
        assert math.isclose(a, b, rel_tol=TOLERANCES.metrics), name


@pytest.mark.slow
def test_a_sample_of_another_size_is_told_and_harms_nothing(one: Any) -> None:
    path = one.work / "samples" / f"{one.eval_ids[1]}.png"
    whole, record = path.read_bytes(), (one.folder / RECORD_FILE).read_bytes()
    Image.new("RGB", (32, 64)).save(path)
    try:
        with pytest.raises(BenchError, match=rf"{path.name} cannot be read \(it has 32 x 64 pixels"):
            one.score()
    finally:
        path.write_bytes(whole)
    assert (one.folder / RECORD_FILE).read_bytes() == record


def test_a_rerun_has_the_same_bits(one: Any, micro_folder: Path, tmp_path: Path) -> None:
    again = finished(tmp_path, micro_folder)
    np.testing.assert_array_equal(pixels(again), pixels(one))
    for name, tensor in weights(one).items():
        np.testing.assert_array_equal(weights(again)[name], tensor)
    files = [(r.folder / "items.json").read_bytes() for r in (one, again)]
    assert files[0] == files[1] and recorded(again).rows == recorded(one).rows


def test_more_draws_take_the_training_over_and_begin_with_the_same_samples(
    one: Any, micro_folder: Path
) -> None:
    config = micro(micro_folder, one.folder.parent, shuffled=False, train_images=16, draws=2)
    run = made(config)
    with threads(1):
        record = run.all()
    assert record.trained_in == one.id and record.protocol["sampler"]["draws"] == 2
    np.testing.assert_array_equal(pixels(run), pixels(one))
    assert "draws" not in recorded(one).protocol["sampler"] and recorded(one).draws == {}
    assert set(record.draws) == {"samples"}
    for name, values in record.draws["samples"].items():
        first, found = recorded(one).metrics[name].value, record.metrics[name].value
        assert len(values) == 2 and values[0] == pytest.approx(first, abs=1e-12), name
        assert found is None or found == pytest.approx(np.mean(values), abs=1e-9), name


@pytest.mark.slow
def test_threads_and_batches_move_nothing_beyond_the_tolerances(
    one: Any, micro_folder: Path, tmp_path: Path
) -> None:
    check_near(one, finished(tmp_path, micro_folder, number=2, batch=12))


@pytest.mark.slow
def test_judges_move_no_further_with_threads_and_batches(one: Any) -> None:
    judge: Judge = load_judge("efficientnet-lite0")
    images = pixels(one).astype(np.uint8)
    with threads(1):
        first = judge.features(images)
        np.testing.assert_array_equal(judge.features(images), first)
    with threads(2):
        np.testing.assert_allclose(
            judge.features(images, batch_size=7), first, rtol=0, atol=TOLERANCES.features
        )


@pytest.mark.slow
def test_two_jobs_of_a_grid_give_the_bits_of_one_process(
    micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes of one thread each, against this process with one thread."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    asked = [micro(micro_folder, tmp_path / "grid", method="text-only", seed=seed) for seed in (0, 1)]
    outcomes = run_grid(asked, hooks=Hooks(), say=len, jobs=2)
    for outcome, config in zip(outcomes, asked, strict=True):
        assert outcome.record is not None, outcome.error
        with threads(1):
            run = made(config, results=tmp_path / "here")
            run.all()
        there, here = (p / run.id for p in (tmp_path / "grid", tmp_path / "here"))
        assert (there / "items.json").read_bytes() == (here / "items.json").read_bytes()
        assert recorded(run).rows == outcome.record.rows
