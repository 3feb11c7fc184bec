"""SDXL as a family: what diffusers' own pipelines draw with the same random weights, shapes, refusals."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
)

from baselines.t2i_adapter import build_adapter
from bench import registry
from bench.base.load import Base, load_base
from bench.base.random import build_base, shape_like, write_random_base
from bench.base.snapshot import find_snapshot
from bench.config import Sampler
from bench.cost import count_parameters
from bench.plan import build_meta
from bench.record import load_record
from bench.sampling import build_scheduler, sample_latents
from bench.types import BenchError, Stopped
from bps import BPSAdapter, steered
from bps.method import BPS
from tests.asking import Asked, made, micro
from tests.loading import moved
from tests.test_export import bench, made_up, run

SAMPLER = Sampler(steps=3, guidance=5.0)
LAYOUT = registry.load("task", "layout")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_base(tmp_path_factory.mktemp("xl") / "base", like="sdxl", width=32, size=64)


@pytest.fixture(scope="module")
def base(folder: Path) -> Base:
    return load_base(folder)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    return StableDiffusionXLPipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def ran(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ControlNet, from nothing to its record."""
    results = tmp_path_factory.mktemp("ran")
    run(folder, results, "controlnet")
    return next(results.glob("micro-*"))


@pytest.mark.parametrize("zeros", [True, False])
def test_text_is_encoded_as_the_pipeline_does(folder: Path, base: Base, zeros: bool, tmp_path: Path) -> None:
    """Penultimate states side by side, and the second encoder's pooled vector in the last row."""
    if not zeros:
        folder = Path(shutil.copytree(folder, tmp_path / "base"))
        index = json.loads((folder / "model_index.json").read_text())
        index["force_zeros_for_empty_prompt"] = False
        (folder / "model_index.json").write_text(json.dumps(index))
        base = load_base(folder)
    pipe = StableDiffusionXLPipeline.from_pretrained(folder)
    states, empty, pooled, empty_pooled = pipe.encode_prompt("a dog!", device="cpu")
    found = base.encode_text(["", "a dog!"])
    assert found.shape == (2, 78, 192) and tuple(found.shape[1:]) == base.text_shape
    assert base.zero_empty == zeros == (not found[0].any())
    for row, (wanted, vector) in enumerate(((empty, empty_pooled), (states, pooled))):
        assert torch.allclose(found[row, :77], wanted[0], atol=1e-6)
        assert torch.allclose(found[row, 77, :128], vector[0], atol=1e-6) and not found[row, 77, 128:].any()


def drawn(method: str, base: Base, condition: torch.Tensor, noise: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """A method with random trained weights, and what it samples."""
    denoiser = moved(method, base, task=LAYOUT)
    text = base.encode_text(["", "a dog"])
    latents = sample_latents(
        denoiser,
        base=base,
        sampler=SAMPLER,
        noise=noise[None],
        conditions=condition,
        text=text[1:],
        empty=text[:1],
    )
    return denoiser, latents[0]


@pytest.mark.parametrize("method", ["text-only", "controlnet", "t2i-adapter", "bps"])
def test_a_method_samples_what_diffusers_pipeline_does(method: str, base: Base, plain: Any) -> None:
    """Text, sizes, networks, guidance and scheduler together, on a picture that is wider than high."""
    rng = torch.Generator().manual_seed(0)
    noise, condition = torch.randn(1, 4, 8, 16, generator=rng), torch.rand(1, 3, 64, 128, generator=rng)
    denoiser, ours = drawn(method, base, condition, noise)
    parts = {**plain.components, "scheduler": build_scheduler(base, SAMPLER)}
    given: dict[str, Any] = {}
    if method == "controlnet":
        parts = {n: part for n, part in parts.items() if part is not None}
        pipe = StableDiffusionXLControlNetPipeline(**parts, controlnet=denoiser.controlnet)
        given = {"image": condition}
    elif method == "t2i-adapter":
        assert denoiser.adapter.config["adapter_type"] == "full_adapter_xl"
        pipe = StableDiffusionXLAdapterPipeline(**parts, adapter=denoiser.adapter)
        given = {"image": condition}
    else:
        pipe = StableDiffusionXLPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)

    def draw() -> torch.Tensor:
        return pipe(
            "a dog",
            height=64,
            width=128,
            latents=noise,
            num_inference_steps=SAMPLER.steps,
            guidance_scale=SAMPLER.guidance,
            output_type="latent",
            **given,
        ).images

    if method == "bps":
        with steered(pipe.unet, denoiser.steered.adapter, condition):
            theirs = draw()
    else:
        theirs = draw()
    assert torch.allclose(ours, theirs, atol=1e-4)
    if method != "text-only":
        assert (ours - drawn("text-only", base, condition, noise)[1]).abs().max() > 1e-2


COUNTS = {
    "bps": 404_981_440,
    "controlnet": 1_251_013_872,
    "t2i-adapter": 77_553_600,
    "lora-concat": 29_470_720,
}


@pytest.mark.slow
def test_at_full_width_methods_train_what_the_docs_say() -> None:
    base, task = build_base(shape_like("sdxl"), encoders=False), registry.load("task", "sketch")
    for name, parameters in COUNTS.items():
        method = registry.load("method", name)
        denoiser = build_meta(method, base=base, task=task, options=method.options)
        assert count_parameters(denoiser)[1] == parameters, name


def test_a_base_without_contents_knows_its_noise_levels(base: Base) -> None:
    """Its scheduler reads its numbers as it is made, which nothing on "meta" has."""
    assert torch.equal(build_base(shape_like("sdxl"), encoders=False).alphas, base.alphas)


def test_adapters_at_full_width_have_the_shapes_of_the_published_ones() -> None:
    unet = build_base(shape_like("sdxl"), encoders=False).unet
    with torch.device("meta"):
        ours = build_adapter(unet, channels=3, downscale=8)
        theirs = T2IAdapter(
            in_channels=3,
            channels=[320, 640, 1280, 1280],
            num_res_blocks=2,
            downscale_factor=16,
            adapter_type="full_adapter_xl",
        )
        adapter = BPSAdapter.from_unet(unet, 3)
        residuals = adapter(torch.rand(1, 3, 1024, 1024), torch.rand(1, 1280))
    shapes = [{name: t.shape for name, t in net.state_dict().items()} for net in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert adapter.slots == (1, 2, 4, 5, 7, 8, 12, *range(13, 22))
    assert adapter.weights.shape == (7,) and adapter.size_multiple == 4
    sizes = {slot: (r.shape[1], r.shape[2]) for slot, r in residuals.by_slot.items()}
    assert sizes[1] == sizes[21] == (320, 128) and sizes[4] == sizes[16] == (640, 64)
    assert sizes[8] == sizes[12] == sizes[13] == (1280, 32)


def test_the_releases_larger_adapter_is_wired_into_the_base(base: Base) -> None:
    options = {"schedule": "head_heavy_xl", "attention": True}
    torch.manual_seed(0)
    denoiser = BPS().build(base, LAYOUT, **options)
    latents, times = torch.randn(1, 4, 8, 8), torch.tensor([500])
    text, condition = base.encode_text(["a dog"])[None], torch.rand(1, 3, 64, 64)
    optimiser = torch.optim.AdamW(denoiser.steered.adapter.parameters(), lr=1e-3)
    touched = set()
    for step in range(4):
        eps = denoiser(latents, times, text, denoiser.encode(condition))
        assert step or torch.equal(eps, base.eps(latents, times, text))
        eps.square().mean().backward()
        touched |= {n for n, p in denoiser.named_parameters() if p.grad is not None and p.grad.any()}
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    assert touched == {n for n, p in denoiser.named_parameters() if p.requires_grad}
    assert BPS().settled({**BPS.options, **options}, LAYOUT)["attention"] is True
    assert "attention" not in BPS().settled(BPS.options, LAYOUT)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bps", "lora-concat"])
def test_a_stopped_run_resumes_to_the_same_bits(method: str, folder: Path, tmp_path: Path) -> None:
    config = micro(folder, tmp_path / "whole", method=method, shuffled=False, limit=10, sampling_steps=1)
    whole = made(config)
    whole.all()
    cut = replace(config, results=tmp_path / "cut")
    with pytest.raises(Stopped):
        made(cut, Asked([None] * 3 + [143])).all()
    resumed = made(cut)
    assert not (resumed.folder / "record.json").exists() and (resumed.work / "train.ckpt").exists()
    assert resumed.all().artifacts == load_record(whole.folder).artifacts


@pytest.mark.slow
@pytest.mark.parametrize("method", ["controlnet", "t2i-adapter", "bps", "lora-concat", "sd-finetune"])
def test_a_run_is_exported_for_the_familys_pipelines(
    method: str, ran: Path, folder: Path, base: Base, tmp_path: Path
) -> None:
    source = ran if method == "controlnet" else made_up(method, ran, base, tmp_path)
    for more in ((), ("--with-base",)):
        out = tmp_path / f"out{len(more)}"
        bench("export", source, out, "--base", folder, *more)
        (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), flags=re.DOTALL)
        assert "StableDiffusionXL" in code and "safety_checker" not in code
        found: dict[str, Any] = {}
        exec(code.replace('"BASE"', repr(str(folder))).replace('"DIR', f'"{out}'), found)
        assert found["image"].size == (64, 64)


REFUSED = [
    ("model_index.json", {"_class_name": "StableDiffusionXLImg2ImgPipeline"}, "XLImg2Img.*no refiner"),
    ("model_index.json", {"_class_name": "StableDiffusionXLInpaintPipeline"}, "XLInpaint"),
    ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, "addition_embed_type|text_encoder_2"),
    ("model_index.json", {"text_encoder_2": [None, None]}, "text_encoder_2"),
    ("unet/config.json", {"addition_embed_type": None}, "addition_embed_type"),
    ("unet/config.json", {"projection_class_embeddings_input_dim": 2816}, "pooled text of width 1280"),
    ("unet/config.json", {"cross_attention_dim": 64}, "width 64"),
    ("text_encoder_2/config.json", {"projection_dim": 64}, "pooled text of width 128"),
]


@pytest.mark.parametrize(("path", "values", "named"), REFUSED)
def test_what_is_no_base_of_the_family_is_refused(
    folder: Path, path: str, values: dict[str, Any], named: str, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "base"))
    (copy / path).write_text(json.dumps({**json.loads((copy / path).read_text()), **values}))
    with pytest.raises(BenchError, match=named):
        find_snapshot(copy)


def test_a_folder_without_the_first_text_encoder_as_a_refiners_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "base"))
    shutil.rmtree(copy / "text_encoder")
    with pytest.raises(BenchError, match="text_encoder missing.*no refiner"):
        find_snapshot(copy)
