"""The recipe of the embedded base at tiny size: it learns, resumes to the same bits, writes a base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.base.load import load_base
from bench.base.random import train_tokenizer
from bench.data.leaks import load_seen
from bench.emoji import pretrain, train
from bench.types import BenchError
from tests.bases import tiny_shape

ROWS = np.arange(8)
CAPTIONS = ["red heart, noto style", "blue heart, flat style", "grinning face, noto style"]


def fit(path: Path, *, stop: int | None = None, rate: float = 0.1) -> torch.nn.Module:
    """Fit a layer that forgets a part of its input, by the recipes' loop."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 1)
    optimiser = torch.optim.AdamW(layer.parameters(), lr=rate)

    def loss_of(step: int) -> torch.Tensor:
        if step == stop:
            raise KeyboardInterrupt
        x = torch.from_numpy(np.random.default_rng(step).random((4, 3), dtype=np.float32))
        return (layer(x) - x.sum(1, keepdim=True)).square().mean()

    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 12)
    parts = {"layer": layer}
    train(path, loss_of, steps=12, optimiser=optimiser, schedule=schedule, parts=parts, every=4)
    return layer


def test_a_stopped_training_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole = fit(tmp_path / "a.ckpt")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "b.ckpt", stop=9)
    resumed = fit(tmp_path / "b.ckpt")
    assert torch.equal(whole.weight, resumed.weight) and torch.equal(whole.bias, resumed.bias)


def test_a_loss_that_is_not_finite_stops(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="at step 1 of 12"):
        fit(tmp_path / "a.ckpt", rate=float("inf"))


def test_the_autoencoder_learns(tmp_path: Path) -> None:
    vae = tiny_shape(train_tokenizer(CAPTIONS, size=200, length=16)).build()["vae"]
    flat = np.random.default_rng(0).integers(256, size=(10, 2, 1, 1, 3))
    views = flat.repeat(64, 2).repeat(64, 3).astype(np.uint8)
    images = pretrain.to_unit(views[:8, 0])

    def error() -> float:
        with torch.inference_mode():
            return float((vae.decoder(vae.encoder(images)) - images).square().mean())

    before = error()
    checkpoint = tmp_path / "vae.ckpt"
    pretrain.train_autoencoder(vae, views, views[:, 0], rows=ROWS, checkpoint=checkpoint, steps=12, batch=4)
    assert error() < before
    latents, scale = pretrain.encode(vae.eval(), views)
    assert latents.shape == (10, 2, 4, 16, 16) and latents.dtype == torch.float16
    assert float(latents[:, 0].float().std()) == pytest.approx(1, abs=1e-2) and scale > 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A prior after 4 steps."""
    tokenizer = train_tokenizer(CAPTIONS, size=200, length=16)
    shape = tiny_shape(tokenizer)
    torch.manual_seed(0)
    parts = {**shape.build(), "tokenizer": tokenizer}
    latents = torch.randn(10, 2, 4, 16, 16, generator=torch.manual_seed(0)).half()
    full = tokenizer(CAPTIONS * 4, padding="max_length", return_tensors="pt").input_ids[:10]
    tokens = {"full": full, "bare": full, "empty": full[0]}
    checkpoint = tmp_path_factory.mktemp("prior") / "prior.ckpt"
    before = parts["unet"].conv_in.weight.detach().clone()
    pretrain.train_prior(parts, latents, tokens, rows=ROWS, checkpoint=checkpoint, steps=4, batch=4)
    state = torch.load(checkpoint, weights_only=True)
    average = state["average"]["shadow_params"]
    weights = [p for name in ("unet", "text_encoder") for p in parts[name].parameters()]
    assert all(torch.equal(a, b) for a, b in zip(average, weights, strict=True))  # what is kept
    assert not torch.equal(state["modules"]["unet.conv_in.weight"], parts["unet"].conv_in.weight)
    assert not torch.equal(before, parts["unet"].conv_in.weight)
    return parts


def test_a_trained_prior_is_written_as_a_base_with_what_it_has_seen(
    trained: dict[str, Any], tmp_path: Path
) -> None:
    views = np.random.default_rng(0).integers(256, size=(3, 4, 64, 64, 3), dtype=np.uint8)
    pretrain.write(tmp_path / "base", dict(trained), views, ["noto: a", "flat: b", "noto: c"])
    base = load_base(tmp_path / "base")
    manifest = json.loads((tmp_path / "base/manifest.json").read_text())
    assert manifest["licence"] == "CC BY-SA 4.0" and len(manifest["collection"]["families"]) == 14
    seen = load_seen(base.folder, base=base.digest)
    assert not isinstance(seen, str) and seen.ids == ("noto: a", "flat: b", "noto: c")


def test_held_out_drawings_are_never_drawn() -> None:
    assert len(pretrain.trained_rows(1000)) == 700
    latents = torch.arange(10.0).view(10, 1, 1, 1, 1).expand(10, 3, 4, 16, 16)
    ids = torch.arange(10)[:, None].expand(10, 16)
    tokens = {"full": ids, "bare": ids, "empty": ids[0] * 0 - 1}
    batches = [pretrain.draw_batch(step, latents, tokens, rows=ROWS, batch=64) for step in range(4)]
    assert {int(v) for batch in batches for v in batch[0][:, 0, 0, 0]} == set(range(8))
    dropped = torch.cat([batch[1][:, 0] == -1 for batch in batches]).float().mean()
    assert 0.02 < float(dropped) < 0.22
    for _, _, timesteps, _ in batches:
        for stratum, t in enumerate(sorted(timesteps.tolist())):
            assert stratum * 1000 / 64 - 1 < t < (stratum + 1) * 1000 / 64
