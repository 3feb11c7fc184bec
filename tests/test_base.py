"""The base: what diffusers makes of the same folder, eps from v, and the three priors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.base.load import Base, load_base
from bench.data.openmoji import OpenMoji64
from bench.types import BenchError


def test_diffusers_loads_and_samples_the_folder(micro_folder: Path, micro_base: Base) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(micro_folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    out = pipe(
        "red heart", num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)
    ).images
    assert out.shape == (1, 64, 64, 3) and np.isfinite(out).all()
    embeds, _ = pipe.encode_prompt("red heart", "cpu", 1, False)
    assert torch.allclose(micro_base.encode_text(["red heart"]), embeds, atol=1e-6)


def test_latents_are_scaled_and_decode_to_pixels(micro_base: Base) -> None:
    images = OpenMoji64().images[:3]
    latents, deviation = micro_base.encode_posterior(images)
    assert latents.shape == (3, 4, 16, 16) and micro_base.downscale == 4
    assert not deviation.any()  # a tiny autoencoder is not variational
    pixels = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
    direct = micro_base.vae.encode(pixels.contiguous()).latents * micro_base.scale
    assert torch.allclose(latents, direct, atol=1e-6)
    pixels = micro_base.decode(latents)
    assert pixels.shape == (3, 3, 64, 64) and 0 <= pixels.min() and pixels.max() <= 1


def test_eps_from_v_solves_the_definition(micro_base: Base) -> None:
    """z_t = alpha z_0 + sigma eps and v = alpha eps - sigma z_0 give eps back."""
    z0, eps = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16)
    t = torch.tensor([10, 900])
    a = micro_base.alphas.float()[t].view(-1, 1, 1, 1)
    z, v = a.sqrt() * z0 + (1 - a).sqrt() * eps, a.sqrt() * eps - (1 - a).sqrt() * z0
    assert torch.allclose(micro_base.to_eps(v, z, t), eps, atol=1e-5)
    stacked = micro_base.to_eps(torch.stack([v, v]), z, t)
    assert torch.equal(stacked[0], stacked[1])


def test_priors_differ_in_weights_and_freedom(micro_base: Base) -> None:
    frozen, free, none = (micro_base.prior_unet(p, seed=1) for p in ("frozen", "free", "none"))
    assert frozen is micro_base.unet and not any(p.requires_grad for p in frozen.parameters())
    assert all(p.requires_grad for p in (*free.parameters(), *none.parameters()))
    pairs = list(zip(frozen.parameters(), free.parameters(), none.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c in pairs)
    again = micro_base.prior_unet("none", seed=1)
    assert all(torch.equal(a, b) for a, b in zip(none.parameters(), again.parameters(), strict=True))
    fixed = micro_base.prior_unet("none-frozen", seed=1)
    assert all(torch.equal(a, b) for a, b in zip(none.parameters(), fixed.parameters(), strict=True))
    assert not any(p.requires_grad for p in fixed.parameters())
    unlocked = micro_base.prior_unet("unlocked")
    assert all(torch.equal(a, b) for a, b in zip(frozen.parameters(), unlocked.parameters(), strict=True))
    trained = {n.split(".")[0] for n, p in unlocked.named_parameters() if p.requires_grad}
    assert trained == {"up_blocks", "conv_norm_out", "conv_out"}
    with pytest.raises(BenchError, match="unknown prior"):
        micro_base.prior_unet("thawed")


def test_drawing_a_prior_leaves_the_global_generator_alone(micro_base: Base) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    micro_base.prior_unet("none", seed=1)
    assert torch.equal(torch.rand(3), wanted)


def test_equal_files_give_an_equal_digest_and_other_files_do_not(
    micro_folder: Path, micro_base: Base, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(micro_folder, tmp_path / "copy"))
    assert load_base(copy).digest == micro_base.digest
    (copy / "manifest.json").unlink()
    config = copy / "scheduler/scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "beta_end": 0.02}))
    assert load_base(copy).digest != micro_base.digest


def test_folders_that_are_no_base_are_refused(micro_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no base model"):
        load_base(tmp_path)
    copy = Path(shutil.copytree(micro_folder, tmp_path / "copy"))
    (copy / "manifest.json").unlink()
    shutil.rmtree(copy / "unet")
    with pytest.raises(BenchError, match="not a Stable Diffusion folder: unet missing"):
        load_base(copy)
    copy = Path(shutil.copytree(micro_folder, tmp_path / "emptied"))
    (copy / "manifest.json").write_text("[]")
    with pytest.raises(BenchError, match="lists no files"):
        load_base(copy)
    (copy / "manifest.json").unlink()
    (copy / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(BenchError, match="no vocabulary|cannot|not a Stable"):
        load_base(copy)
    copy = Path(shutil.copytree(micro_folder, tmp_path / "truncated"))
    (copy / "manifest.json").unlink()
    weights = copy / "text_encoder/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BenchError, match="not a Stable Diffusion folder"):
        load_base(copy)
    copy = Path(shutil.copytree(micro_folder, tmp_path / "other"))
    (copy / "manifest.json").unlink()
    config = copy / "scheduler/scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "prediction_type": "sample"}))
    with pytest.raises(BenchError, match="prediction_type.* got 'sample'"):
        load_base(copy)
