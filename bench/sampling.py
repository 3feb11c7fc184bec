"""The only sampler: every item starts from its own noise and is written to disk at once."""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.base.load import Base
from bench.config import RunSpec, Sampler
from bench.content import atomic_write, inside
from bench.data.latents import Prepared
from bench.data.picture import read_exact, stacked
from bench.randomness import initial_noise
from bench.training.engine import autocast, join
from bench.types import BenchError, Dataset, Hooks, unknown

if TYPE_CHECKING:
    import torch

SAMPLERS = ("ddim", "dpm++")
SAMPLES_FILE = "work/samples.json"
"""In the folder of a run: the SHA-256 of each sample that was scored."""
Conditions = Callable[[Any], "torch.Tensor"]
"""Rows of the evaluation items -> what they are given, [B,C,H,W] in [0, 1], or [1,C,H,W] for all of them."""


def build_scheduler(base: Base, sampler: Sampler) -> Any:
    """Return a diffusers scheduler over the base's betas that takes eps.

    ddim: eta 0, leading spacing with offset 1, as Stable Diffusion's own. dpm++: DPM-Solver++ 2M
    (arXiv 2211.01095), deterministic. BenchError where its noise levels would not be the base's.
    """
    import torch
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    keys = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps")
    given = {key: base.scheduler.config[key] for key in keys} | {"prediction_type": "epsilon"}
    if sampler.name == "ddim":
        leading = {"steps_offset": 1, "timestep_spacing": "leading"}
        scheduler = DDIMScheduler(**given, clip_sample=False, set_alpha_to_one=False, **leading)
    elif sampler.name == "dpm++":
        scheduler = DPMSolverMultistepScheduler(**given, algorithm_type="dpmsolver++", solver_order=2)
    else:
        raise unknown("sampler", sampler.name, SAMPLERS)
    if not torch.equal(scheduler.alphas_cumprod.double(), base.alphas):
        raise BenchError(
            f"{base.name} was trained at other noise levels than the sampler {sampler.name} makes of its "
            f"{', '.join(keys)}. Give a base whose scheduler says no more than these."
        )
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

    noise [R,B,4,h,w], of R draws; conditions [B,C,H,W] in [0, 1], or [1,C,H,W] for all; text [B,L,D], or
    [R,B,L,D] where draws have their own; empty [1,L,D] -> [R,B,4,h,w]. The draws go side by side, a call
    each, so that they share what depends on the condition, or on condition and timestep, and none depends
    on how many there are. precision: of the denoiser's products; the sampler's own steps are fp32.
    """
    import torch

    schedulers = [build_scheduler(base, sampler) for _ in noise]  # each remembers its own last step
    guided = sampler.guidance != 1.0
    texts = text.expand(*noise.shape[:2], -1, -1)
    branches = [
        (torch.stack([empty.expand_as(own), own]) if guided else own[None]).to(base.device) for own in texts
    ]
    latents = list(noise.to(base.device) * schedulers[0].init_noise_sigma)
    at_timesteps = getattr(denoiser, "at_timesteps", None)
    if at_timesteps is None:
        conditions = conditions.expand(noise.shape[1], -1, -1, -1)
    with torch.inference_mode():
        with autocast(base.device, precision):
            features = denoiser.encode(conditions.to(base.device))
        for time_now in schedulers[0].timesteps:
            steps = time_now.to(base.device).long().expand(noise.shape[1])
            with autocast(base.device, precision):
                shared = at_timesteps(features, steps[: len(conditions)]) if at_timesteps else features
            for draw, scheduler in enumerate(schedulers):
                with autocast(base.device, precision):
                    eps = denoiser(latents[draw], steps, branches[draw], shared).float()
                guide = eps[0] + sampler.guidance * (eps[1] - eps[0]) if guided else eps[0]
                latents[draw] = scheduler.step(guide, time_now, latents[draw]).prev_sample
    return torch.stack(latents)


def sample_images(
    denoiser: Any, spec: RunSpec, *, base: Base, data: Prepared, conditions: Conditions | None = None
) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """Yield (ids, images [R,B,H,W,3] float32 in [0, 1]) batch by batch, in the data's order; R draws.

    spec: its sampler, seed, batch and precision. conditions: what some rows are given, None: their own.
    Batches are cut from the whole list and dealt out to the processes in turn, so a resumed run has the same.
    BenchError for samples that are not finite.
    """
    for rows in _batches(spec, base=base, data=data):
        given = (conditions or data.conditions_at)(rows)
        images = _sample_rows(denoiser, spec, [rows], base=base, data=data, given=given)
        yield tuple(data.ids[row] for row in rows), images[0]


def _batches(spec: RunSpec, *, base: Base, data: Prepared) -> Iterator[Any]:
    processes, batch = join(base.device), spec.config.sample_batch
    for start in range(processes.process_index * batch, len(data), processes.num_processes * batch):
        yield np.arange(start, min(start + batch, len(data)))


def _sample_rows(
    denoiser: Any, spec: RunSpec, sets: Sequence[Any], *, base: Base, data: Prepared, given: torch.Tensor
) -> np.ndarray:
    """Return images [S,R,B,H,W,3] of S sets of rows, [B] each, that share the conditions they are given."""
    import torch

    seed, draws = spec.config.seed, range(spec.suite.sampler.draws)
    pairs = list(itertools.product(sets, draws))
    noise = [
        [initial_noise(seed, data.ids[row], data.latent_shape, number=draw) for row in rows]
        for rows, draw in pairs
    ]
    latents = sample_latents(
        denoiser,
        base=base,
        sampler=spec.suite.sampler,
        noise=torch.from_numpy(np.array(noise)),
        conditions=given,
        text=torch.stack([data.text_at(rows) for rows, _ in pairs]),
        empty=data.empty,
        precision=spec.suite.training.precision,
    )
    images = torch.stack([base.decode(draw) for draw in latents])
    if not bool(latents.isfinite().all() and images.isfinite().all()):
        raise BenchError(
            f"samples of {data.ids[sets[0][0]]} to {data.ids[sets[0][-1]]} are not finite (NaN or infinite): "
            "nothing of them is kept or scored. A network has overflowed; with --precision fp16 try bf16 or "
            "fp32."
        )
    return images.permute(0, 1, 3, 4, 2).unflatten(0, (len(sets), -1)).cpu().numpy()


def sample_to_folders(
    denoiser: Any,
    spec: RunSpec,
    sets: Mapping[Path, np.ndarray],
    *,
    base: Base,
    data: Prepared,
    conditions: Conditions | None = None,
    hooks: Hooks | None = None,
    spent: Callable[..., None] = lambda seconds, images: None,
) -> None:
    """Sample what of this process is not in the folders yet, each item as `<id>.png`.

    sets: folder -> the row that is drawn under the condition of each row, [N]; they share what depends on
    conditions. Draws after the first: see `folder_of_draw`. A killed run goes on with the first batch that is
    not whole. spent: gets the seconds of each batch and the images of all processes meanwhile. Raises Stopped
    between batches when asked to stop.
    """
    hooks, processes = hooks or Hooks(), join(base.device)
    draws = range(spec.suite.sampler.draws)

    def path(folder: Path, draw: int, row: int) -> Path:
        return inside(folder_of_draw(folder, draw), f"{data.ids[row]}.png")

    begun, done = time.perf_counter(), 0
    for places in _batches(spec, base=base, data=data):
        before, done = done, min(done + len(places) * processes.num_processes, len(data))
        wanted = {folder: order[places] for folder, order in sets.items()}
        lacking = {
            folder: rows
            for folder, rows in wanted.items()
            if not all(path(folder, draw, row).exists() for draw in draws for row in rows)
        }
        if not lacking:
            continue
        given = (conditions or data.conditions_at)(places)
        images = _sample_rows(denoiser, spec, [*lacking.values()], base=base, data=data, given=given)
        for (folder, rows), pixels in zip(lacking.items(), to_bytes(images), strict=True):
            for draw, row in itertools.product(draws, range(len(rows))):
                atomic_write(path(folder, draw, rows[row]), png(pixels[draw, row]))
        spent(seconds=time.perf_counter() - begun, images=(done - before) * len(draws) * len(lacking))
        begun = time.perf_counter()
        hooks.tick(done, len(data))
        hooks.check_stop()


def folder_of_draw(folder: Path, draw: int) -> Path:
    """Return where the samples of a draw lie: those of the first in `folder`, of others beside it."""
    return folder.with_name(f"{folder.name}.{draw}") if draw else folder


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

    size: (height, width), else the first one's. BenchError, naming the file, if one is missing, damaged or of
    another size.
    """
    advice = "Delete this sample and run again to redo its batch."

    def image(row: int) -> np.ndarray:
        nonlocal size
        read = read_exact(inside(folder, f"{ids[row]}.png"), advice=advice, size=size)
        size = size or (read.shape[0], read.shape[1])
        return read

    return stacked(len(ids), image)


def show_condition(condition: np.ndarray) -> np.ndarray:
    """Condition [C,H,W] in [0, 1] -> a picture [H,W,3] uint8: ink (last of 1 or 4 channels) over colours."""
    ink = condition[-1] if len(condition) in (1, 4) else np.zeros_like(condition[0])
    colour = condition[:3].transpose(1, 2, 0) if len(condition) >= 3 else np.ones((*ink.shape, 3))
    return np.asarray((colour * (1 - ink[..., None]) * 255).round().astype(np.uint8))
