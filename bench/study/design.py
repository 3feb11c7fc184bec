"""Which pairs a study shows: every two methods equally often, each equally often on either side."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.randomness import generator
from bench.types import BenchError

TARGET = "target"
OTHER = "other item"
NOISE = "noise"
CANDIDATES = 24


@dataclass(frozen=True, kw_only=True)
class Question:
    """Two pictures of one item: left and right before a page is mirrored for its reader.

    item: row of the item. sides: names of methods; in an attention check TARGET, the real picture,
    and OTHER or NOISE. other: row of the item whose picture stands for OTHER.
    """

    item: int
    sides: tuple[str, str]
    check: bool = False
    other: int | None = None


def plan_questions(
    methods: Sequence[str],
    *,
    conditions: np.ndarray,
    pairs: int,
    checks: float,
    seed: int,
    kinds: Sequence[str] = (OTHER, NOISE),
) -> list[Question]:
    """Draw a study's questions in random order; a pure function of its arguments.

    conditions: [N,C,H,W] of all items. pairs: comparisons of two methods, no two alike. checks: the
    share of attention checks among all questions, in [0, 0.5]; any share above 0 gives at least one.
    kinds: of checks, in turn. Over `pairs`, counts of method pairs, of items and of sides within a
    method pair differ by at most 1.
    """
    items = len(conditions)
    couples = list(itertools.combinations(methods, 2))
    if not 1 <= pairs <= len(couples) * items:
        raise BenchError(
            f"{len(methods)} methods on {items} items give 1 to {len(couples) * items} pairs, got {pairs}."
        )
    if not 0 <= checks <= 0.5:
        raise BenchError(f"the share of attention checks must be in 0 to 0.5, got {checks:g}.")
    draw = generator(seed, "study pairs")
    questions = _comparisons(couples, items, pairs, draw)
    count = max(1, round(pairs * checks / (1 - checks))) if checks else 0
    questions += _checks(conditions, count, kinds, generator(seed, "study checks"))
    order = draw.permutation(len(questions))
    return [questions[i] for i in order]


def _comparisons(
    couples: Sequence[tuple[str, str]], items: int, pairs: int, draw: np.random.Generator
) -> list[Question]:
    """Deal items to method pairs: both run in circles, offset by one after each common multiple."""
    couple_order, item_order = draw.permutation(len(couples)), draw.permutation(items)
    turn = draw.integers(2, size=len(couples))
    circle = math.lcm(len(couples), items)
    questions = []
    for j in range(pairs):
        which = int(couple_order[j % len(couples)])
        item = int(item_order[(j + j // circle) % items])
        first, second = couples[which]
        sides = (first, second) if (turn[which] + j // len(couples)) % 2 else (second, first)
        questions.append(Question(item=item, sides=sides))
    return questions


def _checks(
    conditions: np.ndarray, count: int, kinds: Sequence[str], draw: np.random.Generator
) -> list[Question]:
    """Draw attention checks on distinct items as far as they go round, the real side in turn."""
    order, turn = draw.permutation(len(conditions)), int(draw.integers(2))
    questions = []
    for j in range(count):
        item, kind = int(order[j % len(order)]), kinds[j % len(kinds)]
        other = _unlike(conditions, item, draw) if kind == OTHER else None
        sides = (TARGET, kind) if (turn + j // len(kinds)) % 2 else (kind, TARGET)
        questions.append(Question(item=item, sides=sides, check=True, other=other))
    return questions


def _unlike(conditions: np.ndarray, item: int, draw: np.random.Generator) -> int:
    """Return, of some items drawn at random, the one whose condition is least like the item's.

    A near twin would be a fair answer, and no check.
    """
    others = np.setdiff1d(np.arange(len(conditions)), [item])
    if len(others) == 0:
        raise BenchError("an attention check with another item's picture needs at least two items.")
    drawn = draw.choice(others, size=min(CANDIDATES, len(others)), replace=False)
    gaps = [float(np.abs(conditions[o] - conditions[item]).mean()) for o in drawn]
    return int(drawn[int(np.argmax(gaps))])
