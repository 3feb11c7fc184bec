"""The likelihood network of Bayesian Power Steering: condition and time -> residuals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from bps.blocks import DecoderBlock, TimeResidualBlock, Upsample, zero_convolution
from bps.schedule import is_learned, layer_weights, slot_weight
from bps.sites import (
    MIDDLE_SLOT,
    OUTPUT_SLOT,
    SITES,
    SLOTS_BY_SITE,
    check_unet,
    check_widths,
    live_slots,
)
from bps.sites import slots_without_attention as find_slots_without_attention

SD15_WIDTHS = (320, 640, 1280, 1280)
SD15_SLOTS_WITHOUT_ATTENTION = (10, 11, 13, 14, 15)
_DOWNSAMPLE_SLOTS = (3, 6, 9)


@dataclass(frozen=True, kw_only=True)
class Residuals:
    """What the adapter adds to the UNet's features: slot -> [B,C,h,w], already weighted.

    Slots 1 2 4 5 7 8 10 11 are the encoder's, 12 the middle's, 13..24 the decoder's, 25 the output's;
    slots of sites that are switched off are absent.
    """

    by_slot: Mapping[int, Tensor]

    @property
    def encoder(self) -> tuple[Tensor, ...]:
        """Encoder residuals in slot order."""
        return self._of("encoder")

    @property
    def middle(self) -> Tensor | None:
        """Middle residual, None where that site is off."""
        return self.by_slot.get(MIDDLE_SLOT)

    @property
    def decoder(self) -> tuple[Tensor, ...]:
        """Decoder residuals in slot order."""
        return self._of("decoder")

    @property
    def batch(self) -> int:
        """Number of conditions B."""
        return int(next(iter(self.by_slot.values())).shape[0])

    def repeat_interleave(self, repeats: int) -> Residuals:
        """Repeat each condition's residuals in place: rows a b -> a a b b for 2."""
        if repeats == 1:
            return self
        repeated = {slot: r.repeat_interleave(repeats, dim=0) for slot, r in self.by_slot.items()}
        return Residuals(by_slot=repeated)

    def _of(self, site: str) -> tuple[Tensor, ...]:
        return tuple(self.by_slot[slot] for slot in SLOTS_BY_SITE[site] if slot in self.by_slot)


class BPSAdapter(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Condition image and the frozen UNet's time embedding -> residuals for the UNet's features.

    condition_channels: C of the condition. block_out_channels: the UNet's three or four widths, multiples
    of 32. downscale_factor f: image pixels per latent cell. schedule: a name of
    bps.schedule.SCHEDULES or 13 numbers. sites: which of "encoder", "middle", "decoder" and "output"
    (the UNet's prediction, of out_channels) receive residuals. modules: whether they are added behind
    "both" kinds of modules, only "resnets" or only "attentions". slots_without_attention: slots where
    the UNet has no attention; matters to "attentions" only. time_embed_dim: width of the time embedding,
    by default 4 x the first width. time_aware: False leaves it out, so that residuals depend on the
    condition alone. attention: whether self-attention stands behind each residual block of the encoder and
    between the middle's two, as in the release's class BPS_XL.

    Nothing without effect exists: slots that receive no residual have no emitting convolution,
    layers behind the last live slot are left out, and so are the convolutions that the release
    carries for slots 0, 3, 6 and 9 without ever training them. `weights` holds one number for each
    live encoder and middle slot in slot order: a buffer, or with schedule "learned" a parameter. With
    "learned_log" the buffer is multiplied by exp(log_gains), parameters that start at 0.

    Raises ValueError for widths, names and schedules that are not allowed.
    Source: arXiv 2406.03683, release commit 926842c.
    """

    weights: Tensor
    log_gains: Tensor | None

    @register_to_config
    def __init__(
        self,
        *,
        condition_channels: int = 3,
        block_out_channels: Sequence[int] = SD15_WIDTHS,
        downscale_factor: int = 8,
        schedule: str | Sequence[float] = "head_heavy",
        sites: Sequence[str] = SITES,
        modules: str = "both",
        slots_without_attention: Sequence[int] = SD15_SLOTS_WITHOUT_ATTENTION,
        time_embed_dim: int | None = None,
        time_aware: bool = True,
        out_channels: int = 4,
        attention: bool = False,
    ) -> None:
        super().__init__()
        check_widths(block_out_channels)
        if condition_channels < 1 or downscale_factor < 1:
            raise ValueError(
                f"condition_channels {condition_channels}, downscale_factor {downscale_factor}; "
                "allowed: whole numbers from 1."
            )
        self.slots = live_slots(
            sites,
            modules=modules,
            slots_without_attention=slots_without_attention,
            levels=len(block_out_channels),
        )
        self.size_multiple = 2 ** (len(block_out_channels) - 1)
        self.injected_modules = modules
        self.channels = condition_channels
        self.downscale_factor = downscale_factor
        self.time_channels = time_embed_dim or 4 * block_out_channels[0]
        self.time_aware, self.attention = time_aware, attention
        self._build(tuple(block_out_channels), out_channels=out_channels)
        self._add_weights(schedule)

    @classmethod
    def from_unet(cls, unet: UNet2DConditionModel, condition_channels: int = 3, **options: Any) -> BPSAdapter:
        """Build an untrained adapter that fits a UNet; options: those of the class that no UNet tells.

        Raises ValueError unless the UNet has three or four levels of two resnets, widths divisible by 32 and
        a middle block.
        """
        check_unet(unet)
        return cls(
            condition_channels=condition_channels,
            block_out_channels=tuple(unet.config["block_out_channels"]),
            slots_without_attention=find_slots_without_attention(unet),
            time_embed_dim=unet.time_embedding.linear_2.out_features,
            out_channels=unet.config["out_channels"],
            **options,
        )

    def forward(self, condition: Tensor, emb: Tensor) -> Residuals:
        """Compute the weighted residuals.

        condition [B,C,H,W] in [0, 1], H and W divisible by size_multiple x downscale_factor; emb
        [B,time_embed_dim], the UNet's own time embedding; both are cast to the adapter's dtype.
        Raises ValueError for other shapes and for integer images.
        """
        self.check_condition(condition)
        if tuple(emb.shape) != (len(condition), self.time_channels):
            raise ValueError(
                f"emb is {list(emb.shape)}; "
                f"allowed: [{len(condition)},{self.time_channels}], one row per condition."
            )
        h = F.pixel_unshuffle(condition.to(self.dtype), self.downscale_factor)
        emb = emb.to(self.dtype)
        features: list[Tensor] = []
        emitted: dict[int, Tensor] = {}
        for slot, entry in enumerate(self.encoder):
            h = entry(h, emb) if isinstance(entry, TimeResidualBlock) else entry(h)
            features.append(h)
            self._emit(slot, h, emitted)
        for block in self.middle:
            h = block(h, emb)
        self._emit(MIDDLE_SLOT, h, emitted)
        for index, block in enumerate(self.decoder):
            h = block(torch.cat([h, features.pop()], dim=1))
            self._emit(MIDDLE_SLOT + 1 + index, h, emitted)
            if index % 3 == 2 and index // 3 < len(self.upsamplers):
                h = self.upsamplers[index // 3](h)
        self._emit(OUTPUT_SLOT, h, emitted)
        weights = self.layer_weights()
        return Residuals(by_slot={s: r * weights[s] if s in weights else r for s, r in emitted.items()})

    def layer_weights(self) -> dict[int, Tensor]:
        """Return slot -> weight as it is now, a scalar, of the live encoder and middle slots."""
        now = self.weights if self.log_gains is None else self.weights * self.log_gains.exp()
        return dict(zip(self.slots, now, strict=False))  # the slots of weight 1 come last

    def check_condition(self, condition: Tensor) -> None:
        """Raise ValueError unless the condition is [B,C,H,W] floating point of an allowed size."""
        step = self.size_multiple * self.downscale_factor
        shape = list(condition.shape)
        if len(shape) != 4 or shape[1] != self.channels:
            raise ValueError(f"condition is {shape}; allowed: [B,{self.channels},H,W].")
        if min(shape[2:]) < step or shape[2] % step or shape[3] % step:
            raise ValueError(
                f"condition is {shape[2]} x {shape[3]} pixels; allowed: height and width divisible "
                f"by {step} ({self.size_multiple} x downscale factor {self.downscale_factor})."
            )
        if not condition.is_floating_point():
            raise ValueError(
                f"condition is {condition.dtype}; allowed: floating point in [0, 1] "
                "(divide 8-bit images by 255)."
            )

    def _emit(self, slot: int, h: Tensor, emitted: dict[int, Tensor]) -> None:
        if slot in self.slots:
            emitted[slot] = self.emit[str(slot)](h)

    def _build(self, widths: tuple[int, ...], *, out_channels: int) -> None:
        last = self.slots[-1]
        entries, entry_widths = self._encoder_entries(widths)
        middle = [
            self._residual(widths[-1], widths[-1], attention=self.attention and not i) for i in range(2)
        ]
        decoder, decoder_widths = _decoder_blocks(entry_widths)
        count = max(0, last - MIDDLE_SLOT)
        self.encoder = nn.ModuleList(entries[: last + 1])
        self.middle = nn.ModuleList(middle if last >= MIDDLE_SLOT else [])
        self.decoder = nn.ModuleList(decoder[:count])
        self.upsamplers = nn.ModuleList(
            Upsample(decoder_widths[index]) for index in range(2, 3 * len(widths) - 1, 3) if index + 1 < count
        )
        given = dict(enumerate(entry_widths)) | {MIDDLE_SLOT: widths[-1], OUTPUT_SLOT: decoder_widths[-1]}
        given |= dict(enumerate(decoder_widths, MIDDLE_SLOT + 1))
        self.emit = nn.ModuleDict()
        for slot in self.slots:
            taken = out_channels if slot == OUTPUT_SLOT else given[slot]
            self.emit[str(slot)] = zero_convolution(given[slot], taken)

    def _encoder_entries(self, widths: tuple[int, ...]) -> tuple[list[nn.Module], list[int]]:
        channels = self.channels * self.downscale_factor**2
        entries: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1)]
        out = [widths[0]]
        for slot in range(1, 3 * len(widths)):
            if slot in _DOWNSAMPLE_SLOTS:
                entries.append(nn.Conv2d(out[-1], out[-1], 3, stride=2, padding=1))
                out.append(out[-1])
            else:
                width = widths[slot // 3]
                entries.append(self._residual(out[-1], width, attention=self.attention))
                out.append(width)
        return entries, out

    def _residual(self, channels_in: int, channels_out: int, *, attention: bool) -> TimeResidualBlock:
        time_channels = self.time_channels if self.time_aware else None
        return TimeResidualBlock(channels_in, channels_out, time_channels=time_channels, attention=attention)

    def _add_weights(self, schedule: str | Sequence[float]) -> None:
        layer_weights(schedule)
        weighted = [slot for slot in self.slots if slot <= MIDDLE_SLOT]
        weights = torch.tensor([slot_weight(schedule, slot=slot) for slot in weighted])
        if is_learned(schedule) and not weighted:
            raise ValueError(
                f"schedule '{schedule}' has nothing to learn: all live residuals weigh 1. Add the site "
                "'encoder' or 'middle', or use another schedule."
            )
        if schedule == "learned":
            self.weights = nn.Parameter(weights)
        else:
            self.register_buffer("weights", weights)
        self.log_gains = nn.Parameter(torch.zeros(len(weighted))) if schedule == "learned_log" else None


def _decoder_blocks(entry_widths: Sequence[int]) -> tuple[list[nn.Module], list[int]]:
    blocks: list[nn.Module] = []
    out: list[int] = []
    popped = list(entry_widths)
    width = entry_widths[-1]
    for index in range(len(entry_widths)):
        channels_in = width + popped.pop()
        width = entry_widths[-1 - 3 * (index // 3)]
        blocks.append(DecoderBlock(channels_in, width))
        out.append(width)
    return blocks, out
