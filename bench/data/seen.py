"""Fingerprints of what a base was pretrained on, small enough to lie beside it, and the check by them.

The pictures themselves may be many and elsewhere; of each drawing there is kept
    digest  the first 48 bits of the SHA-256 of its pixels: exact twins
    code    192 signs of random projections of its likeness vector (SimHash: Charikar 2002, "Similarity
            estimation techniques from rounding algorithms"): the share of differing bits is the angle
            between two vectors over pi, so near twins are found, moved and mirrored ones too
    name    what it shows, and its family
LIMIT_BITS is what the image limit, 0.97, is expected to give: 192 arccos(0.97) / pi
= 15. Measured with the 15,951 drawings of emoji-sd-v1 and the 363 test items of openmoji64: of all
pairs, over 50 views each, the nearest differ in 19 bits (a radio button and a pool ball; val items: 18,
exclamation marks); a test item and its disguised copy differ in at most 13 (JPEG 50), 14 (brighter by
20 of 255), 2 (darker by 10%) and
20 bits (brighter by 15%, whites clipped: 1 in 100 above 15). Moved and mirrored copies: none.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.content import Cache, check_array, read_json, read_npz, sha256_file, write_json, write_npz
from bench.data.leaks import (
    NEAREST,
    Checked,
    Finding,
    Fingerprints,
    Near,
    cached,
    how_many,
    some,
    tell,
)
from bench.data.likeness import middle, views
from bench.types import BenchError

ARRAYS, MANIFEST = "pretraining.npz", "pretraining.json"
BITS = 192
LIMIT_BITS = 15
NEAR_BITS = 24  # pairs farther apart than this are of no interest
SCHEMA = 1
_DIGEST_BYTES = 6
_STYLE = re.compile(r", [\w-]+ style$")
BETWEEN = "pretraining and evaluation"
SAME_NAME = "same name"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The drawings that a base has seen in pretraining, N in one order.

    base: digest of the base they belong to. about: what they are, in words. names: "family: what it
    shows". digests [N,6], codes [N,24] uint8. sha256: of the file.
    """

    base: str
    about: str
    names: tuple[str, ...]
    digests: np.ndarray
    codes: np.ndarray
    sha256: str


def load_seen(folder: Path, *, base: str) -> Seen | str:
    """Read the fingerprints beside a base; where there are none for it, return why, in words.

    base: digest of the base. Fingerprints of another base are not taken. BenchError where the file is
    damaged.
    """
    path = folder / MANIFEST
    if not path.exists():
        return f"the base {folder.name} brings no fingerprints of its pretraining data"
    manifest = read_json(path)
    try:
        if manifest["base"] != base:
            return f"the fingerprints beside {folder.name} were made for another base"
        arrays = read_npz(folder / ARRAYS, sha256=str(manifest["sha256"]))
        seen = Seen(
            base=base,
            about=str(manifest["about"]),
            sha256=str(manifest["sha256"]),
            names=tuple(bytes(arrays["names"]).decode().split("\n")),
            digests=arrays["digests"],
            codes=np.ascontiguousarray(arrays["codes"]),
        )
        rows = {len(seen.names), len(seen.digests), len(seen.codes), int(manifest["drawings"])}
        check_array(seen.codes, "'codes'", dtype=np.uint8, shape=(None, BITS // 8))
        check_array(seen.digests, "'digests'", dtype=np.uint8, shape=(None, _DIGEST_BYTES))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BenchError(
            f"{path} does not describe fingerprints ({error}). Restore it, or remove it and "
            f"{ARRAYS}: the record then says that pretraining is unknown."
        ) from error
    if len(rows) > 1:
        raise BenchError(f"{folder / ARRAYS} holds arrays of different lengths. Restore it.")
    return seen


def write_seen(
    folder: Path, *, base: str, pictures: np.ndarray, names: Sequence[str], facts: Mapping[str, Any]
) -> Path:
    """Write the fingerprints of pictures [N,64,64,3] uint8 beside a base; return the archive's path.

    names: "family: what it shows". facts: what the manifest says beside: about, sources, licence.
    """
    arrays = {
        "digests": np.stack([_digest(picture) for picture in pictures]),
        "codes": codes_of(pictures),
        "names": np.frombuffer("\n".join(names).encode(), np.uint8),
    }
    write_npz(folder / ARRAYS, arrays, compress=True)
    value = {**facts, "schema": SCHEMA, "base": base, "drawings": len(names), "bits": BITS}
    write_json(folder / MANIFEST, {**value, "sha256": sha256_file(folder / ARRAYS)})
    return folder / ARRAYS


def codes_of(pictures: np.ndarray) -> np.ndarray:
    """Return the codes of pictures [N,64,64,3] uint8, [N,24] uint8."""
    if not len(pictures):
        return np.zeros((0, BITS // 8), np.uint8)
    return np.packbits(_signs(middle(pictures)) > 0, axis=1)


def compare_seen(seen: Seen, evaluation: Fingerprints, *, cache: Cache | None = None) -> Checked:
    """Find evaluation items that pretraining has seen: exact and near twins are leaks.

    A drawing of the same name in another style is told, and is no leak: what a thing looks like in
    general is what a prior is for. cache: where the answer for the same contents is kept.
    """
    if cache is None:
        return _compare(seen, evaluation)
    key = {
        "kind": "seen",
        "schema": SCHEMA,
        "limit": LIMIT_BITS,
        "seen": seen.sha256,
        "evaluation": evaluation.digest,
    }
    return cached(cache, key, lambda: _compare(seen, evaluation))


def expected_likeness(bits: float) -> float:
    """Return the likeness of two pictures whose codes differ in so many bits, as expected."""
    return math.cos(math.pi * bits / BITS)


def code_limits() -> dict[str, float]:
    """Return the likeness above which codes are expected to call two pictures one, by measure."""
    return {"image": round(expected_likeness(LIMIT_BITS + 1), 4)}


def plain_name(caption: str) -> str:
    """Return what a caption shows: without its style, in small letters, words alone."""
    text = _STYLE.sub("", caption.split(": ", 1)[-1].lower())
    return " ".join(re.findall(r"[a-z0-9]+", text))


def near_codes(seen: Seen, pictures: np.ndarray) -> dict[tuple[int, int], int]:
    """Return in how few bits codes differ over moved and mirrored views: (drawing, picture) -> bits.

    pictures: [M,64,64,3] uint8. Holds every pair of at most NEAR_BITS bits: most others are dismissed by
    the first 64 bits alone.
    """
    own = seen.codes.view(np.uint64)
    word = np.ascontiguousarray(own[:, 0])
    best: dict[tuple[int, int], int] = {}
    for view in views(pictures):
        other = np.packbits(_signs(view) > 0, axis=1).view(np.uint64)
        for row, code in enumerate(other):
            close = np.bitwise_count(word ^ code[0]) <= NEAR_BITS
            rows = np.flatnonzero(close)
            bits = np.bitwise_count(own[rows] ^ code).sum(axis=1)
            for drawing, count in zip(rows[bits <= NEAR_BITS], bits[bits <= NEAR_BITS], strict=True):
                place = (int(drawing), row)
                best[place] = min(int(count), best.get(place, BITS))
    return best


def _compare(seen: Seen, evaluation: Fingerprints) -> Checked:
    found = near_codes(seen, evaluation.small) if len(evaluation.ids) else {}
    near = [(seen.names[i], evaluation.ids[j]) for (i, j), bits in found.items() if bits <= LIMIT_BITS]
    findings = tell(
        [
            ("same image", "exactly the same image", _same(seen, evaluation)),
            ("near-duplicate image", "nearly the same image", near),
        ],
        BETWEEN,
    )
    passed = sorted((bits, place) for place, bits in found.items() if bits > LIMIT_BITS)
    nearest = [
        Near(
            measure="image",
            first=seen.names[i],
            second=evaluation.ids[j],
            likeness=round(expected_likeness(bits), 4),
        )
        for bits, (i, j) in passed[:NEAREST]
    ]
    return Checked(findings=(*findings, *_same_names(seen, evaluation)), nearest=tuple(nearest))


def _same(seen: Seen, evaluation: Fingerprints) -> Iterator[tuple[str, str]]:
    where: dict[bytes, list[int]] = {}
    for row, digest in enumerate(seen.digests):
        where.setdefault(bytes(digest), []).append(row)
    for item, digest in zip(evaluation.ids, evaluation.images, strict=True):
        for row in where.get(bytes.fromhex(digest)[:_DIGEST_BYTES], ()):
            yield seen.names[row], item


def _same_names(seen: Seen, evaluation: Fingerprints) -> list[Finding]:
    known: dict[str, str] = {}
    for name in seen.names:
        known.setdefault(plain_name(name), name)
    pairs = tuple(
        (known[plain_name(caption)], item)
        for item, caption in zip(evaluation.ids, evaluation.captions, strict=True)
        if plain_name(caption) in known
    )
    if not pairs:
        return []
    message = (
        f"{how_many(len(pairs), 'evaluation item')} of {len(evaluation.ids)} are drawn in "
        "pretraining under the same name by another hand, which is allowed: "
        f"{some([f'{a} = {b}' for a, b in pairs])}."
    )
    return [Finding(kind=SAME_NAME, message=message, pairs=pairs, leak=False)]


def _digest(picture: np.ndarray) -> np.ndarray:
    from bench.content import digest_arrays

    found = bytes.fromhex(digest_arrays(image=picture))[:_DIGEST_BYTES]
    return np.frombuffer(found, np.uint8)


def _signs(vectors: np.ndarray) -> np.ndarray:
    """Return the signs of the projections, +1 or -1: [N,D] -> [N,BITS] float32."""
    return np.where(vectors @ _projections(vectors.shape[1]) > 0, 1.0, -1.0).astype(np.float32)


def _projections(width: int) -> np.ndarray:
    """Return +1 or -1, [width,BITS] float32, drawn from SHAKE-256: the same on every machine."""
    drawn = hashlib.shake_256(b"bps-bench pretraining codes 1").digest(width * BITS // 8)
    bits = np.unpackbits(np.frombuffer(drawn, np.uint8)).reshape(width, BITS)
    return bits.astype(np.float32) * 2 - 1
