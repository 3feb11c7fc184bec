"""The frozen base: a Stable Diffusion in diffusers' folder format, loaded once and asked for eps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.content import digest_json, read_json, sha256_file
from bench.types import BenchError

if TYPE_CHECKING:
    import torch

MANIFEST = "manifest.json"
_READ = {".json", ".txt", ".safetensors", ".bin", ".model"}  # what the libraries load
_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
PRIORS = ("frozen", "free", "none")


@dataclass(kw_only=True)
class Base:
    """A frozen text-to-image diffusion model and what one must know to use it.

    downscale f: image pixels per latent cell. scale: latents are multiplied by it. digest: SHA-256
    over all files of the folder. alphas: cumulative products of 1 - beta, [T] float64.
    """

    name: str
    folder: Path
    digest: str
    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    downscale: int
    scale: float
    prediction: str
    alphas: torch.Tensor
    device: str = "cpu"

    def encode_text(self, captions: Sequence[str]) -> torch.Tensor:
        """Encode captions as the Stable Diffusion pipeline does, [N,L,D] float32."""
        import torch

        ids = self.tokenizer(
            list(captions),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        with torch.inference_mode():
            parts = [self.text_encoder(p.to(self.device))[0].float() for p in ids.split(64)]
        return torch.cat(parts).clone()

    def encode_images(self, images: np.ndarray) -> torch.Tensor:
        """[N,H,W,3] uint8 -> latents [N,4,h,w] float32, scaled; the mode, not a draw."""
        import torch

        with torch.inference_mode():
            encoded = self.vae.encode(self.to_pixels(images))
            latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
            return (latents.float() * self.scale).clone()

    def to_pixels(self, images: np.ndarray) -> torch.Tensor:
        """[N,H,W,3] uint8 -> [N,3,H,W] float32 in [-1, 1] on the base's device."""
        import torch

        pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)
        return (pixels.to(self.device).float() / 127.5 - 1).contiguous()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [N,4,h,w] -> images [N,3,H,W] float32 in [0, 1]."""
        import torch

        with torch.inference_mode():
            blocks = (latents.to(self.device) / self.scale).split(64)
            pixels = torch.cat([self.vae.decode(block).sample.float() for block in blocks])
        return (pixels / 2 + 0.5).clamp(0, 1)

    def to_eps(
        self, output: torch.Tensor, latents: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Turn the UNet's output into eps: as it is, or alpha * v + sigma * z (arXiv 2202.00512).

        output, latents [..., 4,h,w] with batch in the fourth axis from the end, timesteps [B].
        """
        if self.prediction == "epsilon":
            return output
        alpha = self.alphas.to(latents.device, latents.dtype)[timesteps].view(-1, 1, 1, 1)
        return alpha.sqrt() * output + (1 - alpha).sqrt() * latents

    def eps(
        self, latents: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor
    ) -> torch.Tensor:
        """Predict the noise without any condition: latents [B,4,h,w], timesteps [B], text [K,B,L,D].

        -> [K,B,4,h,w].
        """
        branches = len(text)
        output = self.unet(
            latents.repeat(branches, 1, 1, 1),
            timesteps.repeat(branches),
            text.flatten(0, 1),
            return_dict=False,
        )[0]
        return self.to_eps(output.unflatten(0, (branches, -1)), latents, timesteps)

    def prior_unet(self, prior: str, *, seed: int = 0) -> Any:
        """Return the UNet of a prior: "frozen" (this one), "free" (a trainable copy), "none".

        "none" has the architecture without the pretrained weights, drawn from `seed`, trainable.
        """
        import torch

        if prior not in PRIORS:
            raise BenchError(f"unknown prior '{prior}'. Allowed: {', '.join(PRIORS)}.")
        if prior == "frozen":
            return self.unet
        if prior == "free":
            return copy.deepcopy(self.unet).requires_grad_(True)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            fresh = type(self.unet).from_config(self.unet.config)
        return _channels_last(fresh).to(self.device).eval()


class PlainDenoiser:
    """The base without any condition, as a denoiser."""

    def __init__(self, base: Base) -> None:
        self.base = base

    def encode(self, condition: Any) -> None:
        """Ignore the condition."""

    def __call__(
        self, latents: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor, features: Any
    ) -> torch.Tensor:
        """latents [B,4,h,w], timesteps [B], text [K,B,L,D] -> eps [K,B,4,h,w]."""
        return self.base.eps(latents, timesteps, text)


def load_base(folder: Path, *, device: str = "cpu") -> Base:
    """Load a diffusers folder and freeze it, float32.

    A manifest.json with digests beside the folders is checked before anything is loaded. Raises
    BenchError for a missing folder or part, a file that does not match its digest, and predictions
    other than epsilon and v.
    """
    digest = folder_digest(folder)
    unet, vae, text_encoder, tokenizer, scheduler = _load_parts(folder)
    if len(tokenizer) < 3:
        raise BenchError(f"{folder / 'tokenizer'} holds no vocabulary. Give a whole base.")
    for module in (unet, vae, text_encoder):
        module.requires_grad_(False).eval().to(device)
    prediction = str(scheduler.config["prediction_type"])
    if prediction not in {"epsilon", "v_prediction"}:
        raise BenchError(
            f"{folder} predicts '{prediction}'; allowed: epsilon, v_prediction. Choose another base."
        )
    widths = (
        getattr(vae.config, "block_out_channels", None) or vae.config.encoder_block_out_channels
    )
    return Base(
        name=folder.name, folder=folder, digest=digest, unet=_channels_last(unet), vae=vae,
        text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler,
        downscale=2 ** (len(widths) - 1), scale=float(vae.config.scaling_factor),
        prediction=prediction, alphas=scheduler.alphas_cumprod.double(), device=device,
    )  # fmt: skip


def _channels_last(unet: Any) -> Any:
    import torch

    return unet.to(memory_format=torch.channels_last)


def _load_parts(folder: Path) -> tuple[Any, ...]:
    import diffusers
    import torch
    import transformers
    from transformers import CLIPTextModel, CLIPTokenizer

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        index = read_json(folder / "model_index.json")
        vae_class = getattr(diffusers, index["vae"][1])
        load = {"local_files_only": True, "torch_dtype": torch.float32}
        return (
            diffusers.UNet2DConditionModel.from_pretrained(
                folder, subfolder="unet", **load
            ).float(),
            vae_class.from_pretrained(folder, subfolder="vae", **load),
            CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", **load),
            CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True),
            diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler"),
        )
    except Exception as error:  # the libraries raise many kinds for a damaged folder
        raise BenchError(
            f"{folder} is not a Stable Diffusion folder that diffusers can load ({error}). Give a "
            "folder with model_index.json, unet/, vae/, text_encoder/, tokenizer/ and scheduler/."
        ) from error


def folder_digest(folder: Path) -> str:
    """Check a base's folder and its manifest's digests, if there is one; return one digest over all.

    BenchError for a folder that is no base, a missing part and a file that does not match.
    """
    if not (folder / "model_index.json").is_file():
        raise BenchError(
            f"there is no base model in {folder} (no model_index.json). Give the folder of a "
            "Stable Diffusion in diffusers' format with --base."
        )
    absent = [part for part in _PARTS if not (folder / part).is_dir()]
    if absent:
        raise BenchError(
            f"{folder} is not a Stable Diffusion folder: {', '.join(absent)} missing. It needs "
            f"{', '.join(f'{part}/' for part in _PARTS)}."
        )
    files = {
        str(p.relative_to(folder)): sha256_file(p)
        for part in _PARTS
        for p in sorted((folder / part).glob("**/*"))
        if p.is_file() and p.suffix in _READ
    }
    files["model_index.json"] = sha256_file(folder / "model_index.json")
    if (folder / MANIFEST).exists():
        manifest = read_json(folder / MANIFEST)
        promised = manifest.get("files") if isinstance(manifest, dict) else None
        if not isinstance(promised, dict):
            raise BenchError(
                f"{folder / MANIFEST} lists no files: the base is damaged. Restore it."
            )
        for name, digest in promised.items():
            if files.get(name) != digest:
                state = "is missing" if name not in files else "does not match its SHA-256"
                raise BenchError(
                    f"{folder / name} {state} in {MANIFEST}: the base is damaged. Restore the file "
                    "(git checkout) or install again."
                )
    return digest_json(files)
