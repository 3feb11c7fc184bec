"""Bases without their weights: shapes, random weights of Stable Diffusion's topology, folders of bases.

A random base stands in for the real one wherever that is not at hand: shapes, parameters, memory and every
code path are the same, the pictures are noise. Built on the meta device it takes no memory.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.base import (
    EOS,
    HEAD,
    NOISE,
    SD,
    Shape,
    family_with,
    index_of,
    text_config,
    unet_config,
    vae_config,
)
from bench.base.load import DTYPES, Base, channels_last
from bench.base.snapshot import INDEX, SIZES, read_configs
from bench.content import write_json, written_by_libraries
from bench.types import BenchError, unknown

FULL_WIDTH = 320
WIDTH_MULTIPLE = 32  # of group norms and of BPS
CONTEXT = 77  # tokens of a prompt
VOCABULARY = 49_408  # rows of CLIP's token table
_BOS = "<|startoftext|>"
_SIZE_WIDTH = 256  # of each of SDXL's sizes, embedded
_PROMPTS = (
    "a man riding a wave on a surfboard",
    "two dogs on a sofa near a window",
    "the red bus in a street",
    "a plate of food on a wooden table",
    "people walking in the park with a kite",
)
_CLIP = (768, {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "projection_dim": 768})
# What tells one Stable Diffusion from another. attends: which levels have attention; heads: else as many as
# give 64 channels each; texts: width and the rest of each encoder, at full width. Sources: the configuration
# files of the published snapshots.
LIKENESSES: Mapping[str, Mapping[str, Any]] = {
    "sd15": {
        "size": 512,
        "attends": (True, True, True, False),
        "heads": 8,
        "unet": {"use_linear_projection": False, "upcast_attention": False},
        "texts": [_CLIP],
        "scheduler": {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False},
    },
    "sd21": {
        "size": 768,
        "attends": (True, True, True, False),
        "unet": {"use_linear_projection": True, "upcast_attention": True},
        "texts": [(1024, {"num_hidden_layers": 23, "hidden_act": "gelu", "projection_dim": 512})],
        "scheduler": {
            "_class_name": "DDIMScheduler",
            "prediction_type": "v_prediction",
            "clip_sample": False,
            "set_alpha_to_one": False,
        },
    },
    "sdxl": {
        "size": 1024,
        "attends": (False, True, True),
        "unet": {
            "use_linear_projection": True,
            "transformer_layers_per_block": (1, 2, 10),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": _SIZE_WIDTH,
        },
        "scale": 0.13025,
        "texts": [_CLIP, (1280, {"num_hidden_layers": 32, "hidden_act": "gelu"})],
        "scheduler": {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"},
    },
}


def shape_like(name: str, *, width: int = FULL_WIDTH, size: int | None = None) -> Shape:
    """Return the shape of a known Stable Diffusion, at full width or narrow, at its size or another.

    width: of the UNet's first level, levels of (1, 2, 4, 4) times it; size: of images in pixels.
    BenchError for an unknown name and for widths and sizes that are not allowed.
    """
    if name not in LIKENESSES:
        raise unknown("model to resemble", name, LIKENESSES)
    like = LIKENESSES[name]
    size = like["size"] if size is None else size
    for what, value, multiple in (("width", width, WIDTH_MULTIPLE), ("size", size, 64)):
        if value < multiple or value % multiple:
            raise BenchError(f"{what} {value}; allowed: positive multiples of {multiple}.")
    levels, attends = (1, 2, 4, 4), like["attends"]
    first = max(16, round(128 * width / FULL_WIDTH / 16) * 16)  # of the autoencoder
    texts = {}
    for part, (full, more) in zip(("text_encoder", "text_encoder_2"), like["texts"], strict=False):
        own = max(1, round(full // HEAD * width / FULL_WIDTH)) * HEAD
        texts[part] = text_config(own, vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, **more)
    hidden = [text["hidden_size"] for text in texts.values()]
    pooled = {"projection_class_embeddings_input_dim": hidden[-1] + SIZES * _SIZE_WIDTH}
    unet = unet_config(
        [width * level for level, _ in zip(levels, attends, strict=False)],
        attends,
        sample_size=size // 8,
        cross_attention_dim=sum(hidden),
        # the number of heads, in fact
        attention_head_dim=like.get("heads", [max(1, width // HEAD) * n for n in levels[: len(attends)]]),
        norm_num_groups=32 if width >= 64 else 16,  # never a group of one channel
        **like["unet"],
        **(pooled if len(texts) > 1 else {}),
    )
    vae = vae_config(
        [first * level for level in levels],
        sample_size=size,
        norm_num_groups=32 if first >= 64 else 8,
        scaling_factor=like.get("scale", 0.18215),
    )
    scheduler = {"prediction_type": "epsilon", **NOISE, "steps_offset": 1, **like["scheduler"]}
    return Shape(
        name=name if width == FULL_WIDTH else f"{name} of width {width}",
        configs={"unet": unet, "vae": vae, **texts, "scheduler": scheduler},
    )


def shape_of(folder: Path, *, size: int | None = None) -> Shape:
    """Read a base's shape from a diffusers folder, not its weights; BenchError for none that can be run."""
    shape = Shape(name=folder.name, configs=read_configs(folder))
    shape = shape.changed("scheduler", _class_name="DDIMScheduler")
    return shape.changed("unet", sample_size=size // shape.downscale) if size else shape


def build_base(shape: Shape, *, device: str = "meta", encoders: bool = True, seed: int = 0) -> Base:
    """Return a frozen base of a shape: without contents on "meta", else with random weights.

    encoders: whether it gets an autoencoder and a text encoder; training from caches needs neither.
    It has no tokenizer and no folder of its own. BenchError where its configuration gives no network.
    """
    import torch

    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        parts = shape.build(encoders=encoders)
    for part in shape.family.weighted:
        if parts[part] is not None:
            parts[part].requires_grad_(False).eval()
    parts["unet"] = channels_last(parts["unet"])
    return Base(**vars(shape), folder=Path(shape.name), **parts, tokenizer=None, device=device)


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

    like, width, size: see `shape_like`; dtype: of the weights on disk; variant: a word in the names of the
    UNet's weights, such as non_ema. The same arguments give the same files. BenchError for a folder that
    is not empty and for arguments that are not allowed.
    """
    import torch

    shape = shape_like(like, width=width, size=size)
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    if folder.exists() and any(folder.iterdir()):
        raise BenchError(f"{folder} is not empty. Name a new folder.")
    pads = dict(zip(shape.family.tokenizers, (EOS, "!"), strict=False))
    tokenizers = {n: train_tokenizer(_PROMPTS, size=320, length=CONTEXT, pad=pad) for n, pad in pads.items()}
    for part, tokenizer in zip(shape.family.encoders, tokenizers.values(), strict=True):
        ends = {f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos", "pad")}
        tokens = VOCABULARY if width == FULL_WIDTH else len(tokenizer)
        shape = shape.changed(part, vocab_size=tokens, **ends)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = shape.build()
    for part in shape.family.weighted:
        parts[part].to(getattr(torch, dtype))
    write_base(folder, {**parts, **tokenizers}, variant=variant)
    return folder


def write_base(
    folder: Path,
    parts: Mapping[str, Any],
    *,
    pipeline: str = "StableDiffusionPipeline",
    variant: str | None = None,
    classes: Mapping[str, tuple[str, str]] | None = None,
) -> None:
    """Write the parts of a base as diffusers lays them out, with the index of a pipeline.

    parts: by the names of a family's; a part whose folder is there stays as it is. pipeline: as it is called
    without the family. variant: a word in the names of the UNet's weights. classes: what else the index
    names, or names otherwise: part -> (library, class).
    """
    family = family_with(parts)
    with written_by_libraries(folder):
        for name in family.parts:
            if not (folder / name).exists():
                more = {"variant": variant} if name == "unet" else {}
                parts[name].save_pretrained(folder / name, **more)
    drop_paths(folder)
    named = pipeline.replace(SD.pipeline, family.pipeline, 1)
    index: dict[str, Any] = {"_class_name": named, **(classes or {})}
    if family.pooled:
        index["force_zeros_for_empty_prompt"] = parts.get("zero_empty", True)
    write_json(folder / INDEX, index_of(family, [type(parts[n]).__name__ for n in family.parts], **index))


def drop_paths(folder: Path) -> None:
    """Remove where models were loaded from: paths of a machine, which the libraries never read."""
    for path in sorted(folder.rglob("*config.json")):
        config = json.loads(path.read_text())
        if isinstance(config, dict) and config.pop("_name_or_path", None) is not None:
            write_json(path, config)


def train_tokenizer(captions: Iterable[str], *, size: int, length: int, pad: str = EOS) -> Any:
    """Learn merges from `captions` and return a transformers CLIPTokenizer of at most `size` tokens.

    Every printable ASCII character is in the alphabet, so no caption holds an unknown token; the
    end token has the highest id, as in CLIP.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    blank = CLIPTokenizer().backend_tokenizer
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    learner.pre_tokenizer = pre_tokenizers.Sequence([blank.pre_tokenizer])
    letters = [c for c in string.printable if not c.isspace() and not c.isupper()]
    alphabet = letters + [c + "</w>" for c in letters]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        end_of_word_suffix="</w>",
        show_progress=False,
        special_tokens=alphabet[len(letters) :],  # fixes the order in which ties are broken
    )
    learner.train_from_iterator(sorted(captions), trainer)
    tokens, merges = list(alphabet), []
    for pair in json.loads(learner.to_str())["model"]["merges"]:
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        if left in tokens and right in tokens and len(tokens) < size - 2:
            tokens.append(left + right)
            merges.append((left, right))
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*tokens, _BOS, EOS]))}
    how = {"model_max_length": length, "pad_token": pad, "unk_token": EOS}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, **how)
