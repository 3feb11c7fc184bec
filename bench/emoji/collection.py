"""The pretraining collection: fourteen open icon families, none of them OpenMoji.

Each family is one npm package in the Iconify JSON format (``icons.json``: SVG bodies by name). A user
of the benchmark never needs it; `bench.emoji.pretrain` does.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired

import numpy as np
from annotated_types import Interval
from pydantic import with_config
from typing_extensions import TypedDict

from bench.content import read_json
from bench.strict import Flag, Name, Number, Text, Whole
from bench.types import BenchError

SIZE = 64


_MOST_BYTES = 1 << 30
_Length = Annotated[Whole | Number, Interval(ge=-1e6, le=1e6)]  # as written: it goes into the drawing's text


@with_config(extra="allow")
class _Icon(TypedDict):
    body: str
    hidden: NotRequired[Flag]
    left: NotRequired[_Length]
    top: NotRequired[_Length]
    width: NotRequired[_Length]
    height: NotRequired[_Length]


@with_config(extra="allow")
class _Icons(TypedDict):
    icons: dict[Name, _Icon]
    left: NotRequired[_Length]
    top: NotRequired[_Length]
    width: NotRequired[_Length]
    height: NotRequired[_Length]


@with_config(extra="allow")
class _Package(TypedDict):
    version: Text


@dataclass(frozen=True, kw_only=True)
class Family:
    """One icon family: npm package and version, the style word of its captions, licence, author."""

    package: str
    version: str
    style: str
    licence: str
    author: str


FAMILIES = (
    Family(
        package="twemoji",
        version="1.2.5",
        style="twemoji",
        licence="CC-BY-4.0",
        author="Twitter and the jdecked fork",
    ),
    Family(package="noto", version="1.2.9", style="noto", licence="Apache-2.0", author="Google"),
    Family(package="noto-v1", version="1.2.5", style="blob", licence="Apache-2.0", author="Google"),
    Family(package="fluent-emoji-flat", version="1.2.6", style="flat", licence="MIT", author="Microsoft"),
    Family(package="fluent-emoji", version="1.2.7", style="glossy", licence="MIT", author="Microsoft"),
    Family(
        package="fluent-emoji-high-contrast",
        version="1.2.6",
        style="contrast",
        licence="MIT",
        author="Microsoft",
    ),
    Family(package="emojione", version="1.2.3", style="emojione", licence="CC-BY-4.0", author="EmojiOne"),
    Family(
        package="emojione-v1", version="1.2.3", style="outlined", licence="CC-BY-SA-4.0", author="EmojiOne"
    ),
    Family(package="fxemoji", version="1.2.2", style="firefox", licence="Apache-2.0", author="Mozilla"),
    Family(
        package="streamline-emojis",
        version="1.2.4",
        style="streamline",
        licence="CC-BY-4.0",
        author="Streamline",
    ),
    Family(
        package="streamline-ultimate-color",
        version="1.2.2",
        style="thin",
        licence="CC-BY-4.0",
        author="Streamline",
    ),
    Family(
        package="streamline-freehand-color",
        version="1.2.2",
        style="freehand",
        licence="CC-BY-4.0",
        author="Streamline",
    ),
    Family(
        package="streamline-kameleon-color",
        version="1.2.2",
        style="badge",
        licence="CC-BY-4.0",
        author="Streamline",
    ),
    Family(package="flat-color-icons", version="1.2.3", style="icon", licence="MIT", author="Icons8"),
)

_TONE = re.compile(r"-(medium-)?(light|dark|medium)(-skin-tone)?(?=-|$)|skin-tone")
_TONE_OBJECTS = frozenset({"horizontal-traffic-light", "vertical-traffic-light", "traffic-light"})
_SQUASHED = frozenset({"fxemoji"})  # this family writes its names without hyphens


@dataclass(frozen=True, kw_only=True)
class Icon:
    """One drawing: caption without the style word, style word, standalone SVG text."""

    name: str
    caption: str
    style: str
    svg: str


def load_icons(folder: Path) -> list[Icon]:
    """Read every family below `folder`, without skin-tone variants, hidden icons and flags.

    folder: holds one unpacked npm package a family, in a sub-folder `<package>` with `icons.json`.
    Raises BenchError for a missing family or another version. Order: family, then name.
    """
    raw = {family: _read_family(folder, family) for family in FAMILIES}
    words = {w for f, icons in raw.items() if f.package not in _SQUASHED for n in icons for w in n.split("-")}
    return [
        Icon(name=name, caption=_caption(name, family, words), style=family.style, svg=svg)
        for family, icons in raw.items()
        for name, svg in sorted(icons.items())
    ]


def _read_family(folder: Path, family: Family) -> dict[str, str]:
    path = folder / family.package
    try:
        version = read_json(path / "package.json", of=_Package, loose=True)["version"]
        data: _Icons = read_json(path / "icons.json", of=_Icons, loose=True, most_bytes=_MOST_BYTES)
    except BenchError as error:
        raise BenchError(
            f"cannot read icon family '{family.package}' in {path}: {error}. Unpack the npm package "
            f"@iconify-json/{family.package}@{family.version} there."
        ) from None
    if version != family.version:
        raise BenchError(
            f"icon family '{family.package}' has version {version}; the recipe is fixed to "
            f"{family.version}. Unpack @iconify-json/{family.package}@{family.version} instead."
        )
    icons = {n: i for n, i in data["icons"].items() if not i.get("hidden")}
    return {n: _svg(i, data) for n, i in icons.items() if _keep(n, icons)}


def _keep(name: str, icons: Mapping[str, Any]) -> bool:
    """Drop flags and those skin-tone variants whose untoned base the family also has."""
    if name.startswith("flag-") or name.endswith("flag"):
        return False
    if "skin-tone" in name:
        return False
    return name in _TONE_OBJECTS or _TONE.sub("", name) == name or _TONE.sub("", name) not in icons


def _svg(icon: _Icon, data: _Icons) -> str:
    """Wrap an Iconify body into a square SVG; non-square icons are padded, not stretched."""
    left, top = icon.get("left", data.get("left", 0)), icon.get("top", data.get("top", 0))
    width = icon.get("width", data.get("width", 16))
    height = icon.get("height", data.get("height", 16))
    side = max(width, height)
    box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    return (
        (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{box}" width="{SIZE}" height="{SIZE}" color="#000">{{open}}{icon["body"]}{{close}}'
            "</svg>"
        )
        .replace("{open}", "<g>")
        .replace("{close}", "</g>")
    )


def _caption(name: str, family: Family, words: set[str]) -> str:
    parts = [p for p in name.split("-") if p not in {"duo", "alternate"}]
    if family.package in _SQUASHED:
        parts = _split_words(name, words)
    while len(parts) > 1 and family.package.startswith("streamline") and parts[-1].isdigit():
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


def render(icon: Icon, *, rng: np.random.Generator | None = None) -> np.ndarray:
    """Draw one icon on white, [64,64,3] uint8; with `rng`, under a small random similarity.

    The drawing is transformed as vectors (rotation up to 8 degrees, scale 0.8 to 1.05, shift up to
    3 of 64 px), so augmented images are as sharp as plain ones. Errors: BenchError if resvg fails.
    """
    import resvg_py
    from PIL import Image

    svg = icon.svg if rng is None else icon.svg.replace("<g>", _similarity(icon.svg, rng), 1)
    try:
        png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, background="white")
    except Exception as error:  # resvg raises bare exceptions of several kinds
        raise BenchError(f"icon '{icon.name}' ({icon.style}) cannot be drawn: {error}") from None
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


def _similarity(svg: str, rng: np.random.Generator) -> str:
    left, top, side, _ = (float(v) for v in svg.split('viewBox="')[1].split('"')[0].split())
    angle, scale = rng.uniform(-8, 8), rng.uniform(0.8, 1.05)
    dx, dy = rng.uniform(-3, 3, size=2) * side / SIZE
    x, y = left + side / 2, top + side / 2
    return (
        f'<g transform="translate({x + dx:.4f} {y + dy:.4f}) rotate({angle:.3f}) '
        f'scale({scale:.4f}) translate({-x:.4f} {-y:.4f})">'
    )


_HANDED = re.compile(
    r"\b(left|right|east|west|clockwise|back|forward|letter|number|keycap|abc|abcd|button|oclock|"
    r"thirty|clock|moon|quarter|crescent|arrow|reverse|rewind|note|text|alphabet|sign|sharp|flat|"
    r"previous|next|undo|redo|input|symbols?|zone|end|soon|top|on|ok|new|free|cool|ng|sos|up|id|"
    r"[a-z0-9])\b|[0-9]"
)


def may_mirror(caption: str) -> bool:
    """Tell whether a mirrored drawing still fits its caption (no letters, arrows, sides, clocks)."""
    return _HANDED.search(caption) is None


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
        except BenchError:
            continue
        if int(plain.min()) > 200:
            continue
        drawn = [plain] + [render(icon, rng=rng) for _ in range(views - 1)]
        if may_mirror(icon.caption):
            drawn = [d[:, ::-1] if v % 2 else d for v, d in enumerate(drawn)]
        yield index, np.stack(drawn)
