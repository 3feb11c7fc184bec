"""Writes the weights of a finished run as a folder that diffusers loads, with a model card."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from bench import registry
from bench.base import LATENT_CHANNELS, SD
from bench.base.load import Base, load_base
from bench.base.random import drop_paths, write_base
from bench.base.snapshot import MANIFEST, find_snapshot
from bench.base.weights import Weights, shown
from bench.config import RESULTS, make_config
from bench.content import Lock, atomic_write, read_json, written_by_libraries
from bench.data.leaks import fingerprint, load_seen, name_of, write_seen
from bench.packed import kept_record
from bench.record import RECORD_FILE, RunRecord, load_record, write_record
from bench.reporting.tables import LICENCE_FILE, model_card
from bench.reporting.words import command_line
from bench.running import LOCK, train_items
from bench.suites import ASSETS, budget_of
from bench.training.checkpoint import ADAPTER, Trainable, load_weights
from bench.types import BenchError, Exchange, Task

CARD = "README.md"
_FLAGS = ("learning_rate", "weights", "no_train", "condition_channels", "invert_condition")


def export_run(
    run: Path, out: Path, *, base: Path | None = None, variant: str | None = None, with_base: bool = False
) -> Path:
    """Write what a run trained into a new folder `out`, safetensors alone, and return it.

    base: where the run's lies, else the suite's; variant: of its weights. with_base: write it too, a whole
    pipeline. BenchError where nothing was trained, for another base, a run at work and a folder that is not
    empty.
    """
    record = kept_record(run)
    if not (run / RECORD_FILE).exists():
        command = command_line(record).partition(" --results ")[0].removesuffix(" --no-shuffled")
        again = f"{command} --no-floor --no-shuffled --results {RESULTS}"
        raise BenchError(
            f"{run} is a published run, without trained weights. They are made again, to the same bits on "
            f"the same machine, by\n  {again}\nExport the run that this prints."
        )
    import torch

    Lock(run / LOCK, about=run).refuse_if_held()
    load_record(run)
    method = registry.recorded("method", record)
    if getattr(method, "exchange", None) is None:
        raise BenchError(f"{run}: method {record.method} trains nothing that could be exported.")
    if record.weights is not None and not record.weights.train_images:
        raise BenchError(f"{run} trained nothing. Use what it evaluated itself: {record.weights.name}.")
    if not (run / ADAPTER).exists():
        raise BenchError(f"{run / ADAPTER} is missing; git does not carry it. Run it again with --again.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BenchError(f"{out} exists and is not empty. Name a new folder.")
    loaded = _base_of(record, base, variant)
    options = dict(record.options)
    channels, invert = options.get("condition_channels", "same"), options.get("invert_condition", False)
    form = Weights(path=Path(), channels=str(channels), invert=bool(invert))  # in which the network saw it
    task = shown(registry.recorded("task", record), form)
    torch.manual_seed(record.seed)  # random weights that stay frozen are no part of what is kept
    given = {name: value for name, value in options.items() if name not in _FLAGS}
    denoiser = method.build(loaded, task, **given)
    load_weights(run / ADAPTER, Trainable(denoiser))
    work = out.with_name(f".{out.name}.part")
    with Lock(out.with_name(f".{out.name}.lock"), about=out):
        shutil.rmtree(work, ignore_errors=True)
        try:
            _write_weights(work, method, denoiser.eval(), base=loaded if with_base else None)
            if with_base and not method.conditioned:
                _write_seen(work, record, loaded)
            licence = licence_notes(record, loaded)
            seen = f"[B,{task.channels},H,W] in [0, 1], as the task {task.name} of BPS-Bench draws it"
            usage = _usage(method.exchange, record, base=loaded, task=task, whole=with_base)
            about = {"title": method.title, "source": method.source, "base": loaded.name, "whole": with_base}
            card = model_card(record, **about, licence=licence, condition=seen, usage=usage)
            atomic_write(work / CARD, card.encode())
            notes = "".join(f"- {line}\n" for line in licence)
            atomic_write(work / LICENCE_FILE, f"# Licence\n{notes}".encode())
            write_record(work, record)
            if out.exists():
                out.rmdir()
            work.replace(out)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return out


def push(folder: Path, repository: str) -> str:
    """Upload an exported folder as a model, "org/name", of the Hugging Face hub; return its address.

    BenchError where the hub refuses or cannot be reached; the folder stays.
    """
    from huggingface_hub import HfApi, errors

    try:
        api, message = HfApi(), "Weights and card"
        api.create_repo(repository, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message))
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        why = f"{repository} was not pushed ({str(error).splitlines()[0]})"
        raise BenchError(f"{why}. {folder} is whole: 'hf auth login', then 'hf upload', push it.") from error


def _base_of(record: RunRecord, folder: Path | None, variant: str | None) -> Base:
    place = folder or registry.recorded("suite", record).base
    if place is None:
        raise BenchError(f"suite '{record.suite}' brings no base. Give the run's with --base FOLDER.")
    base, digest = load_base(place, variant=variant), str(record.protocol.get("base"))
    if base.digest != digest:
        digests = f"its digest is {digest[:12]}, this one's {base.digest[:12]}"
        raise BenchError(
            f"the run was made with another base than {base.name} ({digests}). Give it with --base."
        )
    return base


def _write_weights(out: Path, method: Any, denoiser: Any, *, base: Base | None) -> None:
    """Write a method's weights; with a base as a whole pipeline: the method's parts beside the base's."""
    exchange: Exchange = method.exchange
    folder = out if base is None else out / exchange.parts[0]
    folder.mkdir(parents=True)
    with written_by_libraries(out):
        method.save(denoiser, folder)
    if base is not None:
        for part in exchange.parts[1:]:
            if (folder / part).exists():
                (folder / part).rename(out / part)
        whole = {**vars(base), "zero_empty": base.zero_empty}
        write_base(out, whole, pipeline=exchange.pipeline, classes=exchange.classes)
    drop_paths(out)


def _write_seen(out: Path, record: RunRecord, base: Base) -> None:
    """Write what a pipeline has seen: its base's drawings, if it says, and the run's, if not the user's."""
    before, suite = load_seen(base.folder, base=base.digest), registry.recorded("suite", record)
    if isinstance(before, str) or suite.at is not None:
        return
    ids = train_items(suite.splits().side("train"), budget_of(make_config(record.config), suite))
    items = fingerprint(suite.dataset()[item] for item in ids)
    write_seen(
        out,
        base=find_snapshot(out).digest,
        pictures=items.all_pictures(),
        names=[name_of(caption, record.suite) for caption in items.captions],
        facts={"about": f"{before.about}, and {len(ids)} training items of {record.suite}"},
        before=before,
    )


def _usage(exchange: Exchange, record: RunRecord, *, base: Base, task: Task, whole: bool) -> str:
    sampler, channels = record.protocol.get("sampler", {}), task.channels
    size = base.unet.config["sample_size"] * base.downscale
    steps, guidance = sampler.get("steps", 50), sampler.get("guidance", 7.5)
    program = exchange.whole if whole else exchange.usage
    if base.family is not SD:  # whose other families have no safety checker
        program = program.replace("safety_checker=None, feature_extractor=None, ", "")
        program = re.sub(r", (requires_)?safety_checker=(None|False)", "", program)
        program = program.replace(SD.pipeline, base.family.pipeline)
    names = {"folder": "DIR", "base": "BASE", "prompt": "your prompt", "channels": channels, "size": size}
    names |= {"downscale": base.downscale, "inputs": LATENT_CHANNELS + channels * base.downscale**2}
    names |= {"sampling": f"num_inference_steps={steps}, guidance_scale={guidance}"}
    draw = program.format(**names, steps=steps, guidance=guidance)
    condition = f"condition = torch.zeros(1, {channels}, {size}, {size})  # yours, in [0, 1]"
    shipped = ", in bench/emoji/assets" if base.folder.parent == ASSETS else ""
    places = "# DIR: this folder" + ("" if whole else f"; BASE: {base.name}{shipped}")
    return f"import torch\n{condition}\n{draw}{places}\n"


def licence_notes(record: RunRecord, base: Base) -> list[str]:
    """Return what must be said of licences: of the base, of the data and of the code."""
    manifest = base.folder / MANIFEST
    name = read_json(manifest).get("licence") if manifest.exists() else None
    licence = f"is licensed {name}" if name else "has a licence of its own, which see"
    data = record.attribution or "see the data set's own licence and terms."
    return [
        f"The base {base.name} {licence}; it holds for weights that derive from it, under its conditions.",
        f"Training data of the suite {record.suite}: {data}",
        "The code that trained them, BPS-Bench, is under the MIT licence.",
    ]
