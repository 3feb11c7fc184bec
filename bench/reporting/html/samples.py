"""Pictures of the page: tiles of runs, encoded anew and shared between methods."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.reporting.frame import Row
from bench.reporting.qualitative import Gallery, gallery
from bench.tiles import MOST_TILES

_MEDIA = "image/webp"
_LARGEST = 128  # pixels of the longer side: the page shows pictures no larger


@dataclass(frozen=True, kw_only=True)
class _Encoding:
    """How samples are written: WebP without loss or at a quality, of so many items."""

    words: str
    items: int
    settings: Mapping[str, Any]


# The first whose pictures fit the budget is taken; the last is taken in any case.
_LADDER = (
    _Encoding(words="WebP without loss", items=MOST_TILES, settings={"lossless": True}),
    _Encoding(words="WebP of quality 92", items=MOST_TILES, settings={"quality": 92}),
    _Encoding(words="WebP of quality 80", items=MOST_TILES, settings={"quality": 80}),
    _Encoding(words="WebP of quality 80", items=8, settings={"quality": 80}),
    _Encoding(words="WebP of quality 60", items=4, settings={"quality": 60}),
)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The encoded pictures of a page.

    galleries: "seed", "condition", "target" (one text of base64 an item) and "samples" (such a list
    a row); places: (table, row) -> (gallery, place among its samples); reasons: table -> why rows
    are in none. about: what the page says of the pictures.
    """

    galleries: list[dict[str, Any]]
    places: Mapping[tuple[int, int], tuple[int, int]]
    reasons: Mapping[int, list[str]]
    about: Mapping[str, Any]


def collect_samples(tables: Sequence[Sequence[Row]], *, budget: int) -> Samples:
    """Take and encode the tiles of each table's rows: one gallery a protocol.

    budget: bytes of base64 for all pictures; samples lose quality, then items, to keep within it.
    """
    shown: list[Gallery] = []
    places: dict[tuple[int, int], tuple[int, int]] = {}
    reasons: dict[int, list[str]] = {}
    for t, rows in enumerate(tables):
        for digest in sorted({row.protocol_hash for row in rows}):
            own = [
                (r, row)
                for r, row in enumerate(rows)
                if row.protocol_hash == digest and row.kind in {"method", "floor"}
            ]
            found = gallery([row for _, row in own], items=MOST_TILES, most=len(own))
            if found is None:
                continue
            names = list(found.columns)[1:-1]
            for r, row in own:
                if row.name in names:
                    places[t, r] = (len(shown), names.index(row.name))
            reasons.setdefault(t, []).extend(found.left_out)
            shown.append(found)
    encoded, encoding, size = _fitting(shown, budget)
    about = {"format": encoding.words, "media": _MEDIA, "bytes": size, "largest": _LARGEST}
    return Samples(galleries=encoded, places=places, reasons=reasons, about=about)


def _fitting(shown: Sequence[Gallery], budget: int) -> tuple[list[dict[str, Any]], _Encoding, int]:
    for encoding in _LADDER[:-1]:
        encoded, size = _encoded(shown, encoding, budget)
        if size <= budget:
            return encoded, encoding, size
    encoded, size = _encoded(shown, _LADDER[-1], None)
    return encoded, _LADDER[-1], size


def _encoded(
    shown: Sequence[Gallery], encoding: _Encoding, budget: int | None
) -> tuple[list[dict[str, Any]], int]:
    """Return the galleries and their size; stop early where a budget is spent."""
    galleries: list[dict[str, Any]] = []
    size = 0
    for one in shown:
        made: dict[str, Any] = {"seed": one.seed, "samples": []}
        for place, images in enumerate(one.columns.values()):
            texts = [_picture(image, encoding.settings) for image in images[: encoding.items]]
            size += sum(map(len, texts))
            if 0 < place < len(one.columns) - 1:
                made["samples"].append(texts)
            else:
                made["target" if place else "condition"] = texts
            if budget is not None and size > budget:
                return galleries, size
        galleries.append(made)
    return galleries, size


def _picture(image: np.ndarray, settings: Mapping[str, Any]) -> str:
    """Return an image [H,W,3] uint8 as base64 of WebP, made smaller where it is large."""
    from PIL import Image

    made, file = Image.fromarray(image), io.BytesIO()
    made.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    made.save(file, format="WEBP", **settings)
    return base64.b64encode(file.getvalue()).decode()
