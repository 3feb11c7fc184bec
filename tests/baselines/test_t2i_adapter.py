"""T2I-Adapter: size, where its features go, once an image, and the cubic timesteps."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from baselines.t2i_adapter import T2IAdapter, adapted, build_adapter, cubic_timesteps
from bench.base.load import Base
from bench.training.loop import training_loss


@pytest.mark.parametrize(("channels", "count"), [(1, 77_000_640), (3, 77_369_280)])
def test_the_size_at_sd15_width(channels: int, count: int, tools: SimpleNamespace) -> None:
    unet = tools.sd15_unet()
    with torch.device("meta"):
        adapter = build_adapter(unet, channels=channels, downscale=8)
    assert tools.trainable(adapter) == count


def test_features_go_where_diffusers_puts_them(tools: SimpleNamespace) -> None:
    unet = tools.small_unet()  # attention everywhere but in the last level, as SD1.5
    adapter = build_adapter(unet, channels=2, downscale=4).requires_grad_(False)
    latents, text = torch.randn(2, 4, 16, 16), torch.randn(2, 5, 24)
    steps, features = torch.tensor([7, 900]), adapter(torch.rand(2, 2, 64, 64))
    expected = unet(
        latents, steps, text, down_intrablock_additional_residuals=[f.clone() for f in features]
    ).sample
    with adapted(unet, features):
        assert torch.equal(unet(latents, steps, text).sample, expected)
        assert torch.equal(unet(latents, steps, text, return_dict=False)[0], expected)
    assert not torch.equal(unet(latents, steps, text).sample, expected)
    assert all(not m._forward_hooks for m in unet.modules())


def test_a_level_without_attention_gets_its_features_before_its_downsampler(
    tools: SimpleNamespace,
) -> None:
    unet = tools.small_unet((False, True, True, False))
    latents, text, steps = torch.randn(1, 4, 16, 16), torch.randn(1, 5, 24), torch.tensor([7])
    features = build_adapter(unet, channels=1, downscale=4)(torch.rand(1, 1, 64, 64))
    seen: dict[str, Any] = {}
    block = unet.down_blocks[0]
    block.resnets[-1].register_forward_hook(lambda m, a, o: seen.update(bare=o))
    block.downsamplers[0].register_forward_hook(lambda m, a, o: seen.update(into=a[0]))
    with adapted(unet, features):
        unet(latents, steps, text)
    assert torch.equal(seen["into"], seen["bare"] + features[0])
    with pytest.raises(RuntimeError, match="size of tensor"):  # why the hooks are there
        unet(latents, steps, text, down_intrablock_additional_residuals=list(features))


def test_the_adapter_runs_once_an_image(build: Callable[..., Any], inputs: SimpleNamespace) -> None:
    denoiser = build(T2IAdapter)
    calls: list[int] = []
    denoiser.adapter.register_forward_hook(lambda m, a, o: calls.append(len(a[0])))
    with torch.no_grad():
        features = denoiser.encode(inputs.condition)
        first, second = (denoiser(inputs.latents, inputs.timesteps, inputs.text, features) for _ in range(2))
    assert calls == [3] and torch.equal(first, second)
    assert [tuple(f.shape) for f in features] == [(3, 32, s, s) for s in (16, 8, 4, 2)]


@pytest.mark.parametrize("steps", [50, 1000])
def test_cubic_timesteps_have_their_closed_form(steps: int) -> None:
    times = cubic_timesteps(torch.arange(steps), steps=steps).double().numpy()
    assert times.min() >= 0 and times.max() == steps - 1
    assert abs(times.mean() + 0.5 - 0.75 * steps) < 0.5
    for s in range(steps + 1):
        share = float(np.mean(times < s))
        assert abs(share - (1 - (1 - s / steps) ** (1 / 3))) <= 1 / steps + 1e-12


def test_cubic_timesteps_reach_the_training_loss(
    build: Callable[..., Any], micro_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bench.training.loop
    from bench.config import Training

    drawn = torch.tensor([0, 500, 999])
    batch = (
        torch.randn(3, 4, 16, 16),
        torch.rand(3, 1, 64, 64),
        torch.randn(3, 16, 32),
        drawn,
        torch.randn(3, 4, 16, 16),
    )
    monkeypatch.setattr(bench.training.loop, "draw_batch", lambda *a, **k: batch)
    data: Any = None
    for name, expected in (("uniform", [0, 500, 999]), ("cubic", [999, 874, 1])):
        denoiser, seen = build(T2IAdapter, timesteps=name), []
        assert denoiser.starts_as_base is False
        denoiser.register_forward_pre_hook(lambda m, a, seen=seen: seen.append(a[:2]))
        training_loss(denoiser, base=micro_base, data=data, training=Training(), seed=0, step=0)
        noisy, times = seen[0]
        assert times.tolist() == expected
        alpha = micro_base.alphas[times].float().view(-1, 1, 1, 1)
        assert torch.equal(noisy, alpha.sqrt() * batch[0] + (1 - alpha).sqrt() * batch[4])


def test_an_unknown_way_to_draw_timesteps_is_refused(build: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="timesteps is 'cube'; allowed: cubic, uniform"):
        build(T2IAdapter, timesteps="cube")
