"""Who a run is and where its intermediate results are found: hashes, ids, keys, folders begun before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench.types import BenchError
from tests.golden.program import (
    KEPT,
    asked_for,
    cache_names,
    identity,
    kept,
    loaded_run,
    published_records,
)

BEGUN = KEPT / "begun-emoji"


@pytest.fixture(scope="module")
def emoji_run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of suite emoji with all it needs loaded, over a copy of a folder that was begun before."""
    results = tmp_path_factory.mktemp("golden") / "results"
    shutil.copytree(BEGUN, results)
    return loaded_run(results, budget="quick")


def test_published_runs_are_named_by_what_was_asked_for() -> None:
    """Protocol hash, run id and the key that trainings share, from suite, task, method and options."""
    for golden in kept("runs.json"):
        for seed, run in golden["runs"].items():
            expected = {"protocol": golden["protocol"], "run": run, "training": golden["trainings"][seed]}
            assert identity(golden["asked"], seed=int(seed)) == expected


def test_every_published_record_is_among_the_runs() -> None:
    golden = {
        run: (json.dumps(entry["asked"], sort_keys=True), entry["protocol"])
        for entry in kept("runs.json")
        for run in entry["runs"].values()
    }
    records = [record for record, _ in published_records().values()]
    found = {r.run_id: (json.dumps(asked_for(r), sort_keys=True), r.protocol_hash) for r in records}
    assert len(records) == 306 and found == golden


def test_a_loaded_run_is_the_one_that_is_asked_for(emoji_run: Any) -> None:
    asked = {"suite": "emoji", "task": "sketch", "method": "text-only", "budget": "quick"}
    found = identity(asked, seed=0)
    assert (emoji_run.id, emoji_run.protocol.hash) == (found["run"], found["protocol"])
    assert emoji_run.identity.training[:16] == found["training"]


def test_encoded_items_and_features_are_found_again(emoji_run: Any, tmp_path: Path) -> None:
    assert cache_names(emoji_run, tmp_path) == kept("parts.json")["cache"]


def test_a_folder_begun_before_is_gone_on_with(emoji_run: Any) -> None:
    (begun,) = BEGUN.iterdir()
    assert emoji_run.id == begun.name
    emoji_run.begin()
    assert (emoji_run.work / "run.json").read_bytes() == (begun / "work" / "run.json").read_bytes()


@pytest.mark.parametrize(
    "changed", [{"protocol_hash": "0" * 64}, {"learning_rate": 0.5}, {"seed": 1}, {"options": {"a": 1}}]
)
def test_a_folder_begun_as_another_run_is_refused_by_name(emoji_run: Any, changed: dict[str, Any]) -> None:
    path = emoji_run.work / "run.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | changed))
    try:
        with pytest.raises(BenchError) as refused:
            emoji_run.begin()
    finally:
        path.write_text(before)
    assert str(emoji_run.folder) in str(refused.value) and "\n" not in str(refused.value)
