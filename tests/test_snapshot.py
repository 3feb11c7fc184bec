"""Which files of a base are read: variants by name and hash, and the hub's cache without a network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.base.load import Base, load_base
from bench.base.random import write_random_base
from bench.base.snapshot import choose_files, describe, fetch, find_snapshot
from bench.types import BenchError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PLAIN = "unet/diffusion_pytorch_model.safetensors"
OTHER = "unet/diffusion_pytorch_model.non_ema.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with two UNets, as SD 1.5 has them, and things that are not read."""
    made = write_random_base(tmp_path_factory.mktemp("snapshot") / "sd", width=32, size=64)
    weights = load_file(made / PLAIN)
    save_file({n: t + 0.01 for n, t in weights.items()}, made / OTHER)
    for extra in (
        "safety_checker/model.safetensors",
        "feature_extractor/preprocessor_config.json",
        "unet/model.onnx",
        "README.md",
    ):
        (made / extra).parent.mkdir(exist_ok=True)
        (made / extra).write_bytes(b"not read")
    return made


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with the base as somebody/sd at one commit, as its client lays it out."""
    import huggingface_hub.constants as constants

    root = tmp_path / "hub" / "models--somebody--sd"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    shutil.copytree(folder, root / "snapshots" / COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root.parent))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return root


def test_the_variant_decides_which_unet_is_loaded_and_its_hash_is_kept(folder: Path) -> None:
    plain, other = load_base(folder), load_base(folder, variant="non_ema")
    name = "conv_in.weight"
    gap = other.unet.state_dict()[name] - plain.unet.state_dict()[name]
    assert torch.allclose(gap, torch.full_like(gap, 0.01), atol=1e-6)
    assert plain.parts["unet"] != other.parts["unet"] and plain.digest != other.digest
    assert all(plain.parts[p] == other.parts[p] for p in plain.parts if p != "unet")
    said = other.provenance()
    assert said["variants"] == {"unet": "non_ema"} and OTHER in said["weights"]
    assert PLAIN in plain.provenance()["weights"]


def test_what_is_not_read_does_not_change_the_digest(folder: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(folder, tmp_path / "bare"))
    shutil.rmtree(bare / "safety_checker")
    shutil.rmtree(bare / "feature_extractor")
    for name in (OTHER, "unet/model.onnx", "README.md"):
        (bare / name).unlink()
    assert find_snapshot(bare).digest == find_snapshot(folder).digest


def test_a_variant_nobody_has_is_named(folder: Path) -> None:
    with pytest.raises(BenchError, match="non_ena.*Did you mean 'non_ema'"):
        find_snapshot(folder, variant="non_ena")


def test_each_part_takes_the_variant_it_has_and_safetensors_first() -> None:
    unet = [f"unet/diffusion_pytorch_model{v}.{k}" for v in ("", ".fp16") for k in ("bin", "safetensors")]
    text = ["text_encoder/pytorch_model.bin", "text_encoder/config.json"]
    vae = ["vae/diffusion_pytorch_model.safetensors", "vae/diffusion_flax_model.msgpack"]
    names = [*unet, *text, *vae, "tokenizer/vocab.json", "safety_checker/model.safetensors"]
    assert choose_files(names, variant="fp16") == [
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json",
        "text_encoder/pytorch_model.bin",
        "tokenizer/vocab.json",
    ]
    sharded = [
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
    ]
    assert sorted(choose_files([*sharded, unet[3]])) == sorted(sharded)
    with pytest.raises(BenchError, match="variants fp16 alone"):
        choose_files([unet[3], *text])


def test_a_hub_id_is_found_in_the_cache_without_a_network(hub: Path, folder: Path) -> None:
    base = load_base(Path("somebody/sd"))
    assert base.name == f"somebody/sd@{COMMIT}" and base.digest == find_snapshot(folder).digest
    for place in ("somebody/sd@main", f"somebody/sd@{COMMIT}"):
        assert fetch(place).name == COMMIT
    assert load_base("somebody/sd@main", variant="non_ema").variants["unet"] == "non_ema"


def test_what_was_fetched_serves_when_the_network_is_down(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody answers
    assert fetch("somebody/sd").name == COMMIT
    with pytest.raises(BenchError, match="cannot be had from the hub [(].*hf download somebody/else"):
        fetch("somebody/else")


def test_what_the_cache_lacks_is_said_with_the_way_to_get_it(hub: Path) -> None:
    for place in ("somebody/else", "somebody/sd@v2"):
        with pytest.raises(BenchError, match=f"HF_HUB_OFFLINE.*hf download {place.split('@')[0]}"):
            load_base(place)
    shutil.rmtree(hub / "snapshots" / COMMIT / "vae")
    with pytest.raises(BenchError, match="vae missing"):
        load_base("somebody/sd")


def test_a_weight_that_is_missing_is_never_made_up(folder: Path, tmp_path: Path) -> None:
    for part, file in (("unet", PLAIN), ("text_encoder", "text_encoder/model.safetensors")):
        copy = Path(shutil.copytree(folder, tmp_path / part))
        weights = load_file(copy / file)
        weights.pop(sorted(weights)[0])
        save_file(weights, copy / file, metadata={"format": "pt"})
        with pytest.raises(BenchError, match="not a Stable Diffusion folder"):
            load_base(copy)


@pytest.mark.slow
def test_half_precision_is_of_the_unet_alone_and_stays_near(folder: Path) -> None:
    exact = load_base(folder)
    latents, times = torch.randn(2, 4, 8, 8, generator=torch.manual_seed(0)), torch.tensor([3, 900])
    text = exact.encode_text(["a dog", "a cat"])[None]

    def eps(base: Base) -> torch.Tensor:
        with torch.no_grad():
            return base.eps(latents, times, text).float()

    base = load_base(folder, dtype="bfloat16")
    assert base.unet.dtype == torch.bfloat16
    assert base.vae.dtype == base.text_encoder.dtype == torch.float32
    assert torch.equal(base.encode_text(["a dog", "a cat"]), text[0])
    gap = (eps(base) - eps(exact)).norm() / eps(exact).norm()
    assert 0 < gap < 0.05
    assert base.prior_unet("free").dtype == torch.float32
    with pytest.raises(BenchError, match="unknown dtype"):
        load_base(folder, dtype="half")


def test_old_configurations_without_a_prediction_predict_eps(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "old"))
    config = copy / "scheduler/scheduler_config.json"
    value: dict[str, Any] = json.loads(config.read_text())
    del value["prediction_type"]
    config.write_text(json.dumps(value))
    assert load_base(copy).prediction == "epsilon"
    assert describe(find_snapshot(copy))["prediction"] == "epsilon"
