"""The adapter's building blocks (arXiv 2406.03683; shapes as in release commit 926842c)."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32
EPS = 1e-5
Module = TypeVar("Module", bound=nn.Module)


def zeroed(module: Module) -> Module:
    """Set a layer's weight and bias to zero, where they start."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def upsample(channels: int) -> nn.Sequential:
    """Build nearest-neighbour doubling followed by a 3x3 convolution, [B,C,h,w] -> [B,C,2h,2w]."""
    return nn.Sequential(
        OrderedDict(grow=nn.Upsample(scale_factor=2.0), conv=nn.Conv2d(channels, channels, 3, padding=1))
    )


class GroupNorm32(nn.GroupNorm):
    """Group norm with 32 groups, eps 1e-5, computed in float32, returned in the input's dtype."""

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels, eps=EPS)

    def forward(self, input: Tensor) -> Tensor:
        """Map [B,C,h,w] -> [B,C,h,w]."""
        weight, bias = self.weight.float(), self.bias.float()
        return F.group_norm(input.float(), self.num_groups, weight, bias, self.eps).to(input.dtype)


class SelfAttention(nn.Module):
    """Attention of all cells to all others, heads of 32 channels: out = x + zero_linear(attention(norm(x))).

    At initialisation out = x.
    """

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
