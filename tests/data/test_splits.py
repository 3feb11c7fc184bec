"""Sides and their digests: a clean set passes, and whatever is wrong with one is caught and named."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.content import write_json
from bench.data.leaks import overlap, verify
from bench.data.openmoji import ASSETS
from bench.data.splits import SIDES, load_splits, splits_json
from bench.types import BenchError, Example
from tests.data.toy import kinds, splits_of, toy, toy_item


def test_the_toy_is_clean() -> None:
    assert verify(*toy()) == []


def recoloured(item: Example) -> Example:
    return dataclasses.replace(item, image=255 - item.image)


def brightened(item: Example) -> Example:
    rng = np.random.default_rng(1)
    noisy = item.image * 0.9 + 5 + rng.normal(0, 4, item.image.shape)
    sketch = rng.integers(0, 2, item.layers["sketch"].shape, dtype=np.uint8) * 255
    return dataclasses.replace(item, image=noisy.clip(0, 255).astype(np.uint8), layers={"sketch": sketch})


def redrawn(item: Example) -> Example:
    rng = np.random.default_rng(2)
    faint = item.layers["sketch"].astype(float) * rng.uniform(0.9, 1, (64, 64))
    return dataclasses.replace(recoloured(item), layers={"sketch": faint.astype(np.uint8)}, caption="another")


def mirrored(item: Example) -> Example:
    flipped = np.ascontiguousarray(redrawn(item).layers["sketch"][:, ::-1])
    return dataclasses.replace(recoloured(item), layers={"sketch": flipped})


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda item: item, "same image"),
        (lambda item: dataclasses.replace(item, layers=toy_item(99).layers), "same image"),
        (recoloured, "same sketch"),
        (redrawn, "near-duplicate sketch"),
        (mirrored, "near-duplicate sketch"),
        (brightened, "near-duplicate image"),
    ],
)
@pytest.mark.parametrize(("source", "target"), [(3, 21), (3, 27), (22, 28)])
def test_a_planted_twin_is_caught(
    change: Callable[[Example], Example], kind: str, source: int, target: int
) -> None:
    data, _ = toy()
    name = f"i{target:03}"
    data.items[name] = dataclasses.replace(change(data[f"i{source:03}"]), id=name)
    rows = {"train": range(20), "val": range(20, 25), "test": range(25, 30)}
    findings = verify(data, splits_of(data, rows))
    assert kinds(findings) == {kind}
    assert findings[0].pairs == ((f"i{source:03}", name),)
    assert name in findings[0].message and "1 item shared" in findings[0].message
    assert overlap(findings) == 1


def test_an_id_on_two_sides_is_caught_once() -> None:
    data, _ = toy()
    rows = {"train": range(20), "val": range(20, 25), "test": range(24, 30)}
    findings = verify(data, splits_of(data, rows))
    assert kinds(findings) == {"shared id"} and overlap(findings) == 1
    assert "i024" in findings[0].message and "val and test" in findings[0].message


def test_missing_and_extra_ids_are_caught() -> None:
    data, splits = toy()
    del data.items["i004"]
    data.items["i555"] = dataclasses.replace(toy_item(555), id="i555")
    findings = verify(data, splits)
    assert {finding.kind: finding.pairs for finding in findings} == {
        "missing id": (("i004", "i004"),),
        "extra id": (("i555", "i555"),),
    }
    assert overlap(findings) == 0


@pytest.mark.parametrize("field", ["caption", "image", "layers"])
def test_changed_content_is_caught(field: str) -> None:
    data, splits = toy()
    other = toy_item(77)
    data.items["i002"] = dataclasses.replace(data["i002"], **{field: getattr(other, field)})
    findings = verify(data, splits)
    assert kinds(findings) == {"changed item"} and findings[0].pairs == (("i002", "i002"),)


def test_a_changed_side_is_caught() -> None:
    data, splits = toy()
    findings = verify(data, dataclasses.replace(splits, train=splits.train[1:]))
    assert kinds(findings) == {"extra id", "changed side"}


def test_a_group_on_two_sides_is_caught() -> None:
    data, splits = toy()
    grouped = dataclasses.replace(splits, groups={"i001": "g", "i002": "g", "i026": "g"})
    findings = verify(data, grouped)
    assert kinds(findings) == {"split group"} and overlap(findings) == 1


def test_splits_survive_a_round_trip(tmp_path: Path) -> None:
    data, splits = toy()
    sides = {side: {item: splits.items[item] for item in splits.side(side)} for side in SIDES}
    write_json(tmp_path / "s.json", splits_json("toy", sides))
    assert load_splits(tmp_path / "s.json") == splits
    assert load_splits(tmp_path / "s.json").digest == splits.digest
    assert data.ids == tuple(sorted(splits.items))


def test_the_digest_sees_membership_and_content() -> None:
    data, splits = toy()
    moved = splits_of(data, {"train": range(21), "val": range(21, 25), "test": range(25, 30)})
    data.items["i001"] = dataclasses.replace(data["i001"], caption="another")
    rows = {"train": range(20), "val": range(20, 25), "test": range(25, 30)}
    assert len({splits.digest, moved.digest, splits_of(data, rows).digest}) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"sides": {"train": {"items": [["a", "b"]]}}},
        {"sides": {"train": {"items": {"a": 1}}}},
        {"sides": {"train": {"items": {"../a": "b"}}}},
        {"sides": {"train": {"items": {"\ud800": "b"}}}},
        {"sides": []},
        {"groups": {"i001": ["g"]}},
        {"groups": "g"},
    ],
)
def test_splits_of_another_form_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    _, splits = toy()
    sides = {side: {item: splits.items[item] for item in splits.side(side)} for side in SIDES}
    value = splits_json("toy", sides)
    sides_now = {**value["sides"], **change["sides"]} if isinstance(change.get("sides"), dict) else None
    changed = {**value, **change, **({"sides": sides_now} if sides_now else {})}
    (tmp_path / "s.json").write_text(json.dumps(changed))
    with pytest.raises(BenchError, match="s.json"):
        load_splits(tmp_path / "s.json")


def test_hand_edited_splits_are_refused(tmp_path: Path) -> None:
    value = json.loads((ASSETS / "openmoji64.splits.json").read_text("utf-8"))
    item, digest = value["sides"]["test"]["items"].popitem()
    value["sides"]["train"]["items"][item] = digest
    write_json(tmp_path / "s.json", value)
    with pytest.raises(BenchError, match="train, test"):
        load_splits(tmp_path / "s.json")


@pytest.mark.parametrize("value", [[], {}, {"sides": {}}, {"sides": {"train": 3}}, None, "x"])
def test_a_foreign_file_is_refused(tmp_path: Path, value: object) -> None:
    write_json(tmp_path / "s.json", value)
    with pytest.raises(BenchError, match="s.json"):
        load_splits(tmp_path / "s.json")


def test_an_unknown_side_is_named() -> None:
    with pytest.raises(BenchError, match="train, val, test"):
        toy()[1].side("dev")
