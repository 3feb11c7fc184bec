"""The empty condition of every task: no line, no class, no box, no colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench import registry
from bench.base.weights import Weights, shown
from bench.data.openmoji import OpenMoji64, openmoji64_splits
from bench.suites import EMOJI
from bench.tasks import NOTHING, emptied
from bench.types import Example

EMPTY = {
    "sketch": [0],
    "segmentation": NOTHING,
    "layout": NOTHING,
    "drawing": [255, 255, 255, 0],
}


@pytest.mark.parametrize("name", sorted(EMOJI.tasks))
def test_nothing_is_told_by_an_empty_condition(name: str) -> None:
    """The colour of nothing in class maps and layouts, bare paper in drawings; the same for every item."""
    task, data = registry.load("task", name), OpenMoji64()
    for item in openmoji64_splits().val[:3]:
        condition = task.condition(emptied(data[item]))
        assert condition.dtype == np.float32 and condition.shape == task.condition(data[item]).shape
        assert (np.round(condition * 255) == np.array(EMPTY[name])[:, None, None]).all()


@pytest.mark.parametrize(("name", "channels"), [("image", 3), ("image-grey", 1), ("image-rgba", 4)])
def test_a_picture_of_ones_own_is_black(name: str, channels: int) -> None:
    picture = np.full((8, 8, 4), 7, dtype=np.uint8)
    own = Example(id="a", caption="", image=picture[..., :3], layers={"condition": picture})
    condition = registry.load("task", name).condition(emptied(own))
    assert condition.shape == (channels, 8, 8) and not condition.any()


def test_weights_from_outside_are_shown_it_in_their_form() -> None:
    task = shown(registry.load("task", "sketch"), Weights(path=Path("x"), channels="repeat", invert=True))
    data = OpenMoji64()
    assert (task.condition(emptied(data[data.ids[0]])) == np.ones((3, 64, 64))).all()
