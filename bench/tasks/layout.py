"""Layout -> image: the condition is the boxes of the item's regions, filled with their colours."""

from __future__ import annotations

import math

import numpy as np

from bench.content import check_array
from bench.metrics.regions import BOX_IOU, BOX_RECALL, REGIONS_VERSION, box_iou, find_boxes
from bench.tasks import as_condition, check_sample, need_layer, need_palette, nothing
from bench.types import BenchError, Example, MetricSpec

_ENOUGH = 0.5  # the classic threshold of PASCAL VOC


class Layout:
    """Boxes as condition; judged by whether the sample has a region of the colour in each box.

    A larger box lies below a smaller one; of equal ones the later lies on top. An item without
    boxes is refused when its condition is made, before any training: it has no layout to obey. But a
    photograph may show nothing that has a class: then its layout is empty. Photographs are not judged:
    their pixels do not have the classes' colours.
    """

    name = "layout"
    channels = 3
    version = REGIONS_VERSION
    metrics: tuple[MetricSpec, ...] = (BOX_RECALL, BOX_IOU)

    def condition(self, example: Example) -> np.ndarray:
        """Return boxes in colours, [3,H,W] float32 in [0, 1], on the colour of nothing: dark blue, or the
        background's own where no class has it. BenchError without boxes or palette.
        """
        boxes = _boxes(example)
        palette = need_palette(example, boxes[:, 0])
        picture = np.full(example.shape, nothing(palette), dtype=np.uint8)
        areas = (boxes[:, 3] - boxes[:, 1]) * (boxes[:, 4] - boxes[:, 2])
        for label, x0, y0, x1, y1 in boxes[np.argsort(-areas, kind="stable")]:
            picture[y0:y1, x0:x1] = palette[label]
        return as_condition(picture)

    def fidelity(self, image: np.ndarray, example: Example) -> dict[str, float]:
        """Look in an image ([H,W,3] uint8) for a region of the right colour at each box; NaN for photos."""
        check_sample(image, example)
        if example.photo:
            return {spec.name: math.nan for spec in self.metrics}
        boxes = _boxes(example)
        palette = need_palette(example, boxes[:, 0])
        best = np.zeros(len(boxes))
        for label in np.unique(boxes[:, 0]):
            found = find_boxes(image, colour=palette[label])
            mine = boxes[:, 0] == label
            if len(found):
                best[mine] = box_iou(boxes[mine, 1:], found).max(1)
        return {"box_recall": float((best >= _ENOUGH).mean()), "box_iou": float(best.mean())}


def _boxes(example: Example) -> np.ndarray:
    boxes = need_layer(example, "boxes").astype(np.int64)
    height, width = example.shape[:2]
    check_array(boxes, f"boxes of item {example.id}", dtype=np.int64, shape=(None, 5))
    if not len(boxes) and not example.photo:
        raise BenchError(f"item {example.id} has no boxes, so no layout: leave it out of the split.")
    low, high = boxes[:, 1:3], boxes[:, 3:5]
    if (low < 0).any() or (low >= high).any() or (high > (width, height)).any():
        raise BenchError(f"boxes of item {example.id} are empty or leave its {width}x{height} image")
    return boxes
