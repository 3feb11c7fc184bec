"""Stable Diffusion 1.x and 2.x in one file of the original layout, as most checkpoints are shared.

What a file does not hold is known of its family: heads, groups of norms, noise levels, CLIP's tokenizer.
Widths and prompts are read off its tensors. diffusers' own loader converts it, once, into a folder in the
cache; nothing is fetched, and of a pickle tensors alone are read.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bench import content
from bench.base import EOS, HEAD, NOISE, SD, index_of, quiet, text_config, unet_config, vae_config
from bench.base.weights import open_tensors, read_tensors
from bench.content import Cache, digest_json, read_json, read_small, refusing, sha256_file, write_json
from bench.types import BenchError, some, unknown

SUFFIXES = (".safetensors", ".ckpt")
EMA = "ema"
_UNET, _VAE, _CLIP, _OPEN_CLIP = (
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.transformer.text_model.",
    "cond_stage_model.model.",
)
_CLASSES = ("UNet2DConditionModel", "AutoencoderKL", "CLIPTextModel", "CLIPTokenizer", "DDIMScheduler")
_LAST_READ = 23  # of OpenCLIP's 24 layers: 2.x takes what the last but one gives
_MOST_YAML = 1_000_000
_OTHERS = {
    "conditioner.embedders.": "it is of the SDXL family (conditioner.embedders)",
    f"{_UNET}label_emb.": "its UNet takes a class or an image beside the text (label_emb)",
    f"{_UNET}joint_blocks.": "it is of the SD 3 family (joint_blocks)",
    f"{_UNET}double_blocks.": "it is of the Flux family (double_blocks)",
    "ztsnr": "it was trained at zero terminal SNR (ztsnr), where eps is not defined",
}


class Shapes(dict[str, tuple[int, ...]]):
    """The shapes of a file's tensors by name; one lacking is refused. half: whether weights are float16."""

    def __init__(self, file: Path) -> None:
        tensors = _tensors(file)
        shapes = (t.get_shape() if hasattr(t, "get_shape") else t.shape for t in tensors.values())
        super().__init__(zip(tensors, map(tuple, shapes), strict=True))
        parts = (_UNET, _VAE, "cond_stage_model.")
        weights = [t for n, t in tensors.items() if n.startswith(parts) and not n.endswith("position_ids")]
        kinds = {str(t.get_dtype() if hasattr(t, "get_dtype") else t.dtype) for t in weights}
        self.file, self.half = file, kinds in ({"F16"}, {"torch.float16"})

    def __missing__(self, name: str) -> tuple[int, ...]:
        raise BenchError(_refusal(self.file, f"it has no {name}"))

    def count(self, name: str) -> int:
        """Return how many names there are with 0, 1, ... in the place of {}."""
        return next(n for n in itertools.count() if name.format(n) not in self)


def configs_of(file: Path) -> dict[str, dict[str, Any]]:
    """Return the configurations of a file's parts and "index", weights unread; BenchError for others."""
    shapes = Shapes(file)
    for mark, reason in _OTHERS.items():
        if any(name.startswith(mark) for name in shapes):
            raise BenchError(_refusal(file, reason))
    linear = len(shapes[f"{_UNET}middle_block.1.proj_in.weight"]) == 2
    prediction = _prediction(file, told=not linear)
    size = 768 if linear and prediction == "v_prediction" else 512
    return {
        "index": index_of(SD, _CLASSES),
        "unet": _unet(shapes, linear=linear) | {"sample_size": size // 8},
        "vae": _vae(shapes) | {"sample_size": size},
        "text_encoder": _text(shapes),
        "scheduler": {
            "_class_name": "DDIMScheduler",
            **NOISE,
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
    shapes = Shapes(file)
    averaged = any(name.startswith("model_ema.") for name in shapes)
    if variant is not None and not (averaged and variant == EMA):
        raise unknown("variant of the base", variant, [EMA] if averaged else ["none; leave it out"])
    key = {"file": sha256_file(file), "variant": variant, "configs": configs}
    folder = Cache().folder / "bases" / digest_json(key)[:16]
    if _is_whole(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as work:
            _write(shapes, Path(work) / "base", configs, variant)
            shutil.rmtree(folder, ignore_errors=True)  # damaged
            (Path(work) / "base").replace(folder)
    except OSError as error:
        if not _is_whole(folder):  # else another process was faster
            raise content.unwritable(folder, error) from error
    return folder


def clip_tokenizer(*, pad: str = EOS, length: int = 77) -> Any:
    """Return CLIP's tokenizer as a transformers CLIPTokenizer, of the vocabulary that open_clip ships."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    clip = SimpleTokenizer()
    ends = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": EOS}
    vocabulary = {ends.get(token, token): number for token, number in clip.encoder.items()}
    how = {"model_max_length": length, "pad_token": pad, "unk_token": EOS}
    return CLIPTokenizer(vocab=vocabulary, merges=list(clip.bpe_ranks), **how)


def _is_whole(folder: Path) -> bool:
    if not (folder / "manifest.json").is_file():
        return False
    files = read_json(folder / "manifest.json", of=dict[str, Any])["files"]
    return all((folder / n).is_file() and sha256_file(folder / n) == digest for n, digest in files.items())


def _write(
    shapes: Shapes, folder: Path, configs: Mapping[str, Mapping[str, Any]], variant: str | None
) -> None:
    """Convert a file into a folder, with a manifest of what it was made of and holds."""
    import diffusers
    import torch

    file = shapes.file
    for part, config in configs.items():
        name = {"index": "model_index.json", "scheduler": "scheduler/scheduler_config.json"}.get(part)
        write_json(folder / (name or f"{part}/config.json"), config)
    newer = configs["unet"]["use_linear_projection"]
    length = configs["text_encoder"]["max_position_embeddings"]
    with content.written_by_libraries(folder):
        clip_tokenizer(pad="!" if newer else EOS, length=length).save_pretrained(folder / "tokenizer")
    quiet()
    lacking = "it lacks weights"  # what was never filled lies on the meta device
    with refusing(lambda why: _refusal(file, lacking if "meta tensor" in why else why)):
        made = diffusers.StableDiffusionPipeline.from_single_file(
            str(file),
            config=str(folder),
            dtype=torch.float16 if shapes.half else torch.float32,
            local_files_only=True,
            extract_ema=variant == EMA,
        )
    for part in ("unet", "vae", "text_encoder"):
        module = getattr(made, part)
        missing = [name for name, tensor in module.state_dict().items() if tensor.is_meta]
        if missing:
            raise BenchError(_refusal(file, f"it lacks weights of its {part}: {some(missing)}"))
        with content.written_by_libraries(folder):
            module.save_pretrained(folder / part, variant=variant if part == "unet" else None)
    held, known = sum(name.startswith(_UNET) for name in shapes), len(made.unet.state_dict())
    if held != known:
        raise BenchError(_refusal(file, f"its UNet has {held} tensors, {known} are known"))
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {path.relative_to(folder).as_posix(): sha256_file(path) for path in paths}
    write_json(folder / "manifest.json", {"made of": {file.name: sha256_file(file)}, "files": files})


def _tensors(file: Path) -> Mapping[str, Any]:
    """Map a file's tensors by name, slices or tensors; their contents are not read."""
    if file.suffix not in SUFFIXES:
        allowed = f"one of the original layout of Stable Diffusion 1.x or 2.x, {' or '.join(SUFFIXES)}"
        raise BenchError(f"--base {file}: give {allowed}, a diffusers folder, or org/name[@revision].")
    return open_tensors(file) if file.suffix == ".safetensors" else read_tensors(file)


def _refusal(file: Path, reason: str) -> str:
    allowed = "Stable Diffusion 1.x or 2.x in one file of the original layout"
    why = reason.rstrip(".")
    return f"{file} is no {allowed} that can be run: {why}. Give one, or a folder in diffusers' format."


def _unet(shapes: Shapes, *, linear: bool) -> dict[str, Any]:
    """Read a UNet off its tensors: levels of two blocks and a downsampler each."""
    blocks = [f"{_UNET}input_blocks.{number}." for number in range(1, 100, 3)]
    levels = [block for block in blocks if f"{block}0.in_layers.2.weight" in shapes]
    widths = [shapes[f"{block}0.in_layers.2.weight"][0] for block in levels]
    return unet_config(
        widths,
        [f"{block}1.norm.weight" in shapes for block in levels],
        in_channels=shapes[f"{_UNET}input_blocks.0.0.weight"][1],
        out_channels=shapes[f"{_UNET}out.2.weight"][0],
        cross_attention_dim=shapes[f"{_UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1],
        attention_head_dim=[max(1, width // HEAD) for width in widths] if linear else 8,
        norm_num_groups=32,
        use_linear_projection=linear,
        upcast_attention=linear,
    )


def _vae(shapes: Shapes) -> dict[str, Any]:
    inputs = shapes[f"{_VAE}encoder.conv_in.weight"][1]
    conv = f"{_VAE}encoder.down.{{}}.block.0.conv2.weight"
    return vae_config(
        [shapes[conv.format(level)][0] for level in range(shapes.count(conv))],
        in_channels=inputs,
        out_channels=inputs,
        latent_channels=shapes[f"{_VAE}decoder.conv_in.weight"][1],
        norm_num_groups=32,
        scaling_factor=0.18215,
    )


def _text(shapes: Shapes) -> dict[str, Any]:
    """Read a text encoder off its tensors: OpenAI's CLIP in 1.x, OpenCLIP in 2.x."""
    newer = f"{_OPEN_CLIP}token_embedding.weight" in shapes
    if newer:
        tokens, place = f"{_OPEN_CLIP}token_embedding.weight", f"{_OPEN_CLIP}positional_embedding"
        inner = f"{_OPEN_CLIP}transformer.resblocks.{{}}.mlp.c_fc.weight"
    else:
        tokens = f"{_CLIP}embeddings.token_embedding.weight"
        place = f"{_CLIP}embeddings.position_embedding.weight"
        inner = f"{_CLIP}encoder.layers.{{}}.mlp.fc1.weight"
    vocabulary, width = shapes[tokens]
    return text_config(
        width,
        architectures=["CLIPTextModel"],
        model_type="clip_text_model",
        vocab_size=vocabulary,
        num_hidden_layers=min(shapes.count(inner), _LAST_READ if newer else 1000),
        max_position_embeddings=shapes[place][0],
        hidden_act="gelu" if newer else "quick_gelu",
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=0 if newer else vocabulary - 1,
    )


def _prediction(file: Path, *, told: bool) -> str:
    """Return what the UNet predicts, by the original configuration beside the file; told: 1.x need none."""
    beside = file.with_suffix(".yaml")
    if not beside.is_file():
        if told:
            return "epsilon"
        remedy = f"Put its original configuration beside it as {beside.name} (v2-inference.yaml or -v.yaml)."
        raise BenchError(
            f"{file} is a Stable Diffusion 2.x that does not say whether it predicts eps or v. {remedy}"
        )
    asked = "model.params.parameterization is eps or v. Restore it."
    with refusing(lambda _: f"{beside} is no original configuration of a Stable Diffusion: {asked}"):
        held = yaml.safe_load(read_small(beside, most_bytes=_MOST_YAML))
        kind = held["model"]["params"].get("parameterization", "eps")
        return {"eps": "epsilon", "v": "v_prediction"}[kind]
