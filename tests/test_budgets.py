"""Budgets: equal images for every method, or images by method where time is to be equal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import registry
from bench.config import Budget
from bench.cost import Timing, load_timings
from bench.running import Run, identify
from bench.suites import EMOJI, resolve
from tests.asking import micro


def test_a_protocol_without_images_by_method_is_what_it_was(micro_folder: Path) -> None:
    protocol = identify(resolve(micro(micro_folder, Path("unused")))).protocol
    assert "images_of" not in protocol.as_dict()["budget"]
    budget = replace(protocol.budget, images_of={"bps": 8})
    other = replace(protocol, budget=budget)
    assert other.as_dict()["budget"]["images_of"] == {"bps": 8} and other.hash != protocol.hash


@pytest.mark.slow
def test_a_method_trains_on_its_own_number_of_images(micro_folder: Path, tmp_path: Path) -> None:
    budget = Budget(name="timed", train_images=48, eval_items=12, images_of={"bps": 16})
    images = {}
    for method in ("bps", "controlnet"):
        spec = resolve(micro(micro_folder, tmp_path, method=method))
        images[method] = Run(replace(spec, budget=budget)).train().images
    assert images == {"bps": 16, "controlnet": 48}


def test_images_that_are_asked_for_are_every_methods() -> None:
    timed = Budget(name="timed", train_images=48, eval_items=None, images_of={"bps": 16})
    assert timed.asked(images=None, items=None, limit=None) == timed
    asked = timed.asked(images=8, items=5, limit=3)
    assert [asked.images(name) for name in ("bps", "controlnet")] == [8, 8]
    assert (asked.train_items, asked.eval_items, asked.name) == (5, 3, "timed-8images-5-3eval")
    assert timed.asked(images=None, items=None, limit=3).images("bps") == 16


def _options_then(timing: Timing) -> dict[str, Any]:
    """A method's own options, of those that there were, when the published times were measured."""
    now = json.loads(json.dumps(registry.load("method", timing.method).options))
    then = {"bps": {"schedule": "head_heavy"}, "t2i-adapter": {"timesteps": "uniform"}}
    return {name: {**now, **then.get(timing.method, {})}[name] for name in timing.options}


def test_equal_time_is_equal_by_the_published_timings() -> None:
    budget = EMOJI.budgets["equal-time"]
    timings = load_timings(Path(__file__).parents[1] / "results" / "emoji")
    assert timings is not None
    seconds = {
        t.method: budget.images(t.method) / t.train_images_per_second
        for t in timings.entries
        if t.train_images_per_second and dict(t.options) == _options_then(t)
    }
    assert set(budget.images_of) | {"bps"} <= set(seconds)
    assert max(seconds.values()) / min(seconds.values()) < 1.01


def test_every_method_of_a_budget_trains_on_equally_many_images() -> None:
    for budget in EMOJI.budgets.values():
        numbers = {budget.images(name) for name in registry.rows("method")}
        assert len(numbers) == 1 or budget.images_of, budget.name
