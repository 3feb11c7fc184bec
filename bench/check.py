"""The integration check: is a method wired into the base the way it claims?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.base.load import Base
from bench.config import Training
from bench.data.latents import Prepared
from bench.training.checkpoint import Trainable
from bench.training.loop import training_loss
from bench.types import Method, Task

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Finding:
    """One statement that was checked, whether it holds, and the figures behind it."""

    statement: str
    holds: bool
    detail: str


def check_method(
    method: Method,
    *,
    base: Base,
    task: Task,
    data: Prepared,
    options: Mapping[str, Any],
    steps: int = 4,
    seed: int = 0,
) -> list[Finding]:
    """Check a method on a few items: equal to the base at the start, gradients, frozen prior, effect.

    data: at least 4 items. Trains a copy for `steps` optimiser steps of 4 items; nothing is saved.
    """
    import torch

    torch.manual_seed(seed)
    denoiser = method.build(base, task, **options)
    trainable = Trainable(denoiser)
    start = _equal_to_base(denoiser, base, data)
    if not trainable.parameters:
        return [start, Finding("nothing is trained", True, "0 parameters")]
    frozen = {n: p.detach().clone() for n, p in denoiser.named_parameters() if not p.requires_grad}
    touched = _train(denoiser, trainable, base=base, data=data, steps=steps, seed=seed)
    silent = sorted(set(trainable.parameters) - touched)
    without = f"; without: {', '.join(silent[:4])}{' ...' if len(silent) > 4 else ''}" if silent else ""
    now = dict(denoiser.named_parameters())
    changed = [n for n, before in frozen.items() if not torch.equal(before, now[n])]
    graded = [n for n in frozen if now[n].grad is not None]
    probes = [_probe(base, data, denoiser, rows) for rows in (range(2), range(2, 4))]
    gap = float((probes[0] - probes[1]).abs().max())
    return [
        start,
        Finding(
            statement="gradients reach every trainable parameter",
            holds=not silent,
            detail=f"{len(touched)} of {len(trainable.parameters)} parameter tensors{without}",
        ),
        Finding(
            statement="the frozen prior is bit-identical after training and has no gradients",
            holds=not changed and not graded,
            detail=f"{len(frozen)} frozen tensors, {len(changed)} changed, {len(graded)} with gradient",
        ),
        Finding(
            statement=f"another condition {'changes' if method.conditioned else 'leaves'} the output",
            holds=(gap > 0.0) == method.conditioned,
            detail=f"largest difference in eps {gap:.3g}",
        ),
    ]


def _probe(base: Base, data: Prepared, denoiser: Any, rows: range) -> torch.Tensor:
    """eps of two items at two timesteps, with the conditions of `rows`, [2,2,4,h,w]."""
    import torch

    draw = torch.Generator().manual_seed(1)
    latents = torch.randn((2, *data.latent_shape), generator=draw)
    prompts = data.text_at(range(2))
    text = torch.stack([data.empty.expand_as(prompts), prompts])
    with torch.no_grad():
        features = denoiser.encode(data.conditions_at(rows).to(base.device))
        eps = denoiser(
            latents.to(base.device),
            torch.tensor([17, 801], device=base.device),
            text.to(base.device),
            features,
        )
    return eps.float().cpu()


def _equal_to_base(denoiser: Any, base: Base, data: Prepared) -> Finding:
    outputs = [_probe(base, data, each, range(2)) for each in (denoiser, base)]
    gap = float((outputs[0] - outputs[1]).abs().max())
    same = getattr(denoiser, "starts_as_base", True)
    claim = "it equals the base bit for bit" if same else "it differs from the base as it says"
    detail = f"largest difference in eps {gap:.3g}"
    return Finding(f"untrained, {claim}", (gap == 0.0) == same, detail)


def _train(
    denoiser: Any, trainable: Trainable, *, base: Base, data: Prepared, steps: int, seed: int
) -> set[str]:
    """Take a few optimiser steps; return the names of parameters that had a gradient."""
    import torch

    optimiser = torch.optim.AdamW(trainable.parameters.values(), lr=1e-3)
    touched: set[str] = set()
    for step in range(steps):
        loss = training_loss(denoiser, base=base, data=data, training=Training(batch=4), seed=seed, step=step)
        loss.backward()
        touched |= {
            n for n, p in trainable.parameters.items() if p.grad is not None and bool(p.grad.abs().max() > 0)
        }
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return touched
