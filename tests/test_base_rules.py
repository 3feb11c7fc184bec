"""What a base must be: one thing changed in a good narrow base, and it is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import cli
from bench.base.load import load_base
from bench.base.random import build_base, shape_of, write_random_base
from bench.base.snapshot import describe, find_snapshot
from bench.config import Sampler
from bench.sampling import SAMPLERS, build_scheduler
from bench.types import BenchError

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_base(tmp_path_factory.mktemp("good") / "sd", width=32, size=64)


@pytest.fixture
def base(good: Path, tmp_path: Path) -> Path:
    """A copy of a good base, to be changed."""
    return Path(shutil.copytree(good, tmp_path / "base"))


def says(path: str, **values: Any) -> Change:
    def change(base: Path) -> None:
        file = base / path
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return change


def lacks(path: str, name: str) -> Change:
    def change(base: Path) -> None:
        value = json.loads((base / path).read_text())
        del value[name]
        (base / path).write_text(json.dumps(value))

    return change


def holds(path: str, content: str) -> Change:
    return lambda base: (base / path).write_text(content)


def tensors(path: str, edit: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def change(base: Path) -> None:
        state = load_file(base / path)
        edit(state)
        save_file(state, base / path, metadata={"format": "pt"})

    return change


def spoilt(name: str, value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda state: state[name].view(-1)[0].fill_(value)


def without_layers(base: Path) -> None:
    """A configuration of one layer beside the weights of many."""
    says("text_encoder/config.json", num_hidden_layers=1)(base)


CONFIGURATIONS: list[tuple[Change, str]] = [
    (says(INDEX, _class_name="StableDiffusionXLPipeline"), "text_encoder_2"),
    (says(INDEX, _class_name="StableDiffusionXLImg2ImgPipeline"), "XLImg2Img|text_encoder_2.*no refiner"),
    (says(INDEX, text_encoder_2=["transformers", "CLIPTextModel"]), "text_encoder_2"),
    (says(INDEX, text_encoder=["transformers", "T5EncoderModel"]), "T5EncoderModel"),
    (says(INDEX, vae=["diffusers", "AutoencoderNowhere"]), "AutoencoderNowhere"),
    (says(INDEX, vae=None), "'vae'"),
    (lacks(INDEX, "vae"), "'vae' is missing"),
    (holds(INDEX, "[]"), "model_index.json"),
    (says("unet/config.json", in_channels=9), "in_channels.* got 9"),
    (says("unet/config.json", out_channels=8), "out_channels"),
    (says("unet/config.json", addition_embed_type="text_time"), "addition_embed_type"),
    (says("unet/config.json", class_embed_type="projection"), "class_embed_type"),
    (says("unet/config.json", num_class_embeds=1000), "num_class_embeds"),
    (says("unet/config.json", time_cond_proj_dim=256), "time_cond_proj_dim"),
    (says("unet/config.json", attention_type="gated"), "attention_type"),
    (says("unet/config.json", cross_attention_dim=48), "width 48"),
    (says("unet/config.json", block_out_channels=[32, "64", 128, 128]), "block_out_channels"),
    (says("unet/config.json", block_out_channels=[32, 64]), "4 down_block_types"),
    (says("unet/config.json", down_block_types=["NowhereBlock"] * 4), "down_block_types"),
    (says("unet/config.json", layers_per_block=10**12), "layers_per_block"),
    (lacks("unet/config.json", "sample_size"), "'sample_size' is missing"),
    (lacks("unet/config.json", "block_out_channels"), "'block_out_channels' is missing"),
    (says("vae/config.json", latent_channels=16), "latent_channels"),
    (says("vae/config.json", shift_factor=0.1159), "shift_factor"),
    (says("vae/config.json", scaling_factor=float("inf")), "scaling_factor"),
    (says("vae/config.json", _class_name="AutoencoderTiny"), "AutoencoderTiny"),
    (lacks("vae/config.json", "block_out_channels"), "block_out_channels"),
    (lacks("text_encoder/config.json", "hidden_size"), "'hidden_size' is missing"),
    (says("text_encoder/config.json", num_hidden_layers=0), "num_hidden_layers"),
    (says("text_encoder/config.json", model_type="t5"), "model_type"),
    (holds(SCHEDULER, '{"_class_name": "FlowMatchEulerDiscreteScheduler"}'), "FlowMatch"),
    (says(SCHEDULER, _class_name="EDMEulerScheduler"), "EDMEulerScheduler"),
    (says(SCHEDULER, prediction_type="sample"), "prediction_type.* got 'sample'"),
    (says(SCHEDULER, prediction_type="flow_prediction"), "flow_prediction"),
    (says(SCHEDULER, use_flow_sigmas=True), "use_flow_sigmas"),
    (says(SCHEDULER, rescale_betas_zero_snr=True), "rescale_betas_zero_snr"),
    (says(SCHEDULER, trained_betas=[0.1] * 1000), "trained_betas"),
    (says(SCHEDULER, timestep_spacing="linspave"), "timestep_spacing"),
    (says(SCHEDULER, beta_schedule="cosine"), "beta_schedule"),
    (says(SCHEDULER, beta_start="0.1"), "beta_start"),
    (says(SCHEDULER, beta_end=1.5), "beta_end"),
    (says(SCHEDULER, beta_start=0.5), "beta_start .* above beta_end"),
    (says(SCHEDULER, num_train_timesteps=-1), "num_train_timesteps"),
    (lacks(SCHEDULER, "beta_end"), "'beta_end' is missing"),
]
WEIGHTS: list[tuple[Change, str]] = [
    (tensors(UNET, spoilt("conv_in.weight", float("nan"))), "unet/ .* not finite .* conv_in.weight"),
    (tensors(VAE, spoilt("decoder.conv_in.weight", float("inf"))), "vae/ .* not finite .* decoder"),
    (tensors(TEXT, spoilt("final_layer_norm.bias", float("nan"))), "text_encoder/ .* not finite"),
    (tensors(UNET, lambda state: state.pop("conv_in.bias")), "conv_in.bias"),
    (
        tensors(UNET, lambda state: state.update(extra=torch.ones(1))),
        "unet does not fit .*unexpected keys: extra",
    ),
    (
        tensors(VAE, lambda state: state.update(extra=torch.ones(1))),
        "vae does not fit .*unexpected keys: extra",
    ),
    (without_layers, "text_encoder does not fit .*unexpected keys: .*encoder.layers.1"),
    (says("text_encoder/config.json", vocab_size=7), "text encoder reads 7|vocab|size"),
    (says("text_encoder/config.json", hidden_act="nowhere"), "nowhere"),
    (says("tokenizer/tokenizer_config.json", model_max_length=512), "prompts of 512"),
]


def names(table: list[tuple[Change, str]]) -> list[str]:
    return [f"{number}: {found}" for number, (_, found) in enumerate(table)]


@pytest.mark.parametrize(("change", "named"), CONFIGURATIONS, ids=names(CONFIGURATIONS))
def test_a_configuration_that_cannot_be_run_is_refused_when_first_read(
    base: Path, change: Change, named: str
) -> None:
    change(base)
    for read in (find_snapshot, shape_of):
        with pytest.raises(BenchError, match=named):
            read(base)


@pytest.mark.parametrize(("change", "named"), WEIGHTS, ids=names(WEIGHTS))
def test_weights_that_are_not_the_configurations_are_refused_when_loaded(
    base: Path, change: Change, named: str
) -> None:
    change(base)
    with pytest.raises(BenchError, match=named):
        load_base(base)


def test_weights_that_overflow_in_half_precision_are_refused_there_alone(base: Path) -> None:
    tensors(UNET, spoilt("conv_in.weight", 1e6))(base)
    load_base(base, dtype="bfloat16")
    with pytest.raises(BenchError, match="not finite in torch.float16: conv_in.weight"):
        load_base(base, dtype="float16")


def text_as_published(state: dict[str, torch.Tensor]) -> None:
    for name in list(state):
        state[f"text_model.{name}"] = state.pop(name)
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]


def vae_as_published(state: dict[str, torch.Tensor]) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for name in [n for n in state if ".attentions." in n]:
        now = next((word for word in old if f".{word}." in name), None)
        if now:
            state[name.replace(now, old[now])] = state.pop(name)


def test_what_old_bases_leave_out_or_carry_along_is_no_fault(base: Path) -> None:
    """Early Stable Diffusions name no scale and no prediction; their tensors have older names, and CLIP's
    position numbers are stored.
    """
    wanted = load_base(base)
    for path, name in (
        *(("vae/config.json", n) for n in ("scaling_factor", "shift_factor", "use_quant_conv")),
        *((SCHEDULER, n) for n in ("prediction_type", "timestep_spacing", "rescale_betas_zero_snr")),
        *(("unet/config.json", n) for n in ("use_linear_projection", "class_embed_type", "mid_block_type")),
    ):
        if name in (base / path).read_text():
            lacks(path, name)(base)
    says(INDEX, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])(base)
    tensors(TEXT, text_as_published)(base)
    tensors(VAE, vae_as_published)(base)
    old = load_base(base)
    assert old.scale == wanted.scale and old.prediction == wanted.prediction == "epsilon"
    assert torch.equal(old.encode_text(["a dog"]), wanted.encode_text(["a dog"]))
    latents = torch.randn(1, 4, 8, 8, generator=torch.manual_seed(0))
    assert torch.equal(old.decode(latents), wanted.decode(latents))
    assert describe(find_snapshot(base))["heads"] == 8


DAMAGE: dict[str, tuple[Change, str]] = {
    "pointer": (holds(UNET, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"), "LFS"),
    "empty": (holds(UNET, ""), UNET),
    "cut": (lambda base: (base / UNET).write_bytes((base / UNET).read_bytes()[:2000]), UNET),
    "odd header": (lambda base: (base / UNET).write_bytes(b"\x10" + b"\0" * 7 + b"{" * 16), UNET),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_weights_end_the_commands_in_one_line(base: Path, kind: str) -> None:
    change, named = DAMAGE[kind]
    change(base)
    shown = CliRunner().invoke(cli.app, ["base", "show", str(base)])
    assert shown.exit_code == 2 and named in shown.stderr.replace("\n", "")
    with pytest.raises(BenchError):
        load_base(base)


def test_a_plan_asks_the_same_of_a_base_as_a_run(base: Path) -> None:
    says("unet/config.json", in_channels=9)(base)
    words = ["plan", "--suite", "coco17", "--method", "bps", "--base", str(base), "--gpu", "cpu"]
    answer = CliRunner().invoke(cli.app, words)
    assert answer.exit_code == 2 and "in_channels" in answer.stderr


def test_a_configuration_that_gives_no_network_is_an_error_of_the_project(base: Path) -> None:
    says("unet/config.json", norm_num_groups=7)(base)
    with pytest.raises(BenchError, match="give no network"):
        build_base(shape_of(base))


def test_a_base_of_pickles_loads_without_a_word_of_errors(
    good: Path, base: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for path in base.rglob("*.safetensors"):
        whole = "pytorch_model.bin" if path.parent.name == "text_encoder" else f"{path.stem}.bin"
        torch.save(load_file(path), path.with_name(whole))
        path.unlink()
    loaded, wanted = load_base(base), load_base(good)
    assert "error" not in "".join(capfd.readouterr()).lower()
    pairs = zip(loaded.unet.parameters(), wanted.unet.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("place", ["../v1-5-pruned.ckpt", "models/sd.safetensors", "sd.ckpt"])
def test_a_file_that_is_not_there_is_no_hub_id(place: str) -> None:
    with pytest.raises(BenchError, match=f"there is no file {place}"):
        find_snapshot(place)


@pytest.mark.parametrize("place", ["../sd15", "./sd15"])
def test_a_folder_that_is_not_there_is_no_hub_id(place: str) -> None:
    with pytest.raises(BenchError, match="no base model in .*sd15"):
        find_snapshot(place)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_are_drawn_at_the_noise_levels_of_training(base: Path, schedule: str, name: str) -> None:
    says(SCHEDULER, beta_schedule=schedule, beta_start=0.001, beta_end=0.02)(base)
    loaded = load_base(base)
    drawn_with = build_scheduler(loaded, Sampler(name=name, steps=4)).alphas_cumprod
    assert torch.equal(drawn_with.double(), loaded.alphas)


def test_samplers_refuse_betas_that_they_would_not_rescale(base: Path) -> None:
    """Should such a base ever be let through, it is not sampled at other levels in silence."""
    loaded = load_base(base)
    rescaled = DDIMScheduler.from_config(loaded.scheduler.config, rescale_betas_zero_snr=True)
    with pytest.raises(BenchError, match="other noise levels"):
        build_scheduler(replace(loaded, scheduler=rescaled), Sampler(steps=4))
