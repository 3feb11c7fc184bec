"""The likelihood network of Bayesian Power Steering: condition and time -> residuals."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from bench.types import check_condition
from bps import sites as places
from bps.schedule import is_learned, layer_weights, slot_weight
from bps.sites import MIDDLE_SLOT, OUTPUT_SLOT, SITES

Function = TypeVar("Function", bound=Callable[..., Any])
Module = TypeVar("Module", bound=nn.Module)
GROUPS = 32
EPS = 1e-5


def zeroed(module: Module) -> Module:
    """Set a layer's weight and bias to zero, where they start."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def upsample(channels: int) -> nn.Sequential:
    """Build nearest-neighbour doubling followed by a 3x3 convolution, [B,C,h,w] -> [B,C,2h,2w]."""
    conv = nn.Conv2d(channels, channels, 3, padding=1)
    return nn.Sequential(OrderedDict(grow=nn.Upsample(scale_factor=2.0), conv=conv))


class GroupNorm32(nn.GroupNorm):
    """Group norm with 32 groups, eps 1e-5, computed in float32, returned in the input's dtype."""

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels, eps=EPS)

    def forward(self, input: Tensor) -> Tensor:
        """Map [B,C,h,w] -> [B,C,h,w]."""
        weight, bias = self.weight.float(), self.bias.float()
        return F.group_norm(input.float(), self.num_groups, weight, bias, self.eps).to(input.dtype)


class SelfAttention(nn.Module):
    """Attention of all cells, heads of 32 channels: x + zero_linear(attention(norm(x))); x at the start."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm32(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B,C,h,w] -> [B,C,h,w]."""
        cells = self.qkv(self.norm(x).flatten(2).mT)
        q, k, v = (part.unflatten(-1, (-1, GROUPS)).transpose(1, 2) for part in cells.chunk(3, dim=-1))
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(seen).mT.reshape(x.shape)


class TimeResidualBlock(nn.Module):
    """Residual block whose second norm is scaled and shifted by the time embedding.

    out = skip(x) + zero_conv(silu(norm2(conv1(silu(norm1(x)))) * (1 + scale) + shift)) with
    (scale, shift) from a linear layer on silu(emb); both are 0 with time_channels None. attention: whether
    SelfAttention comes behind it. At initialisation out = skip(x).
    """

    def __init__(
        self, channels_in: int, channels_out: int, *, time_channels: int | None, attention: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = GroupNorm32(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.time = nn.Linear(time_channels, 2 * channels_out) if time_channels else None
        self.norm2 = GroupNorm32(channels_out)
        self.conv2 = zeroed(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        same = channels_in == channels_out
        self.skip = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)
        self.attention = SelfAttention(channels_out) if attention else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map x [B,ci,h,w], emb [B,time_channels] -> [B,co,h,w]."""
        hidden = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.time is not None:
            scale, shift = self.time(F.silu(emb))[:, :, None, None].chunk(2, dim=1)
            hidden = hidden * (1 + scale) + shift
        return self.attention(self.skip(x) + self.conv2(F.silu(hidden)))


class DecoderBlock(nn.Module):
    """Decoder step without time: a 1x1 convolution plus a zero-initialised normed branch."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm = GroupNorm32(channels_in)
        self.conv = zeroed(nn.Conv2d(channels_in, channels_out, 3, padding=1))
        self.skip = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B,ci,h,w] -> [B,co,h,w]."""
        return self.skip(x) + self.conv(F.silu(self.norm(x)))


@dataclass(frozen=True, kw_only=True)
class Residuals:
    """What the adapter adds to the UNet's features: slot -> [B,C,h,w], already weighted.

    Slots 1 2 4 5 7 8 10 11 are the encoder's, 12 the middle's, 13..24 the decoder's, 25 the output's;
    slots of sites that are switched off are absent.
    """

    by_slot: Mapping[int, Tensor]

    @property
    def batch(self) -> int:
        """Number of conditions B."""
        return int(next(iter(self.by_slot.values())).shape[0])


@dataclass(frozen=True, kw_only=True)
class Steering:
    """Where and how strongly an adapter steers; its configuration file holds the fields side by side.

    schedule: a name of bps.schedule.SCHEDULES or 13 numbers. sites: which of "encoder", "middle", "decoder"
    and "output" (the UNet's prediction) receive residuals. modules: whether they are added behind "both"
    kinds of modules, only "resnets" or only "attentions". time_aware: False leaves the time embedding out,
    so that residuals depend on the condition alone. attention: whether self-attention stands behind each
    residual block of the encoder and between the middle's two, as in the release's class BPS_XL.
    """

    schedule: str | Sequence[float] = "head_heavy"
    sites: str | Sequence[str] = SITES
    modules: str = "both"
    time_aware: bool = True
    attention: bool = False

    def __post_init__(self) -> None:
        for name in ("time_aware", "attention"):
            if not isinstance(value := getattr(self, name), bool):
                raise ValueError(f"{name} is {value!r}; allowed: true, false.")


def _spelled_out(function: Function) -> Function:
    """Show Steering's fields in a signature in the place of **steering, as diffusers reads it."""
    shown = inspect.signature(function)
    own = [p for p in shown.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    more = [inspect.Parameter(f.name, own[-1].kind, default=f.default) for f in fields(Steering)]
    vars(function)["__signature__"] = shown.replace(parameters=[*own, *more])
    return function


class BPSAdapter(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Condition image and the frozen UNet's time embedding -> residuals for the UNet's features.

    condition_channels: C of the condition. block_out_channels: the UNet's three or four widths, multiples
    of 32. downscale_factor f: image pixels per latent cell. slots_without_attention: slots where the UNet has
    no attention; matters to modules="attentions" only. time_embed_dim: width of the time embedding, by
    default 4 x the first width. out_channels: of the UNet's prediction. steering: the fields of Steering.

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
    @_spelled_out
    def __init__(
        self,
        *,
        condition_channels: int = 3,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),  # here and below, Stable Diffusion 1.5's
        downscale_factor: int = 8,
        slots_without_attention: Sequence[int] = (10, 11, 13, 14, 15),
        time_embed_dim: int | None = None,
        out_channels: int = 4,
        **steering: Any,
    ) -> None:
        super().__init__()
        self.steering = options = Steering(**steering)
        places.check_widths(block_out_channels)
        if condition_channels < 1 or downscale_factor < 1:
            given = f"condition_channels {condition_channels}, downscale_factor {downscale_factor}"
            raise ValueError(f"{given}; allowed: whole numbers from 1.")
        levels, bare = len(block_out_channels), slots_without_attention
        self.slots = places.live_slots(options.sites, modules=options.modules, bare=bare, levels=levels)
        self.size_multiple = 2 ** (levels - 1)
        self.channels = condition_channels
        self.downscale_factor = downscale_factor
        self.time_channels = time_embed_dim or 4 * block_out_channels[0]
        self._build(tuple(block_out_channels), out_channels=out_channels)
        self._add_weights(options.schedule)

    @classmethod
    def from_unet(cls, unet: UNet2DConditionModel, condition_channels: int = 3, **options: Any) -> BPSAdapter:
        """Build an untrained adapter that fits a UNet, with other options; ValueError where none fits."""
        places.check_unet(unet)
        return cls(
            condition_channels=condition_channels,
            block_out_channels=tuple(unet.config["block_out_channels"]),
            slots_without_attention=places.slots_without_attention(unet),
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
            allowed = f"[{len(condition)},{self.time_channels}], one row per condition"
            raise ValueError(f"emb is {list(emb.shape)}; allowed: {allowed}.")
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
        multiple = self.size_multiple * self.downscale_factor
        of = f"{self.size_multiple} x downscale factor {self.downscale_factor}"
        check_condition(condition, channels=self.channels, multiple=multiple, of=of)

    def _emit(self, slot: int, h: Tensor, emitted: dict[int, Tensor]) -> None:
        if slot in self.slots:
            emitted[slot] = self.emit[str(slot)](h)

    def _build(self, widths: tuple[int, ...], *, out_channels: int) -> None:
        """Make the layers in a fixed order, as each draws its weights, and keep those up to the last slot."""
        last = self.slots[-1]
        count = max(0, last - MIDDLE_SLOT)  # of the decoder's blocks
        inputs = self.channels * self.downscale_factor**2
        out = [widths[0]]  # what each entry of the encoder gives
        entries: list[nn.Module] = [nn.Conv2d(inputs, widths[0], 3, padding=1)]
        for slot in range(1, 3 * len(widths)):
            level, place = divmod(slot, 3)
            if place:
                entries.append(self._residual(out[-1], widths[level], attention=self.steering.attention))
            else:
                entries.append(nn.Conv2d(out[-1], out[-1], 3, stride=2, padding=1))
            out.append(widths[level] if place else out[-1])
        middle = [self._residual(out[-1], out[-1], attention=a) for a in (self.steering.attention, False)]
        given = [out[-1], *(w for w in widths[::-1] for _ in range(3))]  # the middle's and the decoder's
        shapes = zip(given, out[::-1], given[1:], strict=False)
        decoder = [DecoderBlock(before + popped, width) for before, popped, width in shapes]
        self.encoder = nn.ModuleList(entries[: last + 1])
        self.middle = nn.ModuleList(middle if last >= MIDDLE_SLOT else [])
        self.decoder = nn.ModuleList(decoder[:count])
        doubled = range(3, min(count, len(out)), 3)
        self.upsamplers = nn.ModuleList(upsample(given[number]) for number in doubled)
        by_slot = dict(enumerate(out)) | dict(enumerate(given, MIDDLE_SLOT)) | {OUTPUT_SLOT: given[-1]}
        self.emit = nn.ModuleDict()
        for slot in self.slots:
            taken = out_channels if slot == OUTPUT_SLOT else by_slot[slot]
            self.emit[str(slot)] = zeroed(nn.Conv2d(by_slot[slot], taken, 3, padding=1))

    def _residual(self, channels_in: int, channels_out: int, *, attention: bool) -> TimeResidualBlock:
        time_channels = self.time_channels if self.steering.time_aware else None
        return TimeResidualBlock(channels_in, channels_out, time_channels=time_channels, attention=attention)

    def _add_weights(self, schedule: str | Sequence[float]) -> None:
        layer_weights(schedule)
        weighted = [slot for slot in self.slots if slot <= MIDDLE_SLOT]
        weights = torch.tensor([slot_weight(schedule, slot=slot) for slot in weighted])
        if is_learned(schedule) and not weighted:
            remedy = "Add the site 'encoder' or 'middle', or use another schedule."
            raise ValueError(f"schedule '{schedule}' has nothing to learn: live residuals weigh 1. {remedy}")
        if schedule == "learned":
            self.weights = nn.Parameter(weights)
        else:
            self.register_buffer("weights", weights)
        self.log_gains = nn.Parameter(torch.zeros(len(weighted))) if schedule == "learned_log" else None
