"""The pretraining collection: fourteen open icon families, none of them OpenMoji.

Each family is one npm package in the Iconify JSON format (``icons.json``: SVG bodies by name). A user
of the benchmark never needs it; the recipes of its base and of its judge of captions do.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.content import atomic_path, read_json, write_json
from bench.emoji import tables
from bench.types import BenchError

SIZE = 64
VIEWS, SEED = 4, 17  # of the collection


_SQUASHED = "fxemoji"  # this family writes its names without hyphens


class Icon(NamedTuple):
    """One drawing: its name, caption without the style word, style word, standalone SVG text."""

    name: str
    caption: str
    style: str
    svg: str


def load_icons(folder: Path) -> list[Icon]:
    """Read every family below `folder`, without skin-tone variants, hidden icons and flags.

    folder: holds one unpacked npm package a family, in a sub-folder `<package>` with `icons.json`.
    Raises BenchError for a missing family or another version. Order: family, then name.
    """
    families = tables("icons")["families"]
    drawings = [(f["package"], f["style"], _read_family(folder, **f)) for f in families]
    plain = [icons for package, _, icons in drawings if package != _SQUASHED]
    words = {word for icons in plain for name in icons for word in name.split("-")}
    return [
        Icon(name, _caption(name, package, words), style, svg)
        for package, style, icons in drawings
        for name, svg in sorted(icons.items())
    ]


def _read_family(folder: Path, *, package: str, version: str, **_: str) -> dict[str, str]:
    """Return the drawings of a family that are kept: name -> SVG."""
    path, rules = folder / package, tables("icons")
    remedy = f"Unpack the npm package @iconify-json/{package}@{version} there."
    if not (path / "icons.json").is_file():
        raise BenchError(f"there is no icon family in {path}. {remedy}")
    there = read_json(path / "package.json", loose=True, remedy=remedy)["version"]
    if there != version:
        raise BenchError(f"{path} has version {there}; the recipe is fixed to {version}. {remedy}")
    data = read_json(path / "icons.json", loose=True, most_bytes=1 << 30, remedy=remedy)
    icons = {name: icon for name, icon in data["icons"].items() if not icon.get("hidden")}
    kept = {}
    for name, icon in icons.items():
        bare = re.sub(rules["tone"], "", name)  # a tone is kept whose untoned base the family lacks
        toned = "skin-tone" in name or (bare != name and bare in icons and name not in rules["tone_objects"])
        if not (toned or name.startswith("flag-") or name.endswith("flag")):
            kept[name] = _svg({**data, **icon})
    return kept


def _svg(icon: Mapping[str, Any]) -> str:
    """Wrap an Iconify body into a square SVG; non-square icons are padded, not stretched."""
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = icon.get("width", 16), icon.get("height", 16)
    side = max(width, height)
    box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" width="{SIZE}" height="{SIZE}" color="#000"><g>{icon["body"]}</g></svg>'
    )


def _caption(name: str, package: str, words: set[str]) -> str:
    parts = [p for p in name.split("-") if p not in {"duo", "alternate"}]
    if package == _SQUASHED:
        parts = _split_words(name, words)
    while len(parts) > 1 and package.startswith("streamline") and parts[-1].isdigit():
        parts = parts[:-1]  # "clinking-glasses-3" is a number of the file, not of the drawing
    return " ".join(parts)


def _split_words(text: str, words: set[str]) -> list[str]:
    """Split squashed words ("cardindexdividers") into the fewest known ones; else keep as it is."""
    best: list[list[str] | None] = [[]] + [None] * len(text)
    for end in range(1, len(text) + 1):
        for start in range(max(0, end - 16), end):
            head, piece = best[start], text[start:end]
            if head is None or piece not in words or (len(piece) < 2 and not piece.isdigit()):
                continue
            current = best[end]
            if current is None or len(head) + 1 < len(current):
                best[end] = [*head, piece]
    return best[len(text)] or [text]


def may_mirror(caption: str) -> bool:
    """Tell whether a mirrored drawing still fits its caption (no letters, arrows, sides, clocks)."""
    return re.search(tables("icons")["handed"], caption) is None


def render(icon: Icon, *, rng: np.random.Generator | None = None) -> np.ndarray:
    """Draw one icon on white, [64,64,3] uint8; with `rng`, under a small random similarity.

    The drawing is transformed as vectors (rotation up to 8 degrees, scale 0.8 to 1.05, shift up to
    3 of 64 px), so augmented images are as sharp as plain ones. ValueError if resvg fails.
    """
    import resvg_py
    from PIL import Image

    svg = icon.svg
    if rng is not None:
        left, top, side, _ = (float(v) for v in svg.split('viewBox="')[1].split('"')[0].split())
        angle, scale = rng.uniform(-8, 8), rng.uniform(0.8, 1.05)
        dx, dy = rng.uniform(-3, 3, size=2) * side / SIZE
        x, y = left + side / 2, top + side / 2
        moved = f"translate({x + dx:.4f} {y + dy:.4f}) rotate({angle:.3f}) scale({scale:.4f})"
        svg = svg.replace("<g>", f'<g transform="{moved} translate({-x:.4f} {-y:.4f})">', 1)
    try:
        png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, background="white")
    except Exception as error:  # resvg raises bare exceptions of several kinds
        raise ValueError(f"icon '{icon.name}' ({icon.style}) cannot be drawn: {error}") from None
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


def render_all(icons: list[Icon], *, views: int, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (icon index, [views,64,64,3] uint8): view 0 is plain, later ones are augmented.

    Odd views are mirrored where the caption allows it. Each icon draws from a generator of its own
    (seed, index), so the result does not depend on the order. Icons that cannot be drawn or are
    blank are skipped.
    """
    for index, icon in enumerate(icons):
        rng = np.random.default_rng([seed, index])
        try:
            plain = render(icon)
        except ValueError:
            continue
        if int(plain.min()) > 200:
            continue
        drawn = [plain] + [render(icon, rng=rng) for _ in range(views - 1)]
        if may_mirror(icon.caption):
            drawn = [d[:, ::-1] if v % 2 else d for v, d in enumerate(drawn)]
        yield index, np.stack(drawn)


def collection(folder: Path, work: Path) -> tuple[np.ndarray, list[str], list[str]]:
    """Draw the collection once, into `work`: views [M,4,64,64,3] uint8 (mapped), captions and styles."""
    views, meta = work / "views.npy", work / "collection.json"
    if not (views.exists() and meta.exists()):
        icons = load_icons(folder)
        drawn = dict(render_all(icons, views=VIEWS, seed=SEED))
        with atomic_path(views) as temporary, temporary.open("wb") as file:
            np.save(file, np.stack(list(drawn.values())))
        kept = [icons[index] for index in drawn]
        write_json(meta, [[i.caption for i in kept], [i.style for i in kept]])
    captions, styles = read_json(meta)
    return np.load(views, mmap_mode="r"), captions, styles
