"""Segmentation: the condition, and a judge that reads classes from pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench.data.latents import mirrored
from bench.data.openmoji import OpenMoji64, openmoji64_splits
from bench.metrics.regions import nearest_classes
from bench.randomness import derangement
from bench.tasks import NOTHING
from bench.tasks.segmentation import Segmentation
from bench.types import BenchError, Example

PALETTE = np.array([(255, 255, 255), (255, 255, 255), (255, 0, 0), (0, 0, 255)], dtype=np.uint8)
TASK = Segmentation()


def toy() -> Example:
    """Left half red, right half white things; no lines."""
    classes = np.full((16, 16), 1, dtype=np.uint8)
    classes[:, :8] = 2
    layers = {"classes": classes, "sketch": np.zeros((16, 16), np.uint8)}
    return Example(id="a", caption="", image=PALETTE[classes], layers=layers, palette=PALETTE)


def test_condition_is_the_map_in_colours_and_tells_white_from_nothing() -> None:
    item = toy()
    item.layers["classes"][:4] = 0
    condition = TASK.condition(item)
    assert condition.shape == (TASK.channels, 16, 16) and condition.dtype == np.float32
    assert condition.min() >= 0 and condition.max() <= 1
    assert condition[:, 8, 2].tolist() == [1, 0, 0] and condition[:, 8, 12].tolist() == [1, 1, 1]
    assert np.allclose(condition[:, 0, 0] * 255, NOTHING)
    assert np.array_equal(TASK.condition(mirrored(item)), condition[:, :, ::-1])
    assert (np.abs(OpenMoji64().palette.astype(int) - NOTHING) ** 2).sum(1).min() >= 95**2


def test_miou_by_hand() -> None:
    item = toy()
    assert TASK.fidelity(item.image, item)["miou"] == 1.0
    image = item.image.copy()
    image[:, :4] = (0, 0, 255)  # half of the red is blue
    assert TASK.fidelity(image, item)["miou"] == pytest.approx((0.5 + 1) / 2)
    image[:, :8] = 255  # no red at all: the white has twice its size
    assert TASK.fidelity(image, item)["miou"] == pytest.approx((0 + 0.5) / 2)


def test_white_things_and_white_paper_are_one_and_lines_are_void() -> None:
    item = toy()
    item.layers["classes"][:, 12:] = 0
    assert TASK.fidelity(item.image, item)["miou"] == 1.0
    item.layers["sketch"][:, 6] = 1
    image = item.image.copy()
    image[:, 5:8] = 0  # under the line and one pixel beside it nothing is judged
    assert TASK.fidelity(image, item)["miou"] == 1.0
    image[:, 4] = (0, 0, 255)
    assert TASK.fidelity(image, item)["miou"] == pytest.approx((4 / 5 + 1) / 2)


def test_real_images_score_high_others_low_and_corruption_lowers() -> None:
    data, ids = OpenMoji64(), openmoji64_splits().val
    items = [data[i] for i in ids]
    real = [TASK.fidelity(e.image, e)["miou"] for e in items]
    other = [
        TASK.fidelity(items[j].image, e)["miou"]
        for e, j in zip(items, derangement(0, len(items)), strict=True)
    ]
    assert np.mean(real) >= 0.98 and np.mean(other) <= 0.35
    moved = [
        np.mean([TASK.fidelity(np.roll(e.image, step, axis=1), e)["miou"] for e in items[:40]])
        for step in (0, 1, 2, 4)
    ]
    assert moved == sorted(moved, reverse=True)


@pytest.mark.parametrize("wrong", [np.zeros((3, 4), np.uint8), np.zeros((0, 3), np.uint8), np.zeros((3, 3))])
def test_classes_are_read_by_a_palette_alone(wrong: np.ndarray) -> None:
    with pytest.raises(BenchError, match="a palette is .*allowed: .*3. uint8"):
        nearest_classes(toy().image, palette=wrong)


@pytest.mark.parametrize("missing", ["classes", "sketch", "palette"])
def test_what_is_missing_is_named(missing: str) -> None:
    item = toy()
    layers = {k: v for k, v in item.layers.items() if k != missing}
    item = replace(item, layers=layers, palette=None if missing == "palette" else PALETTE)
    with pytest.raises(BenchError, match=missing):
        TASK.condition(item)
        TASK.fidelity(item.image, item)


def test_other_forms_are_refused() -> None:
    item = toy()
    for image in (item.image[:8], item.image.astype(np.float32), item.image[..., 0]):
        with pytest.raises(BenchError, match=r"allowed: \[16,16,3\] uint8"):
            TASK.fidelity(image, item)
    with pytest.raises(BenchError, match="the palette ends at 1"):
        TASK.condition(replace(item, palette=PALETTE[:2]))
    with pytest.raises(BenchError, match="layer 'classes' of item a is"):
        TASK.condition(replace(item, layers={"classes": np.zeros((8, 8), np.uint8)}))
    with pytest.raises(BenchError, match="no pixel is left"):
        TASK.fidelity(
            item.image,
            replace(item, layers={**item.layers, "sketch": np.full((16, 16), 255, np.uint8)}),
        )
