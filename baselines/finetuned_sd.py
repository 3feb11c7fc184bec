"""Fine-tuned SD: the whole UNet trained, the condition concatenated to the latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from baselines.concat import ConcatDenoiser

if TYPE_CHECKING:
    from bench.base import Base
    from bench.types import Task


class FinetunedSD:
    """A copy of the UNet with new input channels, all of it trained; the shared base stays as it is."""

    name = "sd-finetune"
    title = "fine-tuned SD"
    conditioned = True
    source = (
        "channel concatenation as in Brooks, Holynski, Efros, CVPR 2023, "
        "https://arxiv.org/abs/2211.09800"
    )
    options: dict[str, object] = {}

    def build(self, base: Base, task: Task) -> ConcatDenoiser:
        """Return a trainable copy of the base that equals it until it is trained."""
        return ConcatDenoiser(base, base.prior_unet("free"), task=task)
