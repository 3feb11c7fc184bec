"""The only sampler: every item starts from its own noise and is written to disk at once."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.base.load import Base
from bench.config import RunSpec, Sampler
from bench.content import atomic_write, inside
from bench.data.latents import Prepared
from bench.data.picture import read_exact
from bench.randomness import initial_noise
from bench.training.engine import autocast
from bench.training.processes import join
from bench.types import BenchError, Dataset, Hooks, unknown

if TYPE_CHECKING:
    import torch

SAMPLERS = ("ddim", "dpm++")


def build_scheduler(base: Base, sampler: Sampler) -> Any:
    """Return a diffusers scheduler over the base's betas that takes eps.

    ddim: eta 0, leading spacing with offset 1, as Stable Diffusion's own. dpm++: DPM-Solver++ 2M
    (arXiv 2211.01095), deterministic.
    """
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    keys = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps")
    betas = {key: base.scheduler.config[key] for key in keys}
    if sampler.name == "ddim":
        scheduler = DDIMScheduler(
            **betas,
            prediction_type="epsilon",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            timestep_spacing="leading",
        )
    elif sampler.name == "dpm++":
        scheduler = DPMSolverMultistepScheduler(
            **betas, prediction_type="epsilon", algorithm_type="dpmsolver++", solver_order=2
        )
    else:
        raise unknown("sampler", sampler.name, SAMPLERS)
    scheduler.set_timesteps(sampler.steps)
    return scheduler


def check_steps(base: Base, sampler: Sampler) -> None:
    """Raise BenchError for more sampling steps than the base's diffusion has timesteps."""
    most = len(base.alphas) - (sampler.name == "ddim")  # whose steps begin at timestep 1
    if sampler.steps > most:
        raise BenchError(
            f"--sampling-steps {sampler.steps}: the sampler {sampler.name} has at most {most} on this base, "
            f"whose diffusion has {len(base.alphas)} timesteps. Give fewer."
        )


def sample_latents(
    denoiser: Any,
    *,
    base: Base,
    sampler: Sampler,
    noise: torch.Tensor,
    conditions: torch.Tensor,
    text: torch.Tensor,
    empty: torch.Tensor,
    precision: str = "fp32",
) -> torch.Tensor:
    """Sample latents under classifier-free guidance (arXiv 2207.12598), the condition on both sides.

    noise [B,4,h,w], conditions [B,C,H,W] in [0, 1], text [B,L,D], empty [1,L,D] -> [B,4,h,w].
    precision: of the denoiser's products; the sampler's own steps are fp32.
    """
    import torch

    scheduler = build_scheduler(base, sampler)
    guided = sampler.guidance != 1.0
    branches = torch.stack([empty.expand_as(text), text]) if guided else text[None]
    latents = noise.to(base.device) * scheduler.init_noise_sigma
    with torch.inference_mode():
        with autocast(base.device, precision):
            features = denoiser.encode(conditions.to(base.device))
        for time_now in scheduler.timesteps:
            steps = time_now.to(base.device).long().expand(len(latents))
            with autocast(base.device, precision):
                eps = denoiser(latents, steps, branches.to(base.device), features).float()
            guide = eps[0] + sampler.guidance * (eps[1] - eps[0]) if guided else eps[0]
            latents = scheduler.step(guide, time_now, latents).prev_sample
    return latents


def sample_images(
    denoiser: Any,
    spec: RunSpec,
    *,
    base: Base,
    data: Prepared,
    condition_of: Sequence[int] | np.ndarray | None = None,
    skip: Callable[[Sequence[str]], bool] = lambda ids: False,
) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """Yield (ids, images [B,H,W,3] float32 in [0, 1]) batch by batch, in the data's order.

    spec: of the run, its sampler, seed, batch and precision. condition_of: row of the item whose condition
    each item gets (None: its own). skip: tells of a batch's ids whether it is already there. Batches are
    cut from the whole list and dealt out to the processes in turn, so a resumed run, alone or not, has the
    same batches. BenchError for samples that are not finite.
    """
    import torch

    processes, batch = join(base.device), spec.config.sample_batch
    source = np.arange(len(data)) if condition_of is None else np.asarray(condition_of)
    for start in range(processes.process_index * batch, len(data), processes.num_processes * batch):
        ids = data.ids[start : start + batch]
        if skip(ids):
            continue
        noise = np.stack([initial_noise(spec.config.seed, item, data.latent_shape) for item in ids])
        latents = sample_latents(
            denoiser,
            base=base,
            sampler=spec.suite.sampler,
            noise=torch.from_numpy(noise),
            conditions=data.conditions_at(source[start : start + len(ids)]),
            text=data.text_at(range(start, start + len(ids))),
            empty=data.empty,
            precision=spec.suite.training.precision,
        )
        images = base.decode(latents)
        if not bool(latents.isfinite().all() and images.isfinite().all()):
            raise BenchError(
                f"samples of {ids[0]} to {ids[-1]} are not finite (NaN or infinite): nothing of them is "
                "kept or scored. A network has overflowed; with --precision fp16 try bf16 or fp32."
            )
        yield ids, images.permute(0, 2, 3, 1).cpu().numpy()


def sample_to_folder(
    denoiser: Any,
    spec: RunSpec,
    folder: Path,
    *,
    base: Base,
    data: Prepared,
    condition_of: Sequence[int] | np.ndarray | None = None,
    hooks: Hooks | None = None,
    spent: Callable[[float, int], None] = lambda seconds, images: None,
) -> None:
    """Sample every item of this process that is not in the folder yet, each as `<id>.png`.

    Files are written atomically, so a killed run goes on with the first batch that is not whole.
    `spent` gets the seconds and images of each batch; hooks tick the images of all processes as if they
    kept step. Raises Stopped between batches when asked to stop.
    """
    hooks, processes = hooks or Hooks(), join(base.device)
    begun, done = time.perf_counter(), 0

    def there(ids: Sequence[str]) -> bool:
        return all(inside(folder, f"{item}.png").exists() for item in ids)

    drawn = sample_images(denoiser, spec, base=base, data=data, condition_of=condition_of, skip=there)
    for ids, pixels in drawn:
        for item, image in zip(ids, to_bytes(pixels), strict=True):
            atomic_write(inside(folder, f"{item}.png"), png(image))
        spent(time.perf_counter() - begun, len(ids))
        begun, done = time.perf_counter(), done + len(ids)
        hooks.tick(min(done * processes.num_processes, len(data)), len(data))
        hooks.check_stop()


def to_bytes(images: np.ndarray) -> np.ndarray:
    """Images in [0, 1] -> uint8, rounded to nearest."""
    return np.asarray((images.clip(0, 1) * 255).round().astype(np.uint8))


def png(image: np.ndarray) -> bytes:
    """Encode one [H,W,3] uint8 image as PNG; equal pixels give equal bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def export_images(dataset: Dataset, ids: Sequence[str], folder: Path) -> None:
    """Write the images of a data set's items as `<id>.png`, equal bytes for equal pixels."""
    for item in ids:
        atomic_write(inside(folder, f"{item}.png"), png(dataset[item].image))


def load_images(folder: Path, ids: Sequence[str], *, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read `<id>.png` of every id (never a glob), [N,H,W,3] uint8.

    size: (height, width) of every sample; by default the first one's. BenchError, naming the file, if
    one is missing, damaged or of another size.
    """
    images: list[np.ndarray] = []
    for item in ids:
        advice = "Delete this sample and run again to redo its batch."
        path = inside(folder, f"{item}.png")
        images.append(read_exact(path, advice=advice, size=size))
        size = size or images[0].shape[:2]
    return np.stack(images)


def show_condition(condition: np.ndarray) -> np.ndarray:
    """Condition [C,H,W] in [0, 1] -> a picture [H,W,3] uint8: lines dark on white, colours as such.

    One channel: ink. Three: colours. Four: colours with the fourth as ink over them.
    """
    ink = condition[-1] if len(condition) in (1, 4) else np.zeros_like(condition[0])
    colour = condition[:3].transpose(1, 2, 0) if len(condition) >= 3 else np.ones((*ink.shape, 3))
    return np.asarray((colour * (1 - ink[..., None]) * 255).round().astype(np.uint8))


def mosaic(images: np.ndarray, *, columns: int = 24) -> np.ndarray:
    """Tile images [N,H,W,3] row by row into one [R*H,columns*W,3], the rest white."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    cells = np.full((rows * columns, height, width, channels), 255, dtype=np.uint8)
    cells[:count] = images
    page = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return page.reshape(rows * height, columns * width, channels)
