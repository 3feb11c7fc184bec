"""Bases without their weights: shapes, random weights of Stable Diffusion's topology, folders of bases.

A random base stands in for the real one wherever that is not at hand: shapes, parameters, memory and every
code path are the same, the pictures are noise. Built on the meta device it takes no memory.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.base.families import SD, SDXL, Family
from bench.base.load import DTYPES, Base, channels_last, quiet
from bench.base.snapshot import INDEX, LATENT_CHANNELS, SIZES, downscale_of, read_configs
from bench.content import write_json, written_by_libraries
from bench.types import BenchError, unknown

FULL_WIDTH = 320
WIDTH_MULTIPLE = 32  # of group norms and of BPS
CONTEXT = 77  # tokens of a prompt
VOCABULARY = 49_408  # rows of CLIP's token table
_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"
_HEAD = 64  # channels of a head, in CLIP, SD 2.x and SDXL
_SIZE_WIDTH = 256  # of each of SDXL's sizes, embedded
_PROMPTS = (
    "a man riding a wave on a surfboard",
    "two dogs on a sofa near a window",
    "the red bus in a street",
    "a plate of food on a wooden table",
    "people walking in the park with a kite",
)
_CLIP = {"hidden_size": 768, "num_hidden_layers": 12, "hidden_act": "quick_gelu", "projection_dim": 768}
# What tells one Stable Diffusion from another. levels: widths over the first; attends: which have attention;
# heads None: as many as give 64 channels each. texts: of each encoder, at full width. Sources: the
# configuration files of the published snapshots.
LIKENESSES: Mapping[str, Mapping[str, Any]] = {
    "sd15": {
        "size": 512,
        "levels": (1, 2, 4, 4),
        "attends": (True, True, True, False),
        "heads": 8,
        "unet": {"use_linear_projection": False, "upcast_attention": False},
        "scale": 0.18215,
        "texts": [_CLIP],
        "scheduler": (
            "PNDMScheduler",
            {"prediction_type": "epsilon", "skip_prk_steps": True, "set_alpha_to_one": False},
        ),
    },
    "sd21": {
        "size": 768,
        "levels": (1, 2, 4, 4),
        "attends": (True, True, True, False),
        "heads": None,
        "unet": {"use_linear_projection": True, "upcast_attention": True},
        "scale": 0.18215,
        "texts": [
            {"hidden_size": 1024, "num_hidden_layers": 23, "hidden_act": "gelu", "projection_dim": 512}
        ],
        "scheduler": (
            "DDIMScheduler",
            {"prediction_type": "v_prediction", "clip_sample": False, "set_alpha_to_one": False},
        ),
    },
    "sdxl": {
        "size": 1024,
        "levels": (1, 2, 4),
        "attends": (False, True, True),
        "heads": None,
        "unet": {
            "use_linear_projection": True,
            "transformer_layers_per_block": (1, 2, 10),
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": _SIZE_WIDTH,
        },
        "scale": 0.13025,
        "texts": [
            _CLIP,
            {"hidden_size": 1280, "num_hidden_layers": 32, "hidden_act": "gelu"},
        ],
        "scheduler": (
            "EulerDiscreteScheduler",
            {"prediction_type": "epsilon", "timestep_spacing": "leading"},
        ),
    },
}
_NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a base is made of. size: of its images in pixels; tokens: of its prompts.

    unet, vae, text, text_2: arguments of the classes of those parts, the last of SDXL's second text encoder.
    vae_class: its name in diffusers.
    """

    name: str
    size: int
    tokens: int
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    vae_class: str
    text: Mapping[str, Any]
    scheduler: Any
    text_2: Mapping[str, Any] | None = None

    @property
    def family(self) -> Family:
        """Of which family it is."""
        return SD if self.text_2 is None else SDXL

    @property
    def texts(self) -> list[Mapping[str, Any]]:
        """The arguments of its text encoders."""
        return [self.text] if self.text_2 is None else [self.text, self.text_2]

    @property
    def downscale(self) -> int:
        """Image pixels per latent cell."""
        return downscale_of(self.vae)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(4,h,w)."""
        side = self.size // self.downscale
        return LATENT_CHANNELS, side, side

    @property
    def text_shape(self) -> tuple[int, int]:
        """The shape of an encoded prompt, (L,D)."""
        return self.tokens + self.family.pooled, sum(int(text["hidden_size"]) for text in self.texts)

    def build(self, *, encoders: bool = True) -> dict[str, Any]:
        """Return untrained UNet, autoencoder and text encoders by part, from torch's generator.

        encoders: else all but the UNet are None. BenchError where the configurations give no network.
        """
        import diffusers
        import transformers

        quiet()
        try:
            parts = {"unet": diffusers.UNet2DConditionModel.from_config(dict(self.unet))}
            if not encoders:
                return parts | dict.fromkeys(self.family.weighted[1:])
            parts["vae"] = getattr(diffusers, self.vae_class).from_config(dict(self.vae))
            for (part, kind), config in zip(self.family.encoders.items(), self.texts, strict=True):
                parts[part] = getattr(transformers, kind)(transformers.CLIPTextConfig(**config))
            return parts
        except (MemoryError, RuntimeError):  # no room
            raise
        except Exception as error:  # the libraries raise many kinds for values that do not fit
            raise BenchError(
                f"the configurations of {self.name} give no network ({error}). Restore them."
            ) from error


def shape_like(name: str, *, width: int = FULL_WIDTH, size: int | None = None) -> Shape:
    """Return the shape of a known Stable Diffusion, at full width or narrow, at its size or another.

    width: of the UNet's first level, four levels of (1, 2, 4, 4) times it; size: of images in pixels.
    BenchError for an unknown name and for widths and sizes that are not allowed.
    """
    import diffusers

    if name not in LIKENESSES:
        raise unknown("model to resemble", name, LIKENESSES)
    like = LIKENESSES[name]
    size = like["size"] if size is None else size
    for what, value, multiple in (("width", width, WIDTH_MULTIPLE), ("size", size, 64)):
        if value < multiple or value % multiple:
            raise BenchError(f"{what} {value}; allowed: positive multiples of {multiple}.")
    levels, attends = like["levels"], like["attends"]
    first = max(16, round(128 * width / FULL_WIDTH / 16) * 16)  # of the autoencoder
    texts = [_text_like(text, width) for text in like["texts"]]
    pooled = texts[-1]["hidden_size"] + SIZES * _SIZE_WIDTH
    kind, schedule = like["scheduler"]
    return Shape(
        name=name if width == FULL_WIDTH else f"{name} of width {width}",
        size=size,
        tokens=CONTEXT,
        unet={
            "sample_size": size // 8,
            "block_out_channels": tuple(width * level for level in levels),
            "layers_per_block": 2,
            "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]),
            "cross_attention_dim": sum(text["hidden_size"] for text in texts),
            # the number of heads, in fact
            "attention_head_dim": like["heads"] or tuple(max(1, width // _HEAD) * level for level in levels),
            "norm_num_groups": 32 if width >= 64 else 16,  # never a group of one channel
            **like["unet"],
            **({"projection_class_embeddings_input_dim": pooled} if len(texts) > 1 else {}),
        },
        vae={
            "sample_size": size,
            "block_out_channels": tuple(first * level for level in (1, 2, 4, 4)),
            "layers_per_block": 2,
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "latent_channels": LATENT_CHANNELS,
            "norm_num_groups": 32 if first >= 64 else 8,
            "scaling_factor": like["scale"],
        },
        vae_class="AutoencoderKL",
        text=texts[0],
        text_2=texts[1] if len(texts) > 1 else None,
        scheduler=getattr(diffusers, kind)(**_NOISE, steps_offset=1, **schedule),
    )


def _text_like(like: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Return the arguments of a text encoder, as much narrower than at full width as a UNet of `width`."""
    own = max(1, round(like["hidden_size"] // _HEAD * width / FULL_WIDTH)) * _HEAD
    return {
        "vocab_size": VOCABULARY,
        "intermediate_size": 4 * own,
        "num_attention_heads": own // _HEAD,
        "max_position_embeddings": CONTEXT,
        "projection_dim": own,
        **like,
        "hidden_size": own,
    }


def shape_of(folder: Path, *, size: int | None = None) -> Shape:
    """Read a base's shape from a diffusers folder; its weights are not touched and need not be there.

    BenchError where a configuration is missing, damaged or none of a base that can be run.
    """
    from diffusers import DDIMScheduler

    configs = read_configs(folder)
    unet, vae, text = (configs[part] for part in ("unet", "vae", "text_encoder"))
    return Shape(
        name=folder.name,
        size=size or unet["sample_size"] * downscale_of(vae),
        tokens=text["max_position_embeddings"],
        unet=unet,
        vae=vae,
        vae_class=vae["_class_name"],
        text=text,
        text_2=configs.get("text_encoder_2"),
        scheduler=DDIMScheduler.from_config(configs["scheduler"]),
    )


def build_base(shape: Shape, *, device: str = "meta", encoders: bool = True, seed: int = 0) -> Base:
    """Return a frozen base of a shape: without contents on "meta", else with random weights.

    encoders: whether it gets an autoencoder and a text encoder; training from caches needs neither.
    It has no tokenizer and no folder of its own. BenchError where its configuration gives no network.
    """
    import torch

    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        parts = shape.build(encoders=encoders)
    for module in filter(None, parts.values()):
        module.requires_grad_(False).eval()
    parts["unet"] = channels_last(parts["unet"])
    return Base(
        name=shape.name,
        folder=Path(shape.name),
        digest="",
        **parts,
        family=shape.family,
        tokenizer=None,
        scheduler=shape.scheduler,
        downscale=shape.downscale,
        scale=float(shape.vae.get("scaling_factor", 1.0)),
        device=device,
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
    pads = dict(zip(shape.family.tokenizers, (_EOS, "!"), strict=False))
    tokenizers = {n: train_tokenizer(_PROMPTS, size=320, length=CONTEXT, pad=pad) for n, pad in pads.items()}
    texts = [
        {**text, "vocab_size": VOCABULARY if width == FULL_WIDTH else len(tokenizer)}
        | {f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos", "pad")}
        for text, tokenizer in zip(shape.texts, tokenizers.values(), strict=True)
    ]
    shape = replace(shape, text=texts[0], text_2=texts[1] if shape.text_2 else None)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = shape.build()
    for part in parts.values():
        part.to(getattr(torch, dtype))
    write_base(folder, {**parts, **tokenizers, "scheduler": shape.scheduler}, variant=variant)
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
    family = SD if parts.get("text_encoder_2") is None else SDXL
    with written_by_libraries(folder):
        for name in family.parts:
            if not (folder / name).exists():
                more = {"variant": variant} if name == "unet" else {}
                parts[name].save_pretrained(folder / name, **more)
    drop_paths(folder)
    libraries = dict.fromkeys((*family.encoders, *family.tokenizers), "transformers")
    named = {name: (libraries.get(name, "diffusers"), type(parts[name]).__name__) for name in family.parts}
    optional = {"safety_checker": (None, None), "requires_safety_checker": False}
    if family.pooled:
        optional = {"force_zeros_for_empty_prompt": parts.get("zero_empty", True)}
    index = {
        "_class_name": pipeline.replace(SD.pipeline, family.pipeline, 1),
        "feature_extractor": (None, None),
        **optional,
        **named,
        **(classes or {}),
    }
    write_json(folder / INDEX, index)


def drop_paths(folder: Path) -> None:
    """Remove where models were loaded from: paths of a machine, which the libraries never read."""
    for path in sorted(folder.rglob("*config.json")):
        config = json.loads(path.read_text())
        if isinstance(config, dict) and config.pop("_name_or_path", None) is not None:
            write_json(path, config)


def train_tokenizer(captions: Iterable[str], *, size: int, length: int, pad: str = _EOS) -> Any:
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
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*tokens, _BOS, _EOS]))}
    return CLIPTokenizer(
        vocab=vocabulary, merges=merges, model_max_length=length, pad_token=pad, unk_token=_EOS
    )
