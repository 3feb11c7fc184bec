"""Where a base lies and which of its files are read: a folder, or a repository in the hub's cache."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bench.base.rules import INDEX, downscale_of, read_configs
from bench.content import digest_json, read_json, sha256_file
from bench.tensors import open_tensors
from bench.types import BenchError, unknown

MANIFEST = "manifest.json"
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
WEIGHTED = ("unet", "vae", "text_encoder")
_READ = {".json", ".txt", ".safetensors", ".bin", ".model"}  # what the libraries load
_HUB = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)"
    r"(?:\.(?P<variant>[A-Za-z]\w*))?(?:-\d{5}-of-\d{5})?(?:\.(?P<last>[A-Za-z]\w*))?"
    r"\.(?P<kind>safetensors|bin)"
)
_INDEX_OF = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)\.(?P<kind>safetensors|bin)\.index"
    r"(?:\.(?P<variant>[A-Za-z]\w*))?\.json"
)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A base on disk and exactly the files of it that are read.

    name: the folder's, or org/name@commit. files: path below the folder -> SHA-256. variants: part ->
    the word in the names of its weights, such as "non_ema" or "fp16"; None for the plain ones. configs:
    see bench.base.rules.
    """

    name: str
    folder: Path
    files: Mapping[str, str]
    variants: Mapping[str, str | None]
    configs: Mapping[str, Mapping[str, Any]]

    @property
    def digest(self) -> str:
        """One SHA-256 over all files that are read."""
        return digest_json(dict(self.files))

    @property
    def parts(self) -> dict[str, str]:
        """A SHA-256 of each part: over the files of its folder."""
        return {
            part: digest_json({n: d for n, d in self.files.items() if n.startswith(f"{part}/")})
            for part in PARTS
        }

    @property
    def weights(self) -> dict[str, str]:
        """The files of weights -> SHA-256, to be held against published ones."""
        kinds = (".safetensors", ".bin")
        return {n: d for n, d in self.files.items() if n.endswith(kinds)}


def find_snapshot(place: str | Path, *, variant: str | None = None) -> Snapshot:
    """Find a base: a diffusers folder, or a hub id `org/name` or `org/name@revision`.

    A hub id is fetched into the hub's own cache if it is not there and the hub may be asked
    (HF_HUB_OFFLINE is honoured). variant: which weights to take where a part has them; other parts
    keep their plain ones. What the base says that it is, and a manifest.json with digests beside the
    parts, are checked. Raises BenchError for a place that is no base or one that cannot be run, a part
    or variant that is missing and a file that does not match.
    """
    folder, name = Path(place), Path(place).name
    if not folder.exists() and _HUB.fullmatch(str(place)):
        folder = fetch(str(place), variant=variant)
        name = f"{str(place).partition('@')[0]}@{folder.name}"
    _check_parts(folder)
    configs = read_configs(folder)
    found = [p for part in PARTS for p in sorted((folder / part).glob("**/*")) if p.is_file()]
    chosen = choose_files((p.relative_to(folder).as_posix() for p in found), variant=variant)
    files = {n: sha256_file(folder / n) for n in (*chosen, INDEX)}
    _check_manifest(folder, files)
    variants = {part: _variant_of(chosen, part) for part in WEIGHTED}
    return Snapshot(name=name, folder=folder, files=files, variants=variants, configs=configs)


def choose_files(names: Iterable[str], *, variant: str | None = None) -> list[str]:
    """Return which of a base's files are read: of each part's weights one variant in one format.

    names: paths below the base, "unet/config.json". Weights of the variant are taken where a part has
    them, else the plain ones; safetensors before pickles. Raises BenchError where no part has the
    variant, or a part has other variants only.
    """
    read = [n for n in names if PurePosixPath(n).suffix in _READ and n.split("/")[0] in PARTS]
    offered = {v for n in read if (v := _words(n)[1])}
    if variant is not None and variant not in offered:
        raise unknown("variant of the base", variant, offered or ["none; leave --base-variant out"])
    chosen: list[str] = []
    for part in PARTS:
        own = [n for n in read if n.startswith(f"{part}/")]
        chosen += _choose_weights(part, own, variant) if part in WEIGHTED else own
    return chosen


def _choose_weights(part: str, names: list[str], variant: str | None) -> list[str]:
    groups: dict[tuple[str, str | None], list[str]] = {}
    for name in names:
        kind, own = _words(name)
        if kind:
            groups.setdefault((kind, own), []).append(name)
    others = [n for n in names if PurePosixPath(n).suffix not in {".safetensors", ".bin"}]
    others = [n for n in others if not _words(n)[0]]
    for wanted in dict.fromkeys((variant, None)):
        for kind in ("safetensors", "bin"):
            if (kind, wanted) in groups:
                return sorted([*others, *groups[kind, wanted]])
    if groups:
        has = ", ".join(sorted({str(v) for _, v in groups}))
        raise BenchError(f"{part}/ has weights of the variants {has} alone. Choose with --base-variant.")
    return others


def _words(name: str) -> tuple[str, str | None]:
    """Return format and variant of a weights file or of its index; ("", None) for other files."""
    file = name.split("/")[-1]
    if name.count("/") == 1 and (found := _WEIGHTS.fullmatch(file)):
        return found["kind"], found["variant"] or found["last"]
    if name.count("/") == 1 and (found := _INDEX_OF.fullmatch(file)):
        return found["kind"], found["variant"]
    return "", None


def _variant_of(chosen: Iterable[str], part: str) -> str | None:
    return next((v for n in chosen if n.startswith(f"{part}/") and (v := _words(n)[1])), None)


def fetch(place: str, *, variant: str | None = None) -> Path:
    """Return the folder of a hub id in the hub's cache, fetching what is missing if that is allowed.

    Only the files that are read are fetched. BenchError where it is not there and cannot be had.
    """
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
        raise BenchError(
            f"the base {place} is no folder here and cannot be had from the hub{state} "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). Give the folder of a Stable "
            f"Diffusion in diffusers' format with --base, or fetch it where there is a network: "
            f"hf download {name}{f' --revision {revision}' if revision else ''}"
        ) from error


def _check_parts(folder: Path) -> None:
    if folder.is_file():
        raise BenchError(
            f"{folder} is a file; a base is a folder in diffusers' format (model_index.json, unet/) or a "
            "hub id org/name[@revision]. Convert single files with diffusers' own from_single_file, and save "
            "the pipeline with save_pretrained."
        )
    if not (folder / INDEX).is_file():
        raise BenchError(
            f"there is no base model in {folder} (no model_index.json). Give the folder of a "
            "Stable Diffusion in diffusers' format, or a hub id org/name[@revision], with --base."
        )
    absent = [part for part in PARTS if not (folder / part).is_dir()]
    if absent:
        raise BenchError(
            f"{folder} is not a Stable Diffusion folder: {', '.join(absent)} missing. It needs "
            f"{', '.join(f'{part}/' for part in PARTS)}."
        )


def _check_manifest(folder: Path, files: Mapping[str, str]) -> None:
    if not (folder / MANIFEST).exists():
        return
    manifest = read_json(folder / MANIFEST)
    promised = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(promised, dict):
        raise BenchError(f"{folder / MANIFEST} lists no files: the base is damaged. Restore it.")
    for name, digest in promised.items():
        if files.get(name) != digest:
            state = "is missing" if name not in files else "does not match its SHA-256"
            raise BenchError(
                f"{folder / name} {state} in {MANIFEST}: the base is damaged. Restore the file "
                "(git checkout) or install again."
            )


def describe(snapshot: Snapshot) -> dict[str, Any]:
    """Return what a base is, from its configurations and the headers of its weights; loads no weights.

    parameters: floating-point scalars by part, None where weights are pickles. ema: whether the UNet's
    weights are an average over training, as far as their file or configuration tells.
    """
    unet, vae, text = (snapshot.configs[part] for part in WEIGHTED)
    headers = {part: _headers(snapshot, part) for part in WEIGHTED}
    return {
        "name": snapshot.name,
        "digest": snapshot.digest,
        "prediction": snapshot.configs["scheduler"].get("prediction_type", "epsilon"),
        "downscale": downscale_of(vae),
        "size": unet["sample_size"] * downscale_of(vae),
        "widths": list(unet["block_out_channels"]),
        "heads": unet.get("num_attention_heads") or unet.get("attention_head_dim", 8),
        "linear projection": unet.get("use_linear_projection", False),
        "text width": text["hidden_size"],
        "text layers": text["num_hidden_layers"],
        "unet weights": _ema(snapshot, unet),
        "variants": {p: v or "plain" for p, v in snapshot.variants.items()},
        "parameters": {part: count for part, (count, _) in headers.items()},
        "dtype": {part: dtype for part, (_, dtype) in headers.items()},
        "parts": snapshot.parts,
        "weights": snapshot.weights,
    }


def _ema(snapshot: Snapshot, unet: Mapping[str, Any]) -> str:
    """Say whether the UNet is an average: its file's name tells, or what diffusers' EMAModel saves."""
    variant = snapshot.variants["unet"] or ""
    if "non_ema" in variant:
        return "not averaged (non-EMA), by the file's name"
    if "ema" in variant.split("_") or {"decay", "optimization_step"} <= set(unet):
        return "averaged (EMA)"
    return "EMA or not is not said; compare the SHA-256 with the publisher's"


def _headers(snapshot: Snapshot, part: str) -> tuple[int | None, str | None]:
    """Return parameters and dtypes of a part's safetensors; None for pickles."""
    count, kinds = 0, set()
    for name in snapshot.weights:
        if not name.startswith(f"{part}/"):
            continue
        if not name.endswith(".safetensors"):
            return None, None
        for tensor in open_tensors(snapshot.folder / name, framework="numpy").values():
            if "F" in tensor.get_dtype():
                count += math.prod(tensor.get_shape())
                kinds.add(tensor.get_dtype())
    return count, "+".join(sorted(kinds))
