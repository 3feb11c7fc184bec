"""A base in one file of the original layout: the same networks as its folder, or one line that refuses it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.base import single
from bench.base.load import Base, load_base
from bench.base.random import shape_like, shape_of
from bench.base.snapshot import describe, find_snapshot
from bench.content import sha256_file
from bench.types import BenchError
from tests.command_line import bench
from tests.original_layout import original, write_both

V = "model:\n  params:\n    parameterization: v\n"
UNET = "model.diffusion_model."
State = dict[str, Any]


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, State]:
    place = tmp_path_factory.mktemp("sd15")
    return (
        place / "folder",
        place / "model.safetensors",
        write_both(place / "folder", place / "model.safetensors"),
    )


def save(file: Path, tensors: State) -> Path:
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)
    return file


def outputs(base: Base) -> list[Any]:
    """What a base makes of a prompt, of noise and of a picture."""
    import torch

    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    text = base.encode_text(["a red heart, 3 dogs' ears!"])
    picture = np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3), np.uint8)
    with torch.inference_mode():
        eps = base.eps(latents, torch.tensor([500]), text[None])
    return [text, eps, base.encode_posterior(picture)[0], base.decode(latents)]


def test_a_file_is_the_base_of_its_folder(sd15: tuple[Path, Path, State], tmp_path: Path) -> None:
    import torch

    folder, file, tensors = sd15
    pickled = tmp_path / "model.ckpt"
    torch.save({"state_dict": tensors, "global_step": 5}, pickled)
    there, bases = load_base(folder), [load_base(file), load_base(pickled)]
    for base in bases:
        for wanted, made in zip(outputs(there), outputs(base), strict=True):
            torch.testing.assert_close(made, wanted, rtol=0, atol=0)
        assert base.tokenizer.get_vocab() == there.tokenizer.get_vocab()
    assert bases[0].name == file.name and bases[0].weights == {file.name: sha256_file(file)}
    assert len({base.digest for base in (there, *bases)}) == 3
    assert shape_of(file).configs["unet"]["block_out_channels"] == [32, 64, 128, 128]


def test_a_damaged_conversion_is_made_anew(sd15: tuple[Path, Path, State]) -> None:
    _, file, _ = sd15
    first = find_snapshot(file)
    path = first.folder / "unet/config.json"
    path.write_text("{}")
    assert find_snapshot(file) == first and "block_out_channels" in path.read_text()


def test_averaged_weights_are_taken_where_a_file_holds_both(
    sd15: tuple[Path, Path, State], tmp_path: Path
) -> None:
    import torch

    _, file, tensors = sd15
    names = [name for name in tensors if name.startswith(UNET)]
    averaged = {"model_ema." + "".join(name.split(".")[1:]): tensors[name] * 0.5 for name in names}
    both = save(tmp_path / "both.safetensors", {**tensors, **averaged})
    plain, average = load_base(both), load_base(both, variant="ema")
    assert plain.digest != average.digest
    for name, tensor in plain.unet.state_dict().items():
        torch.testing.assert_close(average.unet.state_dict()[name], tensor * 0.5, rtol=0, atol=1e-4)
    assert describe(find_snapshot(both, variant="ema"))["unet weights"] == "averaged (EMA)"
    with pytest.raises(BenchError, match="ema"):
        load_base(both, variant="fp16")
    with pytest.raises(BenchError, match="variant"):
        load_base(file, variant="ema")


def test_a_second_generation_says_what_it_predicts_in_the_file_beside_it(tmp_path: Path) -> None:
    import torch

    file = tmp_path / "v2.safetensors"
    write_both(tmp_path / "folder", file, like="sd21")
    with pytest.raises(BenchError, match=r"v2\.yaml"):
        load_base(file)
    file.with_suffix(".yaml").write_text(V)
    there, base = load_base(tmp_path / "folder"), load_base(file)
    assert base.prediction == "v_prediction" and describe(find_snapshot(file))["size"] == 768
    for wanted, made in zip(outputs(there), outputs(base), strict=True):
        torch.testing.assert_close(made, wanted, rtol=0, atol=0)
    file.with_suffix(".yaml").write_text(V.replace("parameterization: v", ""))
    with pytest.raises(BenchError, match="parameterization"):
        load_base(file)


@pytest.mark.parametrize("like", ["sd15", "sd21"])
def test_shapes_at_full_width_are_those_of_the_published_configurations(
    like: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    with torch.device("meta"):
        tensors = original(shape_like(like).build(), open_clip=like != "sd15")
    monkeypatch.setattr(single, "_tensors", lambda file: tensors)
    (tmp_path / "model.yaml").write_text(V.replace(" v\n", " eps\n") if like == "sd15" else V)
    configs, shape = single.configs_of(tmp_path / "model.safetensors"), shape_like(like)
    for part in ("unet", "vae", "text_encoder"):
        told = dict(shape.configs[part])
        told.pop("projection_dim", None)  # of which nothing is read
        assert {name: configs[part][name] for name in told} == told


def without(prefix: str) -> Callable[[State], State]:
    return lambda tensors: {name: t for name, t in tensors.items() if not name.startswith(prefix)}


def wide(tensors: State) -> State:
    import torch

    return {**tensors, f"{UNET}input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3).half()}


def renamed(old: str, new: str) -> Callable[[State], State]:
    return lambda tensors: {name.replace(old, new): t for name, t in tensors.items()}


REFUSED: dict[str, tuple[Callable[[State], State], str]] = {
    "SDXL": (renamed("cond_stage_model.", "conditioner.embedders.0."), "SDXL"),
    "inpainting": (wide, "in_channels"),
    "no UNet": (without(UNET), "model.diffusion_model."),
    "no autoencoder": (without("first_stage_model."), "first_stage_model."),
    "no text encoder": (without("cond_stage_model."), "cond_stage_model."),
    "a part of the UNet": (without(f"{UNET}middle_block.2"), "lacks weights"),
    "more than a UNet": (
        renamed("cond_stage_model.transformer.text_model.final_layer_norm.bias", f"{UNET}more"),
        "",
    ),
    "a part of the text": (without("cond_stage_model.transformer.text_model.final"), "text_encoder"),
    "zero SNR": (lambda t: {**t, "ztsnr": t[f"{UNET}out.2.bias"].clone()}, "zero terminal SNR"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_files_are_refused_in_one_line(
    sd15: tuple[Path, Path, State], tmp_path: Path, name: str
) -> None:
    change, named = REFUSED[name]
    file = save(tmp_path / "other.safetensors", change(sd15[2]))
    answer = bench("run", "--suite", "micro", "--base", file, "--results", tmp_path / "results")
    (line,) = answer.stderr.strip().splitlines()
    assert answer.exit_code == 2 and line.startswith("error: ") and named in line, answer.output
    assert not (tmp_path / "results").exists()


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    import pickle

    for file, content in (("a.gguf", b"GGUF"), ("a.ckpt", pickle.dumps(Path("x"))), ("a.safetensors", b"x")):
        (tmp_path / file).write_bytes(content)
        answer = bench("base", "show", tmp_path / file)
        (line,) = answer.stderr.strip().splitlines()
        assert answer.exit_code == 2 and file in line
