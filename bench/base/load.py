"""The frozen base: a Stable Diffusion in diffusers' folder format, loaded once and asked for eps."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.base.snapshot import Snapshot, find_snapshot, pooled_width
from bench.base.weights import not_finite, read_model
from bench.content import refusing
from bench.types import BenchError, some, unknown

if TYPE_CHECKING:
    from torch import Tensor

PRIORS = ("frozen", "unlocked", "free", "none", "none-frozen")
DTYPES = ("float32", "float16", "bfloat16")
_PIXELS_AT_ONCE = 2**21  # through the autoencoder: 8 images of 512 x 512


@dataclass(frozen=True, kw_only=True)
class Base(Snapshot):
    """A frozen text-to-image diffusion model; dtype: of its UNet. Text encoders, autoencoder are float32."""

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    text_encoder_2: Any = None
    tokenizer_2: Any = None
    device: str = "cpu"
    dtype: str = "float32"

    @property
    def prediction(self) -> str:
        """What the UNet gives: "epsilon" or "v_prediction"."""
        return str(self.scheduler.config["prediction_type"])

    @property
    def scale(self) -> float:
        """Latents are multiplied by it."""
        return float(self.vae.config.scaling_factor)

    @property
    def text_encoders(self) -> list[Any]:
        """Those of the family, in its order; None where a base was built without."""
        return [getattr(self, part) for part in self.family.encoders]

    @property
    def text_shape(self) -> tuple[int, int]:
        """The shape of an encoded prompt, (L,D)."""
        width = sum(int(encoder.config.hidden_size) for encoder in self.text_encoders)
        return int(self.tokenizer.model_max_length) + self.family.pooled, width

    @cached_property
    def alphas(self) -> Tensor:
        """Cumulative products of 1 - beta, [T] float64."""
        return self.scheduler.alphas_cumprod.double()

    def provenance(self) -> dict[str, Any]:
        """Return which weights these are, as records keep it: by hash, and by their files' names."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "parts": self.parts,
            "weights": self.weights,
            "variants": {part: word for part, word in self.variants.items() if word},
        }

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Open the context in which float32 inputs may meet a UNet of less precision."""
        import torch

        if self.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=getattr(torch, self.dtype))

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Encode captions as the family's own pipeline does, [N,L,D] float32.

        Where the UNet reads a pooled vector too, that is the last of the L rows, with zeros behind it.
        """
        import torch

        with torch.inference_mode():
            parts = [self._encode(captions[i : i + 64]) for i in range(0, len(captions), 64)]
        return torch.cat(parts).clone()

    def _encode(self, captions: Sequence[str]) -> Tensor:
        import torch

        states, pooled = [], self.family.pooled
        for encoder, name in zip(self.text_encoders, self.family.tokenizers, strict=True):
            tokenizer = getattr(self, name)
            ids = tokenizer(
                list(captions),
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            output = encoder(ids.to(self.device), output_hidden_states=pooled)
            states.append((output.hidden_states[-2] if pooled else output[0]).float())
        text = torch.cat(states, dim=-1)
        if pooled:
            row = torch.zeros_like(text[:, :1])
            row[:, 0, : output[0].shape[-1]] = output[0]
            text = torch.cat([text, row], dim=1)
        if self.zero_empty:
            text[[place for place, caption in enumerate(captions) if not caption]] = 0
        return text

    def encode_posterior(self, images: np.ndarray) -> tuple[Tensor, Tensor]:
        """[N,H,W,3] uint8 -> mode and deviation (0 where none) of the latents, [N,4,h,w] float32, scaled."""
        import torch

        with torch.inference_mode():
            pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).to(self.device)
            encoded = self.vae.encode((pixels.float() / 127.5 - 1).contiguous())
            if hasattr(encoded, "latents"):
                mean, deviation = encoded.latents, torch.zeros_like(encoded.latents)
            else:
                mean, deviation = encoded.latent_dist.mode(), encoded.latent_dist.std
            return (mean.float() * self.scale).clone(), (deviation.float() * self.scale).clone()

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [N,4,h,w] -> images [N,3,H,W] float32 in [0, 1]."""
        import torch

        with torch.inference_mode():
            side = self.downscale
            at_once = images_at_once(latents.shape[-2] * side, latents.shape[-1] * side)
            blocks = (latents.to(self.device) / self.scale).split(at_once)
            pixels = torch.cat([self.vae.decode(block).sample.float() for block in blocks])
        return (pixels / 2 + 0.5).clamp(0, 1)

    def to_eps(self, output: Tensor, latents: Tensor, timesteps: Tensor) -> Tensor:
        """Turn a UNet's output into eps: as it is, or alpha * v + sigma * z (arXiv 2202.00512).

        output, latents [...,B,4,h,w], timesteps [B].
        """
        if self.prediction == "epsilon":
            return output
        alpha = self.alphas.to(latents.device, latents.dtype)[timesteps].view(-1, 1, 1, 1)
        return alpha.sqrt() * output + (1 - alpha).sqrt() * latents

    def encode(self, condition: Any) -> None:
        """Ignore the condition: the base by itself is a denoiser, too."""

    def eps(self, latents: Tensor, timesteps: Tensor, text: Tensor, features: Any = None) -> Tensor:
        """Predict the noise: latents [B,4,h,w], timesteps [B], text [K,B,L,D] -> [K,B,4,h,w]."""
        with self.autocast():
            output = self.unet(**self.unet_inputs(latents, timesteps, text), return_dict=False)[0]
        return self.to_eps(output.unflatten(0, (len(text), -1)), latents, timesteps)

    __call__ = eps

    def unet_inputs(self, latents: Tensor, timesteps: Tensor, text: Tensor) -> dict[str, Any]:
        """Return what a UNet, or a copy of its encoder, is called with, by name: K*B rows, k*B + b of each.

        latents [B,4,h,w], timesteps [B], text [K,B,L,D]. SDXL's gets its pooled text, and as sizes those of
        the latents in pixels: nothing was cut off.
        """
        branches, rows = len(text), text.flatten(0, 1)
        given = {"sample": latents.repeat(branches, 1, 1, 1), "timestep": timesteps.repeat(branches)}
        given["encoder_hidden_states"] = rows
        if not self.family.pooled:
            return given
        size = [side * self.downscale for side in latents.shape[-2:]]
        sizes = rows.new_tensor([*size, 0, 0, *size]).expand(len(rows), -1)
        added = {"text_embeds": rows[:, -1, : pooled_width(self.unet.config)], "time_ids": sizes}
        return given | {"encoder_hidden_states": rows[:, :-1], "added_cond_kwargs": added}

    def prior_unet(self, prior: str, *, seed: int = 0) -> Any:
        """Return the UNet of a prior: "frozen" (this one) or one of its own.

        "free": a copy that trains. "unlocked": a copy whose decoder trains: up blocks and what comes after
        them (sd_locked=False of the authors' release). "none": the architecture without the pretrained
        weights, drawn from `seed`, trainable; "none-frozen": the same, frozen. What trains is float32,
        whatever the frozen UNet is.
        """
        import torch

        if prior not in PRIORS:
            raise unknown("prior", prior, PRIORS)
        if prior == "frozen":
            return self.unet
        if prior in ("free", "unlocked"):
            own = copy.deepcopy(self.unet).float().requires_grad_(prior == "free")
            for part in (own.up_blocks, own.conv_norm_out, own.conv_out):
                part.requires_grad_(True)
            return own
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            fresh = type(self.unet).from_config(self.unet.config)
        return channels_last(fresh).to(self.device).eval().requires_grad_(prior == "none")


def images_at_once(height: int, width: int) -> int:
    """Return how many images of so many pixels go through the autoencoder at once: 1 to 64."""
    return max(1, min(64, _PIXELS_AT_ONCE // (height * width)))


def load_base(
    place: str | Path, *, device: str = "cpu", dtype: str = "float32", variant: str | None = None
) -> Base:
    """Load a diffusers folder, a single file or a hub id org/name[@revision], and freeze it.

    dtype: of the frozen UNet; text encoder and autoencoder are float32. variant: which weights, for
    example non_ema or fp16, see bench.base.snapshot. A manifest.json with digests beside the parts is
    checked before anything is loaded. Raises BenchError for a missing folder or part, a file that
    does not match its digest, a base that cannot be run, and weights that are missing, too many, of
    other shapes or not finite.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    snapshot = find_snapshot(place, variant=variant)
    parts = _load_parts(snapshot, dtype)
    for name in snapshot.family.weighted:
        parts[name].requires_grad_(False).eval().to(device)
    parts["unet"] = channels_last(parts["unet"])
    return Base(**vars(snapshot), **parts, device=device, dtype=dtype)


def channels_last(unet: Any) -> Any:
    """Lay a UNet's weights out as its convolutions are fastest."""
    import torch

    return unet.to(memory_format=torch.channels_last)


def _load_parts(snapshot: Snapshot, dtype: str) -> dict[str, Any]:
    """Load what a base is made of; weights and configuration are of one network, to the last tensor."""
    import diffusers
    import torch
    import transformers

    folder, family = snapshot.folder, snapshot.family
    parts: dict[str, Any] = {}
    no_base = f"{folder} is not a Stable Diffusion folder that diffusers can load"
    with refusing(lambda why: f"{no_base} ({why}). Give one with {', '.join(family.parts)}.", Exception):
        for part, kind in snapshot.classes().items():
            chosen = getattr(torch, dtype) if part == "unet" else torch.float32
            safe = all(name.endswith(".safetensors") for name in snapshot.weight_files(part))
            how = {"variant": snapshot.variants[part], "use_safetensors": safe}
            parts[part] = read_model(kind, folder, subfolder=part, dtype=chosen, **how).to(chosen)
            if wrong := not_finite(parts[part].state_dict()):
                raise BenchError(f"{part}/ has weights that are not finite in {chosen}: {some(wrong)}")
        for part in family.tokenizers:
            how = {"subfolder": part, "local_files_only": True}
            parts[part] = transformers.CLIPTokenizer.from_pretrained(folder, **how)
        parts["scheduler"] = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    for part, name in zip(family.encoders, family.tokenizers, strict=True):
        tokenizer, text, place = parts[name], snapshot.configs[part], folder / name
        tokens, length, most = len(tokenizer), tokenizer.model_max_length, text["max_position_embeddings"]
        if tokens < 3:
            raise BenchError(f"{place} holds no vocabulary. Give a whole base.")
        if length > most or tokens > text["vocab_size"]:
            has, reads = f"{tokens} tokens in prompts of {length}", f"{text['vocab_size']} in {most}"
            raise BenchError(f"{place} has {has}; the text encoder reads {reads}. Give the tokenizer of it.")
    return parts
