"""A base's shapes without its weights: from a known architecture or from a folder's configuration.

Built on the meta device it takes no memory, and parameters and bytes are counted on the real classes;
built on a CPU or GPU it has random weights, and times and memory are those of the real base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.base.load import Base
from bench.base.random import (
    CONTEXT,
    FULL_WIDTH,
    build_scheduler,
    find_likeness,
    text_config,
    unet_config,
    vae_config,
)
from bench.base.rules import LATENT_CHANNELS, downscale_of, read_configs
from bench.types import BenchError


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a base is made of. size: of its images in pixels; tokens: of its prompts.

    unet, vae, text: arguments of the classes of those parts. vae_class: its name in diffusers.
    """

    name: str
    size: int
    tokens: int
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    vae_class: str
    text: Mapping[str, Any]
    scheduler: Any

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
        return self.tokens, int(self.text["hidden_size"])


def shape_like(name: str, *, width: int = FULL_WIDTH, size: int | None = None) -> Shape:
    """Return the shape of a known Stable Diffusion, at full width or narrow, at its size or another.

    BenchError for an unknown name and for widths and sizes that are not allowed.
    """
    like = find_likeness(name)
    side = size or like.size
    narrow = "" if width == FULL_WIDTH else f" of width {width}"
    return Shape(
        name=f"{name}{narrow}",
        size=side,
        tokens=CONTEXT,
        unet=unet_config(like, width=width, size=side),
        vae=vae_config(width=width, size=side),
        vae_class="AutoencoderKL",
        text=text_config(like, width=width),
        scheduler=build_scheduler(like),
    )


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
        scheduler=DDIMScheduler.from_config(configs["scheduler"]),
    )


def build_base(shape: Shape, *, device: str = "meta", encoders: bool = True, seed: int = 0) -> Base:
    """Return a frozen base of a shape: without contents on "meta", else with random weights.

    encoders: whether it gets an autoencoder and a text encoder; training from caches needs neither.
    It has no tokenizer and no folder of its own. BenchError where its configuration gives no network.
    """
    import diffusers
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    diffusers.utils.logging.set_verbosity_error()
    alphas = shape.scheduler.alphas_cumprod.double()
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        try:
            unet = diffusers.UNet2DConditionModel.from_config(dict(shape.unet))
            vae = getattr(diffusers, shape.vae_class).from_config(dict(shape.vae)) if encoders else None
            text = CLIPTextModel(CLIPTextConfig(**shape.text)) if encoders else None
        except (MemoryError, RuntimeError):  # no room
            raise
        except Exception as error:  # the libraries raise many kinds for values that do not fit
            raise BenchError(
                f"the configurations of {shape.name} give no network ({error}). Restore them."
            ) from error
    for module in filter(None, (unet, vae, text)):
        module.requires_grad_(False).eval()
    return Base(
        name=shape.name,
        folder=Path(shape.name),
        digest="",
        vae=vae,
        text_encoder=text,
        unet=unet.to(memory_format=torch.channels_last),
        tokenizer=None,
        scheduler=shape.scheduler,
        downscale=shape.downscale,
        scale=float(shape.vae.get("scaling_factor", 1.0)),
        prediction=str(shape.scheduler.config["prediction_type"]),
        alphas=alphas,
        device=device,
    )
