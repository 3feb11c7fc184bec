"""A blind user study; its files, read strictly: the key, which those who answer must not see, and answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Le, MaxLen, MinLen
from pydantic import StringConstraints

from bench import content
from bench.config import ASPECTS, MOST_TEXT
from bench.content import Amount, Code, Count, Flag, FromFile, Text, Whole, Word, shown
from bench.types import BenchError

VERSION = 1
KEY_FORMAT, ANSWERS_FORMAT = "bps-bench study key", "bps-bench study answers"
MOST_BYTES = 2_000_000  # of answers; a key names every picture
_MOST_KEY_BYTES = 32_000_000
_ANSWERS_REMEDY = "Name the files that people downloaded from the page."
Short = Annotated[Text, MaxLen(MOST_TEXT)]
TARGET, OTHER, NOISE = "target", "other item", "noise"
FIDELITY, QUALITY = ASPECTS
LEFT, RIGHT, SAME = "left", "right", "same"
# What an attention check by such a picture can tell. Noise looks worse than a real picture and follows
# nothing; another item's real picture follows the condition worse, but looks no worse.
_CHECKED = {OTHER: (FIDELITY,), NOISE: ASPECTS}


@dataclass(frozen=True, kw_only=True)
class KeyQuestion(FromFile):
    """item: its id; sides: code of a picture -> method, or what stands there in a check."""

    item: Short
    sides: Annotated[dict[Code, Short], MinLen(2), MaxLen(2)]
    check: Flag

    def checks(self, aspect: str) -> bool:
        """Whether an answer about this aspect tells if somebody is looking."""
        return self.check and any(aspect in _CHECKED.get(side, ()) for side in self.sides.values())

    @property
    def real(self) -> str:
        """The code of the real picture of an attention check."""
        return next(code for code, name in self.sides.items() if name == TARGET)


@dataclass(frozen=True, kw_only=True)
class Key(FromFile):
    """What a study's codes stand for; methods: (name, run id) in order; seed: of sampling."""

    study: Code
    title: Short
    suite: Word
    task: Word
    protocol: Short
    seed: Count
    aspects: Annotated[tuple[Literal["fidelity", "quality"], ...], MinLen(1)]
    methods: Annotated[tuple[tuple[Short, Short], ...], MinLen(2)]
    questions: dict[Code, KeyQuestion]
    format: Literal["bps-bench study key"] = "bps-bench study key"
    version: Whole = VERSION

    def __post_init__(self) -> None:
        """Refuse names twice, and a question whose sides are not two that it may have."""
        if len(self.names) < len(self.methods) or len(set(self.aspects)) < len(self.aspects):
            raise BenchError("'methods' and 'aspects' must name each once")
        for code, question in self.questions.items():
            sides = set(question.sides.values())
            known = (TARGET, OTHER, NOISE) if question.check else tuple(self.names)
            if len(sides) < 2 or not sides <= set(known) or (question.check and TARGET not in sides):
                got = f"{', '.join(known)}, got {shown(sorted(sides))}"
                raise BenchError(f"question {code}: two different sides of {got}")

    @property
    def names(self) -> dict[str, str]:
        """The methods' names -> run ids."""
        return dict(self.methods)


@dataclass(frozen=True, kw_only=True)
class Answer(FromFile):
    """One judgement: the codes that stood left and right, what was asked, and what was answered."""

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
class Answers(FromFile):
    """All that one person answered; rater: the name the page gave that person."""

    study: Short
    rater: Annotated[Short, StringConstraints(pattern="^[0-9a-f]{16}$")]
    started: Short | None
    finished: Short | None
    answers: tuple[Answer, ...]
    format: Literal["bps-bench study answers"]
    version: Whole


def write_key(path: Path, key: Key) -> None:
    """Write the key atomically; BenchError where the file holds another study's, which would be lost."""
    old = read_key(path) if path.exists() else key
    if old.study != key.study:
        held = f"{path} is the key of study {old.study} ({old.title}), whose answers need it"
        raise BenchError(f"{held}. Give another file with --key, or move that one away.")
    content.write_json(path, asdict(key))


def read_key(path: Path) -> Key:
    """Read and validate a key; BenchError for anything that is not one."""
    remedy = "`bench study make` writes the key beside the page, by default as key.json."
    key: Key = _read(path, Key, KEY_FORMAT, _MOST_KEY_BYTES, remedy)
    return key


def read_answers(paths: Sequence[Path], *, key: Key) -> dict[Path, Answers]:
    """Read the answer files of one study; BenchError for any that is not one, and for a rater twice."""
    if not paths:
        raise BenchError(f"no answer files. {_ANSWERS_REMEDY}")
    files: dict[Path, Answers] = {}
    raters: dict[str, Path] = {}
    for path in paths:
        answers: Answers = _read(path, Answers, ANSWERS_FORMAT, MOST_BYTES, _ANSWERS_REMEDY)
        _check_answers(answers, path, key)
        if answers.rater in raters:
            both = f"{raters[answers.rater]} and {path}"
            raise BenchError(f"{both} hold answers of the same person ({answers.rater}). Keep the later one.")
        files[path], raters[answers.rater] = answers, path
    return files


def _read(path: Path, kind: Any, form: str, most_bytes: int, remedy: str) -> Any:
    """Read one of our files; another format or version is told before anything else."""
    raw = content.read_json(path, most_bytes=most_bytes, remedy=remedy)
    told = raw if isinstance(raw, dict) else {"format": form, "version": VERSION}
    if told.get("format") != form:
        raise BenchError(f"{path} is no {form} (its format: {shown(told.get('format'))}). {remedy}")
    if told.get("version") != VERSION:
        raise BenchError(f"{path} has version {shown(told.get('version'))}; this program reads {VERSION}.")
    return content.validated(raw, kind, path, remedy=remedy)


def _check_answers(file: Answers, path: Path, key: Key) -> None:
    most, counts = len(key.questions) * len(key.aspects), Counter((a.question, a.asked) for a in file.answers)
    if file.study != key.study:
        own = f"the key is that of {key.study} ({key.title})"
        raise BenchError(f"{path} answers study {shown(file.study)}; {own}.")
    if not 1 <= len(file.answers) <= most:
        raise BenchError(f"{path} holds {len(file.answers)} answers; the study asks {most}. Name others.")
    for place, answer in enumerate(file.answers, 1):
        wrong, question = "", key.questions.get(answer.question)
        if question is None:
            wrong = f"the study has no question {answer.question}"
        elif {answer.left, answer.right} != set(question.sides):
            sides = f"{shown(answer.left)} and {shown(answer.right)}"
            wrong = f"question {answer.question} shows {' and '.join(question.sides)}, not {sides}"
        elif answer.asked not in key.aspects:
            wrong = f"'asked' must be of {', '.join(key.aspects)}, got {shown(answer.asked)}"
        if wrong:
            raise BenchError(f"{path}: answer {place}: {wrong}.")
    (code, asked), times = counts.most_common(1)[0]
    if times > 1:
        raise BenchError(f"{path} answers question {code} ({asked}) more than once.")


def attention(answers: Answers, *, key: Key) -> tuple[int, int]:
    """Return how many attention checks a person answered, and how many of those not rightly."""
    asked = [a for a in answers.answers if key.questions[a.question].checks(a.asked)]
    failed = [a for a in asked if a.preferred != key.questions[a.question].real]
    return len(asked), len(failed)
