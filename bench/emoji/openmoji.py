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

Sides: items are joined if they share a normalised concept, a base emoji, or look alike (the cosine of blurred
sketches, the correlation of 16x16 thumbnails, mirrored ones too: fixed, as the sides are); then each group is
hashed to a side. Groups of more than 8 items (clocks, hearts, families) stay in train.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from bench.cli.terminal import say
from bench.content import digest_arrays, read_json, sha256_bytes, sha256_file, write_json, write_npz
from bench.data.leaks import Fingerprints, fingerprint
from bench.data.splits import SIDES, item_digest, splits_json
from bench.emoji import run, tables
from bench.types import BenchError, Example

NAME = "openmoji64"
SIZE = 64
BACKGROUND = 0
MIN_BOX_PIXELS = 12
MAX_BOXES = 16
CAPTION_STYLE = ", openmoji style"
LINE_LAYERS = ("line", "line-supplement")


def load_palette(package: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Return names and colours [N,3] uint8 of classes: background (0), the colours, skin and hair tones."""
    table = read_json(package / "data" / "color-palette.json", loose=True)
    tones = [code for key in sorted(table["skintones"]) for code in table["skintones"][key]]
    codes = list(dict.fromkeys(code.lower() for code in [*table["colors"], *tones]))
    words = dict(entry.split(" ", 1) for entry in _listed(tables("openmoji")["colours"]))
    rgb = [tuple(bytes.fromhex(code[1:])) for code in codes]
    names = ("background", *(words.get(code, code) for code in codes))
    return names, np.array([(255, 255, 255), *rgb], dtype=np.uint8)


def render(root: ElementTree.Element, keep: Callable[[str], bool], *, crisp: bool) -> np.ndarray:
    """Render layers by their ids, [64,64,4] uint8, not multiplied; ValueError if the renderer refuses."""
    import resvg_py

    picture = ElementTree.Element(root.tag, {"viewBox": "4 4 64 64", "width": str(SIZE), "height": str(SIZE)})
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


def classify(rgba: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Give each pixel the nearest palette colour, or background where alpha < 128: [H,W] uint8."""
    colours, inverse = np.unique(on_white(rgba).reshape(-1, 3), axis=0, return_inverse=True)
    gaps = colours[:, None].astype(np.int32) - palette[None, 1:].astype(np.int32)
    nearest = (gaps**2).sum(-1).argmin(1) + 1
    classes = nearest[inverse.ravel()].reshape(rgba.shape[:2])
    return np.where(rgba[..., 3] < 128, BACKGROUND, classes).astype(np.uint8)


def find_boxes(classes: np.ndarray) -> np.ndarray:
    """Find boxes of a class map: [M,5] uint8 (class, x0, y0, x1, y1 exclusive), the largest region first."""
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


def drop_reason(entry: Mapping[str, Any]) -> str | None:
    """Say why an entry of openmoji.json is left out by its kind, or None to keep it."""
    if entry.get("skintone"):
        return "skin tone variant: the same drawing in another colour"
    reasons = {(group, subgroup): why for group, subgroup, why in tables("openmoji")["dropped"]}
    return reasons.get((entry["group"], entry["subgroups"])) or reasons.get((entry["group"], "*"))


def drawn(entry: Mapping[str, Any], file: Path | None, palette: np.ndarray) -> Example | str:
    """Return an entry of openmoji.json as an item, or why it is left out."""
    reason = drop_reason(entry)
    if reason is not None or file is None:
        return reason or "no drawing in the package"
    try:
        root = ElementTree.fromstring(file.read_text("utf-8"))
        colour = render(root, lambda layer: layer != "grid", crisp=False)
        lines = render(root, lambda layer: layer in LINE_LAYERS, crisp=False)
        fills = render(root, lambda layer: layer not in ("grid", *LINE_LAYERS), crisp=True)
    except (ElementTree.ParseError, ValueError):
        return "broken: the drawing does not render"
    sketch, classes = lines[..., 3].copy(), classify(fills, palette)
    if sketch.max() < 128:
        return "empty sketch: the line layers hold no ink"
    if not (classes != BACKGROUND).any():
        return "empty colour: nothing is drawn but lines"
    layers = {"sketch": sketch, "classes": classes, "boxes": find_boxes(classes)}
    caption = caption_of(entry["annotation"])
    return Example(id=str(entry["hexcode"]), caption=caption, image=on_white(colour), layers=layers)


def caption_of(annotation: str) -> str:
    """Turn an annotation into the item's caption: plain quotes, single spaces, the style's name."""
    plain = annotation.translate({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'})
    return " ".join(plain.split()) + CAPTION_STYLE


def build(package: Path, out: Path) -> dict[str, Any]:
    """Build all three files into a folder and return the manifest; BenchError on a bad package."""
    if not (package / "data" / "openmoji.json").is_file():
        remedy = "Run `npm pack openmoji@17.0.0`, unpack it and give the folder named package."
        raise BenchError(f"{package} is not an unpacked OpenMoji package (no data/openmoji.json). {remedy}")
    ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
    version = read_json(package / "package.json", loose=True)["version"]
    names, palette = load_palette(package)
    files = {path.stem: path for path in sorted((package / "src").rglob("*.svg"))}
    entries = read_json(package / "data" / "openmoji.json", loose=True)
    entries.sort(key=lambda entry: str(entry["hexcode"]))
    made = [(entry, drawn(entry, files.get(entry["hexcode"]), palette)) for entry in entries]
    dropped = Counter(why for _, why in made if isinstance(why, str))
    kept = [(entry, item) for entry, item in made if not isinstance(item, str)]
    items = [item for _, item in kept]
    boxes = [item.layers["boxes"] for item in items]
    arrays = {  # all boxes lie in one array, cut by box_offsets [N+1]
        "ids": np.array([item.id for item in items]),
        "captions": np.array([item.caption for item in items]),
        "images": np.stack([item.image for item in items]),
        "sketches": np.stack([item.layers["sketch"] for item in items]),
        "classes": np.stack([item.layers["classes"] for item in items]),
        "boxes": np.concatenate(boxes),
        "box_offsets": np.cumsum([0, *map(len, boxes)]).astype(np.int32),
    }
    write_npz(out / f"{NAME}.npz", arrays, compress=True)
    source = {"package": f"openmoji {version}", "registry": "npm", "version": version}
    manifest = {
        **tables("manifests")["openmoji"],
        "source": {**source, "url": "https://openmoji.org"},
        "image_size": SIZE,
        "count": len(arrays["ids"]),
        "boxes": len(arrays["boxes"]),
        "dropped": dict(dropped),
        "classes": [
            {"name": name, "rgb": "#" + bytes(rgb).hex()}
            for name, rgb in zip(names, palette.tolist(), strict=True)
        ],
        "content_digest": digest_arrays(**arrays),
        "sha256": sha256_file(out / f"{NAME}.npz"),
    }
    write_json(out / f"{NAME}.manifest.json", manifest)
    annotations = [(entry["annotation"], entry["subgroups"]) for entry, _ in kept]
    write_json(out / f"{NAME}.splits.json", make_splits(items, annotations))
    return manifest


def concept(annotation: str, subgroup: str) -> str:
    """Normalise an annotation to a concept: variants of gender, hair, direction, colour agree."""
    rules, text = tables("concepts"), annotation.lower()
    if subgroup in rules["collapsed"].split():
        return f"all {subgroup}"
    shared = [(rf"\b{name}\b", name) for name in _listed(rules["shared"])]
    for pattern, name in (*rules["patterns"], *shared):
        if re.search(pattern, text):
            return str(name)
    stripped = set(rules["stripped"].split())
    return " ".join(word for word in re.findall(r"[^\s:,()]+", text) if word not in stripped) or "person"


def base_emoji(hexcode: str) -> str:
    """Return what an emoji sequence is about: its first code point, or what a person is or does.

    1F468-200D-1F680 (man astronaut) and 1F9D1-200D-1F680 (astronaut) agree; so do 1F3C3 (runner)
    and 1F3C3-200D-2642-FE0F. A person alone, with any hair, is "person".
    """
    neutral, people = (tables("concepts")[name].split() for name in ("neutral", "person"))
    codes = [code for code in hexcode.split("-") if code not in neutral]
    if not codes or codes[0] not in people:
        return codes[0] if codes else hexcode
    return " ".join(["person", "-".join(code for code in codes if code not in people)]).rstrip()


def group_items(prints: Fingerprints, annotations: Sequence[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """Join items by looks and (annotation, subgroup) of each: first id -> sorted ids of all members."""
    first: dict[tuple[str, str], int] = {}
    links = list(looking_alike(prints))
    for i, (item, note) in enumerate(zip(prints.ids, annotations, strict=True)):
        keys = ("concept", concept(*note)), ("base", base_emoji(item))
        links += [(i, first.setdefault(key, i)) for key in keys]
    rows, columns = np.array(links).T
    shape = (len(prints.ids),) * 2
    graph = coo_array((np.ones(len(links), bool), (rows, columns)), shape=shape)
    members: dict[int, list[str]] = {}
    for item, group in zip(prints.ids, connected_components(graph, directed=False)[1].tolist(), strict=True):
        members.setdefault(group, []).append(item)
    return {min(group): tuple(sorted(group)) for group in members.values()}


def looking_alike(prints: Fingerprints) -> Iterator[tuple[int, int]]:
    """Yield pairs of rows whose sketches or pictures are alike, one of them mirrored or not."""
    assert prints.lines is not None and prints.small is not None
    rule = tables("sides")
    for pictures, limit in ((prints.lines, rule["sketch_join"]), (prints.small, rule["image_join"])):
        plain = _vectors(pictures)
        for other in (plain, _vectors(pictures[:, :, ::-1])):
            for i, j in zip(*np.nonzero(plain @ other.T > limit), strict=True):
                yield int(i), int(j)


def _vectors(pictures: np.ndarray) -> np.ndarray:
    """Describe lines [N,64,64] or images [N,64,64,3] uint8 by unit vectors [N,D] float32."""
    rows = []
    for picture in pictures:
        if picture.ndim == 2:
            row = ndimage.uniform_filter(picture.astype(np.float32), 3, mode="constant")
        else:
            small = Image.fromarray(np.ascontiguousarray(picture)).resize((16, 16), Image.Resampling.BOX)
            row = np.asarray(small, np.float32) - np.asarray(small, np.float32).mean()
        rows.append(row.reshape(-1) / max(float(np.linalg.norm(row)), 1e-6))
    return np.stack(rows)


def side_of(group: str, size: int) -> str:
    """Hash a group's name to train, val or test; a large group always goes to train."""
    rule = tables("sides")
    draw = int(sha256_bytes(f"{rule['seed']}/{group}".encode())[:16], 16) / 16**16
    if size > rule["largest_evaluation_group"] or draw >= rule["test_fraction"] + rule["val_fraction"]:
        return "train"
    return "test" if draw < rule["test_fraction"] else "val"


def make_splits(examples: Sequence[Example], annotations: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Make the value of the splits file; annotations: see `group_items`."""
    groups = group_items(fingerprint(examples), annotations)
    group_of = {item: group for group, items in groups.items() for item in items}
    sides: dict[str, dict[str, str]] = {side: {} for side in SIDES}
    for example in examples:
        group = group_of[example.id]
        sides[side_of(group, len(groups[group]))][example.id] = item_digest(example)
    return splits_json(NAME, sides, groups=group_of, rule=tables("sides"))


def _listed(text: str) -> list[str]:
    """Return the entries of a table's text, which commas and line ends separate into words."""
    return [" ".join(entry.split()) for entry in text.split(",")]


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
