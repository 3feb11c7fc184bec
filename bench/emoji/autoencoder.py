"""The autoencoder of the miniature Stable Diffusion: recipe and training.

It has seen the pretraining collection and the train side of OpenMoji, never val or test.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.training.checkpoint import check_finite, load_checkpoint, save_checkpoint
from bench.types import Stopped

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe:
    """Everything that decides the autoencoder; images are 64 px, latents [4,16,16]."""

    channels: int = 32
    steps: int = 2600
    batch: int = 48
    learning_rate: float = 2e-3
    openmoji_share: float = 0.25
    latent_noise: float = 0.05
    latent_penalty: float = 0.1
    gradient_weight: float = 0.5
    seed: int = 0


def build_autoencoder(recipe: AutoencoderRecipe) -> Any:
    """Return an untrained AutoencoderTiny: factor 4, 4 latent channels, 0.37 M parameters."""
    from diffusers import AutoencoderTiny

    width = (recipe.channels,) * 3
    return AutoencoderTiny(
        encoder_block_out_channels=width,
        decoder_block_out_channels=width,
        num_encoder_blocks=(1, 2, 3),
        num_decoder_blocks=(3, 2, 1),
        latent_channels=4,
        upsampling_scaling_factor=2,
    )


def to_unit(images: np.ndarray) -> torch.Tensor:
    """[N,H,W,3] uint8 -> [N,3,H,W] float32 in [-1, 1], channels_last."""
    import torch

    x = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last)


def autoencoder_loss(
    model: Any, images: torch.Tensor, noise: torch.Tensor, recipe: AutoencoderRecipe
) -> torch.Tensor:
    """L1 + MSE + gradient loss + a penalty that keeps latents near mean 0, deviation 1."""
    import torch.nn.functional as F

    latents = model.encoder(images).float()
    output = model.decoder((latents + recipe.latent_noise * noise).to(images.dtype)).float()
    loss = F.l1_loss(output, images) + F.mse_loss(output, images)
    for axis in (2, 3):
        loss = loss + recipe.gradient_weight * F.l1_loss(output.diff(dim=axis), images.diff(dim=axis))
    mean, deviation = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    return loss + recipe.latent_penalty * (mean.square().mean() + (deviation - 1).square().mean())


def train_autoencoder(
    collection: np.ndarray,
    *,
    openmoji: np.ndarray,
    recipe: AutoencoderRecipe,
    folder: Path,
    tick: Callable[[int, float], None] | None = None,
    every: int = 200,
    stop: Callable[[], int | None] = lambda: None,
) -> Any:
    """Train (or go on training) the autoencoder and return it.

    collection: [M,V,64,64,3] uint8 views; openmoji: [N,64,64,3] uint8 train items; each step draws
    its batch from a generator seeded by (seed, step), so a resumed run sees the same batches.
    """
    import torch

    torch.manual_seed(recipe.seed)
    model = build_autoencoder(recipe).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=recipe.learning_rate, total_steps=recipe.steps, pct_start=0.05
    )
    path = folder / "autoencoder.ckpt"
    start = load_checkpoint(path, model=model, optimiser=optimiser, schedule=schedule)
    for step in range(start, recipe.steps):
        images, noise = _batch(collection, openmoji, recipe, step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = autoencoder_loss(model, images, noise, recipe)
        check_finite(loss, step)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        schedule.step()
        if tick is not None:
            tick(step, float(loss.detach()))
        code = stop()
        if (step + 1) % every == 0 or step + 1 == recipe.steps or code is not None:
            save_checkpoint(path, step=step + 1, model=model, optimiser=optimiser, schedule=schedule)
        if code is not None:
            raise Stopped(code)
    return model.eval()


def _batch(
    collection: np.ndarray, openmoji: np.ndarray, recipe: AutoencoderRecipe, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    rng = np.random.default_rng([recipe.seed, step])
    own = round(recipe.batch * recipe.openmoji_share)
    rows = rng.integers(len(collection), size=recipe.batch - own)
    views = rng.integers(collection.shape[1], size=len(rows))
    picked = openmoji[rng.integers(len(openmoji), size=own)]
    mirrored = np.where(rng.random(own)[:, None, None, None] < 0.5, picked, picked[:, :, ::-1])
    images = to_unit(np.concatenate([collection[rows, views], mirrored]))
    noise = torch.from_numpy(rng.standard_normal((recipe.batch, 4, 16, 16), dtype=np.float32))
    return images, noise


def reconstruct(model: Any, images: np.ndarray, *, batch: int = 64) -> np.ndarray:
    """Encode and decode without noise: [N,64,64,3] uint8 -> [N,64,64,3] uint8."""
    import torch

    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), batch):
            x = to_unit(images[start : start + batch])
            y = model.decoder(model.encoder(x)).float().clamp(-1, 1)
            parts.append(((y + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over images of the peak signal-to-noise ratio in dB; [N,H,W,3] uint8 both."""
    error = (a.astype(np.float64) - b.astype(np.float64)) ** 2
    per_image = error.reshape(len(error), -1).mean(axis=1).clip(min=1e-3)
    return float((10 * np.log10(255.0**2 / per_image)).mean())
