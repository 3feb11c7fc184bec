"""Weights that come and go: saved ones load again, in diffusers too; what does not fit is refused."""

from __future__ import annotations

import ast
import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
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

import cli
from bench.base import Base
from bench.checkpoint import Trainable
from bench.content import sha256_file
from bench.data.openmoji import OpenMoji64
from bench.tasks import find_task
from bench.types import BenchError
from bench.weights import Source, Weights, open_source, shown
from bps import BPSAdapter, SteeredUNet
from bps.release import ADAPTER, UNET, split_release_checkpoint

GOLDEN = Path(__file__).parent / "bps" / "golden"
METHODS = sorted(name for name in cli.methods() if name != "text-only")
TASK = find_task("sketch")


def built(name: str, base: Base, *, seed: int = 0, task: Any = TASK, **options: Any) -> Any:
    torch.manual_seed(seed)
    method = cli._method(name)
    return method.build(base, task, **{**method.options, **options}).eval()


def moved(name: str, base: Base, **options: Any) -> Any:
    """A method with random trained weights, so that nothing is zero."""
    denoiser = built(name, base, **options)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in Trainable(denoiser).parameters.values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=draws))
    return denoiser


def inputs(base: Base, channels: int = 1) -> tuple[torch.Tensor, ...]:
    draws = torch.Generator().manual_seed(2)
    size, width = 16, base.unet.config["cross_attention_dim"]
    return (
        torch.randn(2, 4, size, size, generator=draws),
        torch.tensor([3, 700]),
        torch.randn(1, 2, 5, width, generator=draws),
        torch.rand(2, channels, size * base.downscale, size * base.downscale, generator=draws),
    )


def eps(denoiser: Any, base: Base, channels: int = 1) -> torch.Tensor:
    latents, steps, text, condition = inputs(base, channels)
    with torch.no_grad():
        return denoiser(latents, steps, text, denoiser.encode(condition))[0]


def source(path: Path, name: str) -> Source:
    found = open_source(Weights(path=path), cli._method(name))
    assert found is not None
    return found


def load(denoiser: Any, path: Path, name: str) -> dict[str, str]:
    return cli._method(name).load(denoiser, source(path, name))


def saved(name: str, base: Base, folder: Path, **options: Any) -> Any:
    denoiser = moved(name, base, **options)
    folder.mkdir(exist_ok=True)
    cli._method(name).save(denoiser, folder)
    return denoiser


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
def test_a_prior_trained_along_is_saved_and_loaded_too(
    micro_base: Base, tmp_path: Path, prior: str
) -> None:
    trained = saved("bps", micro_base, tmp_path, prior=prior)
    fresh = built("bps", micro_base, seed=5, prior=prior)
    assert load(fresh, tmp_path, "bps") == {"unet": "came with the weights (trained along)"}
    assert torch.equal(eps(fresh, micro_base), eps(trained, micro_base))


def by_bps(folder: Path, unet: Any, x: Any, t: Any, text: Any, condition: Any) -> Any:
    return SteeredUNet(unet, BPSAdapter.from_pretrained(folder))(x, t, text, condition)


def by_controlnet(folder: Path, unet: Any, x: Any, t: Any, text: Any, condition: Any) -> Any:
    net = ControlNetModel.from_pretrained(folder)
    down, middle = net(x, t, text, controlnet_cond=condition, return_dict=False)
    return unet(
        x, t, text, down_block_additional_residuals=down, mid_block_additional_residual=middle
    ).sample


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
    "t2i-adapter": by_t2i,
}


@pytest.mark.parametrize("name", METHODS)
def test_diffusers_own_classes_give_the_same_eps(
    name: str, micro_base: Base, tmp_path: Path
) -> None:
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
        shown(find_task("layout"), asked)

    saved("controlnet", micro_base, tmp_path, task=task)
    with pytest.raises(BenchError, match=r"condition channels 3, needed 1.*--condition-channels"):
        load(built("controlnet", micro_base), tmp_path, "controlnet")
    fresh = built("controlnet", micro_base, task=task)
    load(fresh, tmp_path, "controlnet")
    assert eps(fresh, micro_base, channels=3).isfinite().all()


def other_base(base: Base, **changes: Any) -> Base:
    """The base with another UNet of random weights."""
    torch.manual_seed(7)
    unet = UNet2DConditionModel.from_config(base.unet.config, **changes).eval()
    return replace(base, unet=unet.requires_grad_(False))


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
        ("controlnet-xs", {"size_ratio": 0.5}, r"option size_ratio\)"),
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
    with pytest.raises(BenchError, match="is a file; allowed: a folder"):
        load(built("controlnet", micro_base), weights, "controlnet")
    cut = dict(list(load_file(weights).items())[1:])
    save_file(cut, weights)
    with pytest.raises(BenchError, match="missing keys"):
        load(built("t2i-adapter", micro_base), tmp_path, "t2i-adapter")
    with pytest.raises(BenchError, match="text-only takes no weights"):
        open_source(Weights(path=tmp_path), cli._method("text-only"))


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


def rows(file: str) -> list[list[str]]:
    lines = (GOLDEN / file).read_text().splitlines()
    return [line.split("\t") for line in lines if not line.startswith("#")]


def release_names() -> dict[str, str]:
    """diffusers' name of each UNet parameter -> the release's."""
    return {ours: theirs for _, theirs, _, ours in rows("golden_unet_params.txt")}


def release_adapter() -> dict[str, torch.Tensor]:
    """The release's adapter of random weights under its names, at widths 32 to 128."""
    draws, state = torch.Generator().manual_seed(3), {}
    scalars = (1, 16, 16, 1, 8, 8, 1, 4, 4, 1, 2, 2, 1, 16)
    for number, name, shape in rows("golden_params.txt"):
        if number == "-":
            state[name] = torch.tensor(float(scalars[int(name.split(".")[1])]))
            continue
        state[name] = 0.1 * torch.randn(tuple(ast.literal_eval(shape)), generator=draws)
        if name.split(".")[:2] in [["zero_blocks", str(slot)] for slot in (0, 3, 6, 9)]:
            state[name].zero_()  # the release never trains them
    return state


@pytest.fixture(scope="module")
def sd15_base(micro_base: Base) -> Base:
    """A base whose UNet has Stable Diffusion 1.5's topology at a tenth of its width."""
    return other_base(
        replace(micro_base, downscale=8),
        block_out_channels=(32, 64, 128, 128),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=24,
        attention_head_dim=8,
        norm_num_groups=32,
    )


def checkpoint(unet: Any, path: Path, *, nested: bool = True) -> dict[str, torch.Tensor]:
    """Write a release checkpoint of a UNet and random adapter weights."""
    names = release_names()
    state = {f"{UNET}{names[n]}": t.clone() for n, t in unet.state_dict().items()}
    state |= {f"{ADAPTER}{n}": t for n, t in release_adapter().items()}
    state["first_stage_model.decoder.conv_in.weight"] = torch.zeros(3)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 16} if nested else state, path)
    return state


@pytest.mark.parametrize("file", ["last.ckpt", "bps.pth", "bps.safetensors"])
def test_a_release_checkpoint_gives_its_adapter_and_its_unet(
    sd15_base: Base, tmp_path: Path, file: str
) -> None:
    unet = copy.deepcopy(sd15_base.unet)
    with torch.no_grad():
        unet.conv_out.bias.add_(0.5)  # another set of weights, as without the moving average
    state = checkpoint(unet, tmp_path / file, nested=file == "last.ckpt")
    fresh = built("bps", sd15_base)
    facts = load(fresh, tmp_path / file, "bps")
    assert facts["unet"].startswith("came with the weights: 1 of 686 tensors differ")
    assert "by up to 0.5" in facts["unet"] and len(facts["unet_sha256"]) == 64
    for name, tensor in unet.state_dict().items():
        assert torch.equal(fresh.steered.unet.state_dict()[name], tensor), name
    assert not torch.equal(
        sd15_base.unet.conv_out.bias, unet.conv_out.bias
    )  # the base is untouched
    taken = {n.removeprefix(ADAPTER): t for n, t in state.items() if n.startswith(ADAPTER)}
    adapter = fresh.steered.adapter
    assert torch.equal(adapter.encoder[0].weight, taken["input_blocks.0.weight"])
    assert torch.equal(adapter.emit["24"].weight, taken["output_blocks.11.1.weight"])
    assert not any(p.requires_grad for p in fresh.steered.unet.parameters())
    assert all(p.requires_grad for p in adapter.parameters())


def test_a_release_checkpoint_of_the_bases_own_unet_says_so(
    sd15_base: Base, tmp_path: Path
) -> None:
    checkpoint(sd15_base.unet, tmp_path / "bps.ckpt")
    fresh = built("bps", sd15_base)
    assert (
        load(fresh, tmp_path / "bps.ckpt", "bps")["unet"]
        == "of the checkpoint, equal to the base's"
    )
    assert fresh.steered.unet is sd15_base.unet


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_code_in_a_checkpoint_never_runs(sd15_base: Base, tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "callbacks": Evil(tmp_path / "ran")}, tmp_path / "bps.ckpt")
    with pytest.raises(BenchError, match="cannot be read as tensors alone.*safetensors"):
        load(built("bps", sd15_base), tmp_path / "bps.ckpt", "bps")
    assert not (tmp_path / "ran").exists()


def test_a_release_checkpoint_that_cannot_be_is_refused(sd15_base: Base, tmp_path: Path) -> None:
    path = tmp_path / "bps.safetensors"
    state = checkpoint(sd15_base.unet, path)

    def refused(message: str, *, base: Base = sd15_base, **options: Any) -> None:
        save_file(state, path)
        with pytest.raises(BenchError, match=message):
            load(built("bps", base, **options), path, "bps")

    refused("condition channels 1, needed 3", task=find_task("layout"))
    refused(r"option schedule\) \[16.0, .*needed \[1.0", schedule="uniform")
    state[f"{ADAPTER}zero_blocks.3.weight"] += 1
    refused("was trained with is_controlnet")
    state[f"{ADAPTER}zero_blocks.3.weight"] -= 1
    unet_name = f"{UNET}out.2.bias"
    kept = state.pop(unet_name)
    refused("conv_out.bias None, needed")
    state[unet_name] = kept
    del state[f"{ADAPTER}res_weights.3"]
    refused("Missing: res_weights.3")
    with pytest.raises(
        ValueError, match="no name begins with 'model.diffusion_model.control_model.'"
    ):
        split_release_checkpoint({unet_name: kept}, unet_config=sd15_base.unet.config)
