"""The key of a study: what its codes stand for. Whoever answers must not see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import MaxLen, MinLen

from bench.content import read_json, write_json
from bench.strict import Code, Count, Flag, FromFile, Text, Whole, Word, shown, validated
from bench.study.design import NOISE, OTHER, TARGET
from bench.types import BenchError

FORMAT = "bps-bench study key"
VERSION = 1
MOST_BYTES = 32_000_000
MOST_TEXT = 500
Short = Annotated[Text, MaxLen(MOST_TEXT)]
FIDELITY, QUALITY = "fidelity", "quality"
ASPECTS = (FIDELITY, QUALITY)
_CHECKED = {OTHER: (FIDELITY,), NOISE: ASPECTS}


@dataclass(frozen=True, kw_only=True)
class KeyQuestion(FromFile):
    """item: its id; sides: code of a picture -> method, or what stands there in a check."""

    item: Short
    sides: Annotated[Mapping[Code, Short], MinLen(2), MaxLen(2)]
    check: Flag

    def checks(self, aspect: str) -> bool:
        """Whether an answer about this aspect tells if somebody is looking.

        Noise looks worse than a real picture and follows nothing; another item's real picture
        follows the condition worse, but looks no worse.
        """
        return self.check and any(aspect in _CHECKED.get(s, ()) for s in self.sides.values())

    @property
    def real(self) -> str:
        """The code of the real picture of an attention check."""
        return next(c for c, name in self.sides.items() if name == TARGET)


@dataclass(frozen=True, kw_only=True)
class Key:
    """methods: name -> run id, in the order to show; seed: of sampling; questions by code."""

    study: str
    title: str
    suite: str
    task: str
    protocol: str
    seed: int
    aspects: tuple[str, ...]
    methods: Mapping[str, str]
    questions: Mapping[str, KeyQuestion]


def write_key(path: Path, key: Key) -> None:
    """Write the key atomically; BenchError where the file holds another study's, which would be lost."""
    if path.exists():
        old = read_key(path)
        if old.study != key.study:
            raise BenchError(
                f"{path} is the key of study {old.study} ({old.title}); without it, its answers "
                "cannot be read. Give another file with --key, or move that one away."
            )
    questions = {
        name: {"item": q.item, "sides": dict(q.sides), "check": q.check} for name, q in key.questions.items()
    }
    value = {**vars(key), "format": FORMAT, "version": VERSION, "questions": questions}
    value["methods"] = [[name, run] for name, run in key.methods.items()]
    write_json(path, value)


def read_marked(path: Path, kind: Any, *, marks: tuple[str, int], most_bytes: int, remedy: str) -> Any:
    """Read a study's file of a type, whose "format" and "version" are marks; BenchError otherwise."""
    raw = read_json(path, most_bytes=most_bytes, remedy=remedy)
    if isinstance(raw, dict) and raw.get("format") != marks[0]:
        raise BenchError(f"{path} is no {marks[0]} (its format: {shown(raw.get('format'))}). {remedy}")
    if isinstance(raw, dict) and raw.get("version") != marks[1]:
        raise BenchError(f"{path} has version {shown(raw.get('version'))}; this program reads {marks[1]}.")
    return validated(raw, kind, path, remedy=remedy)


@dataclass(frozen=True, kw_only=True)
class _KeyFile(FromFile):
    format: Text
    version: Whole
    study: Code
    title: Short
    suite: Word
    task: Word
    protocol: Short
    seed: Count
    aspects: Annotated[tuple[Literal["fidelity", "quality"], ...], MinLen(1)]
    methods: Annotated[tuple[tuple[Short, Short], ...], MinLen(2)]
    questions: Mapping[Code, KeyQuestion]


def read_key(path: Path) -> Key:
    """Read and validate a key; BenchError for anything that is not one."""
    remedy = "`bench study make` writes the key beside the page, by default as key.json."
    found = read_marked(path, _KeyFile, marks=(FORMAT, VERSION), most_bytes=MOST_BYTES, remedy=remedy)
    methods = dict(found.methods)
    if len(methods) < len(found.methods) or len(set(found.aspects)) < len(found.aspects):
        raise BenchError(f"{path}: 'methods' and 'aspects' must name each once. {remedy}")
    for name, question in found.questions.items():
        _check_sides(question, f"{path}: question {name}", methods)
    plain = {n: getattr(found, n) for n in ("study", "title", "suite", "task", "protocol", "seed", "aspects")}
    return Key(methods=methods, questions=found.questions, **plain)


def _check_sides(question: KeyQuestion, where: str, methods: Mapping[str, str]) -> None:
    names = set(question.sides.values())
    known = (TARGET, OTHER, NOISE) if question.check else tuple(methods)
    if len(names) < 2 or not names <= set(known) or (question.check and TARGET not in names):
        raise BenchError(f"{where}: two different sides of {', '.join(known)}, got {shown(sorted(names))}.")
