"""Make the page of a study and its key: the page holds codes and pictures, the key what they mean."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.content import atomic_write, digest_json
from bench.randomness import generator
from bench.sampling import png
from bench.study.design import NOISE, OTHER, TARGET, Question, plan_questions
from bench.study.key import ASPECTS, FIDELITY, MOST_TEXT, QUALITY, Key, KeyQuestion, write_key
from bench.study.sources import Source, load_source
from bench.types import BenchError, unknown

PAIRS = 40
CHECKS = 0.1
TITLE = "Which picture is better?"
_ASSETS = Path(__file__).parent
_CRISP = 256  # pictures up to this side are shown in hard pixels


@dataclass(frozen=True, kw_only=True)
class Study:
    """A page as HTML, and its key."""

    page: str
    key: Key


def make_study(
    folders: Sequence[Path],
    *,
    out: Path,
    key: Path | None = None,
    pairs: int | None = None,
    seed: int = 0,
    title: str = TITLE,
    ask: str = "both",
    checks: float = CHECKS,
) -> tuple[Path, Key]:
    """Write the page to `out` and the key to `key` (default: key.json beside it).

    Returns the key's path and the key. The same arguments give the same bytes. BenchError for runs
    that may not be compared, and for a key file of another study.
    """
    target = key or out.parent / "key.json"
    if target.resolve() == out.resolve():
        raise BenchError(f"page and key cannot both be {out}. Give another file with --key.")
    study = build_study(load_source(folders), pairs=pairs, seed=seed, title=title, ask=ask, checks=checks)
    write_key(target, study.key)
    atomic_write(out, study.page.encode())
    return target, study.key


def build_study(
    source: Source, *, pairs: int | None, seed: int, title: str, ask: str, checks: float
) -> Study:
    """Return page and key; pairs None: 40, or all there are. A pure function of its arguments."""
    aspects = _aspects(ask)
    if not title.strip() or len(title) > MOST_TEXT:
        raise BenchError(f"the title must have 1 to {MOST_TEXT} characters, got {len(title)}.")
    methods = tuple(source.samples)
    most = len(methods) * (len(methods) - 1) // 2 * len(source.ids)
    questions = plan_questions(
        methods,
        conditions=source.conditions,
        pairs=min(PAIRS, most) if pairs is None else pairs,
        checks=checks,
        seed=seed,
        kinds=(OTHER, NOISE) if FIDELITY in aspects else (NOISE,),
    )
    data, answers = _coded(source, questions, seed)
    data |= {
        "title": title,
        "condition": source.record.task,
        "crisp": max(source.examples[0].image.shape[:2]) <= _CRISP,
        "aspects": [_words(aspect, source.record.task) for aspect in aspects],
    }
    data["study"] = digest_json([data, list(source.records), source.record.protocol_hash])[:16]
    record = source.record
    key = Key(
        study=data["study"],
        title=title,
        suite=record.suite,
        task=record.task,
        protocol=record.protocol_hash,
        seed=record.seed,
        aspects=aspects,
        questions=answers,
        methods={name: found.run_id for name, found in source.records.items()},
    )
    return Study(page=_html(data, credit=record.attribution), key=key)


def _aspects(ask: str) -> tuple[str, ...]:
    if ask != "both" and ask not in ASPECTS:
        raise unknown("aspect", ask, ("both", *ASPECTS))
    return ASPECTS if ask == "both" else (ask,)


def _words(aspect: str, task: str) -> dict[str, Any]:
    """Return what the page asks: the question in three parts, the middle one to be stressed."""
    if aspect == QUALITY:
        parts, hint = ("Which picture ", "looks", " better?"), f"Never mind the {task}."
    else:
        parts = ("Which picture ", f"follows the {task}", " better?")
        hint = "Never mind which is prettier."
    return {"name": aspect, "question": list(parts), "hint": hint}


def _coded(
    source: Source, questions: Sequence[Question], seed: int
) -> tuple[dict[str, Any], dict[str, KeyQuestion]]:
    """Give every question and every picture a code; return the page's data and the key's questions."""
    draw = generator(seed, "study codes", "/".join(r.run_id for r in source.records.values()))
    used: dict[Any, str] = {}

    def code_of(thing: Any) -> str:
        while thing not in used:
            new = draw.bytes(6).hex()
            if new not in used.values():
                used[thing] = new
        return used[thing]

    pictures: dict[str, str] = {}
    asked, answers = [], {}
    for number, question in enumerate(questions):
        row = question.item
        own = (number,) if question.check else ()
        shown = [code_of((row,)), *(code_of((row, s, *own)) for s in question.sides)]
        images = [source.picture(row), *(_side(source, question, s, seed) for s in question.sides)]
        pictures |= {c: _data_uri(image) for c, image in zip(shown, images, strict=True)}
        name = code_of(number)
        caption = source.examples[row].caption
        asked.append({"code": name, "condition": shown[0], "sides": shown[1:], "caption": caption})
        answers[name] = KeyQuestion(
            item=source.ids[row],
            check=question.check,
            sides=dict(zip(shown[1:], question.sides, strict=True)),
        )
    return {"pictures": dict(sorted(pictures.items())), "questions": asked}, answers


def _side(source: Source, question: Question, side: str, seed: int) -> np.ndarray:
    """Return the picture of one side, [H,W,3] uint8."""
    target = source.examples[question.item].image
    if not question.check:
        return source.samples[side][question.item]
    if side == TARGET:
        return target
    if side == NOISE:
        draw = generator(seed, "study noise", source.ids[question.item])
        return draw.integers(256, size=target.shape, dtype=np.uint8)
    assert question.other is not None, question
    return source.examples[question.other].image


def _data_uri(image: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(png(np.ascontiguousarray(image))).decode()


def _html(data: dict[str, Any], *, credit: str) -> str:
    """Put data, style and script into the page; the data cannot end its script element."""
    dumped = json.dumps(data, sort_keys=True, ensure_ascii=True).replace("<", "\\u003c")
    parts = {
        "title": html.escape(data["title"]),
        "study": data["study"],
        "credit": html.escape(credit),
        "style": (_ASSETS / "page.css").read_text("utf-8").rstrip(),
        "script": (_ASSETS / "page.js").read_text("utf-8").rstrip(),
        "data": dumped,
    }
    pieces = (_ASSETS / "page.html").read_text("utf-8").split("{{")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        name, rest = piece.split("}}", 1)
        filled.append(parts[name] + rest)
    return "".join(filled)
