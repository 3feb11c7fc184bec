"""Reads parameters under the names of the authors' release (commit 926842c)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bps.sites import MIDDLE_SLOT, SLOTS_BY_SITE

UNET = "model.diffusion_model."
ADAPTER = f"{UNET}control_model."
_DEAD_SLOTS = (0, 3, 6, 9)
_CHANGING_SLOTS = (4, 7, 10)
_RES_WEIGHTS = 14
_TIME_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
}
_DECODER_BLOCK = {"out_layers.0": "norm", "out_layers.3": "conv", "skip_connection": "skip"}


def convert_release_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a release state dict to that of a BPSAdapter with all sites and both kinds of modules.

    Works for any width. Dropped: the emitting convolutions of slots 0, 3, 6, 9, which the release
    never trains, and the five of its 14 res_weights that weigh nothing (conv-in, the downsamplers
    and the entry before the last). Raises ValueError listing unknown and missing names.
    """
    layers, kinds = _layers(state_dict).items(), ("weight", "bias")
    renamed = {f"{theirs}.{k}": ours and f"{ours}.{k}" for theirs, ours in layers for k in kinds}
    scalars = [f"res_weights.{index}" for index in range(_RES_WEIGHTS)]
    expected = {*renamed, *scalars}
    missing, extra = sorted(expected - set(state_dict)), sorted(set(state_dict) - expected)
    if missing or extra:
        names = f"Missing: {', '.join(missing) or 'none'}. Unknown: {', '.join(extra) or 'none'}"
        raise ValueError(f"this is not a state dict of the release's BPS module. {names}.")
    converted = {ours: state_dict[theirs] for theirs, ours in renamed.items() if ours}
    live = [*SLOTS_BY_SITE["encoder"], _RES_WEIGHTS - 1]
    converted["weights"] = torch.stack([state_dict[scalars[index]].reshape(()) for index in live])
    return converted


def split_release_checkpoint(
    state_dict: Mapping[str, Tensor], *, unet_config: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a whole release checkpoint into the UNet's part, under diffusers' names, and the adapter's.

    unet_config: of the UNet2DConditionModel that it is for. The adapter's part is that of
    convert_release_state_dict; the UNet is the one that was trained with, not its moving average.
    Raises ValueError where a part is missing, and for a checkpoint trained with `is_controlnet`, whose
    convolutions of slots 0, 3, 6 and 9 are not zero: they act on skip connections, which BPS does not.
    """
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    adapter = {n.removeprefix(ADAPTER): t for n, t in state_dict.items() if n.startswith(ADAPTER)}
    unet = {n: t for n, t in state_dict.items() if n.startswith(UNET) and not n.startswith(ADAPTER)}
    for prefix, part in ((ADAPTER, adapter), (UNET, unet)):
        if not part:
            raise ValueError(f"this is no checkpoint of the release: no name begins with '{prefix}'.")
    dead = {slot: adapter.get(f"zero_blocks.{slot}.weight") for slot in _DEAD_SLOTS}
    if alive := [slot for slot, tensor in dead.items() if tensor is not None and tensor.any()]:
        why = "it was trained with is_controlnet, which also adds residuals to the skip connections"
        raise ValueError(f"zero_blocks of slots {alive} are not zero: {why}. Allowed: without.")
    renamed = convert_ldm_unet_checkpoint(dict(unet), dict(unet_config))
    return renamed, convert_release_state_dict(adapter)


def _layers(state_dict: Mapping[str, Tensor]) -> dict[str, str | None]:
    """Map each release layer to ours, or to None where it is dropped."""
    names: dict[str, str | None] = {"input_blocks.0": "encoder.0"}
    for slot in range(1, MIDDLE_SLOT):
        theirs, ours = f"input_blocks.{slot}", f"encoder.{slot}"
        if slot in _DEAD_SLOTS:
            names[f"{theirs}.op"] = ours
            continue
        names |= _block(theirs, ours, _TIME_BLOCK)
        conv = state_dict.get(f"{theirs}.in_layers.2.weight")
        if slot in _CHANGING_SLOTS and (conv is None or conv.shape[0] != conv.shape[1]):
            names[f"{theirs}.skip_connection"] = f"{ours}.skip"
    for index in range(2):
        names |= _block(f"middle_block.{index}", f"middle.{index}", _TIME_BLOCK)
    for slot in range(MIDDLE_SLOT + 1):
        names[f"zero_blocks.{slot}"] = None if slot in _DEAD_SLOTS else f"emit.{slot}"
    for index in range(12):
        names |= _block(f"output_blocks.{index}.0", f"decoder.{index}", _DECODER_BLOCK)
        names[f"output_blocks.{index}.1"] = f"emit.{MIDDLE_SLOT + 1 + index}"
        if index in (2, 5, 8):
            names[f"output_blocks.{index}.2.conv"] = f"upsamplers.{index // 3}.conv"
    return names


def _block(theirs: str, ours: str, parts: Mapping[str, str]) -> dict[str, str | None]:
    return {f"{theirs}.{old}": f"{ours}.{new}" for old, new in parts.items()}
