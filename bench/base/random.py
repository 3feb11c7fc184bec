"""A base with random weights and Stable Diffusion's topology, at its full width or narrow.

It stands in for the real weights wherever those are not at hand: shapes, parameters, memory and every
code path are the same, the pictures are noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.base.load import DTYPES
from bench.content import write_json, written_by_libraries
from bench.emoji.tokenizer import train_tokenizer
from bench.types import BenchError, unknown

FULL_WIDTH = 320
WIDTH_MULTIPLE = 32  # of group norms and of BPS
CONTEXT = 77  # tokens of a prompt
VOCABULARY = 49_408  # rows of CLIP's token table
_HEAD = 64  # channels of a head, in CLIP and in SD 2.x
_WORDS = (
    "a man riding a wave on a surfboard",
    "two dogs on a sofa near a window",
    "the red bus in a street",
    "a plate of food on a wooden table",
    "people walking in the park with a kite",
)


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """What tells one Stable Diffusion from another.

    heads: attention heads of every level, or None: as many as give 64 channels each. text_*: of the
    CLIP text encoder, at full width. Sources: the configuration files of the published snapshots.
    """

    name: str
    size: int
    heads: int | None
    linear: bool
    upcast: bool
    prediction: str
    text_width: int
    text_layers: int
    text_activation: str
    text_projection: int
    scheduler: str


LIKENESSES: Mapping[str, Likeness] = {
    "sd15": Likeness(
        name="sd15",
        size=512,
        heads=8,
        linear=False,
        upcast=False,
        prediction="epsilon",
        text_width=768,
        text_layers=12,
        text_activation="quick_gelu",
        text_projection=768,
        scheduler="PNDMScheduler",
    ),
    "sd21": Likeness(
        name="sd21",
        size=768,
        heads=None,
        linear=True,
        upcast=True,
        prediction="v_prediction",
        text_width=1024,
        text_layers=23,
        text_activation="gelu",
        text_projection=512,
        scheduler="DDIMScheduler",
    ),
}


def find_likeness(name: str) -> Likeness:
    """Return a model to resemble by name; BenchError for an unknown one."""
    if name not in LIKENESSES:
        raise unknown("model to resemble", name, LIKENESSES)
    return LIKENESSES[name]


def unet_config(like: Likeness, *, width: int = FULL_WIDTH, size: int | None = None) -> dict[str, Any]:
    """Return the arguments of a UNet2DConditionModel: four levels of width (1, 2, 4, 4) times `width`.

    size: of the images in pixels, 8 to a latent cell. BenchError for widths that no method takes.
    """
    if width < WIDTH_MULTIPLE or width % WIDTH_MULTIPLE:
        raise BenchError(f"width {width}; allowed: positive multiples of {WIDTH_MULTIPLE}.")
    side = like.size if size is None else size
    if side < 64 or side % 64:
        raise BenchError(f"size {side} pixels; allowed: positive multiples of 64.")
    per_level = tuple(max(1, width // _HEAD) * factor for factor in (1, 2, 4, 4))
    down = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    return {
        "sample_size": side // 8,
        "block_out_channels": tuple(width * factor for factor in (1, 2, 4, 4)),
        "layers_per_block": 2,
        "down_block_types": down,
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "cross_attention_dim": text_width(like, width=width),
        "attention_head_dim": like.heads or per_level,  # the number of heads, in fact
        "norm_num_groups": 32 if width >= 64 else 16,  # never a group of one channel
        "use_linear_projection": like.linear,
        "upcast_attention": like.upcast,
    }


def text_width(like: Likeness, *, width: int = FULL_WIDTH) -> int:
    """Return the text encoder's width: the model's own, scaled with the UNet, in whole heads."""
    return max(1, round(like.text_width // _HEAD * width / FULL_WIDTH)) * _HEAD


def vae_config(*, width: int = FULL_WIDTH, size: int = 512) -> dict[str, Any]:
    """Return the arguments of an AutoencoderKL of Stable Diffusion's topology, downscale factor 8."""
    first = max(16, round(128 * width / FULL_WIDTH / 16) * 16)
    return {
        "sample_size": size,
        "block_out_channels": (first, 2 * first, 4 * first, 4 * first),
        "layers_per_block": 2,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "latent_channels": 4,
        "norm_num_groups": 32 if first >= 64 else 8,
        "scaling_factor": 0.18215,
    }


def text_config(like: Likeness, *, width: int = FULL_WIDTH, vocabulary: int = VOCABULARY) -> dict[str, Any]:
    """Return the arguments of a CLIPTextConfig, at full width with CLIP's own table of tokens."""
    own = text_width(like, width=width)
    return {
        "vocab_size": vocabulary,
        "hidden_size": own,
        "intermediate_size": 4 * own,
        "num_hidden_layers": like.text_layers,
        "num_attention_heads": own // _HEAD,
        "max_position_embeddings": CONTEXT,
        "hidden_act": like.text_activation,
        "projection_dim": like.text_projection,
    }


def build_parts(like: Likeness, *, width: int = FULL_WIDTH, size: int | None = None, tokenizer: Any) -> Any:
    """Return untrained UNet, AutoencoderKL and CLIPTextModel by part, from torch's generator."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    vocabulary = VOCABULARY if width == FULL_WIDTH else len(tokenizer)
    ends = {f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos", "pad")}
    return {
        "unet": UNet2DConditionModel(**unet_config(like, width=width, size=size)),
        "vae": AutoencoderKL(**vae_config(width=width, size=size or like.size)),
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(**text_config(like, width=width, vocabulary=vocabulary), **ends)
        ),
    }


def build_scheduler(like: Likeness) -> Any:
    """Return the model's scheduler: Stable Diffusion's betas and the model's prediction."""
    import diffusers

    own = {"skip_prk_steps": True} if like.scheduler == "PNDMScheduler" else {"clip_sample": False}
    return getattr(diffusers, like.scheduler)(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=like.prediction,
        **own,
    )


def write_random_base(
    folder: Path,
    *,
    like: str = "sd15",
    width: int = FULL_WIDTH,
    size: int | None = None,
    seed: int = 0,
    dtype: str = "float32",
    variant: str | None = None,
) -> Path:
    """Write a base with random weights as a diffusers folder, and return the folder.

    like: a name of LIKENESSES; width: of the UNet's first level; size: of its images in pixels, None:
    the model's own; dtype: of the weights on disk; variant: a word in the names of the UNet's
    weights, such as non_ema. The same arguments give the same files. BenchError for a folder that
    is not empty and for arguments that are not allowed.
    """
    import diffusers
    import torch
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = find_likeness(like)
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    if folder.exists() and any(folder.iterdir()):
        raise BenchError(f"{folder} is not empty. Name a new folder.")
    tokenizer = train_tokenizer(_WORDS, size=320, length=CONTEXT)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = build_parts(model, width=width, size=size, tokenizer=tokenizer)
    with written_by_libraries(folder):
        for name, part in parts.items():
            chosen = variant if name == "unet" else None
            part.to(getattr(torch, dtype)).save_pretrained(folder / name, variant=chosen)
        tokenizer.save_pretrained(folder / "tokenizer")
        build_scheduler(model).save_pretrained(folder / "scheduler")
    write_json(folder / "model_index.json", _index(model))
    return folder


def _index(model: Likeness) -> dict[str, Any]:
    return {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", model.scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
