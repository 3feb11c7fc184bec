"""95% intervals hold the truth 93 to 97% of the time, by simulation; wrong ones are found out."""

from __future__ import annotations

import pytest

from bench.metrics.frechet import frechet_distance
from tests.metrics.coverage import KINDS, Coverage, Size, cells, draw_sets, simulate, true_frechet

MANY, FEW = Size(items=60, dimensions=5), Size(items=40, dimensions=50, flat=True)
TRIALS = 400
NEIGHBOURS = "coverage of neighbours"
PUBLISHED = [name for name, (_, published) in KINDS.items() if published]
WHERE = [(kind, size) for kind in PUBLISHED for size in (MANY, FEW) if (kind, size) != (NEIGHBOURS, FEW)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "size"), WHERE, ids=lambda v: getattr(v, "dimensions", v))
def test_published_intervals_hold_the_truth_as_often_as_they_say(kind: str, size: Size) -> None:
    trials = 200 if kind == "FD difference" else TRIALS
    (found,) = simulate(trials=trials, seed=0, sizes=[size], kinds=[kind])
    assert found.right, found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["item mean", "FD"])
@pytest.mark.parametrize("shrink", [0.75, 1.4])
def test_the_check_finds_intervals_too_narrow_and_too_wide(kind: str, shrink: float) -> None:
    (found,) = simulate(trials=TRIALS, seed=0, sizes=[FEW], kinds=[kind], shrink=shrink)
    assert not found.right, found


@pytest.mark.slow
def test_a_neighbour_metric_at_its_end_holds_the_truth_too_often_never_too_rarely() -> None:
    """Where nearly all of few sets score 1 the jackknife sees no spread; Wilson's interval does."""
    (found,) = simulate(trials=100, seed=0, sizes=[FEW], kinds=[NEIGHBOURS])
    assert found.held > 0.97 and found.width > 1


@pytest.mark.slow
def test_the_grouped_jackknife_is_too_wide_where_items_are_as_few_as_dimensions() -> None:
    """Why records hold the infinitesimal one."""
    kinds = ["FD", "FD, grouped jackknife"]
    ours, grouped = simulate(trials=100, seed=0, sizes=[FEW], kinds=kinds)
    assert ours.right and abs(ours.width - 1) < 0.15 < 0.2 < grouped.width - 1


def test_the_band_allows_for_chance_and_no_more() -> None:
    def held(share: float, trials: int) -> Coverage:
        return Coverage(
            kind="x",
            items=9,
            dimensions=1,
            flat=False,
            trials=trials,
            held=share,
            width=1.0,
            published=True,
        )

    assert held(0.915, 400).right and not held(0.905, 400).right
    assert held(0.98, 400).right and not held(0.99, 400).right
    assert not held(0.92, 10_000).right and held(0.93, 10_000).right
    assert held(0.95, 400).error == pytest.approx(0.0109, abs=1e-4)


def test_the_true_distance_is_that_of_many_items() -> None:
    import numpy as np

    for flat in (False, True):
        size = Size(items=60_000, dimensions=6, flat=flat)
        (sample,), target = draw_sets(size, np.random.default_rng(0))
        assert frechet_distance(sample, target) == pytest.approx(true_frechet(size), rel=0.02)


def test_the_same_seed_gives_the_same_coverage() -> None:
    wanted = {"trials": 50, "sizes": [Size(items=30, dimensions=4)], "kinds": ["FD", "item mean"]}
    first = simulate(seed=1, **wanted)
    assert first == simulate(seed=1, **wanted) != simulate(seed=2, **wanted)
    assert len(cells([MANY, FEW], kinds=["FD", "item mean"])) == 4
    assert len(cells([MANY, Size(items=60, dimensions=9)], kinds=["item mean"])) == 1
