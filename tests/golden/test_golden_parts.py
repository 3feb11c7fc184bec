"""What runs are made of: assets, sides, conditions, chance, names of weights; and one tiny run of all.

Exact are all digests here: nothing in them is computed by a network, and no processor moves them. What
a network computed, trained weights above all, is the same to the bit on one kind of processor alone;
it is held to how far equal runs may differ.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.base.load import Base
from tests.golden.program import (
    KEPT,
    asset_digests,
    chance_digests,
    condition_digests,
    data_digests,
    exact_parts,
    kept,
    loaded_run,
    manifests,
    model_shapes,
    sampled_pixels,
    trained_parts,
)

BEGUN = KEPT / "begun-micro"


def plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def test_assets_are_those_of_their_manifests() -> None:
    found = asset_digests()
    assert found == kept("parts.json")["assets"]
    told = manifests()
    assert len(told) == 3
    for name, files in told.items():
        assert {file: found.get(file) for file in files} == files, name


@pytest.mark.parametrize(
    ("part", "digests"),
    [("data", data_digests), ("conditions", condition_digests), ("chance", chance_digests)],
)
def test_what_every_run_is_given_is_the_same(part: str, digests: Any) -> None:
    """Sides and picked items; conditions of every task; noise, shuffling and batches of the loop."""
    assert plain(digests()) == kept("parts.json")[part]


def test_weight_files_of_every_method_hold_the_same_names_and_shapes(micro_base: Base) -> None:
    assert plain(model_shapes(micro_base)) == kept("parts.json")["models"]


@pytest.fixture(scope="module")
def finished(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """BPS in suite micro, from nothing to its record."""
    results = tmp_path_factory.mktemp("golden-bps")
    asked = {"base": micro_folder, "budget": "quick", "sample_batch": 4, "blank": False}
    run = loaded_run(results, suite="micro", method="bps", **asked)
    run.all()
    return run


def test_a_tiny_run_has_the_same_parts(finished: Any) -> None:
    assert plain(exact_parts(finished)) == kept("micro.json.xz")["exact"]


def test_a_tiny_run_trains_and_scores_alike(finished: Any) -> None:
    """Losses and scores as equal runs may differ; norms of weights, after 6 steps, to a few thousandths."""
    found, golden = trained_parts(finished), kept("micro.json.xz")["trained"]
    assert found["losses"] == pytest.approx(golden["losses"], rel=1e-3)
    assert found["norms"] == pytest.approx(golden["norms"], rel=5e-3, abs=1e-6)
    for name, values in golden["items"].items():
        assert found["items"][name] == pytest.approx(values, abs=5e-3), name
    assert found["metrics"] == pytest.approx(golden["metrics"], rel=1e-3)


def test_a_tiny_run_samples_alike(finished: Any) -> None:
    off = levels(sampled_pixels(finished), kept("micro.json.xz")["bps pixels"])
    assert off.mean() < 0.05 and off.max() <= 2


def levels(found: list[int], golden: list[int]) -> np.ndarray:
    return np.abs(np.array(found) - np.array(golden))


@pytest.fixture
def begun(micro_folder: Path, tmp_path: Path) -> Any:
    """A run of the floor, a third of its samples lying there since before; named as it is named here.

    Its base is drawn on the spot, and with it name, protocol hash and key of the run.
    """
    run = loaded_run(tmp_path, suite="micro", base=micro_folder, budget="quick", sample_batch=4)
    shutil.copytree(BEGUN, run.folder)
    path = run.work / "run.json"
    names = {"run_id": run.id, "protocol_hash": run.protocol.hash, "training": run.identity.training}
    path.write_text(json.dumps(json.loads(path.read_text()) | names))
    return run


def test_a_run_begun_before_is_gone_on_with_to_the_same_samples(begun: Any) -> None:
    """What lies there is kept and the rest is sampled to within a level, as nothing is trained.

    A layout of folders that cannot be gone on with must refuse this one by name instead.
    """
    there = {path: path.stat().st_mtime_ns for path in (begun.work / "samples").glob("*.png")}
    begun.train()
    begun.sample()
    assert len(there) == 4 and {path: path.stat().st_mtime_ns for path in there} == there
    assert levels(sampled_pixels(begun), kept("micro.json.xz")["text-only pixels"]).max() <= 1
