"""Makes the fingerprints of the pretraining collection that lie beside `emoji-sd`.

    python -m bench.emoji.fingerprints --families FOLDER [--base FOLDER]

FOLDER holds the unpacked icon packages (see bench.emoji.collection). No user needs this: the result is
shipped with the base, so that every run can check its evaluation items against pretraining.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.base.snapshot import find_snapshot
from bench.content import digest_arrays, read_json
from bench.data.likeness import FLOOR, alike
from bench.data.openmoji import ASSETS, OpenMoji64, openmoji64_splits
from bench.data.seen import NEAR_BITS, load_seen, near_codes, write_seen
from bench.emoji.collection import Icon, load_icons, render_all
from bench.types import BenchError

LICENCE = "names and hashes of drawings, none of which can be drawn from them; sources as listed"
_SHOWN = 8


def collect(families: Path, *, expected: str | None = None) -> tuple[np.ndarray, list[Icon]]:
    """Draw every icon once as pretraining saw it, [N,64,64,3] uint8, with its description.

    expected: digest of the drawings, from the base's manifest. BenchError where they differ.
    """
    icons = load_icons(families)
    drawn = list(render_all(icons, views=1, seed=0))
    pictures = np.stack([images[0] for _, images in drawn])
    found = digest_arrays(images=pictures)
    if expected is not None and found != expected:
        raise BenchError(
            f"the drawings have digest {found[:12]}..., the base was trained on {expected[:12]}...: "
            "another version of the packages or of resvg. Use those of the base's manifest."
        )
    return pictures, [icons[index] for index, _ in drawn]


def make_fingerprints(families: Path, base: Path) -> Iterator[str]:
    """Draw the collection, write its fingerprints beside a base, and yield what was found."""
    manifest = read_json(base / "manifest.json")
    pictures, icons = collect(families, expected=manifest["collection"]["digest"])
    names = [f"{icon.style}: {icon.caption}" for icon in icons]
    yield from write_fingerprints(base, pictures=pictures, names=names)


def write_fingerprints(base: Path, *, pictures: np.ndarray, names: Sequence[str]) -> Iterator[str]:
    """Write the fingerprints of the drawings [N,64,64,3] uint8 of a base; yield what was found.

    The figures compare the drawings themselves, so they also say what the short codes overlook.
    """
    collection, digest = read_json(base / "manifest.json")["collection"], find_snapshot(base).digest
    facts: dict[str, Any] = {
        "about": f"{len(names)} drawings of {len(collection['families'])} icon families",
        "licence": LICENCE,
        "sources": collection["families"],
        "also_seen": "the autoencoder has seen the train side of openmoji64 too; every run compares "
        "its evaluation items with that side",
        "builder": "bench.emoji.fingerprints",
        "collection_digest": collection["digest"],
    }
    path = write_seen(base, base=digest, pictures=pictures, names=names, facts=facts)
    yield f"wrote {path}: {len(names)} drawings, {path.stat().st_size / 1000:.0f} kB"
    yield from _evidence(base, digest, pictures, names)


def _evidence(base: Path, digest: str, pictures: np.ndarray, names: Sequence[str]) -> Iterator[str]:
    """Say how near the test side comes, by the pictures and by their codes."""
    data, splits = OpenMoji64(), openmoji64_splits()
    images = data.images[data.rows(splits.test)]
    seen = load_seen(base, base=digest)
    assert not isinstance(seen, str), seen
    bits = near_codes(seen, images)
    found = [(float(v), int(i), int(j)) for i, j, v in zip(*alike(pictures, images), strict=True)]
    yield f"pairs with the test side of likeness above {FLOOR}: {len(found)}; the nearest:"
    for value, i, j in sorted(found, reverse=True)[:_SHOWN]:
        item = splits.test[j]
        code = bits.get((i, j), f"over {NEAR_BITS}")
        yield f"  {value:.4f}, {code} bits: {names[i]} = {item} ({data[item].caption})"
    yield f"pairs of at most {NEAR_BITS} bits: {len(bits)}; the nearest:"
    for (i, j), count in sorted(bits.items(), key=lambda pair: pair[1])[:_SHOWN]:
        yield f"  {count} bits: {names[i]} = {splits.test[j]} ({data[splits.test[j]].caption})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and make the file."""
    import sys

    parser = argparse.ArgumentParser(prog="bench.emoji.fingerprints", description=__doc__)
    parser.add_argument("--families", type=Path, required=True, help="the unpacked icon packages")
    parser.add_argument("--base", type=Path, default=ASSETS / "emoji-sd-v1", help="a base's folder")
    options = parser.parse_args(arguments)
    try:
        for line in make_fingerprints(options.families, options.base):
            sys.stdout.write(line + "\n")
    except BenchError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
