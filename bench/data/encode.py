"""`bench data encode`: a suite's latents and text written ahead of its runs, which then only read."""

from __future__ import annotations

from collections.abc import Callable

from bench.artifacts import pick_items
from bench.base.load import Base
from bench.config import Suite
from bench.content import Cache
from bench.data.shards import Shards, disk_needed, encode, size_words, text_shape
from bench.types import BenchError


def encode_suite(
    suite: Suite,
    *,
    base: Base,
    cache: Cache,
    budget: str | None = None,
    workers: int | None = None,
    stage: Callable[[str, int], None] = lambda name, total: None,
    tick: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], int | None] = lambda: None,
) -> dict[str, Shards]:
    """Encode the train and evaluation items of a suite, as its runs of a budget will ask for them.

    Goes on where it was killed. See bench.data.shards.encode for the rest. Returns the shards by side.
    BenchError for a suite whose runs hold everything in memory.
    """
    if suite.storage != "shards":
        raise BenchError(
            f"suite '{suite.name}' is held in memory: each run encodes it in little time and keeps it "
            "in the cache. There is nothing to do ahead."
        )
    dataset, splits = suite.dataset(), suite.splits()
    items = suite.budget(budget).eval_items
    sides = {
        "train": (splits.side("train"), 2 if suite.training.mirror else 1),
        suite.eval_side: (pick_items(splits.side(suite.eval_side), items), 1),
    }
    return {
        side: encode(
            base,
            dataset=dataset,
            ids=ids,
            views=views,
            cache=cache,
            workers=workers,
            stage=stage,
            tick=tick,
            stop=stop,
        )
        for side, (ids, views) in sides.items()
    }


def encoded_words(side: str, shards: Shards, *, base: Base) -> str:
    """Say what lies where, a line."""
    needed = disk_needed(
        len(shards.ids),
        views=shards.views,
        latent_shape=shards.latent_shape,
        text_shape=text_shape(base),
    )
    return (
        f"{side}: {len(shards.ids)} items, {shards.views} view(s), {len(shards.paths)} shards, "
        f"{size_words(needed)} in {shards.paths[0].parent.parent}"
    )
