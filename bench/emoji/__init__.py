"""How the embedded suite was made; its recipes share a training loop, and the tables of recipes.toml."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import typer

from bench.cli.terminal import aside, say
from bench.training.checkpoint import check_finite, load_checkpoint, save_checkpoint
from bench.types import BenchError


@cache
def tables(section: str) -> dict[str, Any]:
    """Return a section of recipes.toml: "manifests", "sides", "openmoji", "concepts" or "icons"."""
    found: dict[str, Any] = tomllib.loads((Path(__file__).parent / "recipes.toml").read_text("utf-8"))
    return dict(found[section])


def train(
    checkpoint: Path,
    loss_of: Callable[[int], torch.Tensor],
    *,
    steps: int,
    optimiser: torch.optim.Optimizer,
    schedule: Any,
    parts: Mapping[str, Any],
    after: Callable[[int], None] = lambda step: None,
    every: int = 250,
) -> None:
    """Minimise `loss_of(step)` up to `steps`, going on to the same bits from a checkpoint that is there.

    parts: what the checkpoint holds beside optimiser and schedule. loss_of: draws what it needs from a
    generator seeded by the step. Gradients are clipped to norm 1; after: called with the number of steps
    taken, before a checkpoint is written, every `every` steps. BenchError where the loss is not finite.
    """
    parts = {**parts, "optimiser": optimiser, "schedule": schedule}
    weights = [p for group in optimiser.param_groups for p in group["params"]]
    for step in range(load_checkpoint(checkpoint, **parts), steps):
        loss = loss_of(step)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for what, value in (("loss", loss.detach()), ("gradient", norm)):
            check_finite(what, float(value), step=step, steps=steps, advice="Go on with a lower rate.")
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        schedule.step()
        after(step + 1)
        if (step + 1) % every == 0 or step + 1 == steps:
            save_checkpoint(checkpoint, step=step + 1, **parts)
            say(f"{checkpoint.stem}: step {step + 1} of {steps}, loss {float(loss.detach()):.4f}")


def run(recipe: Callable[..., Any]) -> None:
    """Run a recipe from the command line; bad input ends it with one line and code 2."""
    try:
        typer.run(recipe)
    except BenchError as error:
        aside(f"error: {error}")
        sys.exit(2)
