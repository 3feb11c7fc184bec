"""Stable Diffusion 1.x and 2.x in one file of the original layout, as most checkpoints are shared.

What a file does not hold is known of its family: heads, groups of norms, noise levels, CLIP's tokenizer.
Widths, layers and prompts are read off its tensors. diffusers' own loader converts it, once, into a folder
in the cache; nothing is fetched, and of a pickle tensors alone are read.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.base.weights import open_tensors, read_tensors
from bench.content import (
    Cache,
    digest_json,
    read_json,
    read_small,
    sha256_file,
    write_json,
    written_by_libraries,
)
from bench.types import BenchError, raise_of_machine, some, unknown

SUFFIXES = (".safetensors", ".ckpt")
EMA = "ema"
_UNET, _VAE, _CLIP, _OPEN_CLIP = (
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.transformer.text_model.",
    "cond_stage_model.model.",
)
_HEAD = 64  # channels of a head, in CLIP and in the UNet of 2.x
_LAST_READ = 23  # of OpenCLIP's 24 layers: 2.x takes what the last but one gives
_MOST_YAML = 1_000_000
_EOS = "<|endoftext|>"
_NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
_OTHERS = {
    "conditioner.embedders.": "it is of the SDXL family (conditioner.embedders)",
    f"{_UNET}label_emb.": "its UNet takes a class or an image beside the text (label_emb)",
    "model.diffusion_model.joint_blocks.": "it is of the SD 3 family (joint_blocks)",
    "model.diffusion_model.double_blocks.": "it is of the Flux family (double_blocks)",
    "ztsnr": "it was trained at zero terminal SNR (ztsnr), where eps is not defined",
}

Shapes = Mapping[str, tuple[int, ...]]


def configs_of(file: Path) -> dict[str, dict[str, Any]]:
    """Return the configurations of a file's parts, by part and "index"; weights are not read.

    BenchError for a file of another kind, and one that does not say what it predicts.
    """
    shapes = _shapes(file)
    linear = len(_need(shapes, f"{_UNET}middle_block.1.proj_in.weight", file)) == 2
    prediction = _prediction(file, told=not linear)
    size = 768 if linear and prediction == "v_prediction" else 512
    return {
        "index": {
            "_class_name": "StableDiffusionPipeline",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
        },
        "unet": _unet(shapes, file, linear=linear) | {"sample_size": size // 8},
        "vae": _vae(shapes, file) | {"sample_size": size},
        "text_encoder": _text(shapes, file),
        "scheduler": {
            "_class_name": "DDIMScheduler",
            **_NOISE,
            "num_train_timesteps": 1000,
            "prediction_type": prediction,
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
        },
    }


def unpacked(file: Path, configs: Mapping[str, Mapping[str, Any]], *, variant: str | None = None) -> Path:
    """Return the folder of a file in diffusers' format, converted into the cache where it is not there.

    variant: "ema" for averaged weights where a file holds both. BenchError for a variant that it does not
    hold, and for weights that are missing, too many or of other shapes.
    """
    averaged = any(name.startswith("model_ema.") for name in _shapes(file))
    if variant is not None and not (averaged and variant == EMA):
        raise unknown("variant of the base", variant, [EMA] if averaged else ["none; leave it out"])
    key = {"file": sha256_file(file), "variant": variant, "configs": configs}
    folder = Cache().folder / "bases" / digest_json(key)[:16]
    if _is_whole(folder):
        return folder
    work = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        shutil.rmtree(work, ignore_errors=True)
        _write(file, work, configs, variant)
        shutil.rmtree(folder, ignore_errors=True)  # damaged
        work.replace(folder)
    except OSError:
        if not _is_whole(folder):  # else another process was faster
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def clip_tokenizer(*, pad: str = _EOS, length: int = 77) -> Any:
    """Return CLIP's tokenizer as a transformers CLIPTokenizer, of the vocabulary that open_clip ships."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    clip = SimpleTokenizer()
    ends = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": _EOS}
    vocabulary = {ends.get(token, token): number for token, number in clip.encoder.items()}
    return CLIPTokenizer(
        vocab=vocabulary, merges=list(clip.bpe_ranks), model_max_length=length, pad_token=pad, unk_token=_EOS
    )


def _is_whole(folder: Path) -> bool:
    if not (folder / "manifest.json").is_file():
        return False
    files = read_json(folder / "manifest.json", of=dict[str, Any])["files"]
    return all((folder / n).is_file() and sha256_file(folder / n) == digest for n, digest in files.items())


def _write(file: Path, folder: Path, configs: Mapping[str, Mapping[str, Any]], variant: str | None) -> None:
    import diffusers
    import torch

    for part, config in configs.items():
        name = {"index": "model_index.json", "scheduler": "scheduler/scheduler_config.json"}.get(part)
        write_json(folder / (name or f"{part}/config.json"), config)
    newer = configs["unet"]["use_linear_projection"]
    length = configs["text_encoder"]["max_position_embeddings"]
    with written_by_libraries(folder):
        clip_tokenizer(pad="!" if newer else _EOS, length=length).save_pretrained(folder / "tokenizer")
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    dtype = torch.float16 if _half(file) else torch.float32
    try:
        made = diffusers.StableDiffusionPipeline.from_single_file(
            str(file),
            config=str(folder),
            dtype=dtype,
            local_files_only=True,
            extract_ema=variant == EMA,
        )
    except Exception as error:  # the library raises many kinds
        raise_of_machine(error)
        lacking = isinstance(error, NotImplementedError)  # of moving what was never filled
        reason = "it lacks weights" if lacking else str(error).strip().splitlines()[0]
        raise _refused(file, reason) from error
    for part in ("unet", "vae", "text_encoder"):
        module = getattr(made, part)
        missing = [name for name, tensor in module.state_dict().items() if tensor.is_meta]
        if missing:
            raise _refused(file, f"it lacks weights of its {part}: {some(missing)}")
        with written_by_libraries(folder):
            word = {"variant": variant} if variant and part == "unet" else {}
            module.save_pretrained(folder / part, **word)
    held = sum(name.startswith(_UNET) for name in _shapes(file))
    if held != len(made.unet.state_dict()):
        raise _refused(file, f"its UNet has {held} tensors, {len(made.unet.state_dict())} are known")
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {path.relative_to(folder).as_posix(): sha256_file(path) for path in paths}
    write_json(folder / "manifest.json", {"made of": {file.name: sha256_file(file)}, "files": files})


def _tensors(file: Path) -> Mapping[str, Any]:
    """Map a file's tensors by name, slices or tensors; their contents are not read."""
    if file.suffix not in SUFFIXES:
        raise BenchError(
            f"--base {file}: a base in one file is {' or '.join(SUFFIXES)}, in the original layout of Stable "
            "Diffusion 1.x or 2.x. Give such a file, a diffusers folder, or org/name[@revision]."
        )
    return open_tensors(file) if file.suffix == ".safetensors" else read_tensors(file)


def _shapes(file: Path) -> Shapes:
    return {
        name: tuple(tensor.get_shape() if hasattr(tensor, "get_shape") else tensor.shape)
        for name, tensor in _tensors(file).items()
    }


def _half(file: Path) -> bool:
    """Whether all weights of the parts are float16."""
    kinds = {
        str(tensor.get_dtype() if hasattr(tensor, "get_dtype") else tensor.dtype)
        for name, tensor in _tensors(file).items()
        if name.startswith((_UNET, _VAE, "cond_stage_model.")) and not name.endswith("position_ids")
    }
    return kinds in ({"F16"}, {"torch.float16"})


def _refused(file: Path, reason: str) -> BenchError:
    return BenchError(
        f"{file} is no Stable Diffusion 1.x or 2.x in one file of the original layout that can be run: "
        f"{reason.rstrip('.')}. Give one, or a folder in diffusers' format."
    )


def _need(shapes: Shapes, name: str, file: Path) -> tuple[int, ...]:
    if name in shapes:
        return shapes[name]
    for mark, reason in _OTHERS.items():
        if any(other.startswith(mark) for other in shapes):
            raise _refused(file, reason)
    raise _refused(file, f"it has no {name}")


def _levels(shapes: Shapes, file: Path) -> Iterator[tuple[int, int, bool]]:
    """Give width, number of residual blocks and whether there is attention, of each level of the encoder."""
    width, blocks, attends = 0, 0, False
    number = 1
    while True:
        block = f"{_UNET}input_blocks.{number}."
        if f"{block}0.in_layers.2.weight" in shapes:
            width, blocks = shapes[f"{block}0.in_layers.2.weight"][0], blocks + 1
            attends = f"{block}1.norm.weight" in shapes
        else:
            yield width, blocks, attends
            if f"{block}0.op.weight" not in shapes:
                return
            blocks, attends = 0, False
        number += 1


def _unet(shapes: Shapes, file: Path, *, linear: bool) -> dict[str, Any]:
    for mark, reason in _OTHERS.items():
        if any(name.startswith(mark) for name in shapes):
            raise _refused(file, reason)
    inputs = _need(shapes, f"{_UNET}input_blocks.0.0.weight", file)[1]
    context = _need(shapes, f"{_UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight", file)[1]
    levels = list(_levels(shapes, file))
    widths = [width for width, _, _ in levels]
    return {
        "_class_name": "UNet2DConditionModel",
        "in_channels": inputs,
        "out_channels": _need(shapes, f"{_UNET}out.2.weight", file)[0],
        "block_out_channels": widths,
        "layers_per_block": levels[0][1],
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for _, _, a in levels],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for _, _, a in levels[::-1]],
        "cross_attention_dim": context,
        "attention_head_dim": [max(1, width // _HEAD) for width in widths] if linear else 8,
        "norm_num_groups": 32,
        "use_linear_projection": linear,
        "upcast_attention": linear,
    }


def _vae(shapes: Shapes, file: Path) -> dict[str, Any]:
    latents = _need(shapes, f"{_VAE}decoder.conv_in.weight", file)[1]
    inputs = _need(shapes, f"{_VAE}encoder.conv_in.weight", file)[1]
    conv = f"{_VAE}encoder.down.{{}}.block.{{}}.conv2.weight"
    widths: list[int] = []
    while (name := conv.format(len(widths), 0)) in shapes:
        widths.append(shapes[name][0])
    blocks = 0
    while conv.format(0, blocks) in shapes:
        blocks += 1
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": inputs,
        "out_channels": inputs,
        "block_out_channels": widths,
        "layers_per_block": blocks,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "latent_channels": latents,
        "norm_num_groups": 32,
        "scaling_factor": 0.18215,
    }


def _text(shapes: Shapes, file: Path) -> dict[str, Any]:
    """Read a text encoder off its tensors: OpenAI's CLIP in 1.x, OpenCLIP in 2.x."""
    newer = f"{_OPEN_CLIP}token_embedding.weight" in shapes
    if newer:
        tokens, place = f"{_OPEN_CLIP}token_embedding.weight", f"{_OPEN_CLIP}positional_embedding"
        layer, inner = f"{_OPEN_CLIP}transformer.resblocks.{{}}.", "mlp.c_fc.weight"
    else:
        tokens = f"{_CLIP}embeddings.token_embedding.weight"
        place = f"{_CLIP}embeddings.position_embedding.weight"
        layer, inner = f"{_CLIP}encoder.layers.{{}}.", "mlp.fc1.weight"
    vocabulary, width = _need(shapes, tokens, file)
    layers = 0
    while f"{layer.format(layers)}{inner}" in shapes:
        layers += 1
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": _need(shapes, f"{layer.format(0)}{inner}", file)[0],
        "num_hidden_layers": min(layers, _LAST_READ) if newer else layers,
        "num_attention_heads": max(1, width // _HEAD),
        "max_position_embeddings": _need(shapes, place, file)[0],
        "hidden_act": "gelu" if newer else "quick_gelu",
        "projection_dim": width,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": 0 if newer else vocabulary - 1,
    }


def _prediction(file: Path, *, told: bool) -> str:
    """Return what the UNet predicts, by the original configuration beside the file; told: 1.x need none."""
    import yaml

    beside = file.with_suffix(".yaml")
    if not beside.is_file():
        if told:
            return "epsilon"
        raise BenchError(
            f"{file} is a Stable Diffusion 2.x, which does not say whether it predicts eps or v. Put its "
            f"original configuration beside it as {beside.name} (v2-inference.yaml, v2-inference-v.yaml)."
        )
    try:
        held = yaml.safe_load(read_small(beside, most_bytes=_MOST_YAML))
        kind = held["model"]["params"].get("parameterization", "eps")
        return {"eps": "epsilon", "v": "v_prediction"}[kind]
    except (yaml.YAMLError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise BenchError(
            f"{beside} is no original configuration of a Stable Diffusion: model.params.parameterization is "
            "eps or v. Restore it."
        ) from error
