"""Reports take times from what was measured alone, and say so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.cost import Timing, add_timing
from bench.packed import Run
from bench.reporting.rows import build_table
from bench.reporting.runs import load_runs
from bench.reporting.tables import cost_grid, time_words

MACHINE = {"processor": "a quiet one", "device": "cpu", "threads": 2, "platform": "Linux"}
OPTIONS = {"schedule": "head_heavy", "learning_rate": 1e-3}


def test_times_come_from_the_file_and_what_was_not_measured_is_missing(
    results: Path, add_run: Callable[..., Run], build: Any
) -> None:
    add_run("bps", {"fd": 30.0}, options=OPTIONS)
    add_run("controlnet", {"fd": 32.0}, options={})
    table = build_table(load_runs(results))
    assert time_words(table) == ""
    add_timing(
        results,
        Timing(
            method="bps",
            options={"schedule": "head_heavy"},
            task="layout",
            steps=4,
            items=8,
            train_images_per_second=20.0,
            sample_seconds_per_image=0.5,
            peak_memory_bytes=2**30,
        ),
        machine=MACHINE,
    )
    runs = {run.record.method: run.record for run in load_runs(results)}
    own, other = runs["bps"].cost, runs["controlnet"].cost
    assert own.train_images_per_second == 20.0 and own.peak_memory_bytes == 2**30
    assert own.train_seconds == build.cost.train_images / 20.0
    assert own.macs == build.cost.macs and runs["bps"].metrics["fd"].value == 30.0
    assert other.train_seconds is None and other.peak_memory_bytes is None
    grid = cost_grid(build_table(load_runs(results)))
    assert "each method measured alone (a quiet one, cpu, 2 threads)" in grid.caption
    cells = {row[0].main: [cell.main for cell in row] for row in grid.body}
    assert "1024" in cells["BPS"] and cells["ControlNet"][-1] == "–"
