"""Make the page of a study and its key: the page holds codes and pictures, the key what they mean."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench import registry
from bench.config import Design
from bench.content import Name, Text, atomic_write, digest_json, inside, read_json, sha256_file
from bench.data.picture import data_uri, read_exact
from bench.randomness import generator
from bench.record import RECORD_FILE, RunRecord, load_items, load_record
from bench.reporting.render import data_block, filled, template_text
from bench.reporting.words import label, variant_details
from bench.sampling import SAMPLES_FILE, show_condition
from bench.study import FIDELITY, NOISE, OTHER, QUALITY, TARGET, Key, KeyQuestion, write_key
from bench.types import BenchError, Example

PAIRS = 40
_CRISP = 256  # pictures up to this side are shown in hard pixels; larger ones are packed with a little loss
_CANDIDATES = 24
# what the page asks, the part to be stressed, and what is not asked
_ASKED = {
    FIDELITY: ("follows the {}", "Never mind which is prettier."),
    QUALITY: ("looks", "Never mind the {}."),
}
_SAME = ("suite", "task", "protocol_hash", "seed")


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a study is made from.

    records, samples: by the method's name in tables; samples [H,W,3] uint8, in the order of the N ids, all
    of the same initial noise. conditions: [C,H,W] float32 in [0, 1] each. examples: the N items.
    """

    records: Mapping[str, RunRecord]
    ids: tuple[str, ...]
    samples: Mapping[str, Sequence[np.ndarray]]
    conditions: Sequence[np.ndarray]
    examples: Sequence[Example]

    @property
    def record(self) -> RunRecord:
        """The first run's record; suite, task, protocol, seed and attribution are everyone's."""
        return next(iter(self.records.values()))

    def side(self, question: Question, side: str, seed: int) -> np.ndarray:
        """Return the picture of one side of a question, [H,W,3] uint8."""
        target = self.examples[question.item].image
        if not question.check:
            return np.asarray(self.samples[side][question.item])
        if side == NOISE:
            draw = generator(seed, "study noise", self.ids[question.item])
            return draw.integers(256, size=target.shape, dtype=np.uint8)
        return target if side == TARGET else self.examples[question.other].image


@dataclass(frozen=True, kw_only=True)
class Question:
    """Two pictures of one item: left and right before a page is mirrored for its reader.

    item: row of the item. sides: names of methods; in an attention check TARGET, the real picture,
    and OTHER or NOISE. other: row of the item whose picture stands for OTHER.
    """

    item: int
    sides: tuple[str, str]
    check: bool = False
    other: int = -1


def make_study(
    folders: Sequence[Path], *, out: Path, key: Path | None = None, design: Design
) -> tuple[Path, Key]:
    """Write the page to `out` and the key to `key` (default: key.json beside it).

    Returns the key's path and the key. The same arguments give the same bytes. BenchError for runs
    that may not be compared, and for a key file of another study.
    """
    place = key or out.parent / "key.json"
    if place.resolve() == out.resolve():
        raise BenchError(f"page and key cannot both be {out}. Give another file with --key.")
    study = build_study(load_source(folders), design)
    write_key(place, study.key)
    atomic_write(out, study.page.encode())
    return place, study.key


class Study(NamedTuple):
    """A page as HTML, and its key."""

    page: str
    key: Key


def build_study(source: Source, design: Design) -> Study:
    """Return page and key: a pure function of its arguments."""
    record, task = source.record, source.record.task
    kinds = (OTHER, NOISE) if FIDELITY in design.aspects else (NOISE,)
    names, conditions = tuple(source.samples), source.conditions
    questions = plan_questions(names, conditions=conditions, design=design, kinds=kinds)
    data, answers = _coded(source, questions, design.seed)
    asked = []
    for name in design.aspects:
        stress, hint = (text.format(task) for text in _ASKED[name])
        asked.append({"name": name, "question": ["Which picture ", stress, " better?"], "hint": hint})
    crisp = max(source.examples[0].image.shape[:2]) <= _CRISP
    data |= {"title": design.title, "condition": task, "crisp": crisp, "aspects": asked}
    data["study"] = digest_json([data, list(source.records), record.protocol_hash])[:16]
    key = Key(
        study=data["study"],
        title=design.title,
        suite=record.suite,
        task=task,
        protocol=record.protocol_hash,
        seed=record.seed,
        aspects=design.aspects,  # type: ignore[arg-type]
        methods=tuple((name, of.run_id) for name, of in source.records.items()),
        questions=answers,
    )
    page = filled(
        "study.html",
        title=design.title,
        study=data["study"],
        credit=record.attribution,
        style=template_text("study.css").rstrip(),
        script=template_text("study.js").rstrip(),
        data=data_block(data),
    )
    return Study(page, key)


def load_source(folders: Sequence[Path]) -> Source:
    """Read two or more finished runs of one suite, task, protocol and seed.

    Records and the files they list are checked against their digests, samples against the picture of
    all samples that was scored, the data set against the protocol. BenchError otherwise.
    """
    if len(folders) < 2:
        raise BenchError(f"a study compares at least two runs, got {len(folders)}. Name their folders.")
    folders = [f.parent if f.name == RECORD_FILE else f for f in folders]
    records = [load_record(folder) for folder in folders]
    first, places = records[0], dict[str, Path]()
    ids = load_items(folders[0]).ids
    for record, folder in zip(records, folders, strict=True):
        for name in _SAME:
            ours, theirs = str(getattr(first, name)), str(getattr(record, name))
            if ours != theirs:
                both = f"{folders[0]} has {name} {ours:.16} but {folder} has {theirs:.16}"
                raise BenchError(
                    f"{both}. A study needs one suite, task, protocol and seed (the same noise)."
                )
        if record.run_id in places:
            raise BenchError(f"{places[record.run_id]} and {folder} are the same run. Name each once.")
        places[record.run_id] = folder
        if load_items(folder).ids != ids:
            raise BenchError(f"{folder} was evaluated on other items than {folders[0]}.")
    dataset, task = registry.recorded("suite", first).dataset(), registry.recorded("task", first)
    if dataset.digest != first.protocol.get("dataset"):
        digests = f"its digest is {dataset.digest[:12]}, the runs' {str(first.protocol.get('dataset'))[:12]}"
        raise BenchError(f"the data of suite {first.suite} are not those of the runs ({digests}). Run again.")
    examples = Lazy(len(ids), lambda place: dataset[ids[place]])
    height, width = examples[0].image.shape[:2]
    names = [label(r.method, *variant_details(r, records)) for r in records]
    samples = (read_samples(folder, ids, size=(height, width)) for folder in folders)
    return Source(
        records=dict(zip(names, records, strict=True)),
        ids=ids,
        samples=dict(zip(names, samples, strict=True)),
        conditions=Lazy(len(ids), lambda place: task.condition(examples[place])),
        examples=examples,
    )


class Lazy(Sequence[Any]):
    """Things that are read one at a time, when they are asked for: a study shows a few of many."""

    def __init__(self, size: int, read: Callable[[int], Any]) -> None:
        self.size, self.read = size, read

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: Any) -> Any:
        return self.read(range(self.size)[place])


def read_samples(folder: Path, ids: Sequence[str], *, size: tuple[int, int]) -> Lazy:
    """Return a run's samples, [H,W,3] uint8 each; BenchError where they are not those that were scored."""
    samples, known = folder / "work" / "samples", folder / SAMPLES_FILE
    if not samples.is_dir():
        why = "they stay where a run was made, published results do not carry them"
        raise BenchError(f"{folder} holds no samples: {why}. Make the run here with `bench run`.")

    def read(place: int) -> np.ndarray:
        advice = "Delete this sample and run again to redo its batch."
        return read_exact(inside(samples, f"{ids[place]}.png"), advice=advice, size=size)

    digests = read_json(known, of=dict[Name, Text]) if known.exists() else {}
    for place, item in enumerate(ids if digests else ()):
        path = inside(samples, f"{item}.png")
        if not path.is_file() or sha256_file(path) != digests.get(item):
            read(place)
            differs = f"{path.name} differs from {known}"
            raise BenchError(f"{samples} are not those that were scored ({differs}). Run with --again.")
    return Lazy(len(ids), read)


def plan_questions(
    methods: Sequence[str],
    *,
    conditions: Sequence[np.ndarray],
    design: Design,
    kinds: Sequence[str] = (OTHER, NOISE),
) -> list[Question]:
    """Draw a study's questions in random order; a pure function of its arguments.

    conditions: [C,H,W] of each of the N items. kinds: of attention checks, in turn; any share of them above 0
    gives at least one. Over the pairs, counts of method pairs, of items and of sides within a method
    pair differ by at most 1, and no two are alike. BenchError for more pairs than there are.
    """
    items, seed = len(conditions), design.seed
    couples = list(itertools.combinations(methods, 2))
    most = len(couples) * items
    pairs = min(PAIRS, most) if design.pairs is None else design.pairs
    if not 1 <= pairs <= most:
        raise BenchError(f"{len(methods)} methods on {items} items give 1 to {most} pairs, got {pairs}.")
    draw = generator(seed, "study pairs")
    questions = _comparisons(couples, items, pairs, draw)
    checks = design.checks
    count = max(1, round(pairs * checks / (1 - checks))) if checks else 0
    questions += _checks(conditions, count, kinds, generator(seed, "study checks"))
    return [questions[i] for i in draw.permutation(len(questions))]


def _comparisons(
    couples: Sequence[tuple[str, str]], items: int, pairs: int, draw: np.random.Generator
) -> list[Question]:
    """Deal items to method pairs: both run in circles, offset by one after each common multiple."""
    couple_order, item_order = draw.permutation(len(couples)), draw.permutation(items)
    turn = draw.integers(2, size=len(couples))
    circle = math.lcm(len(couples), items)
    questions = []
    for j in range(pairs):
        which, item = couple_order[j % len(couples)], int(item_order[(j + j // circle) % items])
        first, second = couples[which]
        sides = (first, second) if (turn[which] + j // len(couples)) % 2 else (second, first)
        questions.append(Question(item=item, sides=sides))
    return questions


def _checks(
    conditions: Sequence[np.ndarray], count: int, kinds: Sequence[str], draw: np.random.Generator
) -> list[Question]:
    """Draw attention checks on distinct items as far as they go round, the real side in turn."""
    order, turn = draw.permutation(len(conditions)), int(draw.integers(2))
    questions = []
    for j in range(count):
        item, kind, other = int(order[j % len(order)]), kinds[j % len(kinds)], -1
        if kind == OTHER:  # of some drawn at random the least alike: a near twin would be a fair answer
            others = np.setdiff1d(order, [item])
            if len(others) == 0:
                raise BenchError("an attention check with another item's picture needs two items or more.")
            drawn = draw.choice(others, size=min(_CANDIDATES, len(others)), replace=False)
            gaps = [float(np.abs(conditions[o] - conditions[item]).mean()) for o in drawn]
            other = int(drawn[int(np.argmax(gaps))])
        sides = (TARGET, kind) if (turn + j // len(kinds)) % 2 else (kind, TARGET)
        questions.append(Question(item=item, sides=sides, check=True, other=other))
    return questions


def _coded(
    source: Source, questions: Sequence[Question], seed: int
) -> tuple[dict[str, Any], dict[str, KeyQuestion]]:
    """Give every question and every picture a code; return the page's data and the key's questions."""
    draw = generator(seed, "study codes", "/".join(r.run_id for r in source.records.values()))
    codes: dict[Any, str] = {}

    def code_of(thing: Any) -> str:
        while thing not in codes:
            new = draw.bytes(6).hex()
            if new not in codes.values():
                codes[thing] = new
        return codes[thing]

    pictures: dict[str, str] = {}
    asked, answers = [], {}
    for number, question in enumerate(questions):
        row = question.item
        condition = code_of((row,))
        sides = {code_of((row, side, *([number] if question.check else []))): side for side in question.sides}
        pictures[condition] = _inline(show_condition(source.conditions[row]))
        pictures |= {code: _inline(source.side(question, side, seed)) for code, side in sides.items()}
        code, caption = code_of(number), source.examples[row].caption
        asked.append({"code": code, "condition": condition, "sides": list(sides), "caption": caption})
        answers[code] = KeyQuestion(item=source.ids[row], check=question.check, sides=sides)
    return {"pictures": dict(sorted(pictures.items())), "questions": asked}, answers


def _inline(picture: np.ndarray) -> str:
    pixels = np.ascontiguousarray(picture)
    return data_uri(pixels, "png") if max(pixels.shape) <= _CRISP else data_uri(pixels, quality=95)
