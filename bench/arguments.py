"""What the command line's words mean: options, devices, lists of names and of seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.types import BenchError, unknown


def parse_options(pairs: Iterable[str] | None) -> dict[str, Any]:
    """Return a method's options from name=value texts; values are JSON, or else plain text."""
    options: dict[str, Any] = {}
    for pair in pairs or ():
        name, mark, value = pair.partition("=")
        if not mark:
            raise BenchError(f"--option '{pair}' is not name=value. Write for example prior=free.")
        if name in options:
            raise BenchError(f"--option {name} came more than once; give it once.")
        try:
            options[name] = json.loads(value)
        except (ValueError, RecursionError):  # also where it is JSON beyond all bounds
            options[name] = value
        _check_finite(name, options[name])
    return options


def _check_finite(name: str, value: Any) -> None:
    """Raise BenchError for numbers of an option that are none, at whatever depth."""
    if isinstance(value, float) and not math.isfinite(value):
        raise BenchError(f"--option {name}: {value} is no finite number. Write one, as in name=0.5.")
    if isinstance(value, (list, dict)):
        for entry in value.values() if isinstance(value, dict) else value:
            _check_finite(name, entry)


def parse_names(
    kind: str, text: str, *, allowed: Iterable[str], groups: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return the names of a comma list, groups such as "all" opened, each name once, in order.

    BenchError with a "did you mean" for a name that is neither allowed nor a group.
    """
    known = list(allowed)
    found: list[str] = []
    for word in (w.strip() for w in text.split(",")):
        if word not in groups and word not in known:
            raise unknown(kind, word, [*known, *groups])
        found += groups.get(word, (word,))
    return list(dict.fromkeys(found))


def parse_numbers(what: str, text: str, *, kind: type = float) -> list[Any]:
    """Return the distinct numbers of a comma list in order: seeds (int, below 2**63) or rates (float)."""
    try:
        numbers = [kind(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all((0 <= n < 2**63 if kind is int else 0 < n < 1e6) for n in numbers):
        example = "0,1,2" if kind is int else "1e-4,1e-3"
        raise BenchError(f"{what} '{text}' is no list of such numbers. Write for example {example}.")
    return list(dict.fromkeys(numbers))


def parse_device(name: str) -> str:
    """Return "cpu" or "cuda" for auto, cpu or cuda; BenchError where there is no such device."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in {"cpu", "cuda"}:
        raise unknown("device", name, ["auto", "cpu", "cuda"])
    if name == "cuda" and not torch.cuda.is_available():
        raise BenchError("--device cuda: torch sees no CUDA device here. Use --device cpu.")
    return name


def outline(value: Mapping[str, Any], *, depth: int = 0) -> str:
    """Show nested tables as indented lines."""
    pad, lines = "  " * depth, []
    for key, entry in value.items():
        if isinstance(entry, Mapping):
            nested = [f"{pad}{key}", outline(entry, depth=depth + 1)]
            lines += nested if entry else [f"{pad}{key}: none"]
        else:
            shown = ", ".join(map(str, entry)) if isinstance(entry, (list, tuple)) else entry
            lines.append(f"{pad}{key}: {shown}")
    return "\n".join(lines)
