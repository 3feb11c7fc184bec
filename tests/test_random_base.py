"""Bases with random weights: the real sizes at full width, the same topology when narrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from typer.testing import CliRunner

import cli
from bench.base.load import load_base
from bench.base.random import LIKENESSES, build_base, shape_like, write_random_base
from bench.base.snapshot import describe, find_snapshot
from bench.types import BenchError

RUNNER = CliRunner()
PARAMETERS = {
    "sd15": (859_520_964, 123_060_480),
    "sd21": (865_910_724, 340_387_840),
    "sdxl": (2_567_463_684, 123_060_480, 694_659_840),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("random")
    return {n: write_random_base(root / n, like=n, width=32, size=64) for n in LIKENESSES}


@pytest.mark.parametrize("name", sorted(LIKENESSES))
def test_at_full_width_the_parameters_are_those_of_the_real_model(name: str) -> None:
    base = build_base(shape_like(name))
    parts = (base.unet, *base.text_encoders, base.vae)
    assert [sum(p.numel() for p in m.parameters()) for m in parts] == [*PARAMETERS[name], 83_653_863]


def test_a_base_can_be_read_by_whom_the_umask_lets(folders: dict[str, Path]) -> None:
    modes = {p.stat().st_mode for folder in folders.values() for p in folder.rglob("*") if p.is_file()}
    assert len(modes) == 1


@pytest.mark.parametrize("name", sorted(LIKENESSES))
def test_narrow_and_full_have_the_same_modules(name: str, folders: dict[str, Path]) -> None:
    full = build_base(shape_like(name), encoders=False).unet
    narrow = load_base(folders[name]).unet
    kinds = [[(n, type(m)) for n, m in unet.named_modules()] for unet in (full, narrow)]
    assert kinds[0] == kinds[1]
    heads = [m.heads for m in full.modules() if hasattr(m, "heads")]
    if name == "sd15":
        assert heads == [m.heads for m in narrow.modules() if hasattr(m, "heads")]
    else:
        assert set(heads) == ({10, 20} if name == "sdxl" else {5, 10, 20})


@pytest.mark.parametrize("name", sorted(LIKENESSES))
def test_diffusers_loads_the_folder_and_draws(name: str, folders: dict[str, Path]) -> None:
    pipe = DiffusionPipeline.from_pretrained(folders[name], torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe("a dog", num_inference_steps=2, output_type="np").images
    assert drawn.shape == (1, 64, 64, 3)
    base = load_base(folders[name])
    assert base.downscale == 8 and (base.prediction == "v_prediction") == (name == "sd21")
    embeds = pipe.encode_prompt(
        "a dog", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    assert torch.allclose(base.encode_text(["a dog"])[:, :77], embeds[0], atol=1e-6)


def test_equal_arguments_give_equal_files_and_others_do_not(folders: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(11)
    again = write_random_base(tmp_path / "sd15", like="sd15", width=32, size=64)
    other = write_random_base(tmp_path / "other", like="sd15", width=32, size=64, seed=1)
    digests = [find_snapshot(f).parts["unet"] for f in (folders["sd15"], again, other)]
    assert digests[0] == digests[1] != digests[2]


def test_arguments_that_no_base_has_are_refused(tmp_path: Path, folders: dict[str, Path]) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"like": "sd16"}, "Did you mean"),
        ({"width": 40}, "multiples of 32"),
        ({"size": 500}, "multiples of 64"),
        ({"dtype": "int8"}, "unknown dtype"),
    ]
    for wrong, said in refused:
        with pytest.raises(BenchError, match=said):
            write_random_base(tmp_path / "new", **wrong)
    with pytest.raises(BenchError, match="not empty"):
        write_random_base(folders["sd15"])


def test_the_commands_write_and_show_a_base(tmp_path: Path) -> None:
    words = [
        "base",
        "random",
        str(tmp_path / "b"),
        "--width",
        "32",
        "--size",
        "128",
        "--dtype",
        "float16",
        "--base-variant",
        "non_ema",
    ]
    made = RUNNER.invoke(cli.app, words)
    assert made.exit_code == 0, made.output
    assert "non-EMA" in made.output and "F16" in made.output and "epsilon" in made.output
    facts = describe(find_snapshot(tmp_path / "b", variant="non_ema"))
    assert facts["size"] == 128 and facts["downscale"] == 8
    base = load_base(tmp_path / "b", variant="non_ema")
    assert facts["parameters"]["unet"] == sum(p.numel() for p in base.unet.parameters())
    missing = RUNNER.invoke(cli.app, ["base", "show", str(tmp_path / "b")])
    assert missing.exit_code == 2 and "non_ema" in missing.output
