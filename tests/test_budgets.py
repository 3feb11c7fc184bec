"""Budgets: equal images for every method, or images by method where time is to be equal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cli
from bench.commands import Request, make_run
from bench.run import Run
from bench.suites import EMOJI, Budget
from bench.timings import load_timings


def test_a_protocol_without_images_by_method_is_what_it_was(micro_folder: Path) -> None:
    request = Request(suite="micro", results=Path("unused"), base=micro_folder, device="cpu")
    run = make_run(cli.catalogue(), request, method="bps", task="sketch", seed=0)
    assert "images_of" not in run.protocol.as_dict()["budget"]
    budget = replace(run.protocol.budget, images_of={"bps": 8})
    other = replace(run.protocol, budget=budget)
    assert other.as_dict()["budget"]["images_of"] == {"bps": 8} and other.hash != run.protocol.hash


def test_a_method_trains_on_its_own_number_of_images(micro_folder: Path, tmp_path: Path) -> None:
    budget = Budget(name="timed", train_images=48, eval_items=12, images_of={"bps": 16})
    request = Request(suite="micro", results=tmp_path, base=micro_folder, device="cpu")
    images = {}
    for method in ("bps", "controlnet"):
        made = make_run(cli.catalogue(), request, method=method, task="sketch", seed=0)
        images[method] = Run(replace(made.spec, budget=budget)).train().images
    assert images == {"bps": 16, "controlnet": 48}


def _defaults(method: str) -> Any:
    """A method's own options as JSON has them."""
    return json.loads(json.dumps(cli.catalogue().find(method)[0].options))


def test_equal_time_is_equal_by_the_published_timings() -> None:
    budget = EMOJI.budgets["equal-time"]
    timings = load_timings(Path(__file__).parents[1] / "results" / "emoji")
    assert timings is not None
    seconds = {
        t.method: budget.images(t.method) / t.train_images_per_second
        for t in timings.entries
        if t.train_images_per_second and dict(t.options) == _defaults(t.method)
    }
    assert set(budget.images_of) | {"bps"} <= set(seconds)
    assert max(seconds.values()) / min(seconds.values()) < 1.01


def test_every_method_of_a_budget_trains_on_equally_many_images() -> None:
    for budget in EMOJI.budgets.values():
        numbers = {budget.images(name) for name in cli.methods()}
        assert len(numbers) == 1 or budget.images_of, budget.name
