"""Sketch -> image: the condition is one channel of lines."""

from __future__ import annotations

import math

import numpy as np

from bench.metrics.lines import CHAMFER, LINE_EXTRACTOR_VERSION, LINE_F1, chamfer, line_f1, sketch_lines
from bench.tasks import find_lines, need_layer
from bench.types import Example, MetricSpec


class Sketch:
    """The designers' line layer as condition; judged by whether the sample has the same lines."""

    name = "sketch"
    channels = 1
    version = LINE_EXTRACTOR_VERSION
    metrics: tuple[MetricSpec, ...] = (LINE_F1, CHAMFER)

    def condition(self, example: Example) -> np.ndarray:
        """Return the lines, [1,H,W] float32 in [0, 1] (1 = line); BenchError without a sketch."""
        return need_layer(example, "sketch")[None].astype(np.float32) / 255.0

    def fidelity(self, image: np.ndarray, example: Example) -> dict[str, float]:
        """Compare lines found in an image ([H,W,3] uint8) with the sketch; NaN where none can be found."""
        wanted = sketch_lines(need_layer(example, "sketch"))
        found = find_lines(image, example)
        if found is None:
            return {spec.name: math.nan for spec in self.metrics}
        return {"sketch_f1": line_f1(found, wanted).f1, "chamfer": chamfer(found, wanted)}
