"""`bench data encode`: latents and text of a suite, ahead of its runs."""

from __future__ import annotations

from typing import Annotated

import typer

from bench.app.options import (
    BaseFolder,
    BudgetName,
    DataFolder,
    Device,
    Side,
    SuiteName,
    Variant,
    guarded,
)
from bench.terminal import say

Workers = Annotated[
    int | None, typer.Option("--workers", min=0, help="Processes that read images; else what pays.")
]


@guarded
def encode_command(
    suite: SuiteName = "coco17",
    base: BaseFolder = None,
    variant: Variant = None,
    data: DataFolder = None,
    side: Side = None,
    budget: BudgetName = None,
    device: Device = "auto",
    workers: Workers = None,
) -> None:
    """Encode a suite's images and captions with the base, once for all runs; a killed call goes on."""
    from bench.arguments import parse_device
    from bench.base import load_base
    from bench.console import console_hooks
    from bench.content import Cache
    from bench.encode import encode_suite, encoded_words
    from bench.suites import find_suite

    chosen = find_suite(suite, base=base, side=side, data=data, variant=variant)
    assert chosen.base is not None, "find_suite refuses suites without a base"
    loaded = load_base(chosen.base, device=parse_device(device), variant=variant)
    with console_hooks() as hooks:
        found = encode_suite(
            chosen,
            base=loaded,
            cache=Cache(),
            budget=budget,
            workers=workers,
            stage=hooks.stage,
            tick=hooks.tick,
            stop=hooks.stop,
        )
        hooks.close()
    for name, shards in found.items():
        say(encoded_words(name, shards, base=loaded))
