"""Answer files as the page saves them, read strictly and against the key of their study."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.study.key import Key
from bench.study.strict import code, fields, load_strict, shown
from bench.types import BenchError

FORMAT = "bps-bench study answers"
VERSION = 1
MOST_BYTES = 2_000_000
LEFT, RIGHT, SAME = "left", "right", "same"
_RATER = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One judgement: the codes that stood left and right, what was asked, and what was said."""

    question: str
    left: str
    right: str
    asked: str
    answer: str
    seconds: float

    @property
    def preferred(self) -> str | None:
        """The code of the preferred picture, None for no difference."""
        return {LEFT: self.left, RIGHT: self.right}.get(self.answer)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """All that one person said; rater: the name the page gave that person."""

    path: Path
    rater: str
    answers: tuple[Answer, ...]


def read_answers(paths: Sequence[Path], *, key: Key) -> list[Answers]:
    """Read the answer files of one study; BenchError for any that is not one, and for a rater twice."""
    if not paths:
        raise BenchError("no answer files. Name the files that people downloaded from the page.")
    found = [_read(path, key) for path in paths]
    seen: dict[str, Path] = {}
    for one in found:
        if one.rater in seen:
            raise BenchError(
                f"{seen[one.rater]} and {one.path} hold answers of the same person ({one.rater}). "
                "Keep the later one."
            )
        seen[one.rater] = one.path
    return found


def _read(path: Path, key: Key) -> Answers:
    raw = load_strict(path, most_bytes=MOST_BYTES)
    if isinstance(raw, dict) and raw.get("format") != FORMAT:
        raise BenchError(
            f"{path} holds no answers of a study (format {shown(raw.get('format'))}). Name the files "
            "that people downloaded from the page."
        )
    text = (str, type(None))
    raw = fields(
        raw,
        str(path),
        kinds={
            "format": str,
            "version": int,
            "study": str,
            "rater": str,
            "started": text,
            "finished": text,
            "answers": list,
        },
    )
    if raw["version"] != VERSION:
        raise BenchError(f"{path} has version {raw['version']}; this program reads {VERSION}.")
    if raw["study"] != key.study:
        raise BenchError(
            f"{path} answers study {shown(raw['study'])}; the key is that of {key.study} ({key.title})."
        )
    if not _RATER.fullmatch(raw["rater"]):
        raise BenchError(f"{path}: 'rater' must be 16 hexadecimal digits, got {shown(raw['rater'])}.")
    most = len(key.questions) * len(key.aspects)
    if len(raw["answers"]) > most:
        raise BenchError(f"{path} holds {len(raw['answers'])} answers; the study asks {most}.")
    answers = [_answer(a, f"{path}: answer {i + 1}", key) for i, a in enumerate(raw["answers"])]
    if not answers:
        raise BenchError(f"{path} holds no answer. Leave the file out.")
    _check_once(answers, path)
    return Answers(path=path, rater=raw["rater"], answers=tuple(answers))


def _answer(raw: Any, where: str, key: Key) -> Answer:
    raw = fields(
        raw,
        where,
        kinds={
            "question": str,
            "left": str,
            "right": str,
            "asked": str,
            "answer": str,
            "seconds": (int, float),
        },
    )
    question = key.questions.get(code(raw["question"], f"{where}: question"))
    if question is None:
        raise BenchError(f"{where}: the study has no question {raw['question']}.")
    if {raw["left"], raw["right"]} != set(question.sides):
        raise BenchError(
            f"{where}: question {raw['question']} shows {' and '.join(question.sides)}, not "
            f"{shown(raw['left'])} and {shown(raw['right'])}."
        )
    for name, allowed in (("asked", key.aspects), ("answer", (LEFT, RIGHT, SAME))):
        if raw[name] not in allowed:
            raise BenchError(f"{where}: '{name}' must be of {', '.join(allowed)}, got {shown(raw[name])}.")
    if not 0 <= raw["seconds"] <= 1e6 or not math.isfinite(raw["seconds"]):
        raise BenchError(f"{where}: 'seconds' must be in 0 to 1e6, got {shown(raw['seconds'])}.")
    return Answer(**raw)


def _check_once(answers: Sequence[Answer], path: Path) -> None:
    seen = set()
    for answer in answers:
        if (answer.question, answer.asked) in seen:
            raise BenchError(f"{path} answers question {answer.question} ({answer.asked}) more than once.")
        seen.add((answer.question, answer.asked))


def attention(one: Answers, *, key: Key) -> tuple[int, int]:
    """Return how many attention checks a person answered, and how many of those not rightly."""
    asked = [a for a in one.answers if key.questions[a.question].checks(a.asked)]
    failed = [a for a in asked if a.preferred != key.questions[a.question].real]
    return len(asked), len(failed)
