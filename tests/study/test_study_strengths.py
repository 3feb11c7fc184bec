"""Strengths and rates by mathematics: closed forms, known answers, limits."""

from __future__ import annotations

import numpy as np
import pytest

from bench.study.results import (
    Comparisons,
    bradley_terry,
    rate_interval,
    resampled_wins,
    wins,
)


def table(won: float, lost: float) -> np.ndarray:
    return np.array([[[0, won], [lost, 0]]], dtype=np.float64)


def simulated(strengths: np.ndarray, *, raters: int, items: int, seed: int) -> Comparisons:
    """Every rater compares every two methods on every item, by the Bradley-Terry model itself."""
    pairs = [(i, j) for i in range(len(strengths)) for j in range(i + 1, len(strengths))]
    rater, item, which = (a.ravel() for a in np.meshgrid(range(raters), range(items), range(len(pairs))))
    first, second = np.array(pairs)[which].T
    chance = strengths[first] / (strengths[first] + strengths[second])
    score = (np.random.default_rng(seed).random(len(chance)) < chance).astype(float)
    return Comparisons(
        rater=rater, item=item, first=first, second=second, score=score, methods=len(strengths)
    )


@pytest.mark.parametrize(("won", "lost"), [(3, 1), (10, 7.5), (1, 99), (20, 0)])
def test_two_methods_have_the_ratio_of_their_odds_with_half_a_win_each(won: float, lost: float) -> None:
    first, second = bradley_terry(table(won, lost))[0]
    assert first * second == pytest.approx(1)
    assert first / second == pytest.approx((won + 0.5) / (lost + 0.5))


def test_the_estimate_is_where_the_likelihood_is_flat() -> None:
    """At the maximum, expected wins equal wins, with a tie between every two (Bradley and Terry 1952)."""
    won = np.random.default_rng(1).integers(1, 30, (1, 5, 5)).astype(float)
    won[0, range(5), range(5)] = 0
    strengths = bradley_terry(won)[0]
    won += (1 - np.eye(5)) / 2
    chance = strengths[:, None] / (strengths[:, None] + strengths)
    expected = ((won[0] + won[0].T) * chance).sum(axis=1)
    assert expected == pytest.approx(won[0].sum(axis=1), rel=1e-6)


def test_known_strengths_come_back_from_simulated_raters() -> None:
    truth = np.array([4.0, 1.0, 0.25])
    answers = simulated(truth, raters=30, items=20, seed=0)
    found = bradley_terry(wins(answers))[0]
    assert found == pytest.approx(truth, rel=0.15)
    drawn = resampled_wins(answers, replicates=60, seed=0)
    assert drawn is not None
    low, high = np.quantile(bradley_terry(drawn), [0.025, 0.975], axis=0)
    assert (low < truth).all() and (truth < high).all() and (high / low < 2).all()


def test_a_tie_is_half_a_win_for_either() -> None:
    ties = simulated(np.ones(2), raters=4, items=5, seed=0)
    ties = Comparisons(**{**vars(ties), "score": np.full(len(ties.score), 0.5)})
    assert np.array_equal(wins(ties)[0], [[0, 10], [10, 0]])
    assert bradley_terry(wins(ties))[0] == pytest.approx([1, 1])


def test_resamples_keep_a_single_rater_and_vary_what_there_is() -> None:
    def drawn(raters: int, items: int) -> np.ndarray | None:
        answers = simulated(np.ones(3), raters=raters, items=items, seed=0)
        return resampled_wins(answers, replicates=70, seed=0)

    assert drawn(1, 1) is None
    one = drawn(1, 8)
    assert one is not None and one.shape == (70, 3, 3)
    assert (one.sum(axis=(1, 2)) == 24).all() and one.std(axis=0).max() > 0
    both = drawn(6, 8)
    assert both is not None
    assert both.sum(axis=(1, 2)).mean() == pytest.approx(6 * 24)


def test_rates_have_wilsons_interval_or_the_wider_of_the_resamples() -> None:
    """Wilson 1927: 8 of 10 gives 0.490 to 0.943."""
    alone = rate_interval(8, 2, resampled=np.empty(0))
    assert alone is not None
    assert (alone.value, alone.low, alone.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    wider = rate_interval(8, 2, resampled=np.array([0.1, 0.1, np.nan, 0.85, 0.85]))
    assert wider is not None
    assert wider.low == pytest.approx(0.1) and wider.high == pytest.approx(alone.high)
    unanimous = rate_interval(10, 0, resampled=np.ones(50))
    assert unanimous is not None and unanimous.low == pytest.approx(0.7225, abs=1e-4)
    assert unanimous.high == 1.0
    assert rate_interval(0, 0, resampled=np.empty(0)) is None
