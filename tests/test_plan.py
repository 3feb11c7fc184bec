"""What a plan counts: against known figures, against the same steps on real tensors, against a process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import cli
from bench import registry
from bench.base import Shape
from bench.base.random import build_base, shape_like, shape_of
from bench.config import Machine, RunConfig, Sampler, Training
from bench.plan import (
    ALLOWANCE,
    GPUS,
    Device,
    LiveBytes,
    Setting,
    Work,
    build_meta,
    count_sampling,
    count_training,
    fake_tensors,
    footprint,
    make_fake,
    norms_in_float32,
    parameter_bytes,
    plan_method,
    recognise,
    stand_in,
    tuning_hours,
    work_of,
)
from bench.suites import EMOJI, MICRO, method_of, resolve
from bench.training.engine import autocast, rebuilt
from bench.training.loop import training_loss
from bench.types import BenchError

RUNNER = CliRunner()
SD15 = {  # parameters of the part that trains, multiply-accumulates of one call beside the UNet's
    "bps": (672_093_120, 242.0),
    "controlnet": (361_278_832, 141.6),
    "t2i-adapter": (77_000_640, 28.4),
}
UNET = 859_520_964, 401.6


@pytest.fixture(scope="module")
def tiny(micro_folder: Path) -> Shape:
    """The tiny base with one layer a block: half the operations to follow."""
    return shape_of(micro_folder).changed("unet", layers_per_block=1)


def setting(**changes: Any) -> Setting:
    training = Training(batch=2, loss="eps", mirror=False)
    made = Setting(training=training, sampler=Sampler(name="ddim", steps=50, guidance=1.0), sampled=2)
    return replace(made, **changes)


def find(name: str) -> tuple[Any, dict[str, Any]]:
    return method_of(RunConfig(method=name))


def without_effect() -> float:
    """Operations of the four convolutions that the release has without effect and ours leaves out, G."""
    places = ((320, 64), (320, 32), (640, 16), (1280, 8))
    return sum(9 * width**2 * side**2 for width, side in places) / 1e9


def test_full_width_parameters_and_operations_are_the_known_ones() -> None:
    shape, task = shape_like("sd15"), registry.load("task", "sketch")
    base = build_base(shape)
    assert base.unet.num_parameters() == UNET[0]
    assert base.vae.num_parameters() == 83_653_863
    assert sum(p.numel() for p in base.text_encoder.parameters()) == 123_060_480
    base = replace(base, vae=None, text_encoder=None)
    assert round(401.63672064, 1) == UNET[1]
    built = {}
    for name, (parameters, _) in SD15.items():
        method, options = find(name)
        built[name] = build_meta(method, base=base, task=task, options=options)
        assert sum(p.numel() for p in built[name].parameters() if p.requires_grad) == parameters
    with fake_tensors():
        make_fake(*built.values())
        base, data = replace(base, device="cpu"), stand_in(shape, task=task, count=1)
        for name, (_, operations) in SD15.items():
            found = count_sampling(built[name], base=base, data=data, setting=setting())
            own = (found["encode_flops"] + found["step_flops"]) / 2e9 - 401.63672064
            assert round(own + (without_effect() if name == "bps" else 0), 1) == operations, name


def test_a_three_channel_controlnet_has_the_known_size() -> None:
    method, options = find("controlnet")
    net = build_meta(
        method,
        base=build_base(shape_like("sd15"), encoders=False),
        task=registry.load("task", "layout"),
        options=options,
    )
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 361_279_120


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_fake_tensors_take_the_bytes_of_real_ones(tiny: Shape, checkpointing: bool) -> None:
    task, asked = (
        registry.load("task", "sketch"),
        setting(
            execution=RunConfig(gradient_checkpointing=checkpointing, micro_batch=2),
            training=Training(batch=4, loss="v", ema=0.99),
        ),
    )
    method, options = find("t2i-adapter")
    fake = footprint(method, options=options, shape=tiny, task=task, setting=asked)
    base = build_base(tiny, device="cpu")
    denoiser = method.build(base, task, **options)
    data = stand_in(tiny, task=task, count=2)
    real = count_training(denoiser, base=base, data=data, setting=asked)
    assert {name: fake[name] for name in real} == real
    sampled = count_sampling(denoiser, base=base, data=data, setting=asked)
    assert sampled["step_flops"] == fake["step_flops"]
    assert sampled["sample_peak"] == fake["sample_peak"]
    assert fake["optimiser"] == pytest.approx(8 * fake["trainable"], rel=1e-3)
    assert fake["gradients"] == fake["average"] == 4 * fake["trainable"]


def test_activations_are_what_autograd_saves(tiny: Shape) -> None:
    method, options = find("t2i-adapter")
    base = build_base(tiny, device="cpu")
    denoiser = method.build(base, registry.load("task", "sketch"), **options)
    data = stand_in(tiny, task=registry.load("task", "sketch"), count=2)
    counted = count_training(denoiser, base=base, data=data, setting=setting())["activations"]
    weights = {p.untyped_storage().data_ptr() for p in denoiser.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        features = denoiser.encode(data.conditions_at([0, 1]))
        eps = denoiser(
            data.latents_at([0, 1]), torch.zeros(2, dtype=torch.long), data.text_at([0, 1])[None], features
        )[0]
        eps.square().mean()
    assert counted == pytest.approx(sum(saved.values()), rel=0.05)


def test_live_bytes_follow_storages_not_tensors() -> None:
    live = LiveBytes()
    with live:
        first = torch.zeros(100)
        view = first[10:].view(9, 10)
        assert live.now == 400
        second = view + 1
        assert live.now == live.peak == 400 + 360
        del first
        assert live.now == 760, "the view holds the storage"
        del view
        assert live.now == 360
        live.mark()
        assert live.peak == 360
        del second
    assert live.now == 0
    layer = torch.nn.Linear(10, 10, bias=False)
    assert LiveBytes(layer, layer).now == parameter_bytes(layer, layer) == 400


@pytest.mark.slow
def test_half_precision_norms_and_recomputing_change_activations(tiny: Shape) -> None:
    method, options = find("t2i-adapter")
    task, base = registry.load("task", "sketch"), build_base(tiny)
    denoiser = build_meta(method, base=base, task=task, options=options)

    def kept(precision: str, images: int) -> int:
        before, training = live.now, replace(setting().training, batch=4)
        with autocast("cpu", precision):
            loss = training_loss(
                denoiser, base=base, data=data, training=training, seed=0, step=0, places=range(images)
            )
        assert loss.requires_grad
        return live.now - before

    def activations(precision: str) -> int:
        """Of two images, without the casts of weights, which do not depend on their number."""
        return kept(precision, 4) - kept(precision, 2)

    with fake_tensors():
        make_fake(denoiser)
        base, data = replace(base, device="cpu"), stand_in(tiny, task=task, count=4)
        live = LiveBytes(denoiser)
        with live:
            full, half = activations("fp32"), activations("bf16")
            with norms_in_float32(denoiser):
                as_cuda = activations("bf16")
            with rebuilt(denoiser, RunConfig(gradient_checkpointing=True)):
                recomputed = activations("fp32")
    assert half < as_cuda < full, "norms stay in float32"
    assert recomputed < 0.5 * full


def test_norms_are_raised_only_while_open() -> None:
    norm = torch.nn.GroupNorm(2, 4)
    half = torch.ones(1, 4, 2, 2, dtype=torch.bfloat16)
    with norms_in_float32(torch.nn.Sequential(norm)):
        assert norm(half).dtype == torch.float32
    assert not norm._forward_pre_hooks


# ---- plans


class Stub:
    """Stands for a counted method: peaks that grow with the micro batch."""

    name, title, source, conditioned, options = "stub", "stub", "", True, {}

    def build(self, base: Any, task: Any, **options: Any) -> Any:
        raise AssertionError("never built")


COUNTED = {
    **{"parameters": 1000, "trainable": 500, "dead": 0, "weights": 4000, "beside": 0, "encoders": 0},
    **{"gradients": 2000, "buckets": 0, "optimiser": 4000, "average": 0, "activations": 8000},
    **{"train_peak": 20_000, "sample_peak": 5000, "decode_peak": 4500, "peak": 20_000},
    **{"train_flops": 6_000, "encode_flops": 100, "step_flops": 2_000, "decode_flops": 300},
}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put known figures in the place of the count: 10,000 bytes and 2,500 (or 500) an image."""

    def count(method: Any, *, setting: Setting, **rest: Any) -> dict[str, int]:
        recomputed = setting.execution.gradient_checkpointing
        peak = 10_000 + setting.micro * (500 if recomputed else 2_500)
        return {**COUNTED, "train_peak": peak, "peak": peak}

    monkeypatch.setattr("bench.plan.footprint", count)
    yield


def work(memory: float, *, gpus: int = 1, **changes: Any) -> Work:
    """Return work on a GPU that can fill `memory` bytes; a batch of 4."""
    gpu = replace(GPUS["h100"], memory=memory / 0.92 / 2**30, half=1e-12, single=1e-12)
    training, sampler = Training(batch=4), Sampler(steps=10)
    suite = replace(EMOJI, training=training, sampler=sampler)
    made = Work(
        suite=suite,
        budget=suite.budget("standard"),
        task=registry.load("task", "sketch"),
        shape=shape_like("sd15", width=32, size=64),
        items=(100, 10),
        setting=Setting(training=training, sampler=sampler, processes=gpus),
        device=gpu,
        mfu=0.5,
    )
    return replace(made, **changes)


def in_parts(asked: Work, micro: int, *, checkpointing: bool) -> Work:
    execution = RunConfig(micro_batch=micro, gradient_checkpointing=checkpointing)
    return replace(asked, setting=replace(asked.setting, execution=execution))


@pytest.mark.parametrize(
    "memory,advice",
    [
        (23_000, ""),
        (17_300, "--micro-batch 2"),
        (14_000, "--micro-batch 1"),
        (11_800, "--micro-batch 1 --gradient-checkpointing"),
        (11_000, "no micro batch fits"),
        (5_000, "lower --sample-batch"),
    ],
)
def test_what_does_not_fit_comes_with_what_to_change(counted: None, memory: int, advice: str) -> None:
    plan = plan_method(Stub(), options={}, work=work(memory))
    assert plan.fits == (not advice) == (plan.advice == "")
    assert plan.needed == round(ALLOWANCE * 20_000)
    assert advice in plan.advice
    if advice.startswith("--micro-batch") and "checkpointing" not in advice:
        assert "checkpointing" not in plan.advice
        smaller = in_parts(work(memory), int(advice.split()[1]), checkpointing=False)
        assert plan_method(Stub(), options={}, work=smaller).fits, "the advice holds"


def test_hours_disk_and_steps_follow_from_the_count(counted: None) -> None:
    plan = plan_method(Stub(), options={}, work=work(1e6))
    assert plan.steps == 800
    assert plan.train_hours == pytest.approx(800 * 4 * 6_000 / 0.5 / 3600)
    assert plan.sample_hours == pytest.approx(3 * 363 * (100 + 10 * 2_000 + 300) / 0.5 / 3600 / 363 * 10)
    alone = RunConfig(shuffled=False)
    two = plan_method(Stub(), options={}, work=work(1e6, gpus=2, config=alone))
    assert two.micro == 2 and two.train_hours == pytest.approx((plan.train_hours or 0) / 2)
    assert two.sample_hours == pytest.approx((plan.sample_hours or 0) / 6)
    assert plan.checkpoints == 3 * (2000 + 4000) + 2000
    saves = 1 + int(60 * (plan.train_hours or 0) / 15)
    assert plan.written == saves * 6000 and plan.saving_hours == pytest.approx(saves * 6000 / 3e9 / 3600)
    assert (
        plan_method(Stub(), options={}, work=work(1e6, config=RunConfig(checkpoint_every=100))).written
        == 8 * 6000
    )
    recomputed = in_parts(work(1e6), 4, checkpointing=True)
    again = plan_method(Stub(), options={}, work=recomputed)
    assert again.train_hours == pytest.approx((plan.train_hours or 0) * 4 / 3)


def test_choosing_rates_is_planned_with_them(counted: None) -> None:
    """Six rates, each at half the images and with one of the three sets of samples."""
    tried = work(1e6)
    plan = plan_method(Stub(), options={}, work=tried)
    once = (plan.train_hours or 0) / 2 + (plan.sample_hours or 0) / 3
    assert tuning_hours(tried, [plan]) == pytest.approx(len(tried.suite.rates) * once) and once > 0


def test_scoring_is_planned_with_two_sets_of_pictures_and_no_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """At COCO's size 7.9 GB of pictures, .6 of pairs, .4 of rows; with all layers it was 25 GiB and more."""
    monkeypatch.delenv("BENCH_COCO17", raising=False)
    config = RunConfig(suite="coco17", method="bps", task="sketch", results=Path("results"))
    work = work_of(config, Machine(gpu="a100-80"))
    assert 8.8e9 < work.host - work.process < 9.1e9
    assert work_of(config, Machine(gpu="a100-80", size=256)).host < work.host / 2
    eight = replace(work, setting=replace(work.setting, processes=8))
    assert eight.host == 5 * work.host, "each process scores a row"


def test_a_process_on_the_cpu_has_its_libraries_and_its_items_beside_the_tensors() -> None:
    on_cpu = work(0, device=Device("cpu", 1.0), process=1_000_000)
    train, evaluation, view, text = 100, 10, 4 * 8 * 8 + 64 * 64, 77 * 64
    held = 4 * (train * (2 * view + text) + evaluation * (view + text))
    assert on_cpu.shape.text_shape == (77, 64)
    assert on_cpu.needs(500_000) == 1_000_000 + held + round(1.08 * 500_000)


# ---- shapes, GPUs and the command


def test_shapes_come_from_folders_too(micro_folder: Path) -> None:
    shape = shape_of(micro_folder)
    assert (shape.size, shape.downscale, shape.latent_shape, shape.tokens) == (
        64,
        4,
        (4, 16, 16),
        16,
    )
    base = build_base(shape)
    assert base.prediction == "v_prediction" and base.unet.device.type == "meta"
    with pytest.raises(BenchError, match="model_index"):
        shape_of(micro_folder / "unet")


def test_sd21_has_its_known_sizes() -> None:
    base = build_base(shape_like("sd21"))
    assert base.unet.num_parameters() == 865_910_724 and base.prediction == "v_prediction"
    assert sum(p.numel() for p in base.text_encoder.parameters()) == 340_387_840


def test_gpus_are_recognised_by_the_names_that_cuda_gives() -> None:
    names = {
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA A100-SXM4-40GB": "a100-40",
        "NVIDIA H200": "h200",
        "NVIDIA GeForce RTX 4090": "4090",
        "Tesla V100-SXM2-32GB": "v100",
    }
    for given, known in names.items():
        gpu = recognise(given)
        assert gpu is not None and gpu.name == known
    for other in (
        "cpu",
        "NVIDIA H100 PCIe",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GH200",
        "NVIDIA GH200 480GB",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "Tesla V100-PCIE-16GB",
    ):
        assert recognise(other) is None, f"{other} has a peak of its own"


def run(*words: Any) -> Any:
    return RUNNER.invoke(cli.app, ["plan", *(str(w) for w in words)])


@pytest.mark.slow
def test_the_command_prints_tables_and_json(micro_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--suite", "micro", "--base", micro_folder, "--method", "t2i-adapter", "--gpu", "4090")
    done = run(*words, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    method = found["methods"][0]
    images, batch = MICRO.budgets["quick"].train_images, MICRO.training.batch
    assert method["steps"] == images // batch and method["fits"]
    assert method["footprint"]["peak"] < method["needed"] < found["usable_bytes"]
    monkeypatch.setattr("bench.plan.footprint", lambda *given, **rest: COUNTED)
    shown = run(*words, "--gradient-checkpointing", "--precision", "bf16").stdout
    assert "T2I-Adapter" in shown and "at 12% of the peak rate" in shown and "NO" not in shown


def test_a_rehearsal_takes_every_stage_and_corrects_the_hours(
    micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.plan.footprint", lambda *given, **rest: COUNTED)
    monkeypatch.setattr("bench.measure._STEPS", 2)
    monkeypatch.setattr("bench.measure._WARM_UP", 1)
    where = ("--suite", "micro", "--base", micro_folder, "--results", tmp_path, "--device", "cpu")
    asked = ("--method", "t2i-adapter", "--sample-batch", 4, "--no-shuffled", "--train-batch", 2)
    done = run(*where, *asked, "--rehearse", "--json")
    assert done.exit_code == 0, done.output
    found, (method,) = json.loads(done.stdout), json.loads(done.stdout)["methods"]
    assert found["device"] == "cpu" and found["encode_hours"] > 0 and not list(tmp_path.iterdir())
    stages = ("train_hours", "sample_hours", "saving_hours", "judge_hours")
    assert all(0 < method[stage] < 10 for stage in stages)
    assert found["hours"] == pytest.approx(sum(method[stage] for stage in stages))
    assert any("measured here" in line for line in found["assumed"])


@pytest.mark.parametrize(
    "words,message",
    [
        (("--gpu", "h300"), "unknown GPU 'h300'"),
        (("--gpu", "v100", "--precision", "bf16"), "no bfloat16"),
        (("--gpus", "3"), "cannot be divided"),
        (("--gpu", "cpu", "--gpus", "2"), "one process"),
        (("--task", "depth"), "unknown task"),
        (("--like", "sd3"), "unknown model to resemble"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_counted(words: tuple[str, ...], message: str) -> None:
    done = run("--suite", "coco17", "--method", "bps", *words)
    assert done.exit_code == 2 and message in done.output, done.output


def test_the_paper_suite_needs_neither_data_nor_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_COCO17", raising=False)
    config = RunConfig(suite="coco17")
    found = work_of(config)
    assert found.items == (118_287, 5_000) and found.shape.name == "sd15"
    monkeypatch.setenv("BENCH_COCO17", "nowhere")
    with pytest.raises(BenchError, match="nowhere is not a prepared COCO 2017"):
        work_of(config)
    with pytest.raises(BenchError, match="--base"):
        resolve(config)


def test_a_controlnet_on_an_a100_is_planned_as_it_was_measured() -> None:
    """16.4 images/s with flash attention, 27.2 tuned, 11.7 plain: NVIDIA's page on NeMo's ControlNet."""
    on_a100 = replace(work(0), device=GPUS["a100-80"], mfu=None)
    rate = 1 / (3600 * on_a100.hours(2.33e12, "bf16"))  # operations an image, as the plan counts them
    assert 11.7 < rate < 27.2 and rate == pytest.approx(16.4, rel=0.05)
