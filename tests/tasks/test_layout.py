"""Layout: the boxes as a picture, and a judge that finds regions again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench.data.latents import mirrored
from bench.data.openmoji import OpenMoji64, openmoji64_splits
from bench.metrics.regions import box_iou, find_boxes
from bench.randomness import derangement
from bench.tasks.layout import Layout
from bench.types import BenchError, Example

PALETTE = np.array([(255, 255, 255), (210, 47, 39), (30, 80, 160)], dtype=np.uint8)
TASK = Layout()
RED, BLUE = (1, 4, 4, 44, 44), (2, 20, 20, 30, 30)


def toy(*boxes: tuple[int, ...]) -> Example:
    image = np.full((64, 64, 3), 255, dtype=np.uint8)
    for label, x0, y0, x1, y1 in boxes:
        image[y0:y1, x0:x1] = PALETTE[label]
    layers = {"boxes": np.array(boxes, dtype=np.uint8).reshape(-1, 5)}
    return Example(id="a", caption="", image=image, layers=layers, palette=PALETTE)


def test_a_small_box_lies_on_a_large_one_in_any_order() -> None:
    conditions = [TASK.condition(toy(*boxes)) for boxes in ((RED, BLUE), (BLUE, RED))]
    assert np.array_equal(*conditions)
    first = conditions[0]
    assert first.shape == (TASK.channels, 64, 64) and first.dtype == np.float32
    assert first.min() >= 0 and first.max() <= 1
    assert np.allclose(first[:, 25, 25] * 255, PALETTE[2])
    assert np.allclose(first[:, 10, 10] * 255, PALETTE[1])
    assert len(np.unique(first.reshape(3, -1), axis=1).T) == 3


def test_the_mirrored_item_has_the_mirrored_condition() -> None:
    data = OpenMoji64()
    for item_id in openmoji64_splits().val[:30]:
        item = data[item_id]
        flipped = TASK.condition(mirrored(item))
        assert np.array_equal(flipped, TASK.condition(item)[:, :, ::-1])


def test_box_iou_by_hand() -> None:
    a = np.array([[0, 0, 4, 4]])
    b = np.array([[0, 0, 4, 4], [2, 0, 6, 4], [4, 0, 8, 4], [1, 1, 3, 3]])
    assert box_iou(a, b).tolist() == [[1.0, 1 / 3, 0.0, 0.25]]
    assert np.array_equal(box_iou(b, a), box_iou(a, b).T)


def test_fidelity_by_hand() -> None:
    item = toy(RED, BLUE)
    assert TASK.fidelity(item.image, item) == {"box_recall": 1.0, "box_iou": 1.0}
    no_blue = toy(RED).image
    assert TASK.fidelity(no_blue, item) == {"box_recall": 0.5, "box_iou": 0.5}
    three_quarters = toy((1, 4, 4, 44, 34), BLUE).image
    found = TASK.fidelity(three_quarters, item)
    assert found["box_recall"] == 1.0 and found["box_iou"] == pytest.approx((0.75 + 1) / 2)
    white = np.full((64, 64, 3), 255, dtype=np.uint8)
    assert TASK.fidelity(white, item) == {"box_recall": 0.0, "box_iou": 0.0}


def test_a_region_is_found_through_a_line_and_white_is_found_within_lines() -> None:
    crossed = toy(RED).image
    crossed[4:44, 23:25] = 0
    assert [4, 4, 44, 44] in find_boxes(crossed, colour=PALETTE[1]).tolist()
    ring = np.full((64, 64, 3), 255, dtype=np.uint8)
    ring[10:40, 10:40] = 0
    ring[12:38, 12:38] = 255
    assert [11, 11, 39, 39] in find_boxes(ring, colour=PALETTE[0]).tolist()


@pytest.mark.slow
def test_real_images_score_high_others_low_and_corruption_lowers() -> None:
    data, ids = OpenMoji64(), openmoji64_splits().val
    items = [data[i] for i in ids]

    def mean(images: list[np.ndarray], name: str) -> float:
        return float(np.mean([TASK.fidelity(i, e)[name] for i, e in zip(images, items, strict=False)]))

    real = [e.image for e in items]
    other = [items[j].image for j in derangement(0, len(items))]
    assert mean(real, "box_recall") >= 0.88 and mean(real, "box_iou") >= 0.79
    assert mean(other, "box_recall") <= 0.1 and mean(other, "box_iou") <= 0.12
    moved = [mean([np.roll(i, s, axis=1) for i in real[:40]], "box_iou") for s in (0, 2, 4, 8)]
    assert moved == sorted(moved, reverse=True)


def test_other_forms_are_refused() -> None:
    item = toy(RED)
    with pytest.raises(BenchError, match="no boxes"):
        TASK.condition(toy())
    with pytest.raises(BenchError, match="no layer 'boxes'; it has none"):
        TASK.condition(replace(item, layers={}))
    with pytest.raises(BenchError, match="without a palette"):
        TASK.condition(replace(item, palette=None))
    with pytest.raises(BenchError, match="leave its 64x64 image"):
        TASK.condition(replace(item, layers={"boxes": np.array([(1, 0, 0, 65, 3)])}))
    with pytest.raises(BenchError, match=r"allowed: \[64,64,3\] uint8"):
        TASK.fidelity(item.image[:32], item)
