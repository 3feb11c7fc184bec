"""The key of a study: what its codes stand for. Whoever answers must not see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.content import write_json
from bench.study.design import NOISE, OTHER, TARGET
from bench.study.strict import code, fields, load_strict, shown
from bench.types import BenchError

FORMAT = "bps-bench study key"
VERSION = 1
MOST_BYTES = 32_000_000
FIDELITY, QUALITY = "fidelity", "quality"
ASPECTS = (FIDELITY, QUALITY)
_CHECKED = {OTHER: (FIDELITY,), NOISE: ASPECTS}


@dataclass(frozen=True, kw_only=True)
class KeyQuestion:
    """item: its id; sides: code of a picture -> method, or what stands there in a check."""

    item: str
    sides: Mapping[str, str]
    check: bool

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


def read_key(path: Path) -> Key:
    """Read and validate a key; BenchError for anything that is not one."""
    kinds: dict[str, type | tuple[type, ...]] = {
        "format": str,
        "version": int,
        "study": str,
        "title": str,
        "suite": str,
        "task": str,
        "protocol": str,
        "seed": int,
        "aspects": list,
        "methods": list,
        "questions": dict,
    }
    raw = load_strict(path, most_bytes=MOST_BYTES)
    if isinstance(raw, dict) and raw.get("format") != FORMAT:
        raise BenchError(
            f"{path} is not the key of a study (format {shown(raw.get('format'))}). `bench study make`"
            " wrote the key beside the page, by default as key.json."
        )
    raw = fields(raw, str(path), kinds=kinds)
    if raw["version"] != VERSION:
        raise BenchError(f"{path} has version {raw['version']}; this program reads {VERSION}.")
    methods = _methods(raw["methods"], path)
    aspects = tuple(raw["aspects"])
    if not aspects or len(set(aspects)) < len(aspects) or not set(aspects) <= set(ASPECTS):
        raise BenchError(f"{path}: 'aspects' must be of {', '.join(ASPECTS)}, got {shown(aspects)}.")
    questions = {
        code(name, f"{path}: question"): _question(q, f"{path}: question {name}", methods)
        for name, q in raw["questions"].items()
    }
    plain = {n: raw[n] for n in ("title", "suite", "task", "protocol", "seed")}
    return Key(
        study=code(raw["study"], f"{path}: study"),
        aspects=aspects,
        methods=methods,
        questions=questions,
        **plain,
    )


def _methods(raw: Sequence[Any], path: Path) -> dict[str, str]:
    for pair in raw:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, str) for x in pair)):
            raise BenchError(f"{path}: 'methods' must be pairs of name and run, got {shown(pair)}.")
    methods = dict(raw)
    if len(methods) < max(2, len(raw)):
        raise BenchError(f"{path}: 'methods' must be at least two different names.")
    return methods


def _question(raw: Any, where: str, methods: Mapping[str, str]) -> KeyQuestion:
    raw = fields(raw, where, kinds={"item": str, "sides": dict, "check": bool})
    sides = {code(c, f"{where}: side"): name for c, name in raw["sides"].items()}
    names = list(sides.values())
    known = (TARGET, OTHER, NOISE) if raw["check"] else tuple(methods)
    right = len(names) == 2 and all(isinstance(n, str) and n in known for n in names)
    if not right or names[0] == names[1] or (raw["check"] and TARGET not in names):
        raise BenchError(f"{where}: two different sides of {', '.join(known)}, got {shown(names)}.")
    return KeyQuestion(item=raw["item"], sides=sides, check=raw["check"])
