"""Synthetic runs of ablations: the variants of the real table, written through the real record code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.ablations import ABLATIONS, ABLATIONS_FOLDER, Ablation, Variant
from bench.content import digest_json, read_json, write_json
from bench.packed import Run, kept_runs
from bench.record import SplitInfo
from bench.reporting import load_runs
from bench.reporting.compare import AblationTable, build_ablations

ALL_ITEMS = 2900
PAPERS_WEIGHTS = (16.0, 16.0, 8.0, 8.0, 4.0, 4.0, 2.0, 2.0, 16.0)
SLOTS = (1, 2, 4, 5, 7, 8, 10, 11, 12)


def protocol_of(variant: Variant, *, budget: str = "standard", task: str = "sketch") -> dict[str, Any]:
    """The protocol of a variant's runs on a suite whose own sampler is 10 steps at guidance 2.5."""
    held: dict[str, Any] = {"name": budget, "train_images": 3200, "eval_items": None}
    if variant.train_images is not None:
        held |= {"name": f"{budget}-{variant.train_images}images", "train_images": variant.train_images}
    if variant.train_items is not None:
        held |= {"name": f"{budget}-{variant.train_items}", "train_items": variant.train_items}
    sampler = {"name": "dpm++", "steps": variant.steps or 10, "guidance": variant.guidance or 2.5}
    leaky = {"training": {"leaky": True}} if variant.leaky else {}
    return {"suite": "emoji", "task": task, "budget": held, **leaky, "sampler": sampler}


def write_variant(
    build: Any,
    results: Path,
    variant: Variant,
    levels: dict[str, float],
    *,
    seed: int = 0,
    budget: str = "standard",
    task: str = "sketch",
    rate: float = 1e-3,
    **changes: Any,
) -> Run:
    """Write a run of a variant where `bench ablate` would put it, and load it again."""
    protocol = protocol_of(variant, budget=budget, task=task)
    asked = {k: getattr(variant, k) for k in ("guidance", "steps", "train_items", "train_images")}
    asked = {k: v for k, v in asked.items() if v is not None and (k, v) != ("steps", 10)}
    run = digest_json([variant.settings(task), rate, protocol])[:10]
    fields: dict[str, Any] = {
        "protocol": protocol,
        "protocol_hash": digest_json(protocol),
        "changes": asked,
        "options": {**variant.settings(task), "learning_rate": rate},
        "seed": seed,
        "task": task,
        "run_id": f"emoji-{task}-{variant.method}-{protocol['budget']['name']}-s{seed}-{run}",
        "budget": protocol["budget"]["name"],
        "splits": _splits(build, variant),
    }
    main = not asked and budget == "standard" and not variant.leaky
    place = results if main else results / ABLATIONS_FOLDER
    place.mkdir(exist_ok=True)
    curve = [(step, 0.4 + 2.0 / step) for step in range(1, 60)]
    extra = {"sets": True, "tiles": False, "curve": curve}
    return build.write_run(place, variant.method, levels, **{**extra, **fields, **changes})


def _splits(build: Any, variant: Variant) -> Any:
    splits = build.record("bps").splits
    n = variant.train_items or ALL_ITEMS
    return replace(splits, train=SplitInfo(name="train", n=n, digest="aa"))


def write_ablation(
    build: Any,
    results: Path,
    ablation: Ablation,
    *,
    levels: Callable[[Variant, int], Any],
    seeds: Sequence[int] = (0, 1),
    task: str = "sketch",
) -> None:
    """Write every variant at every seed."""
    for variant in ablation.variants:
        for seed in seeds:
            write_variant(
                build,
                results,
                variant,
                levels(variant, seed),
                seed=seed,
                task=task,
                budget=ablation.budget,
            )


def add_layer_weights(folder: Path, seed: int) -> None:
    """Add trained layer weights to a run's items, as a run with the learned schedule has them."""
    path = folder / "items.json"
    found = [
        [slot, start, start + 0.3 * (seed + 1) - 0.1 * place]
        for place, (slot, start) in enumerate(zip(SLOTS, PAPERS_WEIGHTS, strict=True))
    ]
    write_json(path, {**read_json(path), "layer_weights": found})


def plausible(variant: Variant, seed: int) -> dict[str, float]:
    """Numbers in the range of real ones, worse with fewer items and without the prior."""
    items = variant.train_items or ALL_ITEMS
    lack = 22.0 * (1 - items / ALL_ITEMS) ** 4
    worse = {
        "frozen prior": 0.0,
        "free prior": 0.4,
        "no prior": 45.0,
        "controlnet": 14.0,
        "t2i-adapter": 23.0,
        "sd-finetune": -15.0 + lack,
        "text-only": 64.0,
    }
    own = int(digest_json(variant.name)[:4], 16) % 7
    fd = 103.0 + lack + worse.get(variant.name, own) + 0.5 * seed + (variant.guidance or 2.5)
    f1 = 0.97 - 0.003 * (fd - 103.0)
    return {
        "fd": fd,
        "cosine": 0.67 - 0.002 * (fd - 103),
        "sketch_f1": f1,
        "miou": f1 - 0.1,
        "clip": 0.3 + 0.01 * (variant.guidance or 2.5),
    }


def write_all(build: Any, results: Path) -> None:
    """Write all ablations as they are after `bench ablate` with two seeds."""
    for ablation in ABLATIONS.values():
        for task in ablation.tasks:
            write_ablation(build, results, ablation, levels=plausible, task=task)
    for path in results.glob("*/record.json"):
        record = read_json(path)
        if record["options"].get("schedule") == "learned":
            add_layer_weights(path.parent, record["seed"])


def both(results: Path) -> list[Run]:
    """Load the runs of a folder and those of its ablations."""
    return [*load_runs(results), *kept_runs(results, ABLATIONS_FOLDER)]


def only_table(results: Path) -> AblationTable:
    """Return the one table that a folder's runs make."""
    (table,) = build_ablations(both(results))
    return table
