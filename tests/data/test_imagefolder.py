"""Pictures of one's own: sides by content, near-duplicates together, every refusal in one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from PIL import Image

from bench.content import Cache, sha256_file
from bench.data.coco import Recipe, draw
from bench.data.imagefolder import ImageFolder, Reading
from bench.data.leaks import verify
from bench.data.splits import SIDES
from bench.tasks.image import GivenImage, GreyImage, TransparentImage
from bench.tasks.sketch import Sketch
from bench.types import BenchError
from tests.own_pictures import COUNT, metadata, write
from tests.test_detectors import write_detector

READING = Reading(size=64, condition="conditioning_image", shares=(0.4, 0.2, 0.4))


@pytest.fixture(autouse=True)
def _own_library_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "library")


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., ImageFolder]:
    return lambda folder, reading=READING: ImageFolder(folder, reading, cache=Cache(tmp_path / "cache"))


def test_sides_follow_from_pictures_alone(tmp_path: Path, read: Callable[..., ImageFolder]) -> None:
    rows = write(tmp_path / "a")
    first = read(tmp_path / "a")
    write(tmp_path / "b")
    metadata(tmp_path / "b", rows[::-1])
    second = read(tmp_path / "b")
    assert first.splits == second.splits and first.digest == second.digest
    assert sum(len(first.splits.side(side)) for side in SIDES) == len(first) == COUNT
    example = first[first.splits.train[0]]
    assert example.image.shape == (64, 64, 3) and example.layers["sketch"].shape == (64, 64)
    assert verify(first, first.splits) == []


def test_near_duplicates_share_a_side_and_a_group(tmp_path: Path, read: Callable[..., ImageFolder]) -> None:
    write(tmp_path / "a")
    data = read(tmp_path / "a")
    of = {entry["file"]: (item, entry["side"]) for item, entry in data.manifest["items"].items()}
    twins = [of[f"{number}.png"] for number in (5, 6, 7)]
    assert len({side for _, side in twins}) == 1
    groups = data.splits.groups
    assert len({groups[item] for item, _ in twins}) == 1
    assert len(set(groups.values())) == COUNT - 2


def test_a_folder_saved_by_the_library_is_the_same_data(
    tmp_path: Path, read: Callable[..., ImageFolder]
) -> None:
    import datasets

    write(tmp_path / "a")
    table = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "a"))["train"]
    table.map(
        lambda row: {"conditioning_image": str(tmp_path / "a" / row["conditioning_image"])},
    ).cast_column("conditioning_image", datasets.Image()).save_to_disk(tmp_path / "disk")
    assert read(tmp_path / "disk").digest == read(tmp_path / "a").digest


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_metadata_may_be_a_table(tmp_path: Path, read: Callable[..., ImageFolder], kind: str) -> None:
    """In a .parquet the column is one of pictures, as the library names such: more than a text."""
    frame = pandas.DataFrame(write(tmp_path / "a"))
    first = read(tmp_path / "a")
    (tmp_path / "a/metadata.jsonl").unlink()
    if kind == "csv":
        frame.to_csv(tmp_path / "a/metadata.csv", index=False)
    else:
        named = frame.rename(columns={"conditioning_image": "conditioning_image_file_name"})
        named.to_parquet(tmp_path / "a/metadata.parquet")
    assert read(tmp_path / "a").digest == first.digest


def test_a_networks_lines_are_drawn_once_and_part_of_the_protocol(
    tmp_path: Path, read: Callable[..., ImageFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def sketcher(recipe: Recipe, *, weights: Path, device: str) -> Any:
        assert (recipe.sketch, recipe.soft, recipe.size, weights) == ("pidinet", True, 64, tmp_path)
        return lambda image: drawn.append(1) or image[..., 1]

    monkeypatch.setenv("BENCH_JUDGES", str(tmp_path))
    monkeypatch.setattr(draw, "_package", lambda name: None)
    monkeypatch.setattr(draw, "load_sketcher", sketcher)
    write(tmp_path / "a")
    reading = replace(READING, lines="pidinet")
    with pytest.raises(BenchError, match="bench judges fetch pidinet"):
        read(tmp_path / "a", reading)
    (tmp_path / "table5_pidinet.pth").write_bytes(b"weights")
    for _ in range(2):
        data = read(tmp_path / "a", reading)
        example = data[data.ids[0]]
        assert np.array_equal(example.layers["sketch"], example.image[..., 1]) and len(drawn) == 1
    assert Sketch().fidelity(example.image, example)["sketch_f1"] == 1
    assert sha256_file(tmp_path / "table5_pidinet.pth") in data.protocol["sketch"]
    assert data.digest != read(tmp_path / "a").digest and "sketch" not in read(tmp_path / "a").protocol


@pytest.mark.parametrize("name", ["hed", "pidinet"])
def test_the_real_detectors_draw(
    tmp_path: Path, read: Callable[..., ImageFolder], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("BENCH_JUDGES", str(tmp_path))
    write_detector(name, tmp_path)
    write(tmp_path / "a")
    data = read(tmp_path / "a", replace(READING, lines=name))
    example = data[data.ids[0]]
    sketch = example.layers["sketch"]
    assert sketch.shape == (64, 64) and sketch.dtype == np.uint8
    assert Sketch().fidelity(example.image, example)["sketch_f1"] == pytest.approx(1)


def test_conditions_have_the_channels_of_their_task(tmp_path: Path, read: Callable[..., ImageFolder]) -> None:
    write(tmp_path / "a")
    data = read(tmp_path / "a")
    example = data[data.ids[0]]
    for task in (GivenImage(), GreyImage(), TransparentImage()):
        condition = task.condition(example)
        assert condition.shape == (task.channels, 64, 64) and condition.max() <= 1
        np.testing.assert_array_equal(condition[0], example.layers["condition"][..., 0] / np.float32(255))
        assert task.fidelity(example.image, example) == {"canny_f1": 1}
        assert 0 < task.fidelity(data[data.ids[1]].image, example)["canny_f1"] < 1
    coloured = np.concatenate([example.image, np.full((64, 64, 1), 255, np.uint8)], axis=-1)
    with pytest.raises(BenchError, match="colours"):
        GreyImage().condition(
            type(example)(id="x", caption="", image=example.image, layers={"condition": coloured})
        )


def test_what_cannot_be_read_is_left_out_and_told_or_refused(
    tmp_path: Path, read: Callable[..., ImageFolder]
) -> None:
    write(tmp_path / "a")
    (tmp_path / "a" / "3.png").write_bytes((tmp_path / "a" / "3.png").read_bytes()[:200])
    (tmp_path / "a" / "9.png").write_bytes((tmp_path / "a" / "8.png").read_bytes())
    before = sorted(path.name for path in (tmp_path / "a").rglob("*"))
    data = read(tmp_path / "a")
    assert data.left_out == {"broken": ("3.png",), "the same picture again": ("9.png",)}
    assert len(data) == COUNT - 2 and sorted(p.name for p in (tmp_path / "a").rglob("*")) == before
    strict = Reading(size=64, condition="conditioning_image", strict=True)
    with pytest.raises(BenchError, match=r"3\.png"):
        read(tmp_path / "a", strict)


@pytest.mark.parametrize(
    ("change", "reading", "named"),
    [
        ({}, Reading(size=64, caption="caption"), "'caption'; it has image, text, conditioning_image"),
        ({"text": " "}, READING, r"3\.png"),
        ({"conditioning_image": "../../secret.png"}, READING, "outside"),
        ({"conditioning_image": "conditions/none.png"}, READING, r"none\.png"),
        ({"conditioning_image": "wide.png"}, READING, "90x48"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(
    tmp_path: Path, read: Callable[..., ImageFolder], change: dict[str, str], reading: Reading, named: str
) -> None:
    rows = write(tmp_path / "a")
    Image.fromarray(np.zeros((48, 90), np.uint8)).save(tmp_path / "a" / "wide.png")
    metadata(tmp_path / "a", [row | (change if number == 3 else {}) for number, row in enumerate(rows)])
    with pytest.raises(BenchError, match=named) as refused:
        read(tmp_path / "a", reading)
    assert "\n" not in str(refused.value)


def test_few_pictures_and_odd_wishes_are_refused(tmp_path: Path, read: Callable[..., ImageFolder]) -> None:
    write(tmp_path / "few", count=12)
    for folder, named in ((tmp_path / "few", "12"), (tmp_path / "none", "none")):
        with pytest.raises(BenchError, match=named):
            read(folder)
    for wrong in ({"shares": (0.5, 0.5, 0.5)}, {"shares": (1.0, 0.0, 0.0)}, {"size": 100}):
        with pytest.raises(BenchError):
            Reading(**wrong)
