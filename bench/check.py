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
    """Check a method on 4 items or more, some steps long: its start, gradients, frozen prior and effect."""
    import torch

    torch.manual_seed(seed)
    denoiser = method.build(base, task, **options)
    parameters = Trainable(denoiser).parameters
    gap = _gap(_probe(base, data, denoiser, range(2)), _probe(base, data, base, range(2)))
    same = getattr(denoiser, "starts_as_base", True)
    claim = "it equals the base bit for bit" if same else "it differs from the base as it says"
    start = Finding(f"untrained, {claim}", (gap == 0.0) == same, f"largest difference in eps {gap:.3g}")
    if not parameters:
        return [start, Finding("nothing is trained", True, "0 parameters")]
    frozen = {n: p.detach().clone() for n, p in denoiser.named_parameters() if not p.requires_grad}
    touched, training = set[str](), Training(batch=4)
    optimiser = torch.optim.AdamW(parameters.values(), lr=1e-3)
    for step in range(steps):
        training_loss(denoiser, base=base, data=data, training=training, seed=seed, step=step).backward()
        touched |= {n for n, p in parameters.items() if p.grad is not None and p.grad.abs().max() > 0}
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    silent = sorted(set(parameters) - touched)
    without = f"; without: {', '.join(silent[:4])}{' ...' if len(silent) > 4 else ''}" if silent else ""
    now = dict(denoiser.named_parameters())
    changed = sum(not torch.equal(before, now[n]) for n, before in frozen.items())
    graded = sum(now[n].grad is not None for n in frozen)
    gap = _gap(*(_probe(base, data, denoiser, rows) for rows in (range(2), range(2, 4))))
    reached = f"{len(touched)} of {len(parameters)} parameter tensors{without}"
    kept = f"{len(frozen)} frozen tensors, {changed} changed, {graded} with gradient"
    prior = "the frozen prior is bit-identical after training and has no gradients"
    effect = f"another condition {'changes' if method.conditioned else 'leaves'} the output"
    return [
        start,
        Finding("gradients reach every trainable parameter", not silent, reached),
        Finding(prior, not changed + graded, kept),
        Finding(effect, (gap > 0.0) == method.conditioned, f"largest difference in eps {gap:.3g}"),
    ]


def _gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def _probe(base: Base, data: Prepared, denoiser: Any, rows: range) -> torch.Tensor:
    """eps of two items at two timesteps, with the conditions of `rows`, [2,2,4,h,w]."""
    import torch

    draw = torch.Generator().manual_seed(1)
    latents = torch.randn((2, *data.latent_shape), generator=draw)
    prompts = data.text_at(range(2))
    text = torch.stack([data.empty.expand_as(prompts), prompts])
    with torch.no_grad():
        features = denoiser.encode(data.conditions_at(rows).to(base.device))
        steps = torch.tensor([17, 801], device=base.device)
        eps = denoiser(latents.to(base.device), steps, text.to(base.device), features)
    return eps.float().cpu()
