"""Fixes the sides of OpenMoji64: variants of one concept and near-identical drawings stay together.

Items are joined if they share a normalised concept, a base emoji, or look alike;
then each group is hashed to a side. Groups of more than 8 items (clocks, hearts, families) stay
in train, so that no single concept dominates the evaluation. Likeness here is the cosine of blurred
sketches and the correlation of 16x16 thumbnails, with mirrored ones: fixed, as the sides are; the
leak check (bench.data.leaks) has measures of its own, which find moved twins too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from bench.content import sha256_bytes
from bench.data.leaks import Fingerprints, fingerprint
from bench.data.splits import item_digest, splits_json
from bench.types import Example

SEED = "bps-bench openmoji64 splits 1"
TEST_FRACTION = 0.26
VAL_FRACTION = 0.10
LARGEST_EVALUATION_GROUP = 8
SKETCH_JOIN = 0.94
IMAGE_JOIN = 0.985

_STRIPPED = set(
    """a an the of in on at with and or to person people man men woman women male female boy girl
    child adult older old deep bald blond hair beard skin tone light medium dark red orange yellow
    green blue purple brown black white grey gray pink golden facing turned
    left right up down upwards downwards upward downward leftwards rightwards upper lower
    clockwise counterclockwise anticlockwise vertical horizontal tilted north south east west
    northeast northwest southeast southwest up-down left-right small large big medium-small
    medium-large low high""".split()
)
_COLLAPSED_SUBGROUPS = set(
    """alphanum arrow av-symbol cat-face family geometric keycap monkey-face person-symbol
    religion zodiac""".split()
)
_PATTERNS: tuple[tuple[str, str], ...] = (
    (r"\bstencil\b", "all geometric"),
    (r"^(no|non-potable|prohibited)\b", "prohibition sign"),
    (r"^warning\b", "warning sign"),
    (r"o.clock|-thirty|\bclock\b", "clock face"),
    (r"\bmoon\b", "moon"),
    (r"^(couple|family|kiss)\b", "family"),
    (r"\b(men|women|people|man|woman) (holding hands|wrestling|with bunny ears)\b", "two people"),
    (r"\b(person|man|woman) (frowning|pouting|with crown|with medical mask|vampire)\b", "person"),
    (r"\b(worker|explorer) (man|woman)\b|\bstanding\b", "standing person"),
    (r"\b(doctor|nurse|health worker)\b", "nurse"),
    (r"\b(police officer|pilot)\b|passport control|customs", "officer"),
    (r"\b(car|automobile|taxi)\b", "car"),
    (r"\b(cityscape|sunset|night with stars)\b", "cityscape"),
    (r"\bevacuate\b|emergency exit", "evacuate"),
    (r"\b(locked|unlocked)\b", "lock"),
    (r"\b(inbox|outbox)\b", "tray"),
    (r"\b(men.s|women.s) room\b|\brestroom\b", "restroom"),
    (r"\b(mushroom|champignon)\b", "mushroom"),
    (r"\b(note)?book\b", "book"),
    (r"\b(dolphin|porpoise|beluga)\b", "dolphin"),
    (r"\b(e-mail|envelope)\b", "envelope"),
    (r"\bmobile (phones?|info|message)\b", "mobile phone"),
    (r"\b(tokyo|eiffel) tower\b", "tower"),
    (r"\bspeech (bubble|balloon)\b", "speech bubble"),
    (r"\b(electric|charge) plug\b", "plug"),
    (r"\bmusical notes?\b", "musical note"),
    (r"\b(folded|clapping) hands\b|\bpalms up\b", "hands together"),
    (r"\b(spade|club|heart|diamond) suit", "card suit"),
    (r"\bsolar (cell|energy)\b", "solar cell"),
    (r"\bhearts?\b", "heart"),
    (r"\b(grinning|beaming)\b.*\bface\b", "grinning face"),
    (r"\b(parrot|macaw)\b", "parrot"),
    (r"\b(broom|kehrwoche)\b", "broom"),
    (r"\b(derelict house|house)$", "house"),
    (r"^(superhero|supervillain|(wo)?man super(hero|villain))$", "superhero"),
    (r"^(copyright|registered)$", "letter in circle"),
)
_SHARED_WORDS = [
    name.strip()
    for name in """banknote, bell, calendar, camera, chart, cloud, curly loop, file folder, first aid, fist,
    floating ice, fork and knife, gloves, hourglass, ice shelf, index pointing, magnifying glass,
    mailbox, name badge, nuclear power plant, orca, picture, place medal, snowman, speaker, tsunami,
    umbrella, volcano, wheelchair""".split(",")
]
_PERSON = set("1F468 1F469 1F9D1 1F466 1F467 1F474 1F475 1F9D3".split())
_NEUTRAL = set(
    """200D FE0F FE0E 2640 2642 27A1 1F9B0 1F9B1 1F9B2 1F9B3 1F3FB 1F3FC 1F3FD 1F3FE 1F3FF""".split()
)


def concept(annotation: str, subgroup: str) -> str:
    """Normalise an annotation to a concept: variants of gender, hair, direction, colour agree."""
    if subgroup in _COLLAPSED_SUBGROUPS:
        return f"all {subgroup}"
    text = annotation.lower()
    for pattern, name in _PATTERNS:
        if re.search(pattern, text):
            return name
    for name in _SHARED_WORDS:
        if re.search(rf"\b{name}\b", text):
            return name
    words = [word for word in re.findall(r"[^\s:,()]+", text) if word not in _STRIPPED]
    return " ".join(words) or "person"


def base_emoji(hexcode: str) -> str:
    """Return what an emoji sequence is about: its first code point, or what a person is or does.

    1F468-200D-1F680 (man astronaut) and 1F9D1-200D-1F680 (astronaut) agree; so do 1F3C3 (runner)
    and 1F3C3-200D-2642-FE0F. A person alone, with any hair, is "person".
    """
    codes = [c for c in hexcode.split("-") if c not in _NEUTRAL]
    if not codes:
        return hexcode
    if codes[0] not in _PERSON:
        return codes[0]
    rest = [code for code in codes if code not in _PERSON]
    return "person " + "-".join(rest) if rest else "person"


def group_items(prints: Fingerprints, annotations: Sequence[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """Join items into groups: id of the first member -> sorted ids of all members.

    annotations: (annotation, subgroup) of each item, in the order of the fingerprints.
    """
    links = np.array([*_named_alike(prints.ids, annotations), *looking_alike(prints)])
    shape = (len(prints.ids),) * 2
    graph = coo_array((np.ones(len(links), bool), (links[:, 0], links[:, 1])), shape=shape)
    _, groups = connected_components(graph, directed=False)
    members: dict[int, list[str]] = {}
    for item, group in zip(prints.ids, groups.tolist(), strict=True):
        members.setdefault(group, []).append(item)
    return {min(group): tuple(sorted(group)) for group in members.values()}


def _named_alike(ids: Sequence[str], annotations: Sequence[tuple[str, str]]) -> Iterator[tuple[int, int]]:
    """Yield every item with the first of its concept, and with the first of its base emoji, by rows."""
    first: dict[tuple[str, str], int] = {}
    for i, (item, note) in enumerate(zip(ids, annotations, strict=True)):
        for key in (("concept", concept(*note)), ("base", base_emoji(item))):
            yield i, first.setdefault(key, i)


def looking_alike(prints: Fingerprints) -> Iterator[tuple[int, int]]:
    """Yield pairs of rows whose sketches or pictures are alike, one of them mirrored or not."""
    assert prints.lines is not None and prints.small is not None
    for pictures, describe, limit in (
        (prints.lines, _line_vector, SKETCH_JOIN),
        (prints.small, _thumb_vector, IMAGE_JOIN),
    ):
        plain = _vectors(pictures, describe)
        for other in (plain, _vectors(pictures[:, :, ::-1], describe)):
            for i, j in zip(*np.nonzero(plain @ other.T > limit), strict=True):
                yield int(i), int(j)


def _vectors(pictures: np.ndarray, describe: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return unit vectors [N,D] float32 of pictures [N,64,64(,3)] uint8."""
    rows = [describe(np.ascontiguousarray(p)).reshape(-1).astype(np.float32) for p in pictures]
    return np.stack([row / max(float(np.linalg.norm(row)), 1e-6) for row in rows])


def _thumb_vector(image: np.ndarray) -> np.ndarray:
    small = Image.fromarray(image).resize((16, 16), Image.Resampling.BOX)
    thumb = np.asarray(small, dtype=np.float32)
    return thumb - thumb.mean()


def _line_vector(lines: np.ndarray) -> np.ndarray:
    return np.asarray(ndimage.uniform_filter(lines.astype(np.float32), 3, mode="constant"))


def side_of(group: str, size: int) -> str:
    """Hash a group's name to train, val or test; a large group always goes to train."""
    if size > LARGEST_EVALUATION_GROUP:
        return "train"
    draw = int(sha256_bytes(f"{SEED}/{group}".encode())[:16], 16) / 16**16
    if draw < TEST_FRACTION:
        return "test"
    return "val" if draw < TEST_FRACTION + VAL_FRACTION else "train"


def make_splits(arrays: Mapping[str, np.ndarray], annotations: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Make the value of the splits file from the data arrays; see bench.data.splits."""
    offsets = arrays["box_offsets"]
    examples = [
        Example(
            id=str(item),
            caption=str(arrays["captions"][i]),
            image=arrays["images"][i],
            layers={
                "sketch": arrays["sketches"][i],
                "classes": arrays["classes"][i],
                "boxes": arrays["boxes"][offsets[i] : offsets[i + 1]],
            },
        )
        for i, item in enumerate(arrays["ids"])
    ]
    groups = group_items(fingerprint(examples), annotations)
    group_of = {item: group for group, items in groups.items() for item in items}
    sides: dict[str, dict[str, str]] = {"train": {}, "val": {}, "test": {}}
    for example in examples:
        group = group_of[example.id]
        sides[side_of(group, len(groups[group]))][example.id] = item_digest(example)
    rule = {
        "seed": SEED,
        "test_fraction": TEST_FRACTION,
        "val_fraction": VAL_FRACTION,
        "sketch_join": SKETCH_JOIN,
        "image_join": IMAGE_JOIN,
        "largest_evaluation_group": LARGEST_EVALUATION_GROUP,
    }
    return splits_json("openmoji64", sides, groups=group_of, rule=rule)
