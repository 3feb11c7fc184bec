"""Whatever picture the user gives -> image: suite `folder`'s conditioning pictures as they are."""

from __future__ import annotations

import numpy as np

from bench.tasks import need_layer
from bench.types import BenchError, Example, MetricSpec


class GivenImage:
    """The layer "condition" as condition, in 1 (grey), 3 (colours) or 4 channels (and transparency).

    What it shows is the user's own, so that no rule says how well a sample obeys it: samples are compared
    with the item's picture instead.
    """

    name = "image"
    channels = 3
    version = 1
    metrics: tuple[MetricSpec, ...] = ()

    def condition(self, example: Example) -> np.ndarray:
        """Return the conditioning picture, [C,H,W] float32 in [0, 1]; BenchError without one.

        BenchError, too, where one channel would lose colours.
        """
        picture = need_layer(example, "condition")
        shown = picture[..., : self.channels]
        if self.channels == 1 and not (picture[..., :1] == picture[..., :3]).all():
            raise BenchError(
                f"the conditioning picture of item {example.id} has colours, which task '{self.name}' would "
                "lose. Use --task image."
            )
        return np.ascontiguousarray(shown.transpose(2, 0, 1)).astype(np.float32) / 255.0

    def fidelity(self, image: np.ndarray, example: Example) -> dict[str, float]:
        """Return nothing: no rule is known."""
        return {}


class GreyImage(GivenImage):
    """The same of one channel: lines, edges, depth."""

    name = "image-grey"
    channels = 1


class TransparentImage(GivenImage):
    """The same of four channels."""

    name = "image-rgba"
    channels = 4
