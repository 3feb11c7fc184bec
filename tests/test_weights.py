"""Weights that come and go: saved ones load again, in diffusers too; what does not fit is refused."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    ControlNetXSAdapter,
    T2IAdapter,
    UNet2DConditionModel,
    UNetControlNetXSModel,
)
from safetensors.torch import load_file, save_file
from torch.nn.functional import pixel_unshuffle

from bench import registry
from bench.base.load import Base
from bench.base.weights import Source, Weights, load_into, open_source, shown
from bench.content import sha256_file
from bench.data.openmoji import OpenMoji64
from bench.training.checkpoint import Trainable
from bench.types import BenchError
from bps import BPSAdapter, SteeredUNet
from tests.loading import TASK, Evil, built, eps, inputs, load, other_base, saved, source

METHODS = sorted(name for name in registry.names("method", ["all"]) if name != "text-only")


@pytest.mark.parametrize("name", METHODS)
def test_saved_weights_load_into_a_fresh_method_to_the_same_bits(
    name: str, micro_base: Base, tmp_path: Path
) -> None:
    trained = saved(name, micro_base, tmp_path)
    fresh = built(name, micro_base, seed=5)
    names = set(Trainable(fresh).parameters)
    before = eps(fresh, micro_base)
    load(fresh, tmp_path, name)
    assert torch.equal(eps(fresh, micro_base), eps(trained, micro_base))
    assert not torch.allclose(before, eps(trained, micro_base), atol=1e-4)
    assert set(Trainable(fresh).parameters) == names  # it can be trained on as before
    assert not list(tmp_path.rglob("*.bin"))


@pytest.mark.parametrize("prior", ["free", "none"])
def test_a_prior_trained_along_is_saved_and_loaded_too(micro_base: Base, tmp_path: Path, prior: str) -> None:
    trained = saved("bps", micro_base, tmp_path, prior=prior)
    fresh = built("bps", micro_base, seed=5, prior=prior)
    assert load(fresh, tmp_path, "bps") == {"unet": "came with the weights (trained along)"}
    assert torch.equal(eps(fresh, micro_base), eps(trained, micro_base))


def by_bps(folder: Path, unet: Any, x: Any, t: Any, text: Any, condition: Any) -> Any:
    return SteeredUNet(unet, BPSAdapter.from_pretrained(folder))(x, t, text, condition)


def by_controlnet(folder: Path, unet: Any, x: Any, t: Any, text: Any, condition: Any) -> Any:
    net = ControlNetModel.from_pretrained(folder)
    down, middle = net(x, t, text, controlnet_cond=condition, return_dict=False)
    return unet(x, t, text, down_block_additional_residuals=down, mid_block_additional_residual=middle).sample


def by_t2i(folder: Path, unet: Any, x: Any, t: Any, text: Any, condition: Any) -> Any:
    """As diffusers does it, at the places that its pipeline can reach: blocks with attention."""
    features = T2IAdapter.from_pretrained(folder)(condition)
    handles = []
    for block, feature in zip(unet.down_blocks, features, strict=True):
        last = (getattr(block, "attentions", None) or block.resnets)[-1]
        handles.append(
            last.register_forward_hook(
                lambda m, a, out, f=feature: (out[0] + f,) if isinstance(out, tuple) else out + f
            )
        )
    try:
        return unet(x, t, text).sample
    finally:
        for handle in handles:
            handle.remove()


def by_xs(folder: Path, unet: Any, x: Any, t: Any, text: Any, condition: Any) -> Any:
    fused = UNetControlNetXSModel.from_unet(unet, ControlNetXSAdapter.from_pretrained(folder))
    own = {name: module.eps for name, module in unet.named_modules() if hasattr(module, "eps")}
    norm = next(value for name, value in own.items() if name.endswith("resnets.0.norm1"))
    for name, module in fused.named_modules():  # diffusers copies the UNet with another eps
        base = "base_" in name or name.startswith("up_blocks") and ".resnets." in name
        if isinstance(module, torch.nn.GroupNorm) and base and "attentions" not in name:
            module.eps = norm
    return fused(x, t, text, controlnet_cond=condition, return_dict=False)[0]


def by_wide_unet(folder: Path, unet: Any, x: Any, t: Any, text: Any, condition: Any) -> Any:
    wide = UNet2DConditionModel.from_pretrained(folder)
    return wide(torch.cat([x, pixel_unshuffle(condition, 4)], dim=1), t, text).sample


def by_unet(folder: Path, unet: Any, x: Any, t: Any, text: Any, condition: Any) -> Any:
    return UNet2DConditionModel.from_pretrained(folder)(x, t, text).sample


def by_lora(folder: Path, unet: Any, x: Any, t: Any, text: Any, condition: Any) -> Any:
    unet.conv_in = torch.nn.Conv2d(20, unet.conv_in.out_channels, 3, padding=1)
    unet.conv_in.load_state_dict(load_file(folder / "conv_in.safetensors"))
    unet.load_lora_adapter(
        folder, prefix=None, weight_name="pytorch_lora_weights.safetensors", use_safetensors=True
    )
    return unet(torch.cat([x, pixel_unshuffle(condition, 4)], dim=1), t, text).sample


BY_DIFFUSERS: dict[str, Callable[..., Any]] = {
    "bps": by_bps,
    "controlnet": by_controlnet,
    "controlnet-xs": by_xs,
    "lora-concat": by_lora,
    "sd-finetune": by_wide_unet,
    "style-only": by_unet,
    "t2i-adapter": by_t2i,
}


@pytest.mark.parametrize("name", METHODS)
def test_diffusers_own_classes_give_the_same_eps(name: str, micro_base: Base, tmp_path: Path) -> None:
    trained = saved(name, micro_base, tmp_path)
    latents, steps, text, condition = inputs(micro_base)
    with torch.no_grad():
        output = BY_DIFFUSERS[name](
            tmp_path, copy.deepcopy(micro_base.unet), latents, steps, text[0], condition
        )
        found = micro_base.to_eps(output, latents, steps)
    assert torch.allclose(found, eps(trained, micro_base), atol=2e-6)


def test_published_weights_in_an_older_format_load_without_unpickling_code(
    micro_base: Base, tmp_path: Path
) -> None:
    trained = saved("controlnet", micro_base, tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    both = source(tmp_path, "controlnet").files
    assert set(both) == {"config.json", path.name}  # the better of the two formats
    assert both[path.name] == sha256_file(path)
    path.unlink()
    fresh = built("controlnet", micro_base, seed=5)
    load(fresh, tmp_path, "controlnet")
    assert torch.equal(eps(fresh, micro_base), eps(trained, micro_base))

    torch.save({"conv_in.weight": Evil(tmp_path / "ran")}, path.with_suffix(".bin"))
    with pytest.raises(BenchError, match="cannot be loaded as ControlNetModel"):
        load(fresh, tmp_path, "controlnet")
    assert not (tmp_path / "ran").exists()


def test_a_condition_is_repeated_and_inverted_where_that_is_asked_for(
    micro_base: Base, tmp_path: Path
) -> None:
    asked = Weights(path=tmp_path, channels="repeat", invert=True)
    task = shown(TASK, asked)
    data = OpenMoji64()
    example = data[data.ids[0]]
    plain, given = TASK.condition(example), task.condition(example)
    assert task.channels == 3 and given.shape == (3, *plain.shape[1:])
    assert all(np.array_equal(channel, 1 - plain[0]) for channel in given)
    assert shown(TASK, Weights(path=tmp_path)) is TASK
    assert task.fidelity(example.image, example) == TASK.fidelity(example.image, example)
    with pytest.raises(BenchError, match="allowed: a task with one"):
        shown(registry.load("task", "layout"), asked)

    saved("controlnet", micro_base, tmp_path, task=task)
    with pytest.raises(BenchError, match=r"condition channels 3, needed 1.*--condition-channels"):
        load(built("controlnet", micro_base), tmp_path, "controlnet")
    fresh = built("controlnet", micro_base, task=task)
    load(fresh, tmp_path, "controlnet")
    assert eps(fresh, micro_base, channels=3).isfinite().all()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("controlnet", {"cross_attention_dim": 24}, "cross_attention_dim 24, needed 32.*1.x has"),
        ("controlnet-xs", {"cross_attention_dim": 24}, "cross_attention_dim 24, needed 32"),
        ("sd-finetune", {"cross_attention_dim": 24}, "cross_attention_dim 24, needed 32"),
        ("lora-concat", {"cross_attention_dim": 24}, "does not fit: .*and .* more"),
        ("bps", {"block_out_channels": [32, 32, 32, 64]}, "widths .*64.*needed .*--base"),
        ("t2i-adapter", {"block_out_channels": [32, 32, 32, 64]}, "widths .*64.*needed"),
    ],
)
def test_weights_of_another_base_are_refused(
    name: str, changes: dict[str, Any], message: str, micro_base: Base, tmp_path: Path
) -> None:
    saved(name, other_base(micro_base, **changes), tmp_path)
    with pytest.raises(BenchError, match=message):
        load(built(name, micro_base), tmp_path, name)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bps", {"schedule": "uniform"}, r"option schedule\) uniform, needed head_heavy"),
        ("bps", {"sites": ["encoder"]}, r"option sites\)"),
        ("lora-concat", {"rank": 4}, r"option rank\) 4, needed 16"),
    ],
)
def test_weights_of_other_options_name_the_option(
    name: str, options: dict[str, Any], message: str, micro_base: Base, tmp_path: Path
) -> None:
    saved(name, micro_base, tmp_path, **options)
    with pytest.raises(BenchError, match=message):
        load(built(name, micro_base), tmp_path, name)
    fresh = built(name, micro_base, **options)
    load(fresh, tmp_path, name)


def test_what_is_no_folder_of_weights_is_refused(micro_base: Base, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no such folder"):
        source(tmp_path / "nowhere", "controlnet")
    with pytest.raises(BenchError, match="holds no weights"):
        source(tmp_path, "controlnet")
    saved("t2i-adapter", micro_base, tmp_path)
    with pytest.raises(BenchError, match="holds a T2IAdapter; needed: a ControlNetModel"):
        load(built("controlnet", micro_base), tmp_path, "controlnet")
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    with pytest.raises(BenchError, match="config.json"):
        load(built("controlnet", micro_base), weights, "controlnet")
    cut = dict(list(load_file(weights).items())[1:])
    save_file(cut, weights)
    with pytest.raises(BenchError, match="missing keys"):
        load(built("t2i-adapter", micro_base), tmp_path, "t2i-adapter")
    with pytest.raises(BenchError, match="text-only takes no weights"):
        open_source(Weights(path=tmp_path), registry.load("method", "text-only"))


def test_a_whole_pipeline_gives_its_part_alone(micro_base: Base, tmp_path: Path) -> None:
    trained = saved("controlnet", micro_base, tmp_path / "controlnet")
    (tmp_path / "model_index.json").write_text("{}")
    shutil.copytree(tmp_path / "controlnet", tmp_path / "unet")
    fresh = built("controlnet", micro_base, seed=5)
    load(fresh, tmp_path, "controlnet")
    assert torch.equal(eps(fresh, micro_base), eps(trained, micro_base))
    assert all(name.startswith("controlnet/") for name in source(tmp_path, "controlnet").files)


def test_a_revision_in_a_hub_cache_has_the_repositorys_name(tmp_path: Path) -> None:
    folder = tmp_path / "models--someone--scribble" / "snapshots" / ("0123456789" * 4)
    folder.mkdir(parents=True)
    (folder / "x.safetensors").write_bytes(b"x")
    assert Source(folder).name == "someone--scribble@01234567"


@pytest.mark.parametrize("name", ["bps", "controlnet", "lora-concat"])
def test_weights_that_are_not_finite_are_refused_when_loaded(
    name: str, micro_base: Base, tmp_path: Path
) -> None:
    saved(name, micro_base, tmp_path)
    file = sorted(tmp_path.glob("*.safetensors"))[-1]
    state = load_file(file)
    next(iter(state.values())).view(-1)[0] = float("nan")
    save_file(state, file)
    given = source(tmp_path, name)
    with pytest.raises(BenchError, match="not finite"):
        load_into(built(name, micro_base, seed=5), method=registry.load("method", name), source=given)


def test_a_light_adapter_gives_one_feature_map_a_level(micro_base: Base, tmp_path: Path) -> None:
    """Its widths are one fewer than the levels: the last block has the width of the one before."""
    for folder, widths in (("light", [32, 32, 32]), ("more", [32, 32, 32, 32])):
        torch.manual_seed(0)
        adapter = T2IAdapter(1, widths, num_res_blocks=4, downscale_factor=4, adapter_type="light_adapter")
        adapter.save_pretrained(tmp_path / folder)
    fresh = built("t2i-adapter", micro_base)
    before = eps(fresh, micro_base)
    load(fresh, tmp_path / "light", "t2i-adapter")
    assert not torch.allclose(before, eps(fresh, micro_base), atol=1e-4)
    with pytest.raises(BenchError, match="widths"):
        load(fresh, tmp_path / "more", "t2i-adapter")


def test_weights_in_pickles_are_no_reason_for_words_of_errors(
    micro_base: Base, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    saved("controlnet", micro_base, tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    capfd.readouterr()
    load(built("controlnet", micro_base), tmp_path, "controlnet")
    assert "error" not in "".join(capfd.readouterr()).lower()
