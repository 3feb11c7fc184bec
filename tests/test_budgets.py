"""Budgets: equal images for every method, or images by method where time is to be equal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cli
from bench.commands import Request, make_run
from bench.run import Run
from bench.suites import EMOJI, Budget


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


def test_every_method_of_a_budget_trains_on_equally_many_images() -> None:
    for budget in EMOJI.budgets.values():
        numbers = {budget.images(name) for name in cli.methods()}
        assert len(numbers) == 1 or budget.images_of, budget.name
