"""What of one side is on another: ids, exact contents, near-duplicates. Any data set can use it.

Of every item there is kept what its data set can afford: digests of its contents, a small picture, or a code,
192 signs of random projections of its likeness vector (SimHash: Charikar 2002, "Similarity estimation
techniques from rounding algorithms"). The share of differing bits is the angle between two vectors over pi,
so codes find near twins, moved and mirrored ones too; where the pictures can be had, the few pairs that codes
do not dismiss are compared by them. Two pictures whose likeness (bench.data.likeness) is above LIMITS are
one; docs/trust.md says what these rest on.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import TypedDict

from bench import content
from bench import record as records
from bench.content import Cache, Text, Whole, digest_arrays, digest_json, read_json, sha256_file, validated
from bench.data import in_processes
from bench.data.likeness import GRID, alike, likeness, middle, shrink, views
from bench.data.splits import SIDES, Splits, item_digest, side_digest
from bench.types import BenchError, Dataset, Example, Hooks, how_many, some

LIMITS: Mapping[str, float] = {"image": 0.97, "sketch": 0.95}
NEAREST = 5
BITS = 192
NEAR_BITS = 24  # pairs farther apart than this are of no interest
ARRAYS, MANIFEST = "pretraining.npz", "pretraining.json"
SCHEMA = 1  # of these files
PRETRAINING = "pretraining and evaluation"
SAME_NAME = "same name"
_VERSION = 2  # raise it when a comparison may come out otherwise: cached ones are then made anew
_CHUNK = 256  # items that are read, or pictures that are held, at once
_DIGITS = 12  # of a drawing's digest that are kept beside a base
_STYLE = re.compile(r", [\w-]+ style$")

Pair = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing wrong with a split: its kind, a sentence for people, and the items.

    pairs: (id on the first side, id on the second side), or (id, id) where one item is meant.
    leak: whether it lets evaluation see training content (else the data differ from the record).
    """

    kind: str
    message: str
    pairs: tuple[Pair, ...] = ()
    leak: bool = True


@dataclass(frozen=True, kw_only=True)
class Near:
    """A pair of items that are alike, but not above the limit; measure: "image" or "sketch"."""

    measure: str
    first: str
    second: str
    likeness: float


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What a comparison of two sides found, the nearest pairs that passed, and its limits, by measure."""

    findings: tuple[Finding, ...]
    nearest: tuple[Near, ...]
    limits: dict[str, float]

    @property
    def closest(self) -> dict[str, float]:
        """The highest likeness that passed, by measure."""
        return {n.measure: n.likeness for n in reversed(self.nearest)}


@dataclass(frozen=True, kw_only=True)
class Fingerprints:
    """What the leak check knows of N items, in one order; None: not kept.

    images, sketches: exact digests. small [N,64,64,3], lines [N,64,64] uint8. codes [N,24] uint8.
    pictures: ids -> small pictures [P,64,64,3] uint8, for who does not hold them. about: what they are,
    in words. drawings: whether they are drawings that a base has seen: ids are then names, "family: what
    it shows", of which several may be the same, and the digests are cut.
    """

    ids: tuple[str, ...]
    captions: tuple[str, ...]
    images: tuple[str, ...]
    small: np.ndarray | None = None
    sketches: tuple[str, ...] | None = None
    lines: np.ndarray | None = None
    codes: np.ndarray | None = None
    pictures: Callable[[Sequence[str]], np.ndarray] | None = None
    about: str = ""
    drawings: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides what a comparison finds: small pictures follow from the images."""
        codes = {} if self.codes is None else {"codes": digest_arrays(codes=self.codes)}
        held = (self.small is not None, self.pictures is not None, self.drawings)
        known = {"ids": self.ids, "captions": self.captions, "images": self.images}
        return digest_json({**known, "sketches": self.sketches, "held": held, **codes})

    def all_pictures(self) -> np.ndarray:
        """Return the small pictures of all items, [N,64,64,3] uint8."""
        if self.small is not None:
            return self.small
        assert self.pictures is not None, "these fingerprints have no pictures"
        return self.pictures(self.ids)


def fingerprints_of(dataset: Dataset, ids: Sequence[str]) -> Fingerprints:
    """Return the fingerprints of items: by the data set's `fingerprints(ids)` if it has it, else made."""
    kept = getattr(dataset, "fingerprints", None)
    return kept(ids) if kept else fingerprint(dataset[item] for item in ids)


def digests_of(dataset: Dataset, ids: Sequence[str]) -> dict[str, str]:
    """Return the digests of items: by the data set's `item_digests(ids)` if it has it, else taken."""
    kept = getattr(dataset, "item_digests", None)
    return kept(ids) if kept else {item: item_digest(dataset[item]) for item in ids}


def fingerprint(items: Iterable[Example]) -> Fingerprints:
    """Take the fingerprints of items, one at a time; sketches count where all items have that layer."""
    kept = []
    for item in items:
        drawn = item.layers.get("sketch")
        sketch = (None, None) if drawn is None else (digest_arrays(sketch=drawn), shrink(drawn))
        kept.append((item.id, item.caption, digest_arrays(image=item.image), shrink(item.image), *sketch))
    columns: Iterable[Any] = zip(*kept, strict=True) if kept else [()] * 6
    ids, captions, images, small, sketches, lines = columns
    have = None not in sketches
    return Fingerprints(
        ids=ids,
        captions=captions,
        images=images,
        small=np.array(small, np.uint8).reshape(-1, GRID, GRID, 3),
        sketches=sketches if have else None,
        lines=np.array(lines, np.uint8).reshape(-1, GRID, GRID) if have else None,
    )


def compare(
    first: Fingerprints,
    second: Fingerprints,
    *,
    between: str = "train and evaluation",
    cache: Cache | None = None,
) -> Checked:
    """Find what of the first side is on the second: ids, exact contents, near-duplicates.

    A pair is told once, under the strongest kind: the same id, image, sketch, then likeness. Of drawings
    that a base has seen, those of the same name in another style are told too, and are no leak: what a
    thing looks like in general is what a prior is for. cache: where the answer for the same contents is
    kept.
    """
    if cache is None:
        return _compare(first, second, between)
    key = {"kind": "leaks", "version": _VERSION, "limits": dict(LIMITS), "between": between}
    key |= {"first": first.digest, "second": second.digest}

    def make() -> dict[str, np.ndarray]:
        return {"checked": np.array(json.dumps(asdict(_compare(first, second, between))))}

    text = str(cache.load_or_make(key, make)["checked"])
    checked: Checked = validated(json.loads(text), Checked, "the cache", remedy="Clear it.")
    return checked


def overlap(findings: Iterable[Finding]) -> int:
    """Count the evaluation items that any leak touches, each once."""
    return len({second for finding in findings if finding.leak for _, second in finding.pairs})


def verify(
    dataset: Dataset, splits: Splits, *, cache: Cache | None = None, jobs: int = 1, hooks: Hooks | None = None
) -> list[Finding]:
    """Check a data set against its committed splits; an empty list means all is well.

    Looks for ids on two sides, ids missing from or unknown to the splits, contents and side
    digests that differ from the committed ones, groups that straddle sides, and leaks of train
    into val and test and of val into test. cache: where comparisons of equal contents are kept. jobs:
    processes that read the items.
    """
    known, placed = set(dataset.ids), {item for side in SIDES for item in splits.side(side)}
    changed = _changed(dataset, {i: d for i, d in splits.items.items() if i in known}, jobs, hooks or Hooks())
    findings: list[Finding] = []
    for kind, words, ids in (
        ("missing id", "in the splits but not in the data", sorted(placed - known)),
        ("extra id", "in the data but on no side", sorted(known - placed)),
        ("changed item", "with another content than the committed digest", changed),
    ):
        message, pairs = f"{how_many(len(ids), 'item')} {words}: {some(ids)}.", tuple((i, i) for i in ids)
        findings += [Finding(kind=kind, message=message, pairs=pairs, leak=False)] if ids else []
    home: dict[str, Pair] = {}
    straddling: list[Pair] = []
    for side in SIDES:
        if side_digest({i: splits.items.get(i, "") for i in splits.side(side)}) != splits.digests[side]:
            message = f"the ids of {side} are not those its committed digest was made from."
            findings.append(Finding(kind="changed side", message=message, leak=False))
        for item in (item for item in splits.side(side) if item in splits.groups):
            where, twin = home.setdefault(splits.groups[item], (side, item))
            straddling += [(twin, item)] if where != side else []
    findings += _tell([("split group", "a concept group", straddling)], "two sides")
    prints = {s: fingerprints_of(dataset, [i for i in splits.side(s) if i in known]) for s in SIDES}
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        between = f"{first} and {second}"
        findings += compare(prints[first], prints[second], between=between, cache=cache).findings
    return findings


@dataclass(frozen=True, kw_only=True)
class Look:
    """A comparison of evaluation items with what was seen, in words; checked: None where that is unknown."""

    title: str
    about: str
    checked: Checked | None


def look(
    dataset: Dataset,
    train: Sequence[str],
    evaluation: Sequence[str],
    *,
    side: str,
    seen: Fingerprints | str,
    cache: Cache | None = None,
) -> list[Look]:
    """Compare items of a side with training and with pretraining; seen: see `load_seen`."""
    own, items = fingerprints_of(dataset, evaluation), f"{len(evaluation)} {side} items with"
    checked = compare(fingerprints_of(dataset, train), own, between=f"train and {side}", cache=cache)
    about, before = (seen, None) if isinstance(seen, str) else (seen.about, seen)
    pretrained = compare(before, own, between=PRETRAINING, cache=cache) if before else None
    return [
        Look(title=f"{items} training", about=f"{len(train)} training items", checked=checked),
        Look(title=f"{items} pretraining", about=about, checked=pretrained),
    ]


def check_sides(
    dataset: Dataset,
    splits: Splits,
    *,
    train: Sequence[str],
    evaluation: Sequence[str],
    side: str,
    seen: Fingerprints | str,
    allow_leak: bool = False,
    cache: Cache | None = None,
) -> tuple[records.Splits, records.Leaks]:
    """Describe the two sides of a run after checking contents and leaks, also from pretraining.

    seen: fingerprints of the base's pretraining data, or why there are none. allow_leak: go on where
    evaluation items were seen; the record then says so. cache: where comparisons are kept. Raises
    BenchError when an item's content is not what the committed splits promise, and for a leak.
    """
    if not evaluation:
        raise BenchError(f"{dataset.name} has no items on its side '{side}'. Choose another --side.")
    whole = len(splits.side("train"))  # a run may train on a part; its reference row is of all
    if whole < len(evaluation):
        has = f"{dataset.name} has {whole} training and {len(evaluation)} evaluation items"
        why = "the row of real training images needs as many of them"
        raise BenchError(f"{has}; {why}. Bring more, or choose a smaller --budget.")
    infos = []
    for name, ids in (("train", train), (side, evaluation)):
        found = digests_of(dataset, ids)
        changed = [i for i, digest in found.items() if splits.items.get(i) != digest]
        if changed:
            items = f"{len(changed)} items of {name} ({', '.join(changed[:3])} ...)"
            raise BenchError(f"{items} are not those of the committed splits. Run `bench data verify`.")
        infos.append(records.SplitInfo(name=name, n=len(ids), digest=side_digest(found)))
    looks = look(dataset, train, evaluation, side="evaluation", seen=seen, cache=cache)
    findings = [f for look in looks if look.checked is not None for f in look.checked.findings]
    training, pretraining = map(_leak_check, looks)
    leaks = records.Leaks(items=overlap(findings), training=training, pretraining=pretraining)
    if leaks.items and not allow_leak:
        told = "\n".join(f"  {f.kind}: {f.message}" for f in findings if f.leak)
        raise BenchError(
            f"LEAK: {how_many(leaks.items, 'evaluation item')} already seen in training or pretraining; "
            f"scores on them say nothing of new pictures.\n{told}\nSee `bench audit`. Take these items "
            "from one of the sides, or go on with --allow-leak: record, tables and figures are then marked."
        )
    return records.Splits(train=infos[0], eval=infos[1], overlap=leaks.training.items or 0), leaks


def _leak_check(look: Look) -> records.LeakCheck:
    if look.checked is None:
        return _unknown(look.about)
    items = overlap(look.checked.findings)
    return records.LeakCheck(
        status="leak" if items else "clean",
        about=look.about,
        items=items,
        findings=[f.message for f in look.checked.findings],
        limits=look.checked.limits,
        nearest=look.checked.closest,
    )


def known_leaks(leaks: records.Leaks, outside: records.Outside | None) -> records.Leaks:
    """Return what is known of leaks once weights came from outside: their training data are unknown.

    A leak that was found stays one where the run trained on. A UNet that came along replaces the
    base's, so that nothing is known of its pretraining either.
    """
    if outside is None:
        return leaks
    about = f"what {outside.name} was trained on is unknown"
    training, pretraining = leaks.training, leaks.pretraining
    if not outside.train_images:
        training = _unknown(about)
    elif training.status == "leak":
        training = replace(training, about=f"{training.about}; {about}")
    else:
        about += f"; {training.status} among {training.about}"
        training = replace(_unknown(about), findings=list(training.findings))
    if outside.facts.get("unet", "").startswith("came with"):
        pretraining = _unknown(f"the UNet of {outside.name} was trained on unknown data")
    kept = [check.items or 0 for check in (training, pretraining)]
    items = leaks.items if all(kept) else max(kept)
    return records.Leaks(items=items, training=training, pretraining=pretraining)


def _unknown(about: str) -> records.LeakCheck:
    return records.LeakCheck(status="unknown", about=about, items=None, findings=[], limits={}, nearest={})


class _Seen(TypedDict):
    base: Text
    sha256: Text
    drawings: Whole
    about: Text


def load_seen(folder: Path, *, base: str) -> Fingerprints | str:
    """Read what a base (its digest) has seen in pretraining from beside it; else why not, in words."""
    path = folder / MANIFEST
    if not path.exists():
        return f"the base {folder.name} brings no fingerprints of its pretraining data"
    remedy = f"Restore it, or remove it and {ARRAYS}: the record then says that pretraining is unknown."
    seen: _Seen = read_json(path, of=_Seen, remedy=remedy)
    if seen["base"] != base:
        return f"the fingerprints beside {folder.name} were made for another base"
    arrays, count = content.read_npz(folder / ARRAYS, sha256=seen["sha256"]), seen["drawings"]
    kinds = KeyError, TypeError, ValueError
    with content.refusing(lambda why: f"{path} does not describe fingerprints ({why}). {remedy}", *kinds):
        names = tuple(bytes(arrays["names"]).decode().split("\n"))
        if len(names) != count:
            raise ValueError(f"{len(names)} names of {count} drawings")
        content.check_array(arrays["codes"], "'codes'", dtype=np.uint8, shape=(count, BITS // 8))
        content.check_array(arrays["digests"], "'digests'", dtype=np.uint8, shape=(count, _DIGITS // 2))
    return Fingerprints(
        ids=names,
        captions=names,
        images=tuple(digest.tobytes().hex() for digest in arrays["digests"]),
        codes=np.ascontiguousarray(arrays["codes"]),
        about=seen["about"],
        drawings=True,
    )


def caption_of(name: str) -> str:
    """Return the caption under which a base saw a drawing "family: what it shows"."""
    style, _, shown = name.partition(": ")
    return f"{shown}, {style} style"


def name_of(caption: str, family: str) -> str:
    """Return the name of a drawing under a caption, "family: what it shows"; the caption's style is one."""
    style = _STYLE.search(caption)
    return f"{style[0][2:-6]}: {caption[: style.start()]}" if style else f"{family}: {caption}"


def write_seen(
    folder: Path,
    *,
    base: str,
    pictures: np.ndarray,
    names: Sequence[str],
    facts: Mapping[str, Any],
    before: Fingerprints | None = None,
) -> None:
    """Write the fingerprints of pictures [N,64,64,3] uint8 beside a base.

    names: "family: what it shows". facts: what the manifest says beside: about, sources, licence. before:
    what it has seen earlier, written along.
    """
    digests = [digest_arrays(image=picture)[:_DIGITS] for picture in pictures]
    codes = codes_of(pictures)
    if before is not None and before.codes is not None:
        digests, names = [*before.images, *digests], [*before.ids, *names]
        codes = np.concatenate([before.codes, codes])
    arrays = {
        "digests": np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(len(digests), -1),
        "codes": codes,
        "names": np.frombuffer("\n".join(names).encode(), np.uint8),
    }
    content.write_npz(folder / ARRAYS, arrays, compress=True)
    value = {**facts, "schema": SCHEMA, "base": base, "drawings": len(names), "bits": BITS}
    content.write_json(folder / MANIFEST, {**value, "sha256": sha256_file(folder / ARRAYS)})


def codes_of(pictures: np.ndarray) -> np.ndarray:
    """Return the codes of pictures [N,64,64,3] uint8, [N,24] uint8."""
    return _packed(middle(pictures)) if len(pictures) else np.zeros((0, BITS // 8), np.uint8)


def near_codes(codes: np.ndarray, pictures: np.ndarray) -> dict[tuple[int, int], int]:
    """Return in how few bits codes differ over moved and mirrored views: (row of codes, picture) -> bits.

    codes [N,24], pictures [M,64,64,3] uint8. Holds every pair of at most NEAR_BITS bits: most others are
    dismissed by the first 64 bits alone.
    """
    own = codes.view(np.uint64)
    word = np.ascontiguousarray(own[:, 0])
    best: dict[tuple[int, int], int] = {}
    for row, code in (
        (r, c)
        for start in range(0, len(pictures), _CHUNK)
        for view in views(pictures[start : start + _CHUNK])
        for r, c in enumerate(_packed(view).view(np.uint64), start)
    ):
        rows = np.flatnonzero(np.bitwise_count(word ^ code[0]) <= NEAR_BITS)
        bits = np.bitwise_count(own[rows] ^ code).sum(axis=1)
        for place, count in zip(rows.tolist(), bits.tolist(), strict=True):
            if count <= NEAR_BITS:
                best[place, row] = min(count, best.get((place, row), BITS))
    return best


def expected_likeness(bits: float) -> float:
    """Return the likeness of two pictures whose codes differ in so many bits, as expected."""
    return math.cos(math.pi * bits / BITS)


def code_limits() -> dict[str, float]:
    """Return the likeness of the first codes that differ too much to be expected above the limit."""
    bits = math.floor(BITS * math.acos(LIMITS["image"]) / math.pi)
    return {"image": round(expected_likeness(bits + 1), 4)}


def plain_name(caption: str) -> str:
    """Return what a caption shows: without its style, in small letters, words alone."""
    text = _STYLE.sub("", caption.split(": ", 1)[-1].lower())
    return " ".join(re.findall(r"[a-z0-9]+", text))


def _compare(first: Fingerprints, second: Fingerprints, between: str) -> Checked:
    ids = () if first.drawings else first.ids  # names of drawings are no ids
    images = [digest[: _DIGITS if first.drawings else None] for digest in second.images]
    kinds = [
        (kind, words, _named(first, second, _equal(keys, others)))
        for kind, words, keys, others in (
            ("shared id", "the same id", ids, second.ids),
            ("same image", "exactly the same image", first.images, images),
            ("same sketch", "exactly the same sketch", first.sketches or (), second.sketches or ()),
        )
    ]
    told = {pair for _, _, pairs in kinds for pair in pairs}
    near: dict[str, tuple[Any, Any, Any]] = {}
    if first.lines is not None and second.lines is not None:
        near["sketch"] = alike(first.lines, second.lines)
    near["image"] = _near_images(first, second, told)
    nearest: list[Near] = []
    for measure, (rows, others, values) in near.items():
        pairs = list(zip(_named(first, second, zip(rows, others, strict=True)), values, strict=True))
        twins = [pair for pair, value in pairs if value > LIMITS[measure]]
        kinds.append((f"near-duplicate {measure}", f"nearly the same {measure}", twins))
        passed = [
            Near(measure=measure, first=pair[0], second=pair[1], likeness=round(float(value), 4))
            for pair, value in pairs
            if value <= LIMITS[measure] and pair not in told
        ]
        nearest += sorted(passed, key=lambda n: -n.likeness)[:NEAREST]
    findings = _tell(kinds, between) + (_same_names(first, second) if first.drawings else [])
    limits = code_limits() if first.drawings else {m: limit for m, limit in LIMITS.items() if m in near}
    return Checked(findings=tuple(findings), nearest=tuple(nearest), limits=limits)


def _near_images(first: Fingerprints, second: Fingerprints, told: set[Pair]) -> tuple[Any, Any, Any]:
    """Return rows of both sides whose images come near, and their likeness, by pictures or else by codes."""
    if not first.ids or not second.ids:
        return (), (), ()
    small = second.all_pictures()
    if first.codes is None:
        return alike(first.all_pictures(), small)
    bits = near_codes(first.codes, small)
    places = [(i, j) for i, j in sorted(bits) if (first.ids[i], second.ids[j]) not in told]
    rows, others = [i for i, _ in places], [j for _, j in places]
    if first.pictures is None:
        return rows, others, [expected_likeness(bits[place]) for place in places]
    values: list[float] = []
    for start in range(0, len(rows), _CHUNK):
        near = slice(start, start + _CHUNK)
        own = first.pictures([first.ids[i] for i in rows[near]])
        values += likeness(own, small[others[near]]).tolist()
    return rows, others, values


def _equal(keys: Sequence[str], others: Sequence[str]) -> list[tuple[int, int]]:
    """Return the places of equal keys in both."""
    where = defaultdict(list)
    for place, key in enumerate(keys):
        where[key].append(place)
    return [(place, row) for row, key in enumerate(others) for place in where.get(key, ())]


def _named(first: Fingerprints, second: Fingerprints, rows: Iterable[tuple[int, int]]) -> list[Pair]:
    return [(first.ids[i], second.ids[j]) for i, j in rows]


def _tell(kinds: Iterable[tuple[str, str, Iterable[Pair]]], between: str) -> list[Finding]:
    """Make findings of (kind, words, pairs), telling each pair once, under the first kind."""
    findings, told = [], set[Pair]()
    for kind, words, pairs in kinds:
        fresh = tuple(sorted(set(pairs) - told))
        told.update(fresh)
        if fresh:
            items = how_many(len({second for _, second in fresh}), "item")
            names = some([a if a == b else f"{a} = {b}" for a, b in fresh])
            message = f"{items} shared between {between}, by {words}: {names}."
            findings.append(Finding(kind=kind, message=message, pairs=fresh))
    return findings


def _same_names(seen: Fingerprints, evaluation: Fingerprints) -> list[Finding]:
    """Tell of items that are drawn in pretraining under the same name by another hand."""
    known = {plain_name(name): name for name in reversed(seen.ids)}  # the first of a name
    named = [(plain_name(text), item) for item, text in zip(evaluation.ids, evaluation.captions, strict=True)]
    pairs = tuple((known[name], item) for name, item in named if name in known)
    count, twins = how_many(len(pairs), "evaluation item"), some([f"{a} = {b}" for a, b in pairs])
    how = "are drawn in pretraining under the same name by another hand, which is allowed"
    message = f"{count} of {len(evaluation.ids)} {how}: {twins}."
    return [Finding(kind=SAME_NAME, message=message, pairs=pairs, leak=False)] if pairs else []


def _changed(dataset: Dataset, items: Mapping[str, str], jobs: int, hooks: Hooks) -> list[str]:
    """Return the items whose contents, read now, have another digest."""
    ids, changed, done = list(items), list[str](), 0
    chunks = [ids[start : start + _CHUNK] for start in range(0, len(ids), _CHUNK)]
    hooks.stage(f"read {len(ids)} items", len(ids))
    read = in_processes(partial(_digests_now, dataset), chunks, jobs=min(jobs, len(chunks)) or 1)
    with closing(read):
        for digests in read:
            changed += [item for item, digest in digests.items() if digest != items[item]]
            done += len(digests)
            hooks.tick(done, len(ids))
            hooks.check_stop()
    return sorted(changed)


def _digests_now(dataset: Dataset, ids: Sequence[str]) -> dict[str, str | None]:
    """Return the digests of items as they are read now, None of those that cannot be."""
    found: dict[str, str | None] = dict.fromkeys(ids)
    for item in ids:
        with suppress(BenchError):
            example = dataset[item]
            _ = example.image, dict(example.layers)  # which are checked where digests are kept
            found |= digests_of(dataset, [item])
    return found


def _packed(vectors: np.ndarray) -> np.ndarray:
    """Return signs of random projections, the same on every machine: [N,D] float32 -> [N,24] uint8."""
    width = vectors.shape[1]
    drawn = hashlib.shake_256(b"bps-bench pretraining codes 1").digest(width * BITS // 8)
    signs = np.unpackbits(np.frombuffer(drawn, np.uint8)).reshape(width, BITS)
    return np.packbits(vectors @ (signs.astype(np.float32) * 2 - 1) > 0, axis=1)
