"""Values from outside, read strictly: JSON of bounded size, names and numbers as types, one error each.

The types below say what a field of a file may hold; a dataclass that is read from a file derives from
`FromFile`, and `validated` builds it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, MaxLen
from pydantic import (
    AfterValidator,
    ConfigDict,
    GetPydanticSchema,
    Strict,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import core_schema

from bench.types import BenchError

DEEPEST = 64
LARGEST = 2**64
LONGEST = 20_000
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*").fullmatch
_CODE = r"^[0-9a-f]{8,64}$"
_MOST_WORD = 200
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_RAW_CONTROL = re.compile(r"[\x7f-\x9f\u2028\u2029]")
_UNREADABLE = re.compile(r"[\x00\ud800-\udfff]")


def check_word(text: str) -> str:
    """Return a name that may stand in paths and commands, such as a method's; BenchError otherwise."""
    if len(text) > _MOST_WORD or not _WORD(text):
        raise BenchError(
            f"{shown(text)} is no name: allowed are 1 to {_MOST_WORD} letters, digits, '_', '.', '+' and "
            "'-', a letter or digit first."
        )
    return text


def check_name(text: str) -> str:
    """Return an id that may become a file's name: printable, no part of a path; BenchError otherwise."""
    if len(text) <= _MOST_WORD and _WORD(text):  # as most are
        return text
    ends = text.strip() != text or text in ("", ".", "..")
    if ends or len(text) > _MOST_WORD or not text.isprintable() or "/" in text or "\\" in text:
        raise BenchError(
            f"{shown(text)} is no id: allowed are 1 to {_MOST_WORD} printable characters, no line ends, "
            "no '/', no '\\', no space around them, and not '.' or '..'."
        )
    return text


Text = Annotated[str, Strict(), MaxLen(LONGEST)]
Word = Annotated[str, Strict(), AfterValidator(check_word)]
Name = Annotated[str, Strict(), AfterValidator(check_name)]
Code = Annotated[str, Strict(), StringConstraints(pattern=_CODE)]
Flag = Annotated[bool, Strict()]
Whole = Annotated[int, Strict()]
Count = Annotated[int, Strict(), Ge(0)]
Number = Annotated[float, Strict()]
Amount = Annotated[float, Strict(), Ge(0)]
Positive = Annotated[float, Strict(), Gt(0)]


def holding(kind: Any) -> GetPydanticSchema:
    """Annotate an object that must hold what a TypedDict says, and may hold more; it stays as it came."""

    def schema(_: Any, of: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_wrap_validator_function(_as_it_came, of(kind))

    return GetPydanticSchema(schema)


def _as_it_came(value: Any, check: Any) -> Any:
    check(value)
    return value


class FromFile:
    """What a dataclass derives from that is read from a file: no unknown keys, finite numbers."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", allow_inf_nan=False)


def shown(value: Any) -> str:
    """Return a value as an error may repeat it: short, in one line."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def parse_json(raw: bytes, where: object, *, remedy: str, loose: bool = False) -> Any:
    """Parse JSON in UTF-8; BenchError where it is not, or holds what no file of ours does.

    Refused: a key twice, NaN and infinities, numbers beyond 2**64, values nested deeper than 64, and
    texts with control characters or halves of characters. loose: as other programs write: infinities
    and line ends pass.
    """
    constant = None if loose else _refuse
    try:
        text = raw.decode()
        value = json.loads(text, object_pairs_hook=_once, parse_constant=constant)
        plain = "\\" not in text and not _RAW_CONTROL.search(text)  # so is every text in it
        _check([value], DEEPEST, loose=loose, plain=plain)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else error
        raise BenchError(f"{where} is not valid JSON ({reason}). {remedy}") from error
    return value


def validated(value: Any, kind: Any, where: object, *, remedy: str, strict: bool = False) -> Any:
    """Build a value of a type from parsed JSON; BenchError says where it differs, what came, what may.

    strict: nothing is converted, as from "3" to 3, and every number is finite.
    """
    try:
        if strict:
            return _adapter(kind).validate_json(json.dumps(value, allow_nan=False), strict=True)
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        raise BenchError(f"{where}: {_first(error)}. {remedy}") from error
    except (ValueError, TypeError) as error:  # a number that is none, or what no JSON holds
        raise BenchError(f"{where}: {error}. {remedy}") from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _first(error: ValidationError) -> str:
    """Return the first thing that pydantic found, as one line of ours."""
    found = error.errors(include_url=False)[0]
    place = ascii(".".join(map(str, found["loc"])))
    place = "it" if place == "''" else place if len(place) <= 100 else f"'...{place[-97:]}"
    if found["type"] in ("missing", "unexpected_keyword_argument", "extra_forbidden"):
        return f"{place} is {'missing' if found['type'] == 'missing' else 'not a key that is known here'}"
    if found["type"] == "value_error":
        return f"{place}: {str(found['ctx']['error']).rstrip('.')}"
    said = found["msg"].replace("Input should be", "must be").replace("a valid dictionary", "an object")
    said = re.sub(r"a dictionary or an instance of \w+", "an object", said)
    said = said.replace("a valid tuple", "a list")
    return f"{place} {said}, got {shown(found['input'])}"


def _check(entries: Collection[Any], left: int, *, loose: bool, plain: bool) -> None:
    """Look at the entries of a list or object by their kinds, which is quick for long lists of numbers."""
    kinds = set(map(type, entries))
    if not loose and kinds & {int, float}:
        mixed = not kinds <= {int, float}
        numbers = [x for x in entries if isinstance(x, (int, float))] if mixed else entries
        if not -LARGEST < min(numbers) <= max(numbers) < LARGEST:
            raise ValueError("a number is beyond 2**64")
    if not plain and str in kinds:
        _check_texts([x for x in entries if isinstance(x, str)], loose=loose)
    if not kinds & {list, dict}:
        return
    if not left:
        raise ValueError(f"nested deeper than {DEEPEST}")
    for entry in entries:
        if isinstance(entry, dict):
            _check([*entry.values(), *({} if plain else entry)], left - 1, loose=loose, plain=plain)
        elif isinstance(entry, list):
            _check(entry, left - 1, loose=loose, plain=plain)


def _check_texts(texts: Iterable[str], *, loose: bool) -> None:
    wrong = _UNREADABLE if loose else _CONTROL
    bad = next((text for text in texts if wrong.search(text)), None)
    if bad is not None:
        raise ValueError(f"a text holds characters that cannot be shown: {shown(bad)}")


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a key twice")
    return found


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")
