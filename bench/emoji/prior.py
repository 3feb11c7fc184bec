"""The UNet and text encoder of the miniature Stable Diffusion: recipe and training.

They learn from the pretraining collection alone: no OpenMoji picture or caption.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.content import atomic_write
from bench.training.checkpoint import check_finite, load_checkpoint, save_checkpoint
from bench.types import Stopped

if TYPE_CHECKING:
    import torch

    from bench.base.load import Base


@dataclass(frozen=True, kw_only=True)
class PriorRecipe:
    """Everything that decides the prior; one step is `batch` samples."""

    widths: tuple[int, ...] = (64, 96, 128, 128)
    attention: tuple[bool, ...] = (False, True, True, False)
    text_width: int = 128
    text_layers: int = 3
    text_length: int = 24
    vocabulary: int = 3072
    steps: int = 7_500
    batch: int = 64
    learning_rate: float = 1e-3
    warmup: int = 300
    decay_share: float = 0.25
    weight_decay: float = 0.01
    ema: float = 0.9995
    snr_cap: float = 5.0
    drop_caption: float = 0.10
    drop_style: float = 0.15
    plain_share: float = 0.4
    seed: int = 0


def build_unet(recipe: PriorRecipe) -> Any:
    """Return an untrained UNet2DConditionModel: 4 levels, 2 resnets a level, 16x16 latents."""
    from diffusers import UNet2DConditionModel

    down = tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in recipe.attention)
    up = tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(recipe.attention))
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=recipe.widths,
        layers_per_block=2,
        down_block_types=down,
        up_block_types=up,
        cross_attention_dim=recipe.text_width,
        attention_head_dim=tuple(w // 32 for w in recipe.widths),  # the number of heads, in fact
        norm_num_groups=16,
    )


def build_text_encoder(recipe: PriorRecipe, tokenizer: Any) -> Any:
    """Return an untrained CLIPTextModel for `tokenizer`."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.text_width,
            intermediate_size=4 * recipe.text_width,
            num_hidden_layers=recipe.text_layers,
            num_attention_heads=recipe.text_width // 32,
            max_position_embeddings=recipe.text_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            projection_dim=recipe.text_width,
        )
    )


def build_scheduler() -> Any:
    """Return the base's DDIM scheduler: Stable Diffusion's betas, v-prediction."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type="v_prediction",
    )


class Prior:
    """UNet and text encoder trained together, with their exponential moving average."""

    def __init__(self, recipe: PriorRecipe, tokenizer: Any) -> None:
        import torch

        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.modules = torch.nn.ModuleDict(
            {
                "unet": build_unet(recipe).to(memory_format=torch.channels_last),
                "text_encoder": build_text_encoder(recipe, tokenizer),
            }
        )
        self.average = torch.optim.swa_utils.AveragedModel(
            self.modules, multi_avg_fn=_ema(recipe.ema), use_buffers=False
        )
        self.alphas = build_scheduler().alphas_cumprod

    def take(self, base: Base) -> None:
        """Begin with the weights of an exported base instead of random ones."""
        modules: Any
        for modules in (self.modules, self.average.module):
            modules["unet"].load_state_dict(base.unet.state_dict())
            modules["text_encoder"].load_state_dict(base.text_encoder.state_dict())

    def loss(
        self,
        modules: Any,
        latents: torch.Tensor,
        ids: torch.Tensor,
        timesteps: torch.Tensor,
        noise: torch.Tensor,
        *,
        weighted: bool = True,
    ) -> torch.Tensor:
        """v-prediction error with min-SNR weights (arXiv 2202.00512, 2303.09556), a scalar."""
        import torch

        alpha = self.alphas[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        with torch.autocast("cpu", torch.bfloat16):
            text = modules["text_encoder"](ids).last_hidden_state
            output = modules["unet"](
                noisy.contiguous(memory_format=torch.channels_last), timesteps, text
            ).sample
        error = (output.float() - target).square().mean(dim=(1, 2, 3))
        if not weighted:
            return error.mean()
        snr = alpha.flatten() / (1 - alpha.flatten())
        return (error * snr.clamp(max=self.recipe.snr_cap) / (snr + 1)).mean()


def _ema(decay: float) -> Callable[..., None]:
    """Moving average whose memory grows with the step, so that early weights are forgotten."""
    import torch

    def update(averaged: Any, current: Any, count: torch.Tensor) -> None:
        rate = min(decay, (1 + float(count)) / (10 + float(count)))
        with torch.no_grad():
            torch._foreach_lerp_(averaged, current, 1 - rate)

    return update


def learning_rate_factor(step: int, recipe: PriorRecipe) -> float:
    """Warm up, stay, decay linearly over the last `decay_share` of the steps to 2%."""
    start = recipe.steps * (1 - recipe.decay_share)
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    if step < start:
        return 1.0
    return max(0.02, (recipe.steps - step) / (recipe.steps - start))


def train_prior(
    prior: Prior,
    *,
    latents: torch.Tensor,
    full: torch.Tensor,
    bare: torch.Tensor,
    empty: torch.Tensor,
    held_out: np.ndarray,
    folder: Path,
    stop_at: int | None = None,
    tick: Callable[[int, float], None] | None = None,
    every: int = 250,
    stop: Callable[[], int | None] = lambda: None,
) -> int:
    """Train (or go on training) `prior` and return the step reached.

    latents [M,V,4,16,16] float; full, bare [M,L] token ids with and without the style word, empty
    [L]; held_out: rows kept for the validation loss. A checkpoint is written every `every` steps and a
    line of the training curve (step, loss, validation v-loss of the average) to curve.jsonl. Each
    step's draws come from a generator seeded by (seed, step). Raises BenchError when the loss is
    not finite.
    """
    import torch

    recipe = prior.recipe
    optimiser = torch.optim.AdamW(
        prior.modules.parameters(),
        lr=recipe.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate_factor(step, recipe))
    parts: dict[str, Any] = {
        "modules": prior.modules,
        "average": prior.average,
        "optimiser": optimiser,
        "schedule": schedule,
    }
    start = load_checkpoint(folder / "prior.ckpt", **parts)
    rows = np.setdiff1d(np.arange(len(latents)), held_out)
    total, seen, end = 0.0, 0, min(recipe.steps, stop_at or recipe.steps)
    for step in range(start, end):
        batch = draw_batch(recipe, step, rows, latents=latents, full=full, bare=bare, empty=empty)
        loss = prior.loss(prior.modules, *batch)
        check_finite(loss, step)
        loss.backward()
        check_finite(torch.nn.utils.clip_grad_norm_(prior.modules.parameters(), 1.0), step)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        schedule.step()
        prior.average.update_parameters(prior.modules)
        total, seen = total + float(loss.detach()), seen + 1
        if tick is not None:
            tick(step, float(loss.detach()))
        code = stop()
        if (step + 1) % every == 0 or step + 1 == end:
            _curve(prior, folder, step + 1, total / seen, latents[held_out], full[held_out])
            total, seen = 0.0, 0
        if (step + 1) % every == 0 or step + 1 == end or code is not None:
            save_checkpoint(folder / "prior.ckpt", step=step + 1, **parts)
        if code is not None:
            raise Stopped(code)
    return end


def draw_batch(
    recipe: PriorRecipe,
    step: int,
    rows: np.ndarray,
    *,
    latents: torch.Tensor,
    full: torch.Tensor,
    bare: torch.Tensor,
    empty: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return latents, token ids, stratified timesteps and noise of one step."""
    import torch

    rng = np.random.default_rng([recipe.seed, step])
    picked, size = rng.choice(rows, size=recipe.batch), recipe.batch
    views = rng.integers(1, latents.shape[1], size=size) * (rng.random(size) >= recipe.plain_share)
    ids = torch.where(
        torch.from_numpy(rng.random(size) < recipe.drop_style)[:, None], bare[picked], full[picked]
    )
    ids = torch.where(torch.from_numpy(rng.random(size) < recipe.drop_caption)[:, None], empty, ids)
    unit = (rng.permutation(size) + rng.random(size)) / size
    timesteps = torch.from_numpy((unit * 1000).astype(np.int64).clip(max=999))
    noise = torch.from_numpy(rng.standard_normal((size, *latents.shape[2:]), dtype=np.float32))
    return latents[picked, views].float(), ids, timesteps, noise


def _curve(
    prior: Prior, folder: Path, step: int, loss: float, latents: torch.Tensor, ids: torch.Tensor
) -> None:
    line = {
        "step": step,
        "loss": round(loss, 5),
        "validation": validation_loss(prior, latents, ids),
    }
    path = folder / "curve.jsonl"
    earlier = path.read_text().splitlines() if path.exists() else []
    kept = [text for text in earlier if json.loads(text)["step"] < step]
    atomic_write(path, "".join(f"{text}\n" for text in (*kept, json.dumps(line))).encode())


def validation_loss(prior: Prior, latents: torch.Tensor, ids: torch.Tensor) -> float:
    """v-prediction error of the average on held-out icons at fixed timesteps and noise."""
    import torch

    rng = np.random.default_rng(7)
    count = len(latents)
    timesteps = torch.from_numpy(((np.arange(count) + 0.5) * 1000 / count).astype(np.int64))
    noise = torch.from_numpy(rng.standard_normal((count, *latents.shape[2:]), dtype=np.float32))
    modules = prior.average.module.eval()
    with torch.inference_mode():
        loss = prior.loss(modules, latents[:, 0].float(), ids, timesteps, noise, weighted=False)
    return round(float(loss), 5)
