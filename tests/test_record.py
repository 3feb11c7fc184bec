"""Records: strict to read, exact to write."""

from __future__ import annotations

import dataclasses
import json
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from bench.config import RunConfig, make_config
from bench.content import read_json, sha256_bytes
from bench.randomness import pick_items
from bench.record import (
    Cost,
    LeakCheck,
    Leaks,
    MetricValue,
    RunRecord,
    SplitInfo,
    Splits,
    device_words,
    digest_sources,
    environment,
    find_records,
    load_record,
    write_record,
)
from bench.sampling import show_condition
from bench.suites import changes
from bench.types import BenchError

ROOT = Path(__file__).resolve().parent.parent


def example(**changes: object) -> RunRecord:
    value = MetricValue(value=0.5, low=0.4, high=None, n=3, judge="none", scale="F1", better="higher")
    side = SplitInfo(name="train", n=3, digest="d")
    record = RunRecord(
        run_id="r",
        suite="emoji",
        task="sketch",
        method="bps",
        options={"schedule": "uniform"},
        budget="quick",
        seed=0,
        protocol_hash="h",
        protocol={"task": "sketch"},
        splits=Splits(train=side, eval=side, overlap=0),
        metrics={"sketch_f1": value},
        rows={"samples": {"sketch_f1": value}},
        cost=Cost(
            parameters=2,
            parameters_trainable=1,
            parameters_dead=0,
            macs=5,
            macs_guided=9,
            macs_encode=0,
            train_seconds=None,
            train_images=0,
            train_images_per_second=None,
            sample_seconds_per_image=0.1,
            score_seconds=1.0,
            peak_memory_bytes=9,
        ),
        environment={"device": "cpu"},
        artifacts={},
        attribution="by nobody",
        started="s",
        finished="f",
    )
    return dataclasses.replace(record, **changes)  # type: ignore[arg-type]


def test_a_record_survives_the_round_trip(tmp_path: Path) -> None:
    write_record(tmp_path / "run", example())
    assert load_record(tmp_path / "run") == example()
    assert find_records(tmp_path) == [tmp_path / "run"]


def test_what_was_asked_survives_the_round_trip_and_old_records_do_not_say_it(tmp_path: Path) -> None:
    """Everything that a run may be asked to be, also what it sets apart from its suite and budget."""
    config = RunConfig(
        suite="micro",
        base=tmp_path,
        options={"prior": "free"},
        guidance=3.0,
        sampling_steps=7,
        train_items=20,
        train_images=16,
        train_batch=4,
        limit=12,
    )
    asked = example(config=config.as_dict(), changes=changes(config))
    path = write_record(tmp_path, asked)
    found = load_record(tmp_path)
    assert found == asked and make_config(found.config) == config
    assert len(found.changes) == 6
    raw = json.loads(path.read_text())
    del raw["config"]
    path.write_text(json.dumps(raw))
    assert load_record(tmp_path) == example(changes=asked.changes)
    write_record(tmp_path, example())
    assert not {"config", "changes"} & set(json.loads(path.read_text()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema version 99"),
        ({"surprise": 1}, "surprise"),
        ({"cost": {"parameters": 1}}, "'cost.parameters_trainable' is missing"),
        ({"metrics": {"fd": 3}}, "'metrics.fd' must be an object, got 3"),
        ({"metrics": {}}, "differs from the row"),
        ({"rows": 3}, "'rows' must be an object, got 3"),
        ({"rows": {"samples": 3}}, "'rows.samples' must be an object, got 3"),
        ({"seed": "zero"}, "'seed' must be a valid integer, got 'zero'"),
        ({"seed": True}, "'seed' must be a valid integer, got True"),
        ({"method": ["bps"]}, "'method' must be a valid string"),
        ({"artifacts": []}, "'artifacts' must be an object"),
    ],
)
def test_records_of_another_shape_are_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = write_record(tmp_path, example())
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BenchError, match=message):
        load_record(tmp_path)


def leaks() -> Leaks:
    check = LeakCheck(
        status="leak",
        about="3 training items",
        items=2,
        findings=["a = b"],
        limits={"image": 0.97},
        nearest={"image": 0.9},
    )
    unknown = dataclasses.replace(check, status="unknown", items=None, findings=[])
    return Leaks(items=2, training=check, pretraining=unknown)


def test_leaks_survive_the_round_trip_and_old_records_have_none(tmp_path: Path) -> None:
    path = write_record(tmp_path, example(leaks=leaks()))
    assert load_record(tmp_path) == example(leaks=leaks()) and load_record(tmp_path).leaked == 2
    raw = json.loads(path.read_text())
    assert raw.pop("leaks")["pretraining"]["items"] is None
    path.write_text(json.dumps(raw))
    assert load_record(tmp_path) == example() and load_record(tmp_path).leaked == 0
    write_record(tmp_path, example())
    assert "leaks" in json.loads(path.read_text())  # every field is written


def test_leaks_are_read_strictly(tmp_path: Path) -> None:
    path = write_record(tmp_path, example(leaks=leaks()))
    raw = json.loads(path.read_text())
    del raw["leaks"]["training"]["status"]
    path.write_text(json.dumps(raw))
    with pytest.raises(BenchError, match="'leaks.training.status' is missing"):
        load_record(tmp_path)


def test_missing_keys_are_named(tmp_path: Path) -> None:
    path = write_record(tmp_path, example())
    raw = json.loads(path.read_text())
    del raw["seed"]
    path.write_text(json.dumps(raw))
    with pytest.raises(BenchError, match="seed"):
        load_record(tmp_path)


def test_artifacts_are_held_to_their_digests(tmp_path: Path) -> None:
    (tmp_path / "items.json").write_bytes(b"one")
    absent = {"contact.png": "absent", "work/x": "absent"}
    write_record(tmp_path, example(artifacts={"items.json": sha256_bytes(b"one"), **absent}))
    load_record(tmp_path)
    (tmp_path / "items.json").write_bytes(b"two")
    with pytest.raises(BenchError, match="SHA-256 differs"):
        load_record(tmp_path)
    (tmp_path / "items.json").unlink()
    with pytest.raises(BenchError, match="is missing"):
        load_record(tmp_path)
    write_record(tmp_path, example(artifacts={"../outside": "x"}))
    with pytest.raises(BenchError, match="outside"):
        load_record(tmp_path)


def test_numbers_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    value = MetricValue(value=float("nan"), low=None, high=None, n=1, judge="none", scale="", better="none")
    with pytest.raises(ValueError, match="(?i)nan|finite"):
        write_record(tmp_path, example(metrics={"x": value}, rows={"samples": {"x": value}}))


def test_an_environment_names_the_gpu_and_only_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "gpu" not in environment(device="cpu", threads=1)
    assert device_words(environment(device="cpu", threads=1)) == "cpu"
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"A Card at {device}")
    assert device_words(environment(device="cuda", threads=1)) == "A Card at cuda"


def test_an_environment_names_the_program_without_git_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a wheel lies: the code is named by version and digest, its commit where pip knows it."""
    here = environment(device="cpu", threads=1)
    assert here["packages"]["bps-bench"] == metadata.version("bps-bench")
    for package in ("bench", "bps", "baselines"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("assets", "__py*"))
    shutil.copy(ROOT / "cli.py", tmp_path)
    assert digest_sources(tmp_path) == here["sources"]
    (tmp_path / "cli.py").write_text("")
    assert digest_sources(tmp_path) != here["sources"]
    monkeypatch.setattr("bench.record._ROOT", tmp_path)
    assert environment(device="cpu", threads=1)["commit"] == "unknown"


def test_items_are_picked_by_a_fixed_rule() -> None:
    ids = [f"{i:03}" for i in range(50)]
    assert pick_items(ids, 8) == pick_items(list(reversed(ids)), 8)
    assert set(pick_items(ids, 8)) <= set(pick_items(ids, 20))
    assert pick_items(ids, None) == pick_items(ids, 50) == tuple(ids)


def test_conditions_are_shown_as_ink_on_paper() -> None:
    line = np.zeros((1, 2, 2))
    line[0, 0, 0] = 1
    shown = show_condition(line)
    assert shown[0, 0].tolist() == [0, 0, 0] and shown[1, 1].tolist() == [255, 255, 255]
    colour = np.ones((4, 2, 2))
    colour[1:3], colour[3] = 0, line[0]
    shown = show_condition(colour)
    assert shown[0, 0].tolist() == [0, 0, 0] and shown[1, 1].tolist() == [255, 0, 0]


def test_the_published_schema_is_that_of_records() -> None:
    published = Path(__file__).parents[1] / "docs" / "record.schema.json"
    assert read_json(published, loose=True) == TypeAdapter(RunRecord).json_schema(), (
        "make it anew: python -c 'from pydantic import TypeAdapter; from bench.record import *; "
        'content.write_json("docs/record.schema.json", TypeAdapter(RunRecord).json_schema())\''
    )
