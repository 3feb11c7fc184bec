"""Fine-tuned SD: the whole UNet trained, the condition concatenated to the latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel

from baselines.concat import DRAWN, ConcatDenoiser, put_input, widened
from bench.base.load import Base
from bench.base.weights import Source
from bench.types import Exchange, Task

_LOADED = """\
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
unet = UNet2DConditionModel.from_pretrained("{folder}")
"""
EXCHANGE = Exchange(
    parts=("unet",),
    classes={"unet": ("diffusers", "UNet2DConditionModel")},
    pipeline="StableDiffusionPipeline",
    usage=_LOADED + DRAWN,
    whole=_LOADED.replace('")', '", subfolder="unet")') + DRAWN.replace("{base}", "{folder}"),
)


class FinetunedSD:
    """A copy of the UNet with new input channels, all of it trained; the shared base stays as it is."""

    name = "sd-finetune"
    title = "fine-tuned SD"
    conditioned = True
    source = "concatenation as in Brooks, Holynski, Efros, CVPR 2023, https://arxiv.org/abs/2211.09800"
    options: dict[str, object] = {}
    exchange = EXCHANGE

    def build(self, base: Base, task: Task) -> ConcatDenoiser:
        """Return a trainable copy of the base that equals it until it is trained."""
        return ConcatDenoiser(base, base.prior_unet("free"), task=task)

    def load(self, denoiser: ConcatDenoiser, source: Source) -> dict[str, str]:
        """Put in a UNet that takes latents and condition together; BenchError where it does not fit."""
        given = source.model(UNet2DConditionModel)
        source.fit(made_for(given.config), made_for(widened(denoiser).config))
        state = given.state_dict()
        first = {name: state.pop(f"conv_in.{name}") for name in ("weight", "bias")}
        denoiser.unet.load_state_dict(state, strict=False)  # all but conv_in
        put_input(denoiser, first)
        return {}

    def save(self, denoiser: ConcatDenoiser, folder: Path) -> None:
        """Write the UNet as UNet2DConditionModel.from_pretrained loads it, with one wide conv_in."""
        widened(denoiser).save_pretrained(folder)


def made_for(config: Any) -> dict[str, Any]:
    """Return what a UNet is made for by its configuration: its shape, and how many channels it reads."""
    names = ("cross_attention_dim", "layers_per_block", "down_block_types", "use_linear_projection")
    read = {"widths": config["block_out_channels"], "channels that it reads": config["in_channels"]}
    return {name: config[name] for name in names} | read
