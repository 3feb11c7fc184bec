"""Segmentation -> image: the condition is the class map in the palette's colours."""

from __future__ import annotations

import math

import numpy as np

from bench.metrics import regions
from bench.tasks import as_condition, check_sample, need_map, need_palette, nothing
from bench.types import Example, MetricSpec


class Segmentation:
    """The class map as condition; judged by whether the sample has the same classes.

    Class 0 is drawn dark blue where a class has its colour, so that the condition tells white things
    from white paper. The judge cannot and does not: classes of one colour are one. What the item's own
    lines cover is not judged. Pixel accuracy is left out: on validation items bare paper has 0.83.
    Photographs are not judged: their pixels do not have the classes' colours.
    """

    name = "segmentation"
    channels = 3
    version = regions.REGIONS_VERSION
    metrics: tuple[MetricSpec, ...] = (regions.MIOU,)

    def condition(self, example: Example) -> np.ndarray:
        """Return the map in colours, [3,H,W] float32 in [0, 1]; BenchError without map or palette."""
        classes = need_map(example, "classes")
        palette = need_palette(example, classes).copy()
        palette[0] = nothing(palette)
        return as_condition(palette[classes])

    def fidelity(self, image: np.ndarray, example: Example) -> dict[str, float]:
        """Compare the classes found in an image ([H,W,3] uint8) with its map; NaN for photographs."""
        check_sample(image, example)
        if example.photo:
            return {"miou": math.nan}
        classes = need_map(example, "classes")
        palette = need_palette(example, classes)
        wanted = regions.merged_classes(palette)[classes]
        void = regions.line_void(need_map(example, "sketch"))
        return {"miou": regions.mean_iou(regions.nearest_classes(image, palette=palette), wanted, void=void)}
