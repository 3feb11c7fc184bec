"""Answer files as the page saves them, read strictly and against the key of their study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Le
from pydantic import StringConstraints

from bench.strict import Amount, Code, FromFile, Text, Whole, shown
from bench.study.key import Key, Short, read_marked
from bench.types import BenchError

FORMAT = "bps-bench study answers"
VERSION = 1
MOST_BYTES = 2_000_000
LEFT, RIGHT, SAME = "left", "right", "same"


@dataclass(frozen=True, kw_only=True)
class Answer(FromFile):
    """One judgement: the codes that stood left and right, what was asked, and what was said."""

    question: Code
    left: Code
    right: Code
    asked: Short
    answer: Literal["left", "right", "same"]
    seconds: Annotated[Amount, Le(1e6)]

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


@dataclass(frozen=True, kw_only=True)
class _AnswersFile(FromFile):
    format: Text
    version: Whole
    study: Short
    rater: Annotated[Short, StringConstraints(pattern="^[0-9a-f]{16}$")]
    started: Short | None
    finished: Short | None
    answers: tuple[Answer, ...]


def _read(path: Path, key: Key) -> Answers:
    remedy = "Name the files that people downloaded from the page."
    raw = read_marked(path, _AnswersFile, marks=(FORMAT, VERSION), most_bytes=MOST_BYTES, remedy=remedy)
    if raw.study != key.study:
        raise BenchError(
            f"{path} answers study {shown(raw.study)}; the key is that of {key.study} ({key.title})."
        )
    most = len(key.questions) * len(key.aspects)
    if len(raw.answers) > most:
        raise BenchError(f"{path} holds {len(raw.answers)} answers; the study asks {most}.")
    if not raw.answers:
        raise BenchError(f"{path} holds no answer. Leave the file out.")
    for number, answer in enumerate(raw.answers, 1):
        _check_answer(answer, f"{path}: answer {number}", key)
    _check_once(raw.answers, path)
    return Answers(path=path, rater=raw.rater, answers=raw.answers)


def _check_answer(answer: Answer, where: str, key: Key) -> None:
    question = key.questions.get(answer.question)
    if question is None:
        raise BenchError(f"{where}: the study has no question {answer.question}.")
    if {answer.left, answer.right} != set(question.sides):
        raise BenchError(
            f"{where}: question {answer.question} shows {' and '.join(question.sides)}, not "
            f"{shown(answer.left)} and {shown(answer.right)}."
        )
    if answer.asked not in key.aspects:
        raise BenchError(f"{where}: 'asked' must be of {', '.join(key.aspects)}, got {shown(answer.asked)}.")


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
