"""Shards: the same batches and samples as in memory, written once, resumable, mended, disk told."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import cli
from bench import content, registry
from bench.base.load import Base, load_base
from bench.base.random import write_random_base
from bench.config import RunConfig, Training
from bench.content import Cache
from bench.data import latents as latents_module
from bench.data.latents import (
    InMemory,
    Prepared,
    Sharded,
    disk_needed,
    encode,
    mirrored,
    plan_shards,
    prepare,
)
from bench.data.openmoji import OpenMoji64, openmoji64_splits
from bench.sampling import sample_images
from bench.suites import MICRO
from bench.training.loop import draw_batch
from bench.types import BenchError, Hooks, Stopped
from tests.asking import made, specified

RUNNER = CliRunner()
IDS = openmoji64_splits().val[:10]
TRAINING = Training(batch=4)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents_module, "SHARD", 4)  # ten items: two whole shards and a half one


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("shards") / "sd"
    return load_base(write_random_base(folder, width=32, size=64))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def prepared(base: Base, folder: Path, *, storage: str, task: str = "drawing", **more: Any) -> Prepared:
    return prepare(
        base,
        dataset=OpenMoji64(),
        ids=IDS,
        task=registry.load("task", task),
        mirror=True,
        cache=Cache(folder),
        posterior=True,
        storage=storage,
        **more,
    )


def written(folder: Path) -> dict[str, int]:
    """Return the shards there and when each was written."""
    return {p.name: p.stat().st_mtime_ns for p in sorted(folder.glob("shards/*/*.safetensors"))}


def encode_some(base: Base, folder: Path, **heard: Any) -> Any:
    """Encode ten items; heard: what hooks do instead of nothing."""
    told = Hooks()
    vars(told).update(heard)
    return encode(base, dataset=OpenMoji64(), ids=IDS, views=1, cache=Cache(folder), hooks=told)


@pytest.mark.parametrize("latents", ["mode", "sample"])
def test_training_batches_are_those_of_memory(base: Base, folder: Path, latents: str) -> None:
    memory, sharded = (prepared(base, folder, storage=s) for s in ("memory", "shards"))
    assert isinstance(memory, InMemory) and isinstance(sharded, Sharded)
    training = Training(batch=4, latents=latents)
    for step in range(4):
        one, other = (draw_batch(d, training=training, seed=3, step=step) for d in (memory, sharded))
        names = ("latents", "conditions", "text", "timesteps", "noise")
        for name, a, b in zip(names, one, other, strict=True):
            if name in {"conditions", "timesteps", "noise"}:
                assert a.dtype == b.dtype and torch.equal(a, b), name
        assert torch.allclose(one[0], other[0], atol=1e-5)
        assert torch.allclose(one[2], other[2], rtol=2**-11, atol=1e-5)  # half of float16's last digit


def test_samples_are_those_of_memory(base: Base, folder: Path) -> None:
    class Painter:
        """Shows condition and text in the image, so that a wrong row would be seen."""

        def encode(self, condition: torch.Tensor) -> torch.Tensor:
            return condition.mean(dim=(1, 2, 3))

        def __call__(self, z: torch.Tensor, t: torch.Tensor, text: Any, mean: torch.Tensor) -> Any:
            words = text.mean(dim=(2, 3))[:, :, None, None, None]
            return z[None] * 0.1 + mean.view(1, -1, 1, 1, 1) + 10 * words

    drawn = []
    for storage in ("memory", "shards"):
        data = prepared(base, folder, storage=storage)
        spec = specified(sampling_steps=2)

        def turned(rows: Any, data: Any = data) -> torch.Tensor:
            return data.conditions_at(np.arange(10)[::-1][rows])

        parts = sample_images(Painter(), spec, base=base, data=data, conditions=turned)
        drawn.append(np.concatenate([pixels[0] for _, pixels in parts]))
    assert np.abs(drawn[0] - drawn[1]).max() < 1e-3
    assert np.abs(drawn[0] - drawn[0][::-1]).max() > 0.01


def test_a_draw_is_mean_plus_deviation_times_noise(base: Base, folder: Path) -> None:
    noise = torch.randn(3, 4, 8, 8)
    for storage in ("memory", "shards"):
        data = prepared(base, folder, storage=storage)
        rows, views = [9, 0, 5], [1, 0, 1]
        mode, drawn = data.latents_at(rows, views), data.latents_at(rows, views, noise=noise)
        items = [OpenMoji64()[IDS[r]] for r in rows]
        seen = [mirrored(e).image if v else e.image for e, v in zip(items, views, strict=True)]
        with torch.inference_mode():
            pixels = torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2).float() / 127.5 - 1
            posterior = base.vae.encode(pixels.contiguous()).latent_dist
        assert torch.allclose(mode, posterior.mean * base.scale, atol=1e-5)
        wanted = (posterior.mean + posterior.std * noise) * base.scale
        assert torch.allclose(drawn, wanted, atol=1e-5)
        assert float((drawn - mode).abs().max()) > 1e-3


def test_drawn_latents_leave_all_other_draws_as_they_are(base: Base, folder: Path) -> None:
    data = prepared(base, folder, storage="shards")
    mode, drawn = (
        draw_batch(data, training=Training(batch=4, latents=w), seed=1, step=2) for w in ("mode", "sample")
    )
    assert all(torch.equal(a, b) for a, b in zip(mode[1:], drawn[1:], strict=True))
    assert not torch.equal(mode[0], drawn[0])


def test_conditions_read_ahead_are_the_conditions(base: Base, folder: Path) -> None:
    data = prepared(base, folder, storage="shards", task="sketch")
    wanted = data.conditions_at([3, 3, 8], [0, 1, 1])
    data.expect([8, 3, 1], [1, 0, 0])
    assert torch.equal(data.conditions_at([3, 3, 8], [0, 1, 1]), wanted)
    assert np.array_equal(data.images([7])[0], OpenMoji64()[IDS[7]].image)
    for _ in range(40):  # expectations that nobody comes for do not pile up
        data.expect(range(10), 0)
        data.expect(range(10), 1)
    assert len(data._ahead) <= latents_module._AHEAD + 10  # type: ignore[attr-defined]


def test_what_is_whole_is_not_made_again(base: Base, tmp_path: Path) -> None:
    first = encode_some(base, tmp_path)
    before = written(tmp_path)
    assert len(before) == len(first.paths) == 3
    assert encode_some(base, tmp_path).paths == first.paths
    assert written(tmp_path) == before


def test_a_stopped_run_goes_on_at_the_next_shard(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of the second shard, it keeps the first and makes the other two."""
    monkeypatch.setattr(latents_module, "images_at_once", lambda height, width: 2)
    encode_some(base, tmp_path / "whole")
    codes = iter([None, None, 143])
    with pytest.raises(Stopped) as stopped:
        encode_some(base, tmp_path / "cut", stop=lambda: next(codes))
    assert stopped.value.code == 143
    before = written(tmp_path / "cut")
    assert len(before) == 1
    seen: list[tuple[int, int]] = []
    encode_some(base, tmp_path / "cut", tick=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 6), (4, 6), (6, 6)]
    assert before.items() < written(tmp_path / "cut").items()
    for one in sorted((tmp_path / "whole").glob("shards/*/*.safetensors")):
        other = tmp_path / "cut" / one.relative_to(tmp_path / "whole")
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("damage", ["bytes", "cut", "note", "lost"])
def test_a_damaged_shard_is_made_again(base: Base, tmp_path: Path, damage: str) -> None:
    path = encode_some(base, tmp_path).paths[1]
    good, others = path.read_bytes(), written(tmp_path)
    if damage == "bytes":
        path.write_bytes(good[:-3] + b"\x00\x01\x02")
    elif damage == "cut":
        path.write_bytes(good[: len(good) // 2])
    elif damage == "note":
        path.with_suffix(".json").write_text("{}")
    else:
        path.unlink()
    encode_some(base, tmp_path)
    assert path.read_bytes() == good
    now = written(tmp_path)
    assert {n for n in now if now[n] != others[n]} <= {path.name}


@pytest.mark.parametrize("damage", ["cut", "other tensors", "other shapes"])
def test_a_shard_that_is_damaged_while_a_run_is_at_it_is_told(
    base: Base, tmp_path: Path, damage: str
) -> None:
    data = prepared(base, tmp_path, storage="shards")
    assert isinstance(data, Sharded)
    path = data._shards.paths[0]
    tensors = load_file(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "other tensors":
        save_file({"mean": tensors["mean"]}, path)
    else:
        save_file({name: tensor[:, :1].contiguous() for name, tensor in tensors.items()}, path)
    with pytest.raises(BenchError, match=path.name):
        data.latents_at([0])


def test_no_items_are_nothing_to_encode(base: Base, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no items"):
        encode(base, dataset=OpenMoji64(), ids=(), views=1, cache=Cache(tmp_path))


def test_shards_are_found_by_what_went_in(base: Base, tmp_path: Path) -> None:
    def names(**changes: Any) -> set[str]:
        kept = {
            "dataset": OpenMoji64(),
            "ids": IDS,
            "views": 1,
            "cache": Cache(tmp_path),
            **changes,
        }
        on = kept.pop("base", base)
        return {p.name for p in plan_shards(on, **kept).paths}

    other_data = OpenMoji64()
    other_data.digest = "0" * 64
    other_vae, other_unet = (
        dataclasses.replace(base, files={**base.files, f"{part}/config.json": "0" * 64})
        for part in ("vae", "unet")
    )
    assert base.digest != other_unet.digest
    assert names() == names(base=other_unet)  # latents and text do not depend on the UNet
    for changed in (names(views=2), names(dataset=other_data), names(base=other_vae)):
        assert not names() & changed
    assert names(ids=IDS[:4]) < names()


def test_processes_share_the_shards_and_the_last_ones_are_waited_for(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another is at the first shard, the other two are written here."""
    monkeypatch.setattr(content, "_TRY_SECONDS", 0.01)
    begun, seen = threading.Event(), threading.Event()
    said: list[str] = []
    done: list[int] = []
    theirs: list[int] = []

    def hold(count: int, total: int) -> None:
        theirs.append(count)
        begun.set()
        seen.wait(60)

    def tell(name: str, total: int) -> None:
        said.append(name)
        if len(said) == 2:
            seen.set()

    monkeypatch.setattr(latents_module, "images_at_once", lambda height, width: 2)
    other = threading.Thread(target=encode_some, args=(base, tmp_path), kwargs={"tick": hold})
    other.start()
    begun.wait(60)
    hooks = {"stage": tell, "say": lambda text: tell(text, 1)}
    encode_some(base, tmp_path, **hooks, tick=lambda count, total: done.append(count))
    other.join()
    assert theirs == [2, 4] and done == [6, 8, 10]
    assert len(said) == 2 and str(os.getpid()) in said[1]
    assert len(written(tmp_path)) == 3 and not list(tmp_path.rglob("*.lock"))


def test_latents_in_memory_are_the_same_cold_and_warm(base: Base, tmp_path: Path) -> None:
    """In every respect: an autoencoder gives other last digits for other strides."""
    cold, warm = (prepared(base, tmp_path, storage="memory") for _ in range(2))
    assert isinstance(cold, InMemory) and isinstance(warm, InMemory)
    for name in ("latents", "deviation", "text", "empty"):
        one, other = getattr(cold, name), getattr(warm, name)
        assert one.stride() == other.stride() and torch.equal(one, other), name
    one, other = (base.decode(d.latents_at(range(4))) for d in (cold, warm))
    assert torch.equal(one, other)


def test_the_disk_is_told_and_a_full_one_refused_before_anything_is_written(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    shards = encode_some(base, tmp_path, stage=lambda name, total: said.append(f"{name} {total}"))
    needed = disk_needed(10, views=1, latent_shape=(4, 8, 8), text_shape=shards.text_shape)
    held = sum(sum(t.nbytes for t in load_file(p).values()) for p in shards.paths)
    assert needed == held <= sum(p.stat().st_size for p in shards.paths) < needed * 1.05
    assert len(said) == 1 and "encode 10 items, 0.1 MB" in said[0]
    usage = shutil.disk_usage(tmp_path)._replace(free=needed // 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    encode_some(base, tmp_path)  # all there: nothing is needed
    with pytest.raises(BenchError, match=r"no room for 0\.1 MB in .*0\.0 MB free.*BPS_BENCH_CACHE"):
        encode_some(base, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_coco_sized_needs_are_of_known_size() -> None:
    """118,287 items at 512 px on SD 1.5: 131,072 bytes of latents and 118,272 of text each."""
    needed = disk_needed(118_287, views=1, latent_shape=(4, 64, 64), text_shape=(77, 768))
    assert needed == 118_287 * (131_072 + 118_272)


def test_images_that_do_not_fit_the_latents_are_refused(base: Base, tmp_path: Path) -> None:
    class Odd(OpenMoji64):
        def __getitem__(self, item_id: str) -> Any:
            item = super().__getitem__(item_id)
            return dataclasses.replace(item, image=item.image[:60])

    with pytest.raises(BenchError, match="64 x 60 pixels; allowed: multiples of 8"):
        encode(base, dataset=Odd(), ids=IDS, views=1, cache=Cache(tmp_path))


@pytest.fixture
def on_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite micro on shards, with few items to train on."""
    splits = dataclasses.replace(openmoji64_splits(), train=openmoji64_splits().train[:12])
    suite = dataclasses.replace(MICRO, storage="shards", splits=lambda: splits)
    monkeypatch.setattr("bench.suites.MICRO", suite)


@pytest.mark.usefixtures("on_shards")
def test_a_run_on_shards_trains_samples_and_scores(base: Base, tmp_path: Path) -> None:
    config = RunConfig(suite="micro", base=base.folder, results=tmp_path, method="t2i-adapter", device="cpu")
    run = made(config, train_images=16, sample_batch=4, limit=10, shuffled=False)
    record = run.all()
    assert isinstance(run.train_data, Sharded) and record.cost.train_images == 16
    kept = record.environment["base"]
    assert set(kept["parts"]) == {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}
    assert "latents" not in record.protocol["training"]
    assert (run.folder / "contact.png").exists()


@pytest.mark.usefixtures("on_shards")
def test_the_command_encodes_ahead_and_the_second_call_has_nothing_to_do(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BPS_BENCH_CACHE", str(tmp_path / "cache"))
    words = ["data", "encode", "--suite", "micro", "--base", str(base.folder)]
    words += ["--budget", "quick", "--device", "cpu"]
    first = RUNNER.invoke(cli.app, words)
    assert first.exit_code == 0, first.output
    assert "train: 12 items, 2 view(s), 3 shards" in first.stdout and "test: 12 items" in first.stdout
    assert "encode 12 items" in first.stderr and "free)" in first.stderr
    before = written(tmp_path / "cache")
    again = RUNNER.invoke(cli.app, words)
    assert again.stdout == first.stdout and "encode" not in again.stderr
    assert written(tmp_path / "cache") == before
    refused = RUNNER.invoke(cli.app, ["data", "encode", "--suite", "emoji"])
    assert refused.exit_code == 2 and "held in memory" in refused.output
    notes = [json.loads(p.read_text()) for p in (tmp_path / "cache").glob("shards/*/*.json")]
    assert all(note["key"]["text_dtype"] == "float16" for note in notes)
