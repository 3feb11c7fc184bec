"""Tiny bases with random weights: real classes, no mocks, seconds on a CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.base import SD, Shape
from bench.base.random import train_tokenizer, write_base
from bench.base.snapshot import MANIFEST
from bench.content import read_json, sha256_file, write_json
from bench.judges.clip import EMOJI_CLIP

TINY_VAE = {
    "_class_name": "AutoencoderTiny",
    "encoder_block_out_channels": (16,) * 3,
    "decoder_block_out_channels": (16,) * 3,
    "num_encoder_blocks": (1, 2, 3),
    "num_decoder_blocks": (3, 2, 1),
    "latent_channels": 4,
    "upsampling_scaling_factor": 2,
}


def tiny_shape(
    tokenizer: Any, *, vae: Mapping[str, Any] = TINY_VAE, prediction: str = "v_prediction"
) -> Shape:
    """A 4-level UNet of width 32, an autoencoder, a one-layer text encoder of 16 tokens."""
    ends = {f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos", "pad")}
    unet = {
        "sample_size": 16,
        "block_out_channels": (32,) * 4,
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": (1,) * 4,
        "norm_num_groups": 16,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "max_position_embeddings": 16,
        "projection_dim": 32,
        **ends,
    }
    scheduler = {
        "_class_name": "DDIMScheduler",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": prediction,
    }
    configs = {"unet": unet, "vae": vae, "text_encoder": text, "scheduler": scheduler}
    return Shape(name="tiny", configs=configs)


def write_tiny_base(folder: Path, words: Sequence[str], **shape: Any) -> Path:
    """Write a tiny base in half precision, with the manifest of its files; return the folder."""
    import torch

    torch.manual_seed(0)
    tokenizer = train_tokenizer(words, size=200, length=16)
    made = tiny_shape(tokenizer, **shape)
    parts = {**made.build(), "tokenizer": tokenizer}
    for part in SD.weighted:
        parts[part].half()
    write_base(folder, parts)
    files = {str(p.relative_to(folder)): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    write_json(folder / MANIFEST, {"licence": "CC BY-SA 4.0", "name": folder.name, "files": files})
    return folder


def small_clip() -> dict[str, Any]:
    """The configuration of emoji-clip, narrow and for pictures of 64 pixels."""
    config = read_json(EMOJI_CLIP / "open_clip_config.json")
    model = config["model_cfg"]
    model["vision_cfg"]["image_size"] = 64
    model["text_cfg"] |= {"width": 32, "heads": 1, "layers": 1, "vocab_size": 200}
    return {**config, "model_cfg": {**model, "embed_dim": 32}}


def write_narrow_base(folder: Path) -> Path:
    """Write a random base of Stable Diffusion 1.5's shape, narrow: eps, latents of 64x64 at 512 px."""
    vae = {
        "_class_name": "AutoencoderKL",
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (4, 4, 8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": 4,
        "sample_size": 512,
    }
    words = ["a picture, number one", "in words"]
    return write_tiny_base(folder, words, vae=vae, prediction="epsilon")
