"""Reading the release's parameter names."""

from __future__ import annotations

import pytest
import torch

from bps import BPSAdapter, convert_release_state_dict

DEAD = {f"zero_blocks.{slot}.{kind}" for slot in (0, 3, 6, 9) for kind in ("weight", "bias")}
IDLE_SCALARS = {f"res_weights.{index}" for index in (0, 3, 6, 9, 12)}


def test_every_live_tensor_arrives_once_and_every_dead_one_is_dropped(tools):
    release = tools.release_state_dict()
    converted = convert_release_state_dict(release)
    assert converted["weights"].tolist() == [16, 16, 8, 8, 4, 4, 2, 2, 16]
    arrived = {id(tensor) for name, tensor in converted.items() if name != "weights"}
    named = {name for name, tensor in release.items() if id(tensor) in arrived}
    scalars = {name for name in release if name.startswith("res_weights")}
    assert len(arrived) == len(converted) - 1
    assert set(release) - named == DEAD | scalars


def test_trained_scalars_are_kept_by_slot(tools):
    release = tools.release_state_dict()
    for index in range(14):
        release[f"res_weights.{index}"] = torch.tensor([float(index)])
    found = convert_release_state_dict(release)["weights"]
    assert found.tolist() == [1, 2, 4, 5, 7, 8, 10, 11, 13]


@pytest.mark.parametrize("schedule", ["uniform", "learned"])
def test_a_converted_checkpoint_loads_strictly_and_restores_the_weights(tools, schedule):
    converted = convert_release_state_dict(tools.release_state_dict())
    adapter = BPSAdapter(condition_channels=1, block_out_channels=(32, 64, 128, 128), schedule=schedule)
    adapter.load_state_dict(converted, strict=True)
    assert adapter.weights.tolist() == converted["weights"].tolist()


@pytest.mark.parametrize("widths", [(32, 64, 96, 128), (64, 64, 64, 64), (320, 640, 1280, 1280)])
def test_other_widths_convert(tools, widths):
    """The inverse renaming of an adapter of any width converts back to the same state dict."""
    with torch.device("meta"):
        adapter = BPSAdapter(condition_channels=2, block_out_channels=widths)
    ours = adapter.state_dict()
    release = dict.fromkeys(DEAD, torch.zeros(1)) | {
        f"res_weights.{index}": torch.ones(()) for index in range(14)
    }
    for name in (n for n in ours if n != "weights"):
        release[_release_name(name)] = ours[name]
    converted = convert_release_state_dict(release)
    assert converted.keys() == ours.keys()
    assert all(converted[name] is ours[name] for name in ours if name != "weights")


def _release_name(name):
    room, rest = name.split(".", 1)
    index, part = int(rest.split(".")[0]), rest.split(".", 1)[1]
    if room == "emit":
        return f"zero_blocks.{rest}" if index < 13 else f"output_blocks.{index - 13}.1.{part}"
    if room == "upsamplers":
        return f"output_blocks.{3 * index + 2}.2.{part}"
    inner = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "norm": "out_layers.0",
        "conv": "out_layers.3",
        "skip": "skip_connection",
    }
    layer, *kind = part.split(".")
    if room == "decoder":
        return ".".join([f"output_blocks.{index}.0.{inner[layer]}", *kind])
    outer = {"encoder": "input_blocks", "middle": "middle_block"}[room]
    if not kind:
        return f"{outer}.{index}.{layer}" if index == 0 else f"{outer}.{index}.op.{layer}"
    return ".".join([f"{outer}.{index}.{inner[layer]}", *kind])


def test_unknown_and_missing_names_are_listed(tools):
    release = tools.release_state_dict()
    del release["input_blocks.4.skip_connection.weight"], release["res_weights.13"]
    release["extra.weight"] = torch.zeros(1)
    release["input_blocks.1.skip_connection.weight"] = torch.zeros(1)
    with pytest.raises(ValueError) as error:
        convert_release_state_dict(release)
    missing, extra = str(error.value).split("Unknown: ")
    assert missing.endswith("Missing: input_blocks.4.skip_connection.weight, res_weights.13. ")
    assert extra == "extra.weight, input_blocks.1.skip_connection.weight."
    with pytest.raises(ValueError, match="not a state dict of the release"):
        convert_release_state_dict({})


def test_idle_scalars_do_not_matter(tools):
    release = tools.release_state_dict()
    before = convert_release_state_dict(release)
    for name in IDLE_SCALARS:
        release[name] = torch.tensor(99.0)
    after = convert_release_state_dict(release)
    assert torch.equal(before["weights"], after["weights"])
