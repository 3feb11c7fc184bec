"""What differs between two records, in words: protocol first, then options, seed, environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from bench.record import RunRecord
from bench.reporting.names import HASH_DIGITS, MISSING, flat

_PLAIN = ("suite", "task", "method", "budget", "seed")


def record_changes(one: RunRecord, other: RunRecord) -> list[str]:
    """Return the differences of two records, a sentence each; the first says whether protocols agree.

    Each names what the first says, then what the second says; "–" stands for nothing said.
    """
    said = [_protocol_words(one, other)]
    said += [f"  protocol: {words}" for words in _differing(one.protocol, other.protocol)]
    values = [{name: getattr(record, name) for name in _PLAIN} for record in (one, other)]
    said += _differing(*values)
    said += [f"option {words}" for words in _differing(one.options, other.options)]
    given = [asdict(r.weights) if r.weights is not None else {} for r in (one, other)]
    said += [f"weights from outside: {words}" for words in _differing(*given)]
    if one.leaked != other.leaked:
        said.append(f"leaks: {one.leaked} evaluation items here, {other.leaked} there")
    said += [f"environment: {words}" for words in _differing(one.environment, other.environment)]
    if len(said) == 1:
        said.append("method, options, seed and environment are the same too")
    return said


def _protocol_words(one: RunRecord, other: RunRecord) -> str:
    own, theirs = (record.protocol_hash[:HASH_DIGITS] for record in (one, other))
    if one.protocol_hash == other.protocol_hash:
        return f"same protocol ({own}): their numbers may share a table"
    return f"OTHER PROTOCOL ({own} here, {theirs} there): their numbers do not compare"


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    mine, theirs = dict(flat(one)), dict(flat(other))
    return [
        f"{key} is {mine.get(key, MISSING)} here, {theirs.get(key, MISSING)} there"
        for key in sorted(mine.keys() | theirs.keys())
        if mine.get(key) != theirs.get(key)
    ]
