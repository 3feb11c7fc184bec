"""Where a base lies, which of its files are read, and whether it is one that can be run.

It must be of a family in bench.base: CLIP text encoders, a UNet that reads four latent channels, a
timestep and text (SDXL's: sizes too), an autoencoder whose latents are only scaled, and a schedule of DDPM's
kind that predicts eps or v. Anything else would load, or nearly, and give numbers that mean nothing, so what
is unknown is refused.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from bench.base import LATENT_CHANNELS, SD, SDXL, Shape, family_of, vae_widths
from bench.base.single import SUFFIXES, configs_of, unpacked
from bench.base.weights import open_tensors
from bench.content import digest_json, read_json, sha256_file
from bench.types import BenchError, unknown

INDEX = "model_index.json"
MANIFEST = "manifest.json"  # digests of files, a licence: beside the parts
SIZES = 6  # numbers that tell SDXL's UNet of sizes: the original's, of the corner cut, the target's
_REMEDY = f"Give a whole {SD.name}, or a whole base of {SDXL.name} (no refiner, no inpainting)."
_READ = {".json", ".txt", ".safetensors", ".bin", ".model"}  # what the libraries load
_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?")
_WEIGHTS = (".safetensors", ".bin")
_STEMS = {"diffusion_pytorch_model", "pytorch_model", "model"}  # of files of weights
# Parts that model_index.json may name: not read, or held by an export with its base.
_NO_SAY = {"safety_checker", "feature_extractor", "image_encoder", "adapter", "controlnet"}


# What a value in a configuration may be, in words and as a test. Nothing that is counted is larger: such a
# number is damage, and would never end.
Kind = tuple[str, Callable[[Any], bool]]
_COUNT: Kind = ("a whole number from 1 to 100,000", lambda v: type(v) is int and 1 <= v <= 100_000)
_COUNTS: Kind = (
    "a list of whole numbers from 1 to 100,000",
    lambda v: isinstance(v, list) and v != [] and all(map(_COUNT[1], v)),
)
_BETA: Kind = ("a number between 0 and 1", lambda v: type(v) is float and 0 < v < 1)
_SCALE: Kind = ("a positive number", lambda v: type(v) in (int, float) and 0 < v < math.inf)


def _blocks(side: str) -> Kind:
    names = (f"CrossAttn{side}Block2D", f"{side}Block2D")
    return (
        f"a list of {' and '.join(names)}",
        lambda v: isinstance(v, list) and all(name in names for name in v),
    )


_SCHEDULERS = """DDIMScheduler DDPMScheduler PNDMScheduler LMSDiscreteScheduler EulerDiscreteScheduler
    EulerAncestralDiscreteScheduler HeunDiscreteScheduler KDPM2DiscreteScheduler DEISMultistepScheduler
    KDPM2AncestralDiscreteScheduler DPMSolverMultistepScheduler DPMSolverSinglestepScheduler
    DPMSolverSDEScheduler UniPCMultistepScheduler""".split()
_PIPELINES = ("", "ControlNet", "ControlNetXS", "Adapter", "BPS")
_TOKENIZERS = [["transformers", "CLIPTokenizer"], ["transformers", "CLIPTokenizerFast"]]
# Part -> name -> values or kinds that are allowed; a name with ? may be absent. Others have no say.
_ALLOWED: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "index": {
        "_class_name": [f"{SD.pipeline}{kind}Pipeline" for kind in (*_PIPELINES, "Img2Img")],
        "unet": [["diffusers", "UNet2DConditionModel"]],
        "vae": [["diffusers", "AutoencoderKL"], ["diffusers", "AutoencoderTiny"]],
        "text_encoder": [["transformers", "CLIPTextModel"]],
        "tokenizer": _TOKENIZERS,
        "scheduler": [["diffusers", name] for name in _SCHEDULERS],
    },
    "unet": {
        "_class_name?": ["UNet2DConditionModel"],
        **dict.fromkeys(("sample_size", "cross_attention_dim", "layers_per_block?"), [_COUNT]),
        "block_out_channels": [_COUNTS],
        "attention_head_dim?": [_COUNT, _COUNTS],
        "num_attention_heads?": [None, _COUNT, _COUNTS],
        "down_block_types": [_blocks("Down")],
        "up_block_types": [_blocks("Up")],
        "mid_block_type?": [None, "UNetMidBlock2DCrossAttn"],
        "use_linear_projection?": [False, True],
        **dict.fromkeys(("in_channels?", "out_channels?"), [LATENT_CHANNELS]),
        **dict.fromkeys(("center_input_sample?", "dual_cross_attention?"), [False]),
        **dict.fromkeys(("class_embed_type?", "num_class_embeds?", "addition_embed_type?"), [None]),
        **dict.fromkeys(("encoder_hid_dim?", "encoder_hid_dim_type?", "time_cond_proj_dim?"), [None]),
        "time_embedding_type?": ["positional"],
        "attention_type?": ["default"],
    },
    "vae": {
        "_class_name": ["AutoencoderKL", "AutoencoderTiny"],
        **dict.fromkeys(("block_out_channels?", "encoder_block_out_channels?"), [_COUNTS]),
        **dict.fromkeys(("in_channels?", "out_channels?"), [3]),
        "latent_channels?": [LATENT_CHANNELS],
        "scaling_factor?": [_SCALE],
        "shift_factor?": [None, 0],
        **dict.fromkeys(("latents_mean?", "latents_std?"), [None]),
    },
    "text_encoder": {
        "model_type?": ["clip_text_model"],
        **dict.fromkeys(("hidden_size", "num_hidden_layers", "vocab_size"), [_COUNT]),
        "max_position_embeddings": [_COUNT],
    },
    # The noise levels must follow from these alone: training and sampling read nothing else.
    "scheduler": {
        "_class_name": _SCHEDULERS,
        "prediction_type?": ["epsilon", "v_prediction"],
        "beta_schedule": ["linear", "scaled_linear", "squaredcos_cap_v2"],
        **dict.fromkeys(("beta_start", "beta_end"), [_BETA]),
        "num_train_timesteps": [_COUNT],
        "timestep_spacing?": ["leading", "trailing", "linspace"],
        "trained_betas?": [None],
        "rescale_betas_zero_snr?": [False],  # alpha = 0 has no eps and an infinite loss weight
        "use_flow_sigmas?": [None, False],
    },
}
# What SDXL has besides, or otherwise.
_XL_ALLOWED: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "index": {
        # not Img2Img: that is the refiner's
        "_class_name": [f"{SDXL.pipeline}{kind}Pipeline" for kind in _PIPELINES],
        "text_encoder_2": [["transformers", "CLIPTextModelWithProjection"]],
        "tokenizer_2": _TOKENIZERS,
        "force_zeros_for_empty_prompt?": [False, True],
    },
    "unet": {
        "addition_embed_type?": ["text_time"],
        "transformer_layers_per_block?": [_COUNT, _COUNTS],
        "reverse_transformer_layers_per_block?": [None],
        **dict.fromkeys(("addition_time_embed_dim", "projection_class_embeddings_input_dim"), [_COUNT]),
    },
    "text_encoder_2": {**_ALLOWED["text_encoder"], "projection_dim": [_COUNT]},
}


@dataclass(frozen=True, kw_only=True)
class Snapshot(Shape):
    """A base on disk and exactly the files of it that are read.

    name: the folder's, or org/name@commit. files: path below the folder -> SHA-256. variants: part ->
    the word in the names of its weights, such as "non_ema" or "fp16"; None for the plain ones. configs: of
    model_index.json, as "index", too. source: where a single file was unpacked, its name -> SHA-256.
    """

    folder: Path
    files: Mapping[str, str] = field(default_factory=dict)
    variants: Mapping[str, str | None] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)

    @property
    def zero_empty(self) -> bool:
        """Whether its pipeline encodes the empty prompt as zeros, as SDXL was trained."""
        said = self.configs.get("index", {}).get("force_zeros_for_empty_prompt", True)
        return bool(self.family.pooled and said)

    @property
    def digest(self) -> str:
        """One SHA-256 over all files that are read; of a single file over it and how it is read."""
        if self.source:
            read = {"configs": self.configs, "variants": self.variants}
            return digest_json({"file": list(self.source.values()), **read})
        return digest_json(dict(self.files))

    @property
    def parts(self) -> dict[str, str]:
        """A SHA-256 of each part: over the files of its folder."""
        return {
            part: digest_json({n: d for n, d in self.files.items() if n.startswith(f"{part}/")})
            for part in self.family.parts
        }

    @property
    def weights(self) -> dict[str, str]:
        """The files of weights -> SHA-256, to be held against published ones."""
        return dict(self.source) or {n: self.files[n] for n in self.weight_files()}

    def weight_files(self, part: str = "") -> list[str]:
        """Return which of the files (of a part) are weights."""
        return [n for n in self.files if n.startswith(f"{part}/" if part else "") and n.endswith(_WEIGHTS)]


def find_snapshot(place: str | Path, *, variant: str | None = None) -> Snapshot:
    """Find a base: a diffusers folder, a single file, or a hub id `org/name` or `org/name@revision`.

    A single file is one of the original layout, see bench.base.single. A hub id is fetched into the hub's
    own cache if it is not there and the hub may be asked (HF_HUB_OFFLINE is honoured). variant: which
    weights to take where a part has them; other parts keep their plain ones. What the base says that it
    is, and a manifest.json with digests beside the parts, are checked. Raises BenchError for a place that
    is no base or one that cannot be run, a part or variant that is missing and a file that does not match.
    """
    folder, name, source = Path(place), Path(place).name, dict[str, str]()
    configs: dict[str, dict[str, Any]] = {}
    if folder.is_file():
        source, configs = {name: sha256_file(folder)}, read_configs(folder)
        folder = unpacked(folder, configs, variant=variant)
    elif not folder.exists() and folder.suffix in SUFFIXES:
        raise BenchError(f"there is no file {place}. Give another, a folder or a hub id with --base.")
    elif not folder.exists() and _HUB.fullmatch(str(place)):
        folder = fetch(str(place), variant=variant)
        name = f"{str(place).partition('@')[0]}@{folder.name}"
    if not (folder / INDEX).is_file():
        allowed = "a folder in diffusers' format, a .safetensors or .ckpt, or a hub id org/name[@revision]"
        raise BenchError(f"there is no base model in {folder} (no {INDEX}). Give {allowed}, with --base.")
    family = family_of(configs["index"] if source else _read(folder / INDEX))
    absent = [part for part in family.parts if not (folder / part).is_dir()]
    if absent:
        raise BenchError(f"{folder} is not a Stable Diffusion folder: {', '.join(absent)} missing. {_REMEDY}")
    configs = configs if source else read_configs(folder)
    below = [p for part in family.parts for p in sorted((folder / part).glob("**/*")) if p.is_file()]
    chosen = choose_files((p.relative_to(folder).as_posix() for p in below), variant=variant)
    files = {n: sha256_file(folder / n) for n in (*chosen, INDEX)}
    _check_manifest(folder, files)
    words = {n.split("/")[0]: _named(n)[1] for n in chosen if _named(n)[0]}
    variants = {part: words.get(part) for part in family.weighted}
    return Snapshot(name=name, folder=folder, files=files, variants=variants, configs=configs, source=source)


def read_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the configurations of a base, a folder or single file, by part and "index".

    Weights are not touched and need not be in a folder. BenchError for a configuration that is missing or
    damaged, lacks a value, or says that the base is none that can be run.
    """
    if folder.is_file():
        configs, where = configs_of(folder), {}
    else:
        configs, where = {"index": _read(folder / INDEX)}, {"index": folder / INDEX}
    family = family_of(configs["index"])
    more = _XL_ALLOWED if family is SDXL else {}
    for part in ("index", *family.weighted, "scheduler"):
        if part not in configs:
            where[part] = folder / part / f"{'scheduler_' if part == 'scheduler' else ''}config.json"
            configs[part] = _read(where[part])
        for reason in _refusals(configs[part], {**_ALLOWED.get(part, {}), **more.get(part, {})}):
            raise BenchError(f"{where.get(part, folder)}: {reason}. {_REMEDY}")
    for reason in _conflicts(**configs):
        raise BenchError(f"{folder} is no base that can be run: {reason}. {_REMEDY}")
    return configs


def _read(path: Path) -> Any:
    return read_json(path, loose=True, remedy=_REMEDY)


def _refusals(config: Any, rules: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """Yield what is wrong with a configuration by itself."""
    if not isinstance(config, dict):
        yield "it holds no object"
        return
    for rule, allowed in rules.items():
        name = rule.removesuffix("?")
        if name not in config:
            if name == rule:
                yield f"'{name}' is missing"
        elif not any(a[1](config[name]) if isinstance(a, tuple) else a == config[name] for a in allowed):
            words = " or ".join(a[0] if isinstance(a, tuple) else ascii(a) for a in allowed)
            yield f"'{name}' must be {words}, got {ascii(config[name])[:60]}"


def _conflicts(*, index: Any, unet: Any, vae: Any, scheduler: Any, **encoders: Any) -> Iterator[str]:
    """Yield where values that are allowed by themselves do not fit each other."""
    family = family_of(index)
    known = {*_NO_SAY, *family.parts}
    odd = sorted({n for n, value in index.items() if isinstance(value, list) and any(value)} - known)
    if odd:
        yield f"{INDEX} names a part that is not known, {', '.join(map(repr, odd))}"
    width, hidden = unet["cross_attention_dim"], sum(text["hidden_size"] for text in encoders.values())
    if width != hidden:
        yield f"its UNet reads text of width {width} (cross_attention_dim), its text encoder gives {hidden}"
    pooled, given = pooled_width(unet), list(encoders.values())[-1].get("projection_dim")
    if family.pooled and pooled != given:
        yield f"its UNet reads a pooled text of width {pooled}, its second text encoder gives {given}"
    levels = len(unet["block_out_channels"])
    for name in ("down_block_types", "up_block_types"):
        if len(unet[name]) != levels:
            yield f"unet/config.json has {len(unet[name])} {name} and {levels} block_out_channels"
    if not vae_widths(vae):
        yield "vae/config.json lacks block_out_channels"
    if vae["_class_name"] != index["vae"][1]:
        yield f"vae/config.json is of a {vae['_class_name']}, {INDEX} names {index['vae'][1]}"
    if scheduler["beta_start"] > scheduler["beta_end"]:
        yield "beta_start of its schedule is above beta_end"


def pooled_width(unet: Mapping[str, Any]) -> int:
    """Return the width of the pooled text that a UNet reads, by its configuration; 0 where it reads none."""
    if unet.get("addition_embed_type") != "text_time":
        return 0
    return int(unet["projection_class_embeddings_input_dim"] - SIZES * unet["addition_time_embed_dim"])


def choose_files(names: Iterable[str], *, variant: str | None = None) -> list[str]:
    """Return which of a base's files are read: of each part's weights one variant in one format.

    names: paths below the base, "unet/config.json". Weights of the variant are taken where a part has
    them, else the plain ones; safetensors before pickles. Raises BenchError where no part has the
    variant, or a part has other variants only.
    """
    read = [n for n in names if PurePosixPath(n).suffix in _READ and n.split("/")[0] in SDXL.parts]
    kinds = {name: _named(name) for name in read}
    offered = {word for _, word in kinds.values() if word}
    if variant is not None and variant not in offered:
        raise unknown("variant of the base", variant, offered or ["none; leave --base-variant out"])
    chosen: list[str] = []
    for part in SDXL.parts:  # all that any family has
        files = [n for n in read if n.startswith(f"{part}/")]
        held = {kinds[n] for n in files if kinds[n][0]} if part in SDXL.weighted else set()
        wanted = ((kind, word) for word in (variant, None) for kind in ("safetensors", "bin"))
        best = next((one for one in wanted if one in held), None)
        if held and best is None:
            words = ", ".join(sorted({str(word) for _, word in held}))
            raise BenchError(f"{part}/ has weights of variants {words} alone. Choose with --base-variant.")
        if part in SDXL.weighted:
            others = (n for n in files if not kinds[n][0] and not n.endswith(_WEIGHTS))
            files = sorted([*others, *(n for n in files if kinds[n] == best)])
        chosen += files
    return chosen


def _named(name: str) -> tuple[str, str | None]:
    """Return format and variant of a file of weights or its index, ("bin", "fp16"); ("", None) for others."""
    stem, *words = re.split(r"\.|-\d{5}-of-\d{5}", name.partition("/")[2])
    kind = next((word for word in words if word in ("safetensors", "bin")), "")
    if stem not in _STEMS or not kind:
        return "", None
    return kind, ".".join(w for w in words if w not in ("", kind, "index", "json")) or None


def fetch(place: str, *, variant: str | None = None) -> Path:
    """Return a hub id's folder in the hub's cache, what is read fetched; BenchError if not to be had."""
    from huggingface_hub import HfApi, is_offline_mode, snapshot_download

    name, _, revision = place.partition("@")
    asked: dict[str, Any] = {"repo_id": name, "revision": revision or None}
    try:
        if is_offline_mode():
            return Path(snapshot_download(local_files_only=True, **asked))
        listed = HfApi().model_info(**asked, timeout=10).siblings or []
        files = [*choose_files((f.rfilename for f in listed), variant=variant), INDEX]
        return Path(snapshot_download(allow_patterns=files, **asked))
    except BenchError:
        raise
    except Exception as error:  # the hub's client raises many kinds: not found, gated, no network
        with contextlib.suppress(Exception):  # what was fetched earlier serves without a network
            return Path(snapshot_download(local_files_only=True, **asked))
        state = " while HF_HUB_OFFLINE is set" if is_offline_mode() else ""
        why = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        fetching = f"hf download {name}{f' --revision {revision}' if revision else ''}"
        raise BenchError(
            f"the base {place} is no folder here and cannot be had from the hub{state} ({why}). Give a "
            f"folder in diffusers' format with --base, or fetch it where there is a network: {fetching}"
        ) from error


def _check_manifest(folder: Path, files: Mapping[str, str]) -> None:
    if not (folder / MANIFEST).exists():
        return
    manifest = read_json(folder / MANIFEST)
    promised = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(promised, dict):
        raise BenchError(f"{folder / MANIFEST} lists no files: the base is damaged. Restore it.")
    wrong = next((name for name, digest in promised.items() if files.get(name) != digest), None)
    if wrong is not None:
        state = "does not match its SHA-256" if wrong in files else "is missing"
        remedy = "the base is damaged. Restore the file (git checkout) or install again."
        raise BenchError(f"{folder / wrong} {state} in {MANIFEST}: {remedy}")


def describe(snapshot: Snapshot) -> dict[str, Any]:
    """Return what a base is, from its configurations and the headers of its weights; loads no weights.

    parameters: floating-point scalars by part, None where weights are pickles. "unet weights": whether
    they are an average over training, as far as their file or configuration tells.
    """
    unet = snapshot.configs["unet"]
    counts: dict[str, int | None] = dict.fromkeys(snapshot.family.weighted)
    kinds: dict[str, str | None] = dict.fromkeys(snapshot.family.weighted)
    for part in snapshot.family.weighted:
        files = [snapshot.folder / n for n in snapshot.weight_files(part)]
        if all(file.suffix == ".safetensors" for file in files):
            slices = [s for file in files for s in open_tensors(file, framework="numpy").values()]
            floating = [s for s in slices if "F" in s.get_dtype()]
            counts[part] = sum(math.prod(s.get_shape()) for s in floating)
            kinds[part] = "+".join(sorted({s.get_dtype() for s in floating}))
    variant = snapshot.variants["unet"] or ""
    average = "EMA or not is not said; compare the SHA-256 with the publisher's"
    if "non_ema" in variant:
        average = "not averaged (non-EMA), by the file's name"
    elif "ema" in variant.split("_") or {"decay", "optimization_step"} <= set(unet):  # of diffusers' EMAModel
        average = "averaged (EMA)"
    return {
        "name": snapshot.name,
        "family": snapshot.family.name,
        "digest": snapshot.digest,
        "prediction": snapshot.configs["scheduler"].get("prediction_type", "epsilon"),
        "downscale": snapshot.downscale,
        "size": snapshot.size,
        "widths": list(unet["block_out_channels"]),
        "heads": unet.get("num_attention_heads") or unet.get("attention_head_dim", 8),
        "linear projection": unet.get("use_linear_projection", False),
        "text width": snapshot.text_shape[1],
        "text layers": sum(snapshot.configs[p]["num_hidden_layers"] for p in snapshot.family.encoders),
        "unet weights": average,
        "variants": {p: v or "plain" for p, v in snapshot.variants.items()},
        "parameters": counts,
        "dtype": kinds,
        "parts": snapshot.parts,
        "weights": snapshot.weights,
    }
