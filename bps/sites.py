"""Where residuals go: 26 numbered slots of a UNet2DConditionModel of four levels.

    0, 3, 6, 9                conv_in and the three downsamplers: never steered
    1 2 | 4 5 | 7 8 | 10 11   down_blocks[0..3], entry 0 and 1
    12                        mid_block
    13..24                    up_blocks[0..3], three entries each
    25                        conv_out, the UNet's prediction: never steered in the release

The residual of a slot is added to the output of every resnet and every attention (transformer) of
that entry, after the module's own skip connection. Source: release commit 926842c. A UNet of three levels
(SDXL) has the same slots but for 9, 10, 11 and 22, 23, 24.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from bench.types import unknown

MIDDLE_SLOT = 12
OUTPUT_SLOT = 25
SLOTS_BY_SITE = {
    "encoder": (1, 2, 4, 5, 7, 8, 10, 11),
    "middle": (MIDDLE_SLOT,),
    "decoder": tuple(range(13, OUTPUT_SLOT)),
    "output": (OUTPUT_SLOT,),
}
SITES = ("encoder", "middle", "decoder")
"""The release's. "output" alone is the literal posterior: prediction = prior's + M(condition, t)."""
_KINDS = {"both": ("resnets", "attentions"), "resnets": ("resnets",), "attentions": ("attentions",)}


def live_slots(
    sites: str | Sequence[str], *, modules: str, bare: Iterable[int], levels: int
) -> tuple[int, ...]:
    """List the slots that receive a residual, in rising order.

    sites: any of SLOTS_BY_SITE. modules: "both", "resnets" or "attentions", of which slots in bare, that have
    no attention, receive nothing. levels: of the UNet. Raises ValueError for unknown names and where no slot
    is left.
    """
    listed = sites if isinstance(sites, Sequence) and not isinstance(sites, str) else [sites]
    chosen = [str(site) for site in listed]
    for site in chosen:
        if site not in SLOTS_BY_SITE:
            raise unknown("site", site, SLOTS_BY_SITE)
    slots = {slot for site in chosen for slot in SLOTS_BY_SITE[site]}
    slots -= {*range(3 * levels, MIDDLE_SLOT), *range(MIDDLE_SLOT + 1 + 3 * levels, OUTPUT_SLOT)}
    slots -= set(bare) if "resnets" not in _kinds(modules) else set()
    if not slots:
        allowed = f"at least one of {tuple(SLOTS_BY_SITE)} with modules of that kind in the UNet"
        raise ValueError(f"sites {chosen} with modules '{modules}' leave no place. Give {allowed}.")
    return tuple(sorted(slots))


def injection_sites(unet: UNet2DConditionModel, *, modules: str = "both") -> dict[int, tuple[nn.Module, ...]]:
    """Map each slot to the UNet modules behind which its residual is added; may be empty ones."""
    kinds = _kinds(modules)

    def found(block: nn.Module, entry: slice = slice(None)) -> tuple[nn.Module, ...]:
        lists = [[m for m in getattr(block, kind, None) or () if m is not None] for kind in kinds]
        return tuple(module for each in lists for module in each[entry])

    sites = {MIDDLE_SLOT: found(unet.mid_block), OUTPUT_SLOT: (unet.conv_out,)}
    for first, blocks, count in ((1, unet.down_blocks, 2), (MIDDLE_SLOT + 1, unet.up_blocks, 3)):
        for level, block in enumerate(blocks):
            for entry in range(count):
                sites[first + 3 * level + entry] = found(block, slice(entry, entry + 1))
    return sites


def _kinds(modules: str) -> tuple[str, ...]:
    if modules not in _KINDS:
        raise unknown("modules", modules, _KINDS)
    return _KINDS[modules]


def slots_without_attention(unet: UNet2DConditionModel) -> tuple[int, ...]:
    """List the steerable slots whose UNet entry has no attention (SD 1.5: 10, 11, 13, 14, 15)."""
    return tuple(s for s, found in sorted(injection_sites(unet, modules="attentions").items()) if not found)


def check_unet(unet: UNet2DConditionModel) -> None:
    """Raise ValueError for a UNet that no adapter fits, saying what came and what is allowed."""
    if not hasattr(unet, "down_blocks") or not hasattr(unet, "time_embedding"):
        raise ValueError(f"got a {type(unet).__name__}; allowed: a diffusers UNet2DConditionModel.")
    check_widths(unet.config["block_out_channels"])
    layers = unet.config["layers_per_block"]
    if {*(layers if isinstance(layers, Sequence) else [layers])} != {2}:
        raise ValueError(f"the UNet has layers_per_block {layers}; allowed: 2 at every level.")
    if unet.mid_block is None:
        raise ValueError("the UNet has no mid_block; allowed: a UNet with a middle block.")


def check_widths(widths: Sequence[int]) -> None:
    """Raise ValueError unless there are three or four positive widths divisible by 32 (the group norms)."""
    if len(widths) not in (3, 4) or any(width <= 0 or width % 32 for width in widths):
        allowed = "3 or 4, all positive multiples of 32"
        raise ValueError(f"block_out_channels {tuple(widths)} has {len(widths)} levels; allowed: {allowed}.")
