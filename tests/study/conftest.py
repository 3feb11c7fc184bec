"""Two tiny finished runs of real classes, and a source of pictures for studies that need no run."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.data.openmoji import OpenMoji64, openmoji64_splits
from bench.record import find_records, load_record
from bench.study.sources import Source
from bench.tasks import find_task

RESULTS = Path(__file__).resolve().parents[2] / "results" / "emoji"
METHODS = ("bps", "controlnet", "text-only")


@pytest.fixture(scope="session")
def source() -> Source:
    """Twelve items by three methods; samples are flat colours, one a method."""
    record = load_record(find_records(RESULTS)[0])
    dataset, task = OpenMoji64(), find_task(record.task)
    examples = tuple(dataset[i] for i in openmoji64_splits().test[:12])
    flat = {m: np.full((12, 64, 64, 3), 60 * (n + 1), np.uint8) for n, m in enumerate(METHODS)}
    for images in flat.values():
        images[:, 0, 0, 0] = np.arange(12)  # no two samples alike
    return Source(
        records={m: dataclasses.replace(record, method=m, run_id=f"run-{m}") for m in METHODS},
        ids=tuple(e.id for e in examples),
        samples=flat,
        conditions=np.stack([task.condition(e) for e in examples]),
        examples=examples,
    )


@pytest.fixture(scope="session")
def runs(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a finished run of BPS and one of text-only, a single step of training."""
    from baselines.text_only import TextOnly
    from bench.run import Run, RunSpec
    from bench.suites import MICRO, Budget, Sampler
    from bps.method import BPS

    suite = replace(MICRO, base=micro_folder, sampler=Sampler(name="dpm++", steps=2))
    budget = Budget(name="quick", train_images=8, eval_items=12)
    results, folders = tmp_path_factory.mktemp("runs"), []
    for method in (BPS(), TextOnly()):
        run = Run(RunSpec(
            suite=suite, task="sketch", method=method, budget=budget, seed=0, results=results,
            shuffled=False, batch=12,
        ))  # fmt: skip
        run.all()
        folders.append(run.folder)
    return folders[0], folders[1]
