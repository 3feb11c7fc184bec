"""A folder of pictures as a user has one: what diffusers' training scripts take."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

COUNT = 40


def picture(number: int) -> np.ndarray:
    rough = np.random.default_rng(number).normal(size=(48, 56, 3))
    smooth = ndimage.gaussian_filter(rough, (5, 5, 0))
    return np.uint8(255 * (smooth - smooth.min()) / np.ptp(smooth))


def write(folder: Path, *, count: int = COUNT, text: str = "text") -> list[dict[str, str]]:
    """Write a folder as diffusers' scripts take it; pictures 6 and 7 are 5 moved by a pixel or two."""
    (folder / "conditions").mkdir(parents=True)
    rows = []
    for number in range(count):
        pixels = np.roll(picture(5), number - 5, axis=1) if number in (6, 7) else picture(number)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        Image.fromarray(pixels[..., 0]).save(folder / "conditions" / f"{number}.png")
        rows.append(
            {
                "file_name": f"{number}.png",
                text: f"no. {number}",
                "conditioning_image": f"conditions/{number}.png",
            }
        )
    metadata(folder, rows)
    return rows


def metadata(folder: Path, rows: list[dict[str, str]]) -> None:
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
