"""What a base must be: its configurations, read once and held to what this program can run.

A Stable Diffusion 1.x or 2.x: one CLIP text encoder, a UNet that reads four latent channels, a timestep
and text, an autoencoder whose latents are only scaled, and a schedule of DDPM's kind that predicts eps or
v. Anything else would load, or nearly, and give numbers that mean nothing, so what is unknown is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import ConfigDict, FiniteFloat, Strict, with_config
from typing_extensions import TypedDict

from bench.content import read_json
from bench.types import BenchError

INDEX = "model_index.json"
LATENT_CHANNELS = 4
_REMEDY = "Give a whole Stable Diffusion 1.x or 2.x in diffusers' format."
_NOT_READ = {"safety_checker", "feature_extractor", "image_encoder"}
_ADDED = {"adapter", "controlnet"}  # what an export with its base holds beside it
_OTHERS = with_config(ConfigDict(extra="allow"))  # what is not named here has no say

# Nothing that is counted is larger: such a number is damage, and would never end.
_Count = Annotated[int, Strict(), Ge(1), Le(100_000)]
_Counts = Annotated[list[_Count], MinLen(1)]
_Beta = Annotated[FiniteFloat, Strict(), Gt(0), Lt(1)]
_Scheduler = Literal[
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
]


@_OTHERS
class _Index(TypedDict):
    _class_name: Literal[
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionControlNetPipeline",
        "StableDiffusionControlNetXSPipeline",
        "StableDiffusionAdapterPipeline",
        "StableDiffusionBPSPipeline",
    ]
    unet: tuple[Literal["diffusers"], Literal["UNet2DConditionModel"]]
    vae: tuple[Literal["diffusers"], Literal["AutoencoderKL", "AutoencoderTiny"]]
    text_encoder: tuple[Literal["transformers"], Literal["CLIPTextModel"]]
    tokenizer: tuple[Literal["transformers"], Literal["CLIPTokenizer", "CLIPTokenizerFast"]]
    scheduler: tuple[Literal["diffusers"], _Scheduler]


@_OTHERS
class _UNet(TypedDict):
    _class_name: NotRequired[Literal["UNet2DConditionModel"]]
    sample_size: _Count
    block_out_channels: _Counts
    cross_attention_dim: _Count
    layers_per_block: NotRequired[_Count]
    attention_head_dim: NotRequired[_Count | _Counts]
    num_attention_heads: NotRequired[_Count | _Counts | None]
    down_block_types: list[Literal["CrossAttnDownBlock2D", "DownBlock2D"]]
    up_block_types: list[Literal["CrossAttnUpBlock2D", "UpBlock2D"]]
    mid_block_type: NotRequired[Literal["UNetMidBlock2DCrossAttn"] | None]
    use_linear_projection: NotRequired[Annotated[bool, Strict()]]
    in_channels: NotRequired[Literal[4]]
    out_channels: NotRequired[Literal[4]]
    center_input_sample: NotRequired[Literal[False]]
    class_embed_type: NotRequired[None]
    num_class_embeds: NotRequired[None]
    addition_embed_type: NotRequired[None]
    encoder_hid_dim: NotRequired[None]
    encoder_hid_dim_type: NotRequired[None]
    time_cond_proj_dim: NotRequired[None]
    time_embedding_type: NotRequired[Literal["positional"]]
    attention_type: NotRequired[Literal["default"]]
    dual_cross_attention: NotRequired[Literal[False]]


@_OTHERS
class _VAE(TypedDict):
    _class_name: Literal["AutoencoderKL", "AutoencoderTiny"]
    block_out_channels: NotRequired[_Counts]
    encoder_block_out_channels: NotRequired[_Counts]
    in_channels: NotRequired[Literal[3]]
    out_channels: NotRequired[Literal[3]]
    latent_channels: NotRequired[Literal[4]]
    scaling_factor: NotRequired[Annotated[FiniteFloat, Strict(), Gt(0)]]
    shift_factor: NotRequired[Annotated[float, Strict(), Ge(0), Le(0)] | None]
    latents_mean: NotRequired[None]
    latents_std: NotRequired[None]


@_OTHERS
class _TextEncoder(TypedDict):
    model_type: NotRequired[Literal["clip_text_model"]]
    hidden_size: _Count
    num_hidden_layers: _Count
    vocab_size: _Count
    max_position_embeddings: _Count


@_OTHERS
class _Schedule(TypedDict):
    """The noise levels must follow from these alone: training and sampling read nothing else."""

    _class_name: _Scheduler
    prediction_type: NotRequired[Literal["epsilon", "v_prediction"]]
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
    beta_start: _Beta
    beta_end: _Beta
    num_train_timesteps: _Count
    timestep_spacing: NotRequired[Literal["leading", "trailing", "linspace"]]
    trained_betas: NotRequired[None]
    rescale_betas_zero_snr: NotRequired[Literal[False]]  # alpha = 0 has no eps and an infinite loss weight
    use_flow_sigmas: NotRequired[Literal[False] | None]


_FILES: Mapping[str, tuple[str, Any]] = {
    "index": (INDEX, _Index),
    "unet": ("unet/config.json", _UNet),
    "vae": ("vae/config.json", _VAE),
    "text_encoder": ("text_encoder/config.json", _TextEncoder),
    "scheduler": ("scheduler/scheduler_config.json", _Schedule),
}


def read_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """Read a base's configurations, by part and "index". Weights are not touched and need not be there.

    BenchError for a configuration that is missing or damaged, lacks a value, or says that the base is
    none that can be run.
    """
    missing = [file for file, _ in _FILES.values() if not (folder / file).is_file()]
    if missing:
        raise BenchError(
            f"{folder} has no configuration of a Stable Diffusion in diffusers' format: {missing[0]} is "
            f"missing. It needs {', '.join(file for file, _ in _FILES.values())}."
        )
    found = {
        part: dict(read_json(folder / file, of=kind, loose=True, remedy=_REMEDY))
        for part, (file, kind) in _FILES.items()
    }
    for wrong in _at_odds(**found):
        raise BenchError(f"{folder} is no base that can be run: {wrong}. {_REMEDY}")
    return found


def downscale_of(vae: Mapping[str, Any]) -> int:
    """Return image pixels per latent cell, from an autoencoder's configuration."""
    return int(2 ** (len(_widths(vae)) - 1))


def _at_odds(*, index: Any, unet: Any, vae: Any, text_encoder: Any, scheduler: Any) -> Iterator[str]:
    """Say where two values do not fit each other, each being allowed by itself."""
    named = {name for name, value in index.items() if isinstance(value, list) and any(value)}
    for name in sorted(named - _NOT_READ - _ADDED):
        yield f"{INDEX} names a part that is not known, '{name}'"
    if unet["cross_attention_dim"] != text_encoder["hidden_size"]:
        yield (
            f"its UNet reads text of width {unet['cross_attention_dim']} (cross_attention_dim), its text "
            f"encoder gives {text_encoder['hidden_size']} (hidden_size)"
        )
    levels = len(unet["block_out_channels"])
    for name in ("down_block_types", "up_block_types"):
        if len(unet[name]) != levels:
            yield f"unet/config.json has {len(unet[name])} {name} and {levels} block_out_channels"
    if not _widths(vae):
        yield "vae/config.json lacks block_out_channels"
    if vae["_class_name"] != index["vae"][1]:
        yield f"vae/config.json is of a {vae['_class_name']}, {INDEX} names {index['vae'][1]}"
    if scheduler["beta_start"] > scheduler["beta_end"]:
        yield "beta_start of its schedule is above beta_end"


def _widths(vae: Mapping[str, Any]) -> Any:
    return vae.get("block_out_channels") or vae.get("encoder_block_out_channels")
