"""Whatever picture the user gives -> image: suite `folder`'s conditioning pictures as they are."""

from __future__ import annotations

import math

import numpy as np

from bench.metrics.lines import line_f1, sketch_lines
from bench.metrics.redetect import REDETECTED
from bench.tasks import as_condition, need_layer
from bench.types import BenchError, Example, MetricSpec


class GivenImage:
    """The layer "condition" as condition, in 1 (grey), 3 (colours) or 4 channels (and transparency).

    What it shows is the user's own, but it was made of the item's picture: samples are judged by whether they
    have that picture's edges. Metrics that know more of the condition are asked for with --metric.
    """

    name = "image"
    channels = 3
    version = 2  # 1 judged nothing
    metrics: tuple[MetricSpec, ...] = (REDETECTED["canny_f1"],)

    def condition(self, example: Example) -> np.ndarray:
        """Return the given picture, [C,H,W] float32 in [0, 1]; BenchError without one, or losing colours."""
        picture = need_layer(example, "condition")
        shown = picture[..., : self.channels]
        if self.channels == 1 and not (picture[..., :1] == picture[..., :3]).all():
            lost = f"has colours, which task '{self.name}' would lose. Use --task image."
            raise BenchError(f"the conditioning picture of item {example.id} {lost}")
        return as_condition(shown)

    def fidelity(self, image: np.ndarray, example: Example) -> dict[str, float]:
        """Compare edges of an image ([H,W,3] uint8) with those of the item's picture; NaN without a rule."""
        redraw = example.redraw
        if redraw is None:
            return {"canny_f1": math.nan}
        return {"canny_f1": line_f1(*(sketch_lines(redraw(p)) for p in (image, example.image))).f1}


class GreyImage(GivenImage):
    """The same of one channel: lines, edges, depth."""

    name = "image-grey"
    channels = 1


class TransparentImage(GivenImage):
    """The same of four channels."""

    name = "image-rgba"
    channels = 4
