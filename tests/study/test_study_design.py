"""Which pairs are shown: balance over methods, items and sides; checks that are clear."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.study import NOISE, OTHER, TARGET
from bench.study.page import Design, Question, plan_questions
from bench.types import BenchError


def plan(methods: int, items: int, pairs: int, *, checks: float = 0.0, seed: int = 0) -> list[Question]:
    names = [f"m{i}" for i in range(methods)]
    conditions = np.random.default_rng(0).random((items, 1, 4, 4)).astype(np.float32)
    return plan_questions(names, conditions=conditions, design=Design(pairs=pairs, checks=checks, seed=seed))


def spread(counts: Counter[object], among: int) -> int:
    values = [*counts.values(), *[0] * (among - len(counts))]
    return max(values) - min(values)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 5), st.integers(2, 12), st.data())
def test_pairs_are_balanced_and_none_comes_twice(methods: int, items: int, data: st.DataObject) -> None:
    couples = methods * (methods - 1) // 2
    pairs = data.draw(st.integers(1, couples * items))
    questions = plan(methods, items, pairs, seed=data.draw(st.integers(0, 99)))
    assert len({(q.item, frozenset(q.sides)) for q in questions}) == len(questions) == pairs
    assert spread(Counter(frozenset(q.sides) for q in questions), couples) <= 1
    assert spread(Counter(q.item for q in questions), items) <= 1
    for names in {frozenset(q.sides) for q in questions}:
        left = Counter(q.sides[0] for q in questions if frozenset(q.sides) == names)
        assert spread(left, 2) <= 1


def test_checks_have_their_share_both_kinds_and_the_real_side_in_turn() -> None:
    questions = plan(3, 40, 36, checks=0.1)
    checks = [q for q in questions if q.check]
    assert len(questions) == 40 and len(checks) == 4
    assert Counter(name for q in checks for name in q.sides) == {TARGET: 4, OTHER: 2, NOISE: 2}
    assert Counter(q.sides[0] == TARGET for q in checks) == {True: 2, False: 2}
    assert [q.check for q in questions] != sorted(q.check for q in questions)
    assert len([q for q in plan(2, 9, 3, checks=0.01) if q.check]) == 1


def test_another_items_picture_is_of_an_unlike_condition() -> None:
    conditions = np.zeros((6, 1, 4, 4), np.float32)
    conditions[5] = 1.0
    questions = plan_questions(
        ("a", "b"), conditions=conditions, design=Design(pairs=6, checks=0.5), kinds=(OTHER,)
    )
    for question in (q for q in questions if q.check):
        assert question.other != question.item
        assert question.item == 5 or question.other == 5


def test_the_order_depends_on_the_seed_alone() -> None:
    assert plan(3, 20, 30, checks=0.1) == plan(3, 20, 30, checks=0.1)
    assert plan(3, 20, 30, checks=0.1) != plan(3, 20, 30, checks=0.1, seed=1)


@pytest.mark.parametrize(("pairs", "checks"), [(0, 0.1), (41, 0.1), (10, 0.6), (10, -0.1)])
def test_impossible_plans_are_refused(pairs: int, checks: float) -> None:
    with pytest.raises(BenchError, match=r"1 to 40 pairs, got|in 0 to 0\.5, got"):
        plan(2, 40, pairs, checks=checks)
