"""Networks of diffusers written as one file of the original layout: names by hand, the other way round."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.base import Shape
from bench.base.random import shape_like, write_base
from bench.base.single import clip_tokenizer

_UNET = {
    r"^time_embedding\.linear_1": "time_embed.0",
    r"^time_embedding\.linear_2": "time_embed.2",
    r"^conv_in": "input_blocks.0.0",
    r"^conv_norm_out": "out.0",
    r"^conv_out": "out.2",
    r"^mid_block\.resnets\.0": "middle_block.0",
    r"^mid_block\.attentions\.0": "middle_block.1",
    r"^mid_block\.resnets\.1": "middle_block.2",
}
_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "downsamplers.0.conv": "downsample.conv",
    "upsamplers.0.conv": "upsample.conv",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    ".resnets.": ".block.",
}
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.": "ln_final.",
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.": "attn.",
    ".fc1.": ".c_fc.",
    ".fc2.": ".c_proj.",
}


def narrow_shape(like: str = "sd15") -> Shape:
    """Narrow networks with what no file tells: groups of 32, the size of images, CLIP's vocabulary."""
    heads = {} if like == "sd15" else {"attention_head_dim": (1, 1, 2, 2)}
    ends = {"bos_token_id": 49_406, "eos_token_id": 49_407, "pad_token_id": 49_407}
    shape = shape_like(like, width=32, size=512).changed("unet", norm_num_groups=32, **heads)
    shape = shape.changed("vae", norm_num_groups=32, block_out_channels=(32, 32, 64, 64))
    return shape.changed("text_encoder", **ends)


def write_both(folder: Path, file: Path, *, like: str = "sd15") -> dict[str, Any]:
    """Write the same random networks as a diffusers folder and as one file; return the file's tensors."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    shape = narrow_shape(like)
    parts = shape.build()
    for name in shape.family.weighted:
        parts[name].half()
    tokenizer = clip_tokenizer(pad="<|endoftext|>" if like == "sd15" else "!")
    write_base(folder, {**parts, "tokenizer": tokenizer})
    tensors = original(parts, open_clip=like != "sd15")
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)
    return tensors


def original(parts: Mapping[str, Any], *, open_clip: bool = False) -> dict[str, Any]:
    """Return the tensors of UNet, autoencoder and text encoder under the names of the original layout."""
    layers = parts["unet"].config["layers_per_block"]
    levels = len(parts["vae"].config["block_out_channels"])
    tensors = {
        f"model.diffusion_model.{_unet_name(name, layers)}": tensor
        for name, tensor in parts["unet"].state_dict().items()
    }
    for name, tensor in parts["vae"].state_dict().items():
        wide = ".attentions." in name and name.endswith("weight") and "group_norm" not in name
        tensors[f"first_stage_model.{_vae_name(name, levels)}"] = tensor[..., None, None] if wide else tensor
    text = {name.removeprefix("text_model."): t for name, t in parts["text_encoder"].state_dict().items()}
    tensors |= (
        _open_clip(text)
        if open_clip
        else {f"cond_stage_model.transformer.text_model.{n}": t for n, t in text.items()}
    )
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


def _unet_name(name: str, layers: int) -> str:
    for old, new in _UNET.items():
        name = re.sub(old, new, name)
    found = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name)
    if found:
        side, level, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        first = level * (layers + 1) + (side == "down")
        place = {"resnets": f"{first + layer}.0", "attentions": f"{first + layer}.1"}.get(kind)
        if kind == "downsamplers":
            place, rest = f"{first + layers}.0", rest.replace("conv", "op")
        if kind == "upsamplers":  # the first level up has no attention before it
            place = f"{first + layers}.{1 if level == 0 else 2}"
        name = f"{'input' if side == 'down' else 'output'}_blocks.{place}.{rest}"
    if re.match(r"(input|output)_blocks\.\d+\.0\.|middle_block\.[02]\.", name):
        for old, new in _RESIDUAL.items():
            name = name.replace(f".{old}.", f".{new}.")
    return name


def _vae_name(name: str, levels: int) -> str:
    name = re.sub(r"encoder\.down_blocks\.(\d)", r"encoder.down.\1", name)
    name = re.sub(r"decoder\.up_blocks\.(\d)", lambda m: f"decoder.up.{levels - 1 - int(m[1])}", name)
    for old, new in _VAE.items():
        name = name.replace(old, new)
    return name


def _open_clip(text: Mapping[str, Any]) -> dict[str, Any]:
    """Query, key and value lie in one tensor; the last of 24 layers, which SD 2.x does not read, is added."""
    import torch

    tensors = {}
    for name, tensor in text.items():
        for old, new in _OPEN_CLIP.items():
            name = name.replace(old, new)
        tensors[name] = tensor
    for name in [n for n in tensors if ".q_proj." in n]:
        joined = [tensors.pop(name.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
        tensors[name.replace(".q_proj.", ".in_proj_")] = torch.cat(joined)
    last = {n: t for n, t in tensors.items() if ".resblocks.22." in n}
    tensors |= {n.replace(".22.", ".23."): torch.zeros_like(t) for n, t in last.items()}
    return {f"cond_stage_model.model.{name}": tensor for name, tensor in tensors.items()}
