"""Two tiny finished runs of real classes, and a source of pictures for studies that need no run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import registry
from bench.data.openmoji import OpenMoji64, openmoji64_splits
from bench.packed import kept_records
from bench.study import Key, KeyQuestion
from bench.study.page import Design, Source, Study, build_study
from tests.asking import made, micro

RESULTS = Path(__file__).resolve().parents[2] / "results" / "emoji"
METHODS = ("bps", "controlnet", "text-only")


@pytest.fixture(scope="session")
def source() -> Source:
    """Twelve items by three methods; samples are flat colours, one a method."""
    record = kept_records(RESULTS)[0]
    dataset, task = OpenMoji64(), registry.load("task", record.task)
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
def study(source: Source) -> Study:
    """All 36 pairs of three methods on twelve items, and 4 checks, both kinds."""
    return build_study(source, Design(pairs=36, title="A <title> & more"))


Choose = Callable[[KeyQuestion, str], str | None]


def rightly(question: KeyQuestion, asked: str) -> str | None:
    """Pass every check; prefer the method that comes first by name."""
    return question.real if question.check else min(question.sides, key=question.sides.__getitem__)


@pytest.fixture(scope="session")
def answers_of() -> Callable[..., dict[str, Any]]:
    """Return what the page saves for a person who chooses codes (None: no difference)."""

    def build(
        key: Key, *, rater: int = 0, choose: Choose = rightly, mirrored: bool = False
    ) -> dict[str, Any]:
        given = []
        for code, question in key.questions.items():
            left, right = list(question.sides)[:: -1 if mirrored else 1]
            for asked in key.aspects:
                side = {left: "left", right: "right", None: "same"}[choose(question, asked)]
                given.append(
                    {
                        "question": code,
                        "left": left,
                        "right": right,
                        "asked": asked,
                        "answer": side,
                        "seconds": 1.5,
                    }
                )
        return {
            "format": "bps-bench study answers",
            "version": 1,
            "study": key.study,
            "rater": f"{rater:016x}",
            "started": "2025-01-01T00:00:00.000Z",
            "finished": None,
            "answers": given,
        }

    return build


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write a JSON value to a file of its own and return the path."""
    count = iter(range(1000))

    def write(value: Any) -> Path:
        path = tmp_path / f"answers-{next(count)}.json"
        path.write_text(json.dumps(value))
        return path

    return write


@pytest.fixture(scope="session")
def runs(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a finished run of BPS and one of text-only, a single step of training."""
    results, folders = tmp_path_factory.mktemp("runs"), []
    config = micro(micro_folder, results, train_images=8, sampling_steps=2, shuffled=False, sample_batch=12)
    for method in ("bps", "text-only"):
        run = made(config, method=method)
        run.all()
        folders.append(run.folder)
    return folders[0], folders[1]
