"""Writes the weights of a finished run as a folder that diffusers loads, with a model card."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from bench import registry
from bench.artifacts import load_weights
from bench.base.load import Base, load_base
from bench.base.rules import LATENT_CHANNELS
from bench.content import atomic_write, read_json, write_json, written_by_libraries
from bench.locks import Lock
from bench.record import RECORD_FILE, RunRecord, load_record
from bench.reporting.card import LICENCE_FILE, About, model_card
from bench.trained import ADAPTER, LOCK
from bench.training.checkpoint import Trainable
from bench.types import BenchError, Exchange, Task
from bench.weights import FORMS, Weights, shown

CARD = "README.md"
MANIFEST = "manifest.json"  # beside a base that says its licence
_FLAGS = ("learning_rate", "weights", "no_train", "condition_channels", "invert_condition")
_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def export_run(
    run: Path,
    out: Path,
    *,
    base: Path | None = None,
    variant: str | None = None,
    with_base: bool = False,
) -> Path:
    """Write what a run trained into a new folder `out`, safetensors alone, and return it.

    base: where the run's base lies, else the suite's; variant: which of its
    weights. with_base: write the base beside it, a whole pipeline. BenchError where nothing was
    trained, for another base than the run's, for a run that is at work and a folder that is not empty.
    """
    Lock(run / LOCK, about=run).refuse_if_held()
    record = load_record(run)
    method = registry.recorded("method", record)
    _check(run, record, method)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BenchError(f"{out} exists and is not empty. Name a new folder.")
    loaded, task = _base(record, base, variant), _task(record)
    denoiser = trained(run, record, method=method, base=loaded, task=task)
    work = out.with_name(f".{out.name}.part")
    with Lock(out.with_name(f".{out.name}.lock"), about=out):
        shutil.rmtree(work, ignore_errors=True)
        try:
            _write(work, record, method=method, denoiser=denoiser, base=loaded, task=task, whole=with_base)
            if out.exists():
                out.rmdir()
            work.replace(out)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return out


def trained(run: Path, record: RunRecord, *, method: Any, base: Base, task: Task) -> Any:
    """Return the denoiser of a finished run with its trained weights."""
    options = {name: value for name, value in record.options.items() if name not in _FLAGS}
    denoiser = method.build(base, task, **options)
    load_weights(run / ADAPTER, Trainable(denoiser))
    return denoiser.eval()


def _check(run: Path, record: RunRecord, method: Any) -> None:
    if getattr(method, "exchange", None) is None:
        raise BenchError(f"{run}: method {record.method} trains nothing that could be exported.")
    if record.weights is not None and not record.weights.train_images:
        raise BenchError(
            f"{run} evaluated weights from outside ({record.weights.name}) and trained nothing. Use "
            "those weights themselves."
        )
    if not (run / ADAPTER).exists():
        raise BenchError(
            f"{run / ADAPTER} is missing: trained weights stay where a run was made, git does not "
            "carry them. Run it again with --again."
        )


def _base(record: RunRecord, folder: Path | None, variant: str | None) -> Base:
    place = folder or registry.recorded("suite", record).base
    if place is None:
        raise BenchError(
            f"suite '{record.suite}' brings no base model. Give the run's own with --base FOLDER."
        )
    base = load_base(place, variant=variant)
    if base.digest != record.protocol.get("base"):
        raise BenchError(
            f"the run was made with another base than {base.name} (digest "
            f"{str(record.protocol.get('base'))[:12]}, this one {base.digest[:12]}). Give it "
            "with --base and --base-variant."
        )
    return base


def _task(record: RunRecord) -> Task:
    """Return the task as the run's network saw it."""
    form = Weights(
        path=Path(),
        channels=str(record.options.get("condition_channels", FORMS[0])),
        invert=bool(record.options.get("invert_condition", False)),
    )
    return shown(registry.recorded("task", record), form)


def _write(
    out: Path, record: RunRecord, *, method: Any, denoiser: Any, base: Base, task: Task, whole: bool
) -> None:
    exchange: Exchange = method.exchange
    own = out / exchange.parts[0] if whole else out
    own.mkdir(parents=True)
    with written_by_libraries(out):
        method.save(denoiser, own)
        if whole:
            for part in exchange.parts[1:]:
                if (own / part).exists():
                    (own / part).rename(out / part)
            _write_base(out, base, exchange)
    _drop_paths(out)
    licence = licence_notes(record, base)
    about = About(
        title=method.title,
        source=method.source,
        base=base.name,
        whole=whole,
        licence=licence,
        condition=f"[B,{task.channels},H,W] in [0, 1], as the task {task.name} of BPS-Bench draws it",
        usage=_usage(exchange.whole if whole else exchange.usage, record, base=base, task=task)
        + ("# DIR: this folder" if whole else f"# DIR: this folder; BASE: {base.name}")
        + "\n",
    )
    atomic_write(out / CARD, model_card(record, about).encode())
    atomic_write(out / LICENCE_FILE, ("# Licence\n" + _items(licence)).encode())
    write_json(out / RECORD_FILE, dataclasses.asdict(record))


def _usage(lines: str, record: RunRecord, *, base: Base, task: Task) -> str:
    """Return a program that draws an image as the run drew its samples."""
    sampler = record.protocol.get("sampler", {})
    size = base.unet.config["sample_size"] * base.downscale
    steps, guidance = sampler.get("steps", 50), sampler.get("guidance", 7.5)
    filled = lines.format(
        folder="DIR",
        base="BASE",
        prompt="your prompt",
        channels=task.channels,
        downscale=base.downscale,
        inputs=LATENT_CHANNELS + task.channels * base.downscale**2,
        size=size,
        steps=steps,
        guidance=guidance,
        sampling=f"num_inference_steps={steps}, guidance_scale={guidance}",
    )
    shape = f"1, {task.channels}, {size}, {size}"
    return f"import torch\ncondition = torch.zeros({shape})  # yours, in [0, 1]\n{filled}"


def licence_notes(record: RunRecord, base: Base) -> list[str]:
    """Return what must be said of licences: of the base, of the data and of the code."""
    manifest = base.folder / MANIFEST
    said = read_json(manifest).get("licence") if manifest.exists() else None
    own = f"is licensed {said}" if said else "has a licence of its own, which see"
    return [
        f"The base {base.name} {own}; it holds for weights that derive from it, with its conditions of use.",
        f"Training data of the suite {record.suite}: "
        + (record.attribution or "see the data set's own licence and terms."),
        "The code that trained them, BPS-Bench, is under the MIT licence.",
    ]


def _write_base(out: Path, base: Base, exchange: Exchange) -> None:
    """Write the base's parts that the method did not write, and the index of the pipeline."""
    for part in _PARTS:
        if (out / part).exists():
            continue
        model, kind = (
            getattr(base, part),
            {} if part in _PARTS[3:] else {"safe_serialization": True},
        )
        model.save_pretrained(out / part, **kind)
    index = {
        "_class_name": exchange.pipeline,
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", type(base.scheduler).__name__],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", type(base.vae).__name__],
        **{part: list(names) for part, names in exchange.classes.items()},
    }
    write_json(out / "model_index.json", index)


def _drop_paths(out: Path) -> None:
    """Remove where models were loaded from: paths of a machine, which the libraries never read."""
    for path in sorted(out.rglob("*config.json")):
        value = json.loads(path.read_text())
        if isinstance(value, dict) and value.pop("_name_or_path", None) is not None:
            write_json(path, value)


def _items(lines: list[str]) -> str:
    return "".join(f"- {line}\n" for line in lines)
