"""Checkpoints of the authors' release: adapter and UNet under their names, read as tensors alone."""

from __future__ import annotations

import ast
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bench import registry
from bench.base.load import Base
from bench.base.weights import load_into
from bench.types import BenchError
from bps.release import ADAPTER, UNET, split_release_checkpoint
from tests.loading import Evil, built, load, other_base, source

GOLDEN = Path(__file__).parent / "bps" / "golden"


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
        micro_base.changed("vae", block_out_channels=(16,) * 4),
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


@pytest.mark.parametrize(
    "file",
    [
        "last.ckpt",
        pytest.param("bps.pth", marks=pytest.mark.slow),
        pytest.param("bps.safetensors", marks=pytest.mark.slow),
    ],
)
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
    assert not torch.equal(sd15_base.unet.conv_out.bias, unet.conv_out.bias)  # the base is untouched
    taken = {n.removeprefix(ADAPTER): t for n, t in state.items() if n.startswith(ADAPTER)}
    adapter = fresh.steered.adapter
    assert torch.equal(adapter.encoder[0].weight, taken["input_blocks.0.weight"])
    assert torch.equal(adapter.emit["24"].weight, taken["output_blocks.11.1.weight"])
    assert not any(p.requires_grad for p in fresh.steered.unet.parameters())
    assert all(p.requires_grad for p in adapter.parameters())


def test_a_release_checkpoint_of_the_bases_own_unet_says_so(sd15_base: Base, tmp_path: Path) -> None:
    checkpoint(sd15_base.unet, tmp_path / "bps.ckpt")
    fresh = built("bps", sd15_base)
    assert load(fresh, tmp_path / "bps.ckpt", "bps")["unet"] == "of the checkpoint, equal to the base's"
    assert fresh.steered.unet is sd15_base.unet


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

    refused("condition channels 1, needed 3", task=registry.load("task", "layout"))
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
    with pytest.raises(ValueError, match="no name begins with 'model.diffusion_model.control_model.'"):
        split_release_checkpoint({unet_name: kept}, unet_config=sd15_base.unet.config)


def test_tensors_of_odd_shapes_are_an_error_of_the_project(sd15_base: Base, tmp_path: Path) -> None:
    path = tmp_path / "bps.ckpt"
    state = checkpoint(sd15_base.unet, path)
    for name, odd in (("res_weights.1", torch.ones(2)), ("input_blocks.0.weight", torch.ones(()))):
        torch.save({**state, f"{ADAPTER}{name}": odd}, path)
        with pytest.raises(BenchError, match="does not fit method bps"):
            method = registry.load("method", "bps")
            load_into(built("bps", sd15_base), method=method, source=source(path, "bps"))
