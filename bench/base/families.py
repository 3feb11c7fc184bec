"""Families of Stable Diffusion: which parts a base has, and what its UNet reads beside latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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


SD = Family(
    name="Stable Diffusion 1.x or 2.x", pipeline="StableDiffusion", encoders={"text_encoder": "CLIPTextModel"}
)
SDXL = Family(
    name="SDXL",
    pipeline="StableDiffusionXL",
    encoders={**SD.encoders, "text_encoder_2": "CLIPTextModelWithProjection"},
    pooled=True,
)


def family_of(index: Any) -> Family:
    """Return the family of a base by what its model_index.json holds, which may be anything."""
    named = isinstance(index, dict) and str(index.get("_class_name")).startswith(SDXL.pipeline)
    return SDXL if named else SD
