"""LoRA + concat: low-rank factors in a frozen copy of the UNet, the condition beside the latents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file

from baselines.concat import DRAWN, ConcatDenoiser, put_input, wide_input
from baselines.inputs import like_base
from bench.base.load import Base
from bench.base.weights import Source
from bench.types import BenchError, Exchange, Task

FACTORS, INPUT = "pytorch_lora_weights.safetensors", "conv_in.safetensors"
_LOADED = """\
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
unet = UNet2DConditionModel.from_pretrained(
    "{base}", subfolder="unet", in_channels={inputs}, low_cpu_mem_usage=False,
    ignore_mismatched_sizes=True)
unet.conv_in.load_state_dict(load_file("{folder}/conv_in.safetensors"))
unet.load_lora_adapter("{folder}", prefix=None, weight_name="pytorch_lora_weights.safetensors")
"""
EXCHANGE = Exchange(
    parts=("lora",),
    classes={},
    pipeline="StableDiffusionPipeline",
    usage=_LOADED + DRAWN,
    whole=(_LOADED.replace("{folder}", "{folder}/lora") + DRAWN).replace("{base}", "{folder}"),
)

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def lora_targets(unet: Any) -> list[str]:
    """Return the layers that get factors: attention and inner convolutions, not conv_in and conv_out."""
    convolutions = {name for name, module in unet.named_modules() if isinstance(module, torch.nn.Conv2d)}
    inner = convolutions - {"conv_in", "conv_out"}
    return [name for name, _ in unet.named_modules() if name.endswith(ATTENTION) or name in inner]


def add_lora(unet: Any, *, rank: int) -> Any:
    """Freeze a UNet and add trainable LoRA factors (second ones zero, scaling 1) to its targets, in place."""
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=lora_targets(unet)))
    return unet


class LoraConcat:
    """LoRA on attention and convolutions, and new input channels for the condition."""

    name = "lora-concat"
    title = "LoRA + concat"
    conditioned = True
    source = "Hu et al., ICLR 2022, https://arxiv.org/abs/2106.09685; concatenation as in arXiv 2211.09800"
    options: dict[str, object] = {"rank": 16}
    allowed = {"rank": "a whole number from 1"}
    exchange = EXCHANGE

    def build(self, base: Base, task: Task, *, rank: int = 16) -> ConcatDenoiser:
        """Return a frozen copy of the base; its LoRA factors and its new input channels train.

        rank: of each pair of factors, a whole number from 1; ValueError for anything else.
        """
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ValueError(f"rank is {rank!r}; allowed: a whole number from 1.")
        unet = add_lora(base.prior_unet("free"), rank=rank)
        return ConcatDenoiser(base, like_base(unet, base.device), task=task)

    def load(self, denoiser: ConcatDenoiser, source: Source) -> dict[str, str]:
        """Put in LoRA factors and the input convolution; BenchError where they do not fit."""
        folder = source.folder()
        missing = [name for name in (FACTORS, INPUT) if not (folder / name).exists()]
        if missing:
            wanted = "what `bench export` writes of a run of lora-concat"
            raise BenchError(f"{folder} has no {' and no '.join(missing)}; needed: {wanted}.")
        factors, first = source.tensors(FACTORS), source.tensors(INPUT)
        own = get_peft_model_state_dict(denoiser.unet)
        source.fit({"rank (option rank)": _rank(factors)}, {"rank (option rank)": _rank(own)})
        source.fit_shapes(factors, own)
        source.fit_shapes(first, wide_input(denoiser))
        set_peft_model_state_dict(denoiser.unet, factors)
        put_input(denoiser, first)
        return {}

    def save(self, denoiser: ConcatDenoiser, folder: Path) -> None:
        """Write the factors as UNet2DConditionModel.load_lora_adapter loads them, and a wide conv_in."""
        unet = denoiser.unet.to(memory_format=torch.contiguous_format)  # as safetensors wants it
        unet.save_lora_adapter(folder, weight_name=FACTORS)
        like_base(unet, str(unet.device))
        save_file({n: t.contiguous().cpu() for n, t in wide_input(denoiser).items()}, folder / INPUT)


def _rank(factors: Mapping[str, Any]) -> int | None:
    return next((len(t) for name, t in factors.items() if name.endswith("lora_A.weight")), None)
