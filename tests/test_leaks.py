"""A planted leak stops a run before training; told to go on, the run is marked wherever it appears."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import cli
from bench.base.snapshot import find_snapshot
from bench.cli.options import Asked
from bench.config import RunConfig
from bench.data.leaks import write_seen
from bench.data.openmoji import OpenMoji64, openmoji64_splits
from bench.data.splits import Splits, item_digest, side_digest
from bench.randomness import pick_items
from bench.record import RunRecord, load_record
from bench.reporting.render import filled
from bench.suites import EMOJI, MICRO
from bench.types import Example

RUNNER = CliRunner()


def bench(*words: object) -> Any:
    return RUNNER.invoke(cli.app, [str(w) for w in words])


class Planted:
    """OpenMoji64 in which three evaluation items are training pictures, moved by a pixel."""

    def __init__(self) -> None:
        self.data, splits = OpenMoji64(), openmoji64_splits()
        self.name, self.digest, self.ids = "planted", "planted", self.data.ids
        chosen = pick_items(splits.test, 12)[:3]
        self.twins = dict(zip(chosen, splits.train[100:400:100], strict=True))

    def __getitem__(self, item_id: str) -> Example:
        item = self.data[item_id]
        if item_id not in self.twins:
            return item
        image = np.full_like(item.image, 255)
        image[1:, :] = self.data[self.twins[item_id]].image[:-1]
        return dataclasses.replace(item, image=image)


def planted_splits() -> Splits:
    """The committed sides with the planted contents, so that only the leak is wrong."""
    data, splits = Planted(), openmoji64_splits()
    items = {**splits.items, **{item: item_digest(data[item]) for item in data.twins}}
    test = side_digest({item: items[item] for item in splits.test})
    return dataclasses.replace(splits, items=items, digests={**splits.digests, "test": test})


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    suite = dataclasses.replace(MICRO, dataset=Planted, splits=planted_splits)
    monkeypatch.setattr("bench.suites.MICRO", suite)
    return


def micro(base: Path, results: Path, *more: object) -> list[object]:
    return [
        "run",
        "--suite",
        "micro",
        "--base",
        base,
        "--results",
        results,
        "--device",
        "cpu",
        "--method",
        "text-only",
        "--no-floor",
        "--no-shuffled",
        *more,
    ]


def only_record(results: Path) -> RunRecord:
    (folder,) = results.glob("micro-*")
    return load_record(folder)


def test_a_leak_stops_the_run_before_anything_is_written(
    planted: None, micro_folder: Path, tmp_path: Path
) -> None:
    answer = bench(*micro(micro_folder, tmp_path / "runs"))
    assert answer.exit_code == 2 and "Traceback" not in answer.output
    assert "LEAK: 3 evaluation items" in answer.stderr and "--allow-leak" in answer.stderr
    for item, twin in Planted().twins.items():
        assert f"{twin} = {item}" in answer.stderr
    assert not (tmp_path / "runs").exists()


def test_a_run_told_to_go_on_is_marked_wherever_it_appears(
    planted: None, micro_folder: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    answer = bench(*micro(micro_folder, runs, "--allow-leak"))
    assert answer.exit_code == 0, answer.output
    assert "LEAK: 3 evaluation items seen among 1359 training items" in answer.stdout
    record = only_record(runs)
    assert record.leaks is not None and record.leaked == 3 == record.splits.overlap
    assert record.leaks.training.status == "leak" and record.leaks.training.items == 3
    assert record.leaks.pretraining.status == "unknown" and record.leaks.pretraining.items is None
    assert bench("report", "--results", runs, "--out", tmp_path / "out").exit_code == 0
    for file in (tmp_path / "out").glob("*.md"):
        assert "LEAK: 3 items" in file.read_text(), file.name
    assert "PRETRAINING UNKNOWN" in (tmp_path / "out" / "report.md").read_text()
    table = (tmp_path / "out" / "table-micro-sketch.csv").read_text()
    assert "text-only (floor, LEAK: 3 items)" in table
    assert bench(*micro(micro_folder, runs)).exit_code == 2  # a finished run is no way round it


@pytest.fixture(scope="module")
def clean(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base with fingerprints of 50 drawings that are no evaluation items, and a run on it."""
    folder = tmp_path_factory.mktemp("clean")
    base = Path(shutil.copytree(micro_folder, folder / "base"))
    data, splits = OpenMoji64(), openmoji64_splits()
    pictures, names = data.images[data.rows(splits.train[:50])], [f"train: {i}" for i in range(50)]
    digest = find_snapshot(base).digest
    write_seen(base, base=digest, pictures=pictures, names=names, facts={"about": "50 drawings"})
    assert find_snapshot(base).digest == digest  # fingerprints are about the base, not of it
    assert bench(*micro(base, folder / "runs")).exit_code == 0
    (run,) = (folder / "runs").glob("micro-*")
    return base, run


def test_pretraining_is_checked_where_the_base_brings_fingerprints(
    clean: tuple[Path, Path], tmp_path: Path
) -> None:
    base, run = Path(shutil.copytree(clean[0], tmp_path / "base")), clean[1]
    record = load_record(run)
    assert record.leaks is not None and record.leaks.pretraining.status == "clean"
    assert record.leaks.pretraining.about == "50 drawings" and record.leaked == 0
    data, item = OpenMoji64(), pick_items(openmoji64_splits().test, 12)[0]
    digest = find_snapshot(base).digest
    write_seen(base, base=digest, pictures=data[item].image[None], names=["x: y"], facts={"about": "1"})
    answer = bench(*micro(base, tmp_path / "runs"))
    assert answer.exit_code == 2 and f"x: y = {item}" in answer.stderr


def test_the_flag_travels_through_grids() -> None:
    config = RunConfig(suite="micro", allow_leak=True)
    each = {"method": ("bps",), "task": ("sketch",), "seed": (0, 1)}
    cells = Asked(config=config, each=each).cells()
    assert len(cells) == 2 and all(RunConfig(**cell.as_dict()).allow_leak for cell in cells)
    assert all("--allow-leak" in cell.command() for cell in cells)
    plain = dataclasses.replace(config, allow_leak=False)
    assert not RunConfig(**plain.as_dict()).allow_leak and "--allow-leak" not in plain.command()


def test_an_audit_names_the_leak_and_explains_the_known_case(planted: None, micro_folder: Path) -> None:
    answer = bench("audit", "--suite", "micro", "--base", micro_folder, "--json")
    said = json.loads(answer.stdout)
    assert answer.exit_code == 1 and said["failed"] and said["looks"][1]["checked"] is None
    found = [look["checked"]["findings"] for look in said["looks"] if look["checked"]]
    assert [f[0]["kind"] for f in found if f] == ["near-duplicate image"]
    text = filled("audit.txt", **said)  # what is printed without --json
    assert "LEAK near-duplicate image: 3 items shared between train and test" in text
    assert "UNKNOWN" in text and "brings no fingerprints" in text
    assert "val2017" in text and "926842c" in text


@pytest.mark.slow
def test_an_audit_of_a_run_looks_at_its_own_items(clean: tuple[Path, Path]) -> None:
    base, run = clean
    answer = bench("audit", "--run", run, "--base", base)
    assert answer.exit_code == 0, answer.output
    assert "ok   12 test items with training" in answer.stdout
    assert "ok   12 test items with pretraining (50 drawings)" in answer.stdout
    assert "training clean, pretraining clean" in answer.stdout
    other = bench("audit", "--run", run, "--base", cli_base())
    assert other.exit_code == 0 and "another base" in other.stdout


def cli_base() -> Path:
    base = EMOJI.base
    assert base is not None
    return base


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["audit", "--suite", "emojy"], "Did you mean 'emoji'?"),
        (["audit", "--run", "/nowhere"], "/nowhere"),
        (["show", "/nowhere", "--diff", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_gets_a_message(words: list[str], message: str) -> None:
    answer = bench(*words)
    assert answer.exit_code == 2 and message in answer.stderr
