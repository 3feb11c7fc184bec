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

LEVELS = (3, 4)
RESNETS_PER_LEVEL = 2
WIDTH_MULTIPLE = 32
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
MODULES = ("both", "resnets", "attentions")


def live_slots(
    sites: Iterable[str], *, modules: str, slots_without_attention: Iterable[int], levels: int = LEVELS[-1]
) -> tuple[int, ...]:
    """List the slots that receive a residual, in rising order.

    sites: any of SLOTS_BY_SITE. modules: one of MODULES. levels: of the UNet. With "attentions", slots whose
    entry has no attention receive nothing. Raises ValueError for unknown names and where no slot is left.
    """
    if not isinstance(sites, (str, Sequence)):
        raise ValueError(f"sites {sites!r} is no name or list; allowed: {', '.join(SLOTS_BY_SITE)}.")
    chosen = (sites,) if isinstance(sites, str) else tuple(sites)
    for site in chosen:
        if not isinstance(site, str) or site not in SLOTS_BY_SITE:
            raise unknown("site", site, SLOTS_BY_SITE)
    if modules not in MODULES:
        raise unknown("modules", modules, MODULES)
    bare = frozenset(slots_without_attention) if modules == "attentions" else frozenset()
    deeper = {*range(3 * levels, MIDDLE_SLOT), *range(MIDDLE_SLOT + 1 + 3 * levels, OUTPUT_SLOT)}
    slots = {slot for site in chosen for slot in SLOTS_BY_SITE[site]} - bare - deeper
    if not slots:
        raise ValueError(
            f"sites {chosen} with modules '{modules}' leave no place for a residual. "
            f"Give at least one of {tuple(SLOTS_BY_SITE)} with modules of that kind in the UNet."
        )
    return tuple(sorted(slots))


def injection_sites(unet: UNet2DConditionModel, *, modules: str = "both") -> dict[int, tuple[nn.Module, ...]]:
    """Map each slot to the UNet modules behind which its residual is added; may be empty ones."""
    if modules not in MODULES:
        raise unknown("modules", modules, MODULES)
    sites = {}
    for level, block in enumerate(unet.down_blocks):
        for entry in range(RESNETS_PER_LEVEL):
            sites[3 * level + 1 + entry] = _entry_modules(block, entry, modules)
    sites[MIDDLE_SLOT] = (
        *(_module_list(unet.mid_block, "resnets") if modules != "attentions" else ()),
        *(_module_list(unet.mid_block, "attentions") if modules != "resnets" else ()),
    )
    for level, block in enumerate(unet.up_blocks):
        for entry in range(RESNETS_PER_LEVEL + 1):
            sites[MIDDLE_SLOT + 1 + 3 * level + entry] = _entry_modules(block, entry, modules)
    sites[OUTPUT_SLOT] = (unet.conv_out,)
    return sites


def slots_without_attention(unet: UNet2DConditionModel) -> tuple[int, ...]:
    """List the steerable slots whose UNet entry has no attention (SD 1.5: 10, 11, 13, 14, 15)."""
    return tuple(
        slot for slot, found in sorted(injection_sites(unet, modules="attentions").items()) if not found
    )


def check_unet(unet: UNet2DConditionModel) -> None:
    """Raise ValueError for a UNet that no adapter fits, saying what came and what is allowed."""
    if not hasattr(unet, "down_blocks") or not hasattr(unet, "time_embedding"):
        raise ValueError(f"got a {type(unet).__name__}; allowed: a diffusers UNet2DConditionModel.")
    check_widths(unet.config["block_out_channels"])
    layers = unet.config["layers_per_block"]
    per_level = list(layers) if isinstance(layers, (list, tuple)) else [layers]
    if any(count != RESNETS_PER_LEVEL for count in per_level):
        raise ValueError(
            f"the UNet has layers_per_block {layers}; allowed: {RESNETS_PER_LEVEL} at every level."
        )
    if unet.mid_block is None:
        raise ValueError("the UNet has no mid_block; allowed: a UNet with a middle block.")


def check_widths(widths: Sequence[int]) -> None:
    """Raise ValueError unless there are three or four positive widths divisible by 32 (the group norms)."""
    if len(widths) not in LEVELS:
        levels = " or ".join(map(str, LEVELS))
        raise ValueError(f"block_out_channels {tuple(widths)} has {len(widths)} levels; allowed: {levels}.")
    if any(width <= 0 or width % WIDTH_MULTIPLE for width in widths):
        raise ValueError(
            f"block_out_channels {tuple(widths)}; allowed: positive multiples of {WIDTH_MULTIPLE}."
        )


def _entry_modules(block: nn.Module, entry: int, modules: str) -> tuple[nn.Module, ...]:
    found: list[nn.Module] = []
    if modules != "attentions":
        found += _module_list(block, "resnets")[entry : entry + 1]
    if modules != "resnets":
        found += _module_list(block, "attentions")[entry : entry + 1]
    return tuple(found)


def _module_list(block: nn.Module, name: str) -> list[nn.Module]:
    return [module for module in getattr(block, name, None) or () if module is not None]
