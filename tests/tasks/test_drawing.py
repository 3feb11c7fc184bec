"""Drawing: strokes that depend on the item alone, and a judge of colours and lines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench.data.latents import mirrored
from bench.data.openmoji import OpenMoji64, openmoji64_splits
from bench.metrics.regions import colour_error, to_lab
from bench.randomness import derangement
from bench.tasks.drawing import Drawing
from bench.types import BenchError, Example

PALETTE = np.array([(255, 255, 255), (255, 0, 0), (0, 0, 0)], dtype=np.uint8)
TASK = Drawing()


def toy() -> Example:
    classes = np.zeros((64, 64), dtype=np.uint8)
    classes[8:40, 6:50] = 1
    layers = {"classes": classes, "sketch": np.zeros((64, 64), np.uint8)}
    return Example(id="a", caption="", image=PALETTE[classes], layers=layers, palette=PALETTE)


def strokes_of(condition: np.ndarray) -> np.ndarray:
    return (condition[:3] < 1).any(0)


def test_lab_of_known_colours() -> None:
    colours = np.array([(255, 255, 255), (0, 0, 0), (255, 0, 0)], dtype=np.uint8)
    expected = [(100, 0, 0), (0, 0, 0), (53.24, 80.09, 67.20)]
    assert np.allclose(to_lab(colours), expected, atol=0.02)
    assert colour_error(colours[:1], colours[1:2]) == pytest.approx(100, abs=1e-6)
    assert colour_error(colours, colours) == 0.0


def test_strokes_are_some_of_the_region_in_its_colour_and_nothing_else() -> None:
    item = toy()
    condition = TASK.condition(item)
    assert condition.shape == (TASK.channels, 64, 64) and condition.dtype == np.float32
    assert condition.min() >= 0 and condition.max() <= 1
    drawn, region = strokes_of(condition), item.layers["classes"] == 1
    assert not (drawn & ~region).any() and 0.15 < drawn[region].mean() < 0.75
    assert (condition[:3, drawn].T == (1, 0, 0)).all()


def test_strokes_belong_to_the_id_and_are_the_same_every_time() -> None:
    item = toy()
    first = TASK.condition(item)
    assert np.array_equal(first, TASK.condition(toy()))
    assert not np.array_equal(first, TASK.condition(replace(item, id="b")))


def test_the_mirrored_item_has_the_mirrored_condition_with_the_same_score() -> None:
    data = OpenMoji64()
    for item_id in openmoji64_splits().val[:30]:
        item, flipped = data[item_id], mirrored(data[item_id])
        assert np.array_equal(TASK.condition(flipped), TASK.condition(item)[:, :, ::-1])
        assert TASK.fidelity(flipped.image, flipped) == pytest.approx(
            TASK.fidelity(item.image, item), abs=0.2
        )


def test_colour_error_is_taken_at_the_strokes_outside_the_lines() -> None:
    item = toy()
    drawn = strokes_of(TASK.condition(item))
    assert TASK.fidelity(item.image, item)["colour_error"] == 0.0
    elsewhere = item.image.copy()
    elsewhere[~drawn] = (0, 0, 255)
    assert TASK.fidelity(elsewhere, item)["colour_error"] == 0.0
    red, white = to_lab(PALETTE[1]), to_lab(PALETTE[0])
    paper = np.full_like(item.image, 255)
    expected = float(np.linalg.norm(red - white))
    assert TASK.fidelity(paper, item)["colour_error"] == pytest.approx(expected)
    item.layers["sketch"][:, 20:30] = 255
    covered = item.image.copy()
    covered[:, 19:31] = 0
    assert TASK.fidelity(covered, item)["colour_error"] == 0.0


def test_every_item_has_strokes_even_where_lines_cover_all_or_it_is_white() -> None:
    item = toy()
    item.layers["sketch"][:] = 255
    assert TASK.fidelity(item.image, item)["colour_error"] == 0.0
    white = replace(item, palette=np.full((3, 3), 255, np.uint8))
    assert TASK.fidelity(np.full_like(item.image, 255), white)["colour_error"] == 0.0
    assert TASK.fidelity(np.zeros_like(item.image), white)["colour_error"] == pytest.approx(100)


def test_real_images_score_well_others_badly_and_corruption_worsens() -> None:
    data, ids = OpenMoji64(), openmoji64_splits().val
    items = [data[i] for i in ids]

    def mean(images: list[np.ndarray]) -> float:
        pairs = zip(images, items, strict=False)
        return float(np.mean([TASK.fidelity(i, e)["colour_error"] for i, e in pairs]))

    real = [e.image for e in items]
    assert mean(real) <= 3.0
    assert mean([items[j].image for j in derangement(0, len(items))]) >= 50.0
    pale = [
        mean([(255 - (255 - i) * share).astype(np.uint8) for i in real[:40]])
        for share in (1.0, 0.8, 0.5, 0.0)
    ]
    assert pale == sorted(pale)


def test_other_forms_are_refused() -> None:
    item = toy()
    with pytest.raises(BenchError, match="no region of 12 px"):
        empty = {**item.layers, "classes": np.zeros((64, 64), np.uint8)}
        TASK.condition(replace(item, layers=empty))
    with pytest.raises(BenchError, match="no layer 'sketch'; it has classes"):
        TASK.condition(replace(item, layers={"classes": item.layers["classes"]}))
    with pytest.raises(BenchError, match="without a palette"):
        TASK.condition(replace(item, palette=None))
    with pytest.raises(BenchError, match=r"allowed: \[64,64,3\] uint8"):
        TASK.fidelity(item.image.astype(np.float32), item)
