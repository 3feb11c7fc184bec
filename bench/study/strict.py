"""JSON from outside, read strictly: size, structure, names and types, each with a clear error."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.types import BenchError

MOST_TEXT = 500
CODE = re.compile(r"[0-9a-f]{8,64}")


def load_strict(path: Path, *, most_bytes: int) -> Any:
    """Read JSON in UTF-8 of at most `most_bytes`, no key twice, no NaN; BenchError otherwise."""
    try:
        with path.open("rb") as file:
            raw = file.read(most_bytes + 1)
    except OSError as error:
        raise BenchError(f"cannot read {path}: {error.strerror or error}.") from error
    if len(raw) > most_bytes:
        raise BenchError(f"{path} is larger than {most_bytes:,} bytes, so it is no file of a study.")
    try:
        return json.loads(raw.decode(), object_pairs_hook=_once, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{path} is not valid JSON ({str(error) or 'nested too deep'}).") from error


def fields(raw: Any, where: str, *, kinds: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """Return an object that has exactly these keys with values of these types; BenchError otherwise.

    A truth value is no number here. Texts hold at most 500 characters.
    """
    if not isinstance(raw, dict):
        raise BenchError(f"{where}: expected an object, got {type(raw).__name__}.")
    wrong = sorted(set(kinds) ^ set(raw))
    if wrong:
        raise BenchError(f"{where}: missing or unknown keys: {', '.join(map(shown, wrong[:5]))}.")
    for name, kind in kinds.items():
        value = raw[name]
        allowed = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            words = " or ".join("null" if k is type(None) else k.__name__ for k in allowed)
            raise BenchError(f"{where}: '{name}' must be {words}, got {shown(value)}.")
        if isinstance(value, str) and len(value) > MOST_TEXT:
            raise BenchError(f"{where}: '{name}' is longer than {MOST_TEXT} characters.")
    return raw


def code(raw: Any, where: str) -> str:
    """Return a code of hexadecimal digits; BenchError for anything else."""
    if not isinstance(raw, str) or not CODE.fullmatch(raw):
        raise BenchError(f"{where}: expected a code of hexadecimal digits, got {shown(raw)}.")
    return raw


def shown(value: Any) -> str:
    """Return a value as an error may repeat it: short, in one line."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a key twice")
    return found


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")
