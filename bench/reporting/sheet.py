"""Contact sheets: images of many items side by side, with labels, as a PNG of fixed bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.content import atomic_path
from bench.types import BenchError

if TYPE_CHECKING:
    from PIL import ImageDraw

INK, SOFT, FRAME, PAPER = (20, 20, 20), (95, 95, 95), (205, 205, 205), (255, 255, 255)
TITLE, LABEL, NOTE = 18, 15, 11


@dataclass(frozen=True, kw_only=True)
class SheetLayout:
    """Where each image of a contact sheet stands, in pixels.

    items, rows: how many; width, height: of one image as drawn; per_band: items side by side;
    label_width: room for the rows' names; notes: whether each item has a line of text above it.
    """

    items: int
    rows: int
    width: int
    height: int
    per_band: int
    label_width: int
    notes: bool
    gap: int = 6
    band_gap: int = 22
    margin: int = 14
    title_height: int = 36
    note_height: int = 18

    @property
    def bands(self) -> int:
        """How many bands of items lie below each other."""
        return -(-self.items // self.per_band)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the whole sheet."""
        across = min(self.items, self.per_band) * (self.width + self.gap) - self.gap
        down = self.bands * (self._band_height + self.band_gap) - self.band_gap
        return (
            2 * self.margin + self.label_width + across,
            2 * self.margin + self.title_height + down,
        )

    def origin(self, *, row: int, item: int) -> tuple[int, int]:
        """Return x and y of the upper left pixel of an image."""
        band, place = divmod(item, self.per_band)
        x = self.margin + self.label_width + place * (self.width + self.gap)
        y = self.margin + self.title_height + band * (self._band_height + self.band_gap)
        return x, y + self.note_height * self.notes + row * (self.height + self.gap)

    @property
    def _band_height(self) -> int:
        return self.note_height * self.notes + self.rows * (self.height + self.gap) - self.gap


def sheet_layout(
    rows: Mapping[str, np.ndarray], *, scale: int = 2, per_band: int = 8, notes: bool = False
) -> SheetLayout:
    """Return the layout of a contact sheet of rows, each [N,H,W,3] uint8, all of one shape.

    scale: times that each pixel is repeated. BenchError for no rows or rows of other shapes.
    """
    shapes = {name: (np.shape(images), np.asarray(images).dtype) for name, images in rows.items()}
    first = next(iter(shapes.values()), None)
    if first is None or set(shapes.values()) != {first}:
        raise BenchError(f"a contact sheet needs rows of one shape and type, got {shapes or None}")
    shape, dtype = first
    if len(shape) != 4 or shape[3] != 3 or 0 in shape or dtype != np.uint8:
        raise BenchError(f"rows of a contact sheet are [N,H,W,3] uint8, got {shapes}")
    if scale < 1 or per_band < 1:
        raise BenchError(f"scale and items a band are at least 1, got {scale} and {per_band}")
    return SheetLayout(
        items=shape[0],
        rows=len(rows),
        width=shape[2] * scale,
        height=shape[1] * scale,
        per_band=per_band,
        label_width=max(int(sheet_font(LABEL).getlength(name)) for name in rows) + 12,
        notes=notes,
    )


def contact_sheet(
    rows: Mapping[str, np.ndarray],
    path: Path,
    *,
    title: str,
    items: Sequence[str] = (),
    scale: int = 2,
    per_band: int = 8,
) -> Path:
    """Draw rows of images ([N,H,W,3] uint8 RGB each, labelled by key) as one PNG; return its path.

    Items stand in columns, in bands of `per_band`; each pixel is repeated `scale` times. title: a
    line above, for example the run id. items: N short texts above the columns, or none. The same
    input gives the same bytes. BenchError for rows that are not of one such shape.
    """
    from PIL import Image, ImageDraw

    layout = sheet_layout(rows, scale=scale, per_band=per_band, notes=bool(items))
    if items and len(items) != layout.items:
        raise BenchError(f"{len(items)} item texts for {layout.items} items of a contact sheet")
    least = 2 * layout.margin + int(sheet_font(TITLE).getlength(title))
    sheet = Image.new("RGB", (max(layout.size[0], least), layout.size[1]), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((layout.margin, layout.margin), title, fill=INK, font=sheet_font(TITLE))
    _draw_words(draw, layout, list(rows), items)
    for row, images in enumerate(rows.values()):
        for item, image in enumerate(images):
            x, y = layout.origin(row=row, item=item)
            draw.rectangle((x - 1, y - 1, x + layout.width, y + layout.height), outline=FRAME)
            sheet.paste(Image.fromarray(image.repeat(scale, axis=0).repeat(scale, axis=1)), (x, y))
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG", compress_level=6)
    return Path(path)


def sheet_title(run_id: str, leaked: int) -> str:
    """Return the line above the sheet of a run, which says how many of its items a leak touches."""
    return f"{run_id} (LEAK: {leaked} items)" if leaked else run_id


def _draw_words(
    draw: ImageDraw.ImageDraw, layout: SheetLayout, names: Sequence[str], items: Sequence[str]
) -> None:
    for band in range(layout.bands):
        for row, name in enumerate(names):
            x, y = layout.origin(row=row, item=band * layout.per_band)
            at = (x - 12, y + layout.height // 2)
            draw.text(at, name, fill=INK, font=sheet_font(LABEL), anchor="rm")
    for item, text in enumerate(items):
        x, y = layout.origin(row=0, item=item)
        text = _fitted(text, layout.width)
        draw.text((x, y - 5), text, fill=SOFT, font=sheet_font(NOTE), anchor="ls")


def _fitted(text: str, width: int) -> str:
    font = sheet_font(NOTE)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def sheet_font(size: int) -> Any:
    """Return the font of sheets at a size in pixels; it comes with Pillow, so no machine differs."""
    from PIL import ImageFont

    return ImageFont.load_default(size=size)
