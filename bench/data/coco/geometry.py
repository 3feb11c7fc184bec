"""From a picture of any shape to a square: image, class map and boxes go the same way.

crop     the middle square of the short side's length, then resized: aspect kept, ends cut off
squash   the whole picture resized to a square, aspect lost: what the release of BPS does
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

RESIZES = {
    "crop": "short side, centre crop; Pillow bicubic",
    "squash": "both sides, aspect lost, as the release; Pillow bicubic",
}


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The part of a picture that is kept, in its pixels, and the side of the square it becomes."""

    left: int
    top: int
    width: int
    height: int
    size: int

    def picture(self, image: Image) -> np.ndarray:
        """Return the square of an RGB image, [S,S,3] uint8, by Pillow's bicubic filter (antialiased)."""
        from PIL.Image import Resampling

        return self._square(image, Resampling.BICUBIC)

    def map(self, classes: np.ndarray) -> np.ndarray:
        """Return the square of a class map [H,W] uint8, [S,S] uint8, by the nearest pixel."""
        from PIL import Image

        return self._square(Image.fromarray(classes), Image.Resampling.NEAREST)

    def boxes(self, boxes: Iterable[tuple[float, ...]]) -> np.ndarray:
        """Return (class, x, y, width, height) as [M,5] int32: class, x0, y0, x1, y1 (exclusive).

        Rounded outwards to whole pixels of the square; what the crop leaves less than one pixel of is
        gone. Larger boxes come first, of equal ones the earlier: a drawing in this order leaves the
        smaller on top.
        """
        across, down = self.size / self.width, self.size / self.height
        found = []
        for label, x, y, wide, high in boxes:
            x0, x1 = ((v - self.left) * across for v in (x, x + wide))
            y0, y1 = ((v - self.top) * down for v in (y, y + high))
            x0, y0, x1, y1 = (min(max(v, 0.0), float(self.size)) for v in (x0, y0, x1, y1))
            if x1 - x0 >= 1 and y1 - y0 >= 1:
                corners = (int(x0), int(y0), int(np.ceil(x1)), int(np.ceil(y1)))
                found.append((int(label), *corners))
        found.sort(key=lambda b: -(b[3] - b[1]) * (b[4] - b[2]))
        return np.array(found, np.int32).reshape(-1, 5)

    def _square(self, image: Image, filter: int) -> np.ndarray:
        part = (self.left, self.top, self.left + self.width, self.top + self.height)
        return np.asarray(image.crop(part).resize((self.size, self.size), filter), np.uint8)


def frame_of(width: int, height: int, *, size: int, resize: str) -> Frame:
    """Return the frame of a picture of width x height pixels; resize: a name in RESIZES."""
    if resize == "squash":
        return Frame(left=0, top=0, width=width, height=height, size=size)
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return Frame(left=left, top=top, width=side, height=side, size=size)
