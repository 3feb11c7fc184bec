"""CPU seconds of a step of the training loop over those of a bare step: forward, backward, clipping, AdamW.

    OMP_NUM_THREADS=1 python tests/benchmarks/loop.py --methods bps,controlnet --steps 40

A bare step of a copy of the module follows every step of the loop, on a batch that was drawn before, so that
both meet the same machine; the middle of the ratios counts.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.config import make_config
from bench.running import Run
from bench.suites import resolve
from bench.training.loop import draw_batch, train
from bench.types import Hooks


class Bare(Hooks):
    """Takes a bare step after every step of the loop, and the times of both."""

    def __init__(self, run: Run) -> None:
        self.denoiser, self.base = copy.deepcopy(run.denoiser), run.base
        self.training = run.spec.suite.training
        self.parameters = [p for p in self.denoiser.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=1e-5, fused=True)
        self.batch = draw_batch(run.train_data, training=self.training, seed=0, step=0)
        self.begun, self.pairs = 0.0, list[tuple[float, float]]()

    def tick(self, done: int, total: int, note: str = "") -> None:
        """The loop has taken a step."""
        loop = time.process_time() - self.begun
        bare = time.process_time()
        self.step()
        self.pairs.append((loop, time.process_time() - bare))
        self.begun = time.process_time()

    def step(self) -> None:
        """Forward, backward, clipping and AdamW on the one batch."""
        latents, conditions, text, timesteps, noise = self.batch
        alpha = self.base.alphas.float()[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        eps = self.denoiser(noisy, timesteps, text[None], self.denoiser.encode(conditions))[0]
        (eps - noise).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.training.clip_norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)


def main() -> None:
    """Print a line a method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="bps,controlnet")
    parser.add_argument("--steps", type=int, default=40)
    asked = parser.parse_args()
    for method in asked.methods.split(","):
        with tempfile.TemporaryDirectory() as results:
            given: dict[str, Any] = {"method": method, "task": "sketch", "device": "cpu", "results": results}
            run = Run(resolve(make_config({**given, "train_images": 16 * asked.steps})))
            bare = Bare(run)
            train(
                run.denoiser, run.spec, base=run.base, data=run.train_data, folder=Path(results), hooks=bare
            )
        ratios = [loop / step for loop, step in bare.pairs[3:]]
        middle = statistics.median(step for _, step in bare.pairs[3:])
        sys.stdout.write(
            f"{method}: loop over bare step {statistics.median(ratios):.3f}, of {middle:.3f} CPU s\n"
        )


if __name__ == "__main__":
    main()
