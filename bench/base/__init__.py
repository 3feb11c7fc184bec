"""Bases: families of Stable Diffusion, which parts they have, how these are configured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from bench.content import refusing

LATENT_CHANNELS = 4
HEAD = 64  # channels of an attention head, in CLIP and in the UNets of 2.x and SDXL
EOS = "<|endoftext|>"
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@dataclass(frozen=True, kw_only=True)
class Family:
    """What tells one family of bases from another.

    name: in sentences; pipeline: how diffusers begins the names of its pipelines. encoders: part -> its class
    in transformers; "text_encoder_2" has the tokenizer "tokenizer_2". pooled: the UNet reads all encoders'
    last but one states side by side, the last encoder's pooled vector, and the picture's sizes; else it reads
    the one encoder's last states and nothing more.
    """

    name: str
    pipeline: str
    encoders: Mapping[str, str]
    pooled: bool = False

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """The part of each encoder's tokenizer."""
        return tuple(part.replace("text_encoder", "tokenizer") for part in self.encoders)

    @property
    def weighted(self) -> tuple[str, ...]:
        """The parts that have weights."""
        return ("unet", "vae", *self.encoders)

    @property
    def parts(self) -> tuple[str, ...]:
        """All parts, each a folder of a base."""
        return (*self.weighted, *self.tokenizers, "scheduler")


_TEXT = {"text_encoder": "CLIPTextModel"}
SD = Family(name="Stable Diffusion 1.x or 2.x", pipeline="StableDiffusion", encoders=_TEXT)
SDXL = Family(
    name="SDXL",
    pipeline="StableDiffusionXL",
    encoders={**_TEXT, "text_encoder_2": "CLIPTextModelWithProjection"},
    pooled=True,
)


def family_of(index: Any) -> Family:
    """Return the family of a base by what its model_index.json holds, which may be anything."""
    named = isinstance(index, dict) and str(index.get("_class_name")).startswith(SDXL.pipeline)
    return SDXL if named else SD


def family_with(parts: Mapping[str, Any]) -> Family:
    """Return the family of a base that has these parts, or configurations by part."""
    return SD if parts.get("text_encoder_2") is None else SDXL


def vae_widths(vae: Mapping[str, Any]) -> Any:
    """Return the widths of an autoencoder's levels, None where its configuration does not tell."""
    return vae.get("block_out_channels") or vae.get("encoder_block_out_channels")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a base is made of: its name, and the configurations of its parts as their folders hold them."""

    name: str
    configs: Mapping[str, Mapping[str, Any]]

    @property
    def family(self) -> Family:
        """Of which family it is."""
        return family_with(self.configs)

    @property
    def downscale(self) -> int:
        """Image pixels per latent cell."""
        return int(2 ** (len(vae_widths(self.configs["vae"])) - 1))

    @property
    def size(self) -> int:
        """Pixels of an image's side."""
        return int(self.configs["unet"]["sample_size"] * self.downscale)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(4,h,w)."""
        side = self.size // self.downscale
        return LATENT_CHANNELS, side, side

    @property
    def tokens(self) -> int:
        """How many tokens a prompt has."""
        return int(self.configs["text_encoder"]["max_position_embeddings"])

    @property
    def text_shape(self) -> tuple[int, int]:
        """The shape of an encoded prompt, (L,D)."""
        width = sum(int(self.configs[part]["hidden_size"]) for part in self.family.encoders)
        return self.tokens + self.family.pooled, width

    def changed(self, part: str, **values: Any) -> Self:
        """Return it with other values in the configuration of a part."""
        return replace(self, configs={**self.configs, part: {**self.configs[part], **values}})

    def classes(self) -> dict[str, Any]:
        """Return the class of each part that has weights."""
        import diffusers
        import transformers

        texts = {part: getattr(transformers, name) for part, name in self.family.encoders.items()}
        vae = getattr(diffusers, self.configs["vae"]["_class_name"])
        return {"unet": diffusers.UNet2DConditionModel, "vae": vae, **texts}

    def build(self, *, encoders: bool = True) -> dict[str, Any]:
        """Return untrained parts and scheduler, of encoders only if asked; BenchError where they fail."""
        import diffusers
        import torch

        quiet()
        scheduler = dict(self.configs["scheduler"])
        parts: dict[str, Any] = dict.fromkeys(self.family.weighted)
        with refusing(lambda why: f"configurations of {self.name} give no network ({why}). Restore them."):
            for part, kind in self.classes().items():
                config = dict(self.configs[part])
                if part in self.family.encoders:
                    parts[part] = kind(kind.config_class(**config)) if encoders else None
                elif encoders or part == "unet":
                    parts[part] = kind.from_config(config)
        with torch.device("cpu"):  # its numbers are read, wherever networks are built
            return parts | {"scheduler": getattr(diffusers, scheduler["_class_name"]).from_config(scheduler)}


def index_of(family: Family, classes: Sequence[str], **more: Any) -> dict[str, Any]:
    """Return what model_index.json holds of a family's parts, of these classes in its order, and more."""
    texts = {*family.encoders, *family.tokenizers}
    homes = ["transformers" if part in texts else "diffusers" for part in family.parts]
    return {
        "_class_name": f"{family.pipeline}Pipeline",
        "feature_extractor": [None, None],
        **({} if family.pooled else {"safety_checker": [None, None], "requires_safety_checker": False}),
        **{part: [home, kind] for part, home, kind in zip(family.parts, homes, classes, strict=True)},
        **more,
    }


def quiet() -> None:
    """Let diffusers and transformers say errors alone, and draw no bars."""
    import diffusers
    import transformers

    libraries: tuple[Any, ...] = (diffusers, transformers)
    for library in libraries:
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def unet_config(widths: Sequence[int], attends: Sequence[bool], **more: Any) -> dict[str, Any]:
    """Return a UNet's configuration: widths of its levels, which of them have attention, and what else."""
    return {
        "_class_name": "UNet2DConditionModel",
        "block_out_channels": list(widths),
        "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]],
        **more,
    }


def vae_config(widths: Sequence[int], **more: Any) -> dict[str, Any]:
    """Return an autoencoder's configuration, by the widths of its levels."""
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": list(widths),
        "latent_channels": LATENT_CHANNELS,
        "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        **more,
    }


def text_config(width: int, **more: Any) -> dict[str, Any]:
    """Return a text encoder's configuration, by its width."""
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": max(1, width // HEAD),
        "projection_dim": width,
        **more,
    }
