"""The same items by every method: condition, one column a method, target."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.content import atomic_path
from bench.packed import Run
from bench.reporting.figures import pdf_file, pdf_path
from bench.reporting.frame import Row
from bench.reporting.sheet import FRAME, INK, LABEL, PAPER, TITLE, sheet_font
from bench.types import BenchError

_SHOWN = 8
_MOST = 10  # more columns would be too small to see
_WIDE = 128
_MARGIN, _GAP = 14, 6


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Pictures of the same items from the same initial noise, by column, [N,H,W,3] uint8 each.

    columns: "condition", methods, floor, "target"; seed: that of every method's run; left_out: why
    a row is not among the columns, in sentences.
    """

    seed: int
    columns: Mapping[str, np.ndarray]
    left_out: tuple[str, ...]


def gallery(rows: Sequence[Row], *, items: int = _SHOWN, most: int = _MOST) -> Gallery | None:
    """Take the first tiles of each row, all of one seed; None without any.

    rows: of one protocol, or of several with the same items and noise, in the order to show. The seed
    is the first that all rows have, else the first of those that most have. Tiles of other
    items than the first are left out. most: rows that there is room for.
    """
    rows, crowd = list(rows[:most]), rows[most:]
    left_out = [f"{row.name} is not shown for want of room." for row in crowd]
    tiled = {row.name: {r.record.seed: r for r in row.runs if r.has_tiles} for row in rows}
    left_out += [f"{name} keeps no tiles." for name, own in tiled.items() if not own]
    counts: dict[int, int] = {}
    for own in tiled.values():
        for seed in own:
            counts[seed] = counts.get(seed, 0) + 1
    if not counts:
        return None
    seed = min(counts, key=lambda s: (-counts[s], s))
    left_out += [f"{n} keeps no tiles of seed {seed}." for n, o in tiled.items() if o and seed not in o]
    chosen = {name: own[seed] for name, own in tiled.items() if seed in own}
    columns, refused = _columns(chosen, items)
    if not columns:
        return None
    return Gallery(seed=seed, columns=columns, left_out=(*left_out, *refused))


def draw_both(shown: Gallery, path: Path, *, title: str) -> Path:
    """Draw a gallery as PNG and, beside it, as PDF; title: of what, the seed is added."""
    title += f", seed {shown.seed}: the same items from the same initial noise"
    draw_gallery_pdf(shown, pdf_path(path), title=title)
    return draw_gallery(shown, path, title=title)


def draw_gallery(shown: Gallery, path: Path, *, title: str) -> Path:
    """Draw a gallery, one line an item and one column a method, as PNG of fixed bytes."""
    from PIL import Image, ImageDraw

    first = next(iter(shown.columns.values()))
    items, tall, wide = first.shape[:3]
    scale = max(1, _WIDE // wide)
    width, height = wide * scale, tall * scale
    heads = {name: _wrapped(name, width) for name in shown.columns}
    line = int(sheet_font(LABEL).size * 1.25)
    top = _MARGIN + 2 * TITLE + line * max(len(lines) for lines in heads.values())
    across = _MARGIN + len(heads) * (width + _GAP) - _GAP + _MARGIN
    across = max(across, 2 * _MARGIN + int(sheet_font(TITLE).getlength(title)))
    sheet = Image.new("RGB", (across, top + items * (height + _GAP) + _MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), title, fill=INK, font=sheet_font(TITLE))
    for column, (name, images) in enumerate(shown.columns.items()):
        x = _MARGIN + column * (width + _GAP)
        for number, words in enumerate(reversed(heads[name])):
            at = (x + width // 2, top - 8 - number * line)
            draw.text(at, words, fill=INK, font=sheet_font(LABEL), anchor="ms")
        for item, image in enumerate(images):
            y = top + item * (height + _GAP)
            draw.rectangle((x - 1, y - 1, x + width, y + height), outline=FRAME)
            sheet.paste(Image.fromarray(image.repeat(scale, axis=0).repeat(scale, axis=1)), (x, y))
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG", compress_level=6)
    return Path(path)


def draw_gallery_pdf(shown: Gallery, path: Path, *, title: str) -> Path:
    """Draw a gallery as PDF of fixed bytes: the exact pixels, with words as text."""
    items, tall, wide = next(iter(shown.columns.values())).shape[:3]
    heads = {name: textwrap.wrap(name, 13) for name in shown.columns}
    width, gap, margin = 0.8, 0.04, 0.1  # inches
    head = 0.4 + 0.12 * max(map(len, heads.values()))
    height = width * tall / wide
    size = (
        max(2 * margin + len(shown.columns) * (width + gap), 2 * margin + 0.085 * len(title)),
        2 * margin + head + items * (height + gap),
    )
    with pdf_file(path, size=size) as figure:
        figure.text(margin / size[0], 1 - 0.22 / size[1], title, fontsize=10, color="#141414")
        for column, (name, images) in enumerate(shown.columns.items()):
            x = margin + column * (width + gap)
            at = ((x + width / 2) / size[0], 1 - (margin + head - 0.06) / size[1])
            figure.text(*at, "\n".join(heads[name]), ha="center", va="bottom", fontsize=7.5, color="#141414")
            for item, image in enumerate(images):
                y = size[1] - margin - head - item * (height + gap) - height
                place = (x / size[0], y / size[1], width / size[0], height / size[1])
                axis = figure.add_axes(place, xticks=[], yticks=[])
                axis.imshow(image, interpolation="none", aspect="auto")
                axis.spines[:].set(visible=True, color="#cdcdcd", linewidth=0.5)
    return Path(path)


def _columns(runs: Mapping[str, Run], items: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the columns of the runs whose tiles can be read and show the same items."""
    own: dict[str, np.ndarray] = {}
    ends: dict[str, np.ndarray] = {}
    refused = []
    for name, run in runs.items():
        try:
            tiles = run.tiles()
        except BenchError:
            refused.append(f"{name}: its tiles cannot be read.")
            continue
        sides = {side: tiles[side] for side in ("condition", "target")}
        ends = ends or sides
        if not all(np.array_equal(sides[side], ends[side]) for side in ends):
            refused.append(f"{name}: its tiles show other items.")
            continue
        own[name] = tiles["sample"]
    if not own:
        return {}, refused
    columns = {"condition": ends["condition"], **own, "target": ends["target"]}
    return {name: images[:items] for name, images in columns.items()}, refused


def _wrapped(text: str, width: int) -> list[str]:
    """Break a name into lines that fit a column: at blanks, and within words that are too long."""
    font = sheet_font(LABEL)
    lines = [""]
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines
