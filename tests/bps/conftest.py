"""Golden numbers of the authors' release, filled models, and miniature UNets."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from diffusers import UNet2DConditionModel  # noqa: E402

from bps import BPSAdapter, convert_release_state_dict  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"
HEAD_HEAVY = (16, 16, 1, 8, 8, 1, 4, 4, 1, 2, 2, 1, 16)
CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"


def stream(p: int, count: int) -> np.ndarray:
    """The golden file's pseudo-random stream in [-1, 1), float64."""
    h = (np.arange(count, dtype=np.uint64) + 0x9E3779B9 * (p + 1)) % 2**32
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        h ^= h >> np.uint64(shift)
        h = h * factor % 2**32
    return h.astype(np.float64) / 2**31 - 1


def stream_tensor(p: int, shape: tuple[int, ...], scale: float) -> torch.Tensor:
    values = scale * stream(p, int(np.prod(shape)))
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def fill_parameter(p: int, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    values = stream(p, int(np.prod(shape)))
    if len(shape) >= 2:
        values = values * np.sqrt(3 / np.prod(shape[1:]))
    else:
        values = 1 + 0.2 * values if name.endswith("weight") else 0.1 * values
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def _rows(file: str) -> list[list[str]]:
    lines = (GOLDEN / file).read_text().splitlines()
    return [line.split("\t") for line in lines if not line.startswith("#")]


def release_state_dict() -> dict[str, torch.Tensor]:
    """The release's parameters under its names, filled by the golden rule."""
    state = {}
    for p, name, shape in _rows("golden_params.txt"):
        if p == "-":
            state[name] = torch.tensor(float((1, *HEAD_HEAVY)[int(name.split(".")[1])]))
        else:
            state[name] = fill_parameter(int(p), name, tuple(ast.literal_eval(shape)))
    return state


def golden_unet_state_dict() -> dict[str, torch.Tensor]:
    return {
        name: fill_parameter(int(p), name, tuple(ast.literal_eval(shape)))
        for p, _, shape, name in _rows("golden_unet_params.txt")
    }


def build_unet(
    attention: tuple[bool, ...] = (True, True, True, False), **options: Any
) -> UNet2DConditionModel:
    """A tiny four-level UNet with attention at the given levels."""
    down = tuple(CROSS if has else PLAIN for has in attention)
    up = tuple(name.replace("Down", "Up") for name in reversed(down))
    options = {
        "block_out_channels": (32, 64, 128, 128),
        "down_block_types": down,
        "up_block_types": up,
        "cross_attention_dim": 24,
        "attention_head_dim": 8,
        "norm_num_groups": 32,
        "sample_size": 16,
    } | options
    return UNet2DConditionModel(**options).eval()


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Make an adapter's zero convolutions count, so that residuals are not zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if not parameter.any():
            parameter.data.copy_(0.02 * torch.randn(parameter.shape, generator=generator))


def settle(module: torch.nn.Module) -> torch.nn.Module:
    """Copy loaded weights to addresses of torch's own choice, and return the module.

    A weight mapped from a file may lie where some processors' kernels add in another order.
    """
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()
    return module


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """The helpers above, for test modules."""
    return SimpleNamespace(
        settle=settle,
        stream=stream,
        stream_tensor=stream_tensor,
        fill_parameter=fill_parameter,
        release_state_dict=release_state_dict,
        build_unet=build_unet,
        randomise=randomise,
        count_hooks=lambda net: sum(len(m._forward_hooks) for m in net.modules()),
    )


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    return json.loads((GOLDEN / "golden_bps.json").read_text())


@pytest.fixture(scope="session")
def golden_unet() -> UNet2DConditionModel:
    unet = build_unet(sample_size=24)
    unet.load_state_dict(golden_unet_state_dict(), strict=True)
    return unet.requires_grad_(False)


@pytest.fixture(scope="session")
def golden_adapter(golden_unet: UNet2DConditionModel) -> BPSAdapter:
    adapter = BPSAdapter.from_unet(golden_unet, 1)
    adapter.load_state_dict(convert_release_state_dict(release_state_dict()), strict=True)
    return adapter.eval()


@pytest.fixture(scope="session")
def golden_inputs() -> SimpleNamespace:
    return SimpleNamespace(
        hint=(stream_tensor(90001, (2, 1, 192, 128), 1) + 1) / 2,
        emb=stream_tensor(90002, (2, 128), 1.5),
        x=stream_tensor(90003, (2, 4, 24, 16), 1.7),
        context=stream_tensor(90004, (2, 7, 24), 1.5),
        timesteps=torch.tensor([17, 801]),
        target=stream_tensor(90005, (2, 4, 24, 16), 1.7),
    )


@pytest.fixture
def make_unet() -> Callable[..., UNet2DConditionModel]:
    return build_unet


@pytest.fixture
def small_unet() -> UNet2DConditionModel:
    """The project's miniature: attention in the inner levels only, group norms of 16."""
    torch.manual_seed(1)
    return build_unet((False, True, True, False), norm_num_groups=16)


@pytest.fixture
def small_adapter(small_unet: UNet2DConditionModel) -> BPSAdapter:
    """An adapter for 64x64 conditions of 3 channels with non-zero residuals."""
    torch.manual_seed(2)
    adapter = BPSAdapter.from_unet(small_unet, 3, downscale_factor=4).eval()
    randomise(adapter)
    return adapter
