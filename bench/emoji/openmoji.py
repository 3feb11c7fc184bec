"""Builds the OpenMoji64 data set from an unpacked OpenMoji package (`npm pack openmoji@17.0.0`).

    python -m bench.emoji.openmoji --package FOLDER --out FOLDER

renders every emoji without skin tone at 64x64 (viewBox 4 4 64 64: one unit of the drawing is one pixel,
strokes are 2 px) and writes openmoji64.npz, openmoji64.manifest.json and openmoji64.splits.json. The same
package gives the same bytes. Each emoji gives
    image    all layers but the grid, on white, as in the designers' own colour export;
    sketch   the layers line and line-supplement, the designers' own black export. Its alpha
             channel is the ink, so a line counts in full whatever its colour;
    classes  the other layers with crisp edges, each pixel the nearest palette colour (class 0 is
             background, where nothing is drawn);
    boxes    4-connected regions of one class, at least 12 px, the largest 16.
"""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from scipy import ndimage

from bench.cli.terminal import say
from bench.content import digest_arrays, read_json, sha256_file, write_json, write_npz
from bench.emoji.splits import make_splits
from bench.emoji.training import run
from bench.types import BenchError

NAME = "openmoji64"
SIZE = 64
BACKGROUND = 0
MIN_BOX_PIXELS = 12
MAX_BOXES = 16
CAPTION_STYLE = ", openmoji style"
LINE_LAYERS = ("line", "line-supplement")
COLOUR_NAMES = dict(
    pair.strip().split(" ", 1)
    for pair in """#000000 black, #ffffff white, #92d3f5 light blue, #61b2e4 blue, #ea5a47 light red,
    #d22f27 red, #b1cc33 light green, #5c9e31 green, #fcea2b yellow, #f1b31c dark yellow,
    #d0cfce light grey, #9b9b9a grey, #3f3f3f dark grey, #f4aa41 light orange, #e27022 orange,
    #ffa7c0 light pink, #e67a94 pink, #b399c8 light purple, #8967aa purple, #a57939 light brown,
    #6a462f brown, #1e50a0 dark blue, #781e32 dark red, #186648 dark green, #fadcbc light skin,
    #debb90 medium-light skin, #c19a65 medium skin, #352318 darkest brown""".split(",")
)
_FLAG = "flag: the sketch is a bare rectangle and says nothing of what is in it"
_UI = "interface element: a diagram or bare mark, not a picture of a thing"
_TYPE = "typographic symbol: a glyph or plain shape, its lines filled instead of drawn"
DROPPED_GROUPS: Mapping[tuple[str, str], str] = {
    ("flags", "*"): _FLAG,
    ("extras-openmoji", "flags"): _FLAG,
    ("extras-openmoji", "queer-symbols"): _FLAG,
    ("extras-unicode", "subdivision-flag"): _FLAG,
    ("extras-openmoji", "brand"): "brand: a trademark, named by what no picture explains",
    ("extras-openmoji", "ui-element"): _UI,
    ("extras-openmoji", "interaction"): _UI,
    ("extras-openmoji", "symbol-other"): _TYPE,
    ("extras-unicode", "symbol-other"): _TYPE,
    ("extras-unicode", "regional-indicator"): "regional indicator: a letter, half of a flag",
    ("component", "*"): "component: a hair or skin swatch, not an emoji of its own",
}


class Drawing(NamedTuple):
    """One rendered emoji: image [64,64,3], sketch [64,64], classes [64,64], all uint8."""

    image: np.ndarray
    sketch: np.ndarray
    classes: np.ndarray


class Palette(NamedTuple):
    """Colours of the classes: names[i] and rgb[i] ([N,3] uint8) belong to class i; 0 is paper."""

    names: tuple[str, ...]
    rgb: np.ndarray


def load_palette(package: Path) -> Palette:
    """Read data/color-palette.json: background, the colours, then skin and hair tones."""
    table = read_json(package / "data" / "color-palette.json", loose=True)
    tones = [code for key in sorted(table["skintones"]) for code in table["skintones"][key]]
    codes = list(dict.fromkeys(code.lower() for code in [*table["colors"], *tones]))
    rgb = [tuple(bytes.fromhex(code[1:])) for code in codes]
    return Palette(
        names=("background", *(COLOUR_NAMES.get(code, code) for code in codes)),
        rgb=np.array([(255, 255, 255), *rgb], dtype=np.uint8),
    )


def render(root: ElementTree.Element, keep: Callable[[str], bool], *, crisp: bool) -> np.ndarray:
    """Render the layers whose id `keep` accepts, in drawing order: [64,64,4] uint8, not multiplied.

    ValueError if the renderer refuses the drawing.
    """
    import resvg_py
    from PIL import Image

    picture = ElementTree.Element(root.tag)
    picture.attrib.update({"viewBox": "4 4 64 64", "width": str(SIZE), "height": str(SIZE)})
    picture.extend(layer for layer in root if keep(layer.get("id") or ""))
    png = resvg_py.svg_to_bytes(
        svg_string=ElementTree.tostring(picture, encoding="unicode"),
        skip_system_fonts=True,
        shape_rendering="crisp_edges" if crisp else "geometric_precision",
    )
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))


def on_white(rgba: np.ndarray) -> np.ndarray:
    """Lay RGBA ([H,W,4] uint8) on white paper: [H,W,3] uint8."""
    alpha = rgba[..., 3:].astype(np.uint32)
    mixed = rgba[..., :3] * alpha + 255 * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def classify(rgba: np.ndarray, palette: Palette) -> np.ndarray:
    """Give each pixel the nearest palette colour, or background where alpha < 128: [H,W] uint8."""
    flat = on_white(rgba).reshape(-1, 3)
    colours, inverse = np.unique(flat, axis=0, return_inverse=True)
    gaps = colours[:, None].astype(np.int32) - palette.rgb[None, 1:].astype(np.int32)
    nearest = (gaps**2).sum(-1).argmin(1) + 1
    classes = nearest[inverse.ravel()].reshape(rgba.shape[:2])
    return np.where(rgba[..., 3] < 128, BACKGROUND, classes).astype(np.uint8)


def draw(svg: str, palette: Palette) -> Drawing:
    """Render one source drawing; ValueError if it is not one the renderer understands."""
    try:
        root = ElementTree.fromstring(svg)
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from error
    colour = render(root, lambda layer: layer != "grid", crisp=False)
    lines = render(root, lambda layer: layer in LINE_LAYERS, crisp=False)
    fills = render(root, lambda layer: layer not in ("grid", *LINE_LAYERS), crisp=True)
    return Drawing(on_white(colour), lines[..., 3].copy(), classify(fills, palette))


def find_boxes(classes: np.ndarray) -> np.ndarray:
    """Find the boxes of a class map ([H,W] uint8): [M,5] uint8, largest region first.

    A row is class, x0, y0, x1, y1 in pixels, x1 and y1 exclusive. Ties go by class, then y0, x0.
    """
    regions = []
    for label in set(np.unique(classes).tolist()) - {BACKGROUND}:
        parts, _ = ndimage.label(classes == label)
        sizes = np.bincount(parts.ravel())
        for index, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1):
            if sizes[index] >= MIN_BOX_PIXELS:
                box = (label, columns.start, rows.start, columns.stop, rows.stop)
                regions.append((-int(sizes[index]), label, box[2], box[1], box))
    boxes = [region[-1] for region in sorted(regions)[:MAX_BOXES]]
    return np.array(boxes, dtype=np.uint8).reshape(-1, 5)


def collect(package: Path, palette: Palette) -> tuple[list[tuple[Mapping[str, Any], Drawing]], Counter[str]]:
    """Render all entries that stay, in order of id, and count the others by reason."""
    files = {path.stem: path for path in sorted((package / "src").rglob("*.svg"))}
    kept: list[tuple[Mapping[str, Any], Drawing]] = []
    dropped: Counter[str] = Counter()
    entries = read_json(package / "data" / "openmoji.json", loose=True)
    for entry in sorted(entries, key=lambda entry: str(entry["hexcode"])):
        made = _drawn(entry, files.get(entry["hexcode"]), palette)
        if isinstance(made, str):
            dropped[made] += 1
        else:
            kept.append((entry, made))
    return kept, dropped


def _drawn(entry: Mapping[str, Any], file: Path | None, palette: Palette) -> Drawing | str:
    """Return the drawing of an entry, or why it is left out."""
    reason = drop_reason(entry)
    if reason is not None or file is None:
        return reason or "no drawing in the package"
    try:
        drawing = draw(file.read_text("utf-8"), palette)
    except ValueError:
        return "broken: the drawing does not render"
    if drawing.sketch.max() < 128:
        return "empty sketch: the line layers hold no ink"
    if not (drawing.classes != BACKGROUND).any():
        return "empty colour: nothing is drawn but lines"
    return drawing


def drop_reason(entry: Mapping[str, Any]) -> str | None:
    """Say why an entry of openmoji.json is left out by its kind, or None to keep it."""
    if entry.get("skintone"):
        return "skin tone variant: the same drawing in another colour"
    group, subgroup = entry["group"], entry["subgroups"]
    return DROPPED_GROUPS.get((group, subgroup)) or DROPPED_GROUPS.get((group, "*"))


def caption_of(annotation: str) -> str:
    """Turn an annotation into the item's caption: plain quotes, single spaces, the style's name."""
    plain = annotation.translate({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'})
    return " ".join(plain.split()) + CAPTION_STYLE


def pack(kept: Sequence[tuple[Mapping[str, Any], Drawing]]) -> dict[str, np.ndarray]:
    """Stack the items into arrays; all boxes lie in one array, cut by box_offsets [N+1] int32."""
    boxes = [find_boxes(drawing.classes) for _, drawing in kept]
    return {
        "ids": np.array([entry["hexcode"] for entry, _ in kept]),
        "captions": np.array([caption_of(entry["annotation"]) for entry, _ in kept]),
        "images": np.stack([drawing.image for _, drawing in kept]),
        "sketches": np.stack([drawing.sketch for _, drawing in kept]),
        "classes": np.stack([drawing.classes for _, drawing in kept]),
        "boxes": np.concatenate(boxes),
        "box_offsets": np.cumsum([0, *map(len, boxes)]).astype(np.int32),
    }


def build(package: Path, out: Path) -> dict[str, Any]:
    """Build all three files into a folder and return the manifest; BenchError on a bad package."""
    if not (package / "data" / "openmoji.json").is_file():
        raise BenchError(
            f"{package} is not an unpacked OpenMoji package: it has no data/openmoji.json. "
            "Run `npm pack openmoji@17.0.0`, unpack it and give the folder named package."
        )
    ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
    version = read_json(package / "package.json", loose=True)["version"]
    palette = load_palette(package)
    kept, dropped = collect(package, palette)
    arrays = pack(kept)
    write_npz(out / f"{NAME}.npz", arrays, compress=True)
    manifest = {
        "schema": 1,
        "name": NAME,
        "builder": "bench.emoji.openmoji",
        "source": {
            "package": f"openmoji {version}",
            "registry": "npm",
            "version": version,
            "url": "https://openmoji.org",
        },
        "licence": "CC BY-SA 4.0",
        "licence_url": "https://creativecommons.org/licenses/by-sa/4.0/",
        "attribution": (
            "All emojis designed by OpenMoji, the open-source emoji and icon project "
            "(https://openmoji.org). License: CC BY-SA 4.0. Changes: rendered at 64x64 pixels; "
            "line layers, colour regions and boxes derived from the drawings."
        ),
        "image_size": SIZE,
        "caption_rule": f"annotation with plain quotes + '{CAPTION_STYLE}'",
        "count": len(arrays["ids"]),
        "boxes": len(arrays["boxes"]),
        "dropped": dict(dropped),
        "classes": [
            {"name": name, "rgb": "#" + bytes(rgb).hex()}
            for name, rgb in zip(palette.names, palette.rgb.tolist(), strict=True)
        ],
        "content_digest": digest_arrays(**arrays),
        "file": f"{NAME}.npz",
        "sha256": sha256_file(out / f"{NAME}.npz"),
    }
    write_json(out / f"{NAME}.manifest.json", manifest)
    annotations = [(entry["annotation"], entry["subgroups"]) for entry, _ in kept]
    write_json(out / f"{NAME}.splits.json", make_splits(arrays, annotations))
    return manifest


def main(
    package: Annotated[Path, typer.Option(help="The unpacked OpenMoji package.")],
    out: Annotated[Path, typer.Option(help="Folder for the three files.")],
) -> None:
    """Build the data set of suite emoji anew; no user of the benchmark needs this."""
    manifest = build(package, out)
    for reason, count in sorted(manifest["dropped"].items()):
        say(f"left out {count:5}  {reason}")
    say(f"kept     {manifest['count']:5}  in {out}")


if __name__ == "__main__":
    run(main)
