"""What the goldens ask of the program, and where they are kept.

Every part of the program is imported here and nowhere else among the goldens, so that a part that moves
is followed in one line. A golden holds what must stay; it is made anew only where a number is meant to
change, with `keep`: `keep("numbers.json.xz", published_numbers())`.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from bench import registry
from bench.ablations import ABLATIONS_FOLDER
from bench.base.load import Base
from bench.config import RunConfig
from bench.content import Cache, digest_arrays, digest_json, read_json, sha256_file
from bench.data.latents import InMemory, mirrored, prepare
from bench.data.openmoji import ASSETS, OpenMoji64, openmoji64_splits
from bench.data.splits import SIDES
from bench.packed import Pack, kept_runs
from bench.randomness import derangement, initial_noise, pick_items
from bench.record import ITEMS_FILE, RunRecord, load_record
from bench.reporting.compare import build_ablations, build_comparison, in_ablations, paired_differences
from bench.reporting.frame import Row, build_table, load_runs
from bench.reporting.tables import tidy, tidy_costs, tidy_differences
from bench.running import Run, identify
from bench.scoring import Evaluator
from bench.suites import EMOJI, method_of, resolve
from bench.training.checkpoint import Trainable
from bench.training.loop import draw_batch, learning_rate_factor

KEPT = Path(__file__).parent / "kept"
RESULTS = Path(__file__).resolve().parents[2] / "results"
PLACES = ("emoji", "emoji-equal-time", "emoji-h200")
_NUMBERS = (
    "value low high deviation items best reference difference difference_low difference_high "
    "difference_seeds left_out groups p p_corrected"
).split()


def kept(name: str) -> Any:
    """Return a golden."""
    data = (KEPT / name).read_bytes()
    return json.loads(lzma.decompress(data) if name.endswith(".xz") else data)


def keep(name: str, value: Any) -> None:
    """Write a golden anew: where what it holds was meant to change, and said so."""
    small = name.endswith(".xz")
    data = (json.dumps(value, sort_keys=True, indent=None if small else 1) + "\n").encode()
    KEPT.mkdir(exist_ok=True)
    (KEPT / name).write_bytes(lzma.compress(data, preset=9) if small else data)


def published_records() -> dict[str, tuple[RunRecord, Mapping[str, Any]]]:
    """Return every published record with its values by item, by "place/run id"."""
    found = {}
    for name in PLACES:
        pack = Pack(RESULTS / name)
        for place, line in pack.lines.items():
            items = json.loads(pack.files(line)[ITEMS_FILE])
            found[f"{name}/{place}"] = (pack.record(line), items)
    return found


def record_digests(record: RunRecord, values: Mapping[str, Any]) -> dict[str, str]:
    """Return digests of what a record says and of its values by item; fields that came later are left out.

    So are its artifacts, of which it may be said where they lie.
    """
    told = {k: v for k, v in asdict(record).items() if k in _TOLD}
    if told["cost"]["macs_train"] is None:
        del told["cost"]["macs_train"]
    items = {k: v for k, v in values.items() if k in _ITEMS}
    return {"record": digest_json(told)[:16], "items": digest_json(items)[:16]}


_TOLD = (
    "run_id suite task method options budget seed protocol_hash protocol splits metrics rows cost "
    "environment attribution started finished leaks"
).split()
_ITEMS = ("ids", "rows", "replicates", "curve", "layer_weights")


def asked_for(record: RunRecord) -> dict[str, Any]:
    """Return what a user asks for to get this run, as little as says it; the seed is left out."""
    _, options = method_of(RunConfig(suite=record.suite, task=record.task, method=record.method))
    defaults = json.loads(json.dumps(options))
    options = {k: v for k, v in record.options.items() if k != "learning_rate" and v != defaults[k]}
    items = record.changes.get("train_items")
    budget = record.budget.removesuffix(f"-{items}")
    asked = {"suite": record.suite, "task": record.task, "method": record.method, "budget": budget}
    return asked | ({"options": options} if options else {}) | ({"train_items": items} if items else {})


def loaded_run(results: Path, *, suite: str = "emoji", method: str = "text-only", **asked: Any) -> Run:
    """Return a run with data, base and judges loaded, whose folder lies below `results`; CPU, seed 0."""
    return Run(resolve(RunConfig(suite=suite, method=method, results=results, device="cpu", **asked)))


def identity(asked: Mapping[str, Any], *, seed: int) -> dict[str, str]:
    """Return protocol hash, run id and training key of what is asked for."""
    found = identify(resolve(RunConfig(**asked, seed=seed, device="cpu")))
    return {"protocol": found.protocol.hash, "run": found.run_id, "training": found.training[:16]}


def cache_names(run: Run, folder: Path) -> list[str]:
    """Return the names under which two encoded items and their features are kept in the cache."""
    cache, ids = Cache(folder), run.train_ids[:2]
    how = {"dataset": run.dataset, "ids": ids, "task": run.task, "cache": cache}
    prepare(run.base, mirror=True, **how)
    prepare(run.base, mirror=False, posterior=True, **how)
    prepare(run.base, mirror=False, storage="shards", **how)
    examples = [run.dataset[item] for item in ids]
    Evaluator(examples=examples, task=run.task, judges=run.judges, cache=cache)
    kinds = (".npz", ".safetensors")
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix in kinds)


def asset_digests() -> dict[str, str]:
    """Return the SHA-256 of every file that the package brings along."""
    files = sorted(p for p in ASSETS.rglob("*") if p.is_file())
    return {str(p.relative_to(ASSETS)): sha256_file(p) for p in files}


def manifests() -> dict[str, dict[str, str]]:
    """Return what the manifests among the assets say of their neighbours: manifest -> file -> SHA-256."""
    found = {}
    for path in sorted(ASSETS.rglob("*manifest.json")):
        value = json.loads(path.read_bytes())
        files = value["files"] if "files" in value else {value["file"]: value["sha256"]}
        at = path.parent.relative_to(ASSETS)
        found[str(path.relative_to(ASSETS))] = {str(at / name): digest for name, digest in files.items()}
    return found


def data_digests() -> dict[str, Any]:
    """Return digests of data set, sides and of the items that budgets pick."""
    splits = openmoji64_splits()
    few = [*(b.eval_items for b in EMOJI.budgets.values() if b.eval_items), 12]
    return {
        "dataset": OpenMoji64().digest,
        "splits": splits.digest,
        "sides": {side: [len(splits.side(side)), splits.digests[side]] for side in SIDES},
        "picked to evaluate": {n: digest_json(pick_items(splits.test, n)) for n in few},
        "picked to train": {n: digest_json(pick_items(splits.train, n)) for n in (10, 40, 160, 640)},
    }


def condition_digests() -> dict[str, Any]:
    """Return each task's version and a digest of its conditions of 12 items, also of mirrored ones."""
    data, ids = OpenMoji64(), pick_items(openmoji64_splits().test, 12)
    found = {}
    for name in EMOJI.tasks:
        task = registry.load("task", name)
        examples = [data[item] for item in ids]
        views = [
            np.stack([task.condition(e) for e in v]) for v in (examples, [mirrored(e) for e in examples])
        ]
        found[name] = [task.version, list(views[0].shape), digest_arrays(own=views[0], mirrored=views[1])]
    return found


def chance_digests() -> dict[str, Any]:
    """Return digests of all that is drawn: initial noise, shuffled conditions, batches of the loop.

    A batch tells its items, views, left-out captions, timesteps and noise; its latents and texts are
    numbers of their items.
    """
    ids = pick_items(openmoji64_splits().train, 20)
    rows = torch.arange(20.0)
    data = InMemory(
        ids=ids,
        latents=torch.stack([rows, rows + 100]).view(2, 20, 1, 1, 1).expand(2, 20, 4, 16, 16),
        text=rows.view(20, 1, 1) + 1,
        empty=torch.zeros(1, 1, 1),
        conditions=torch.stack([rows, rows + 100]).view(2, 20, 1, 1, 1),
        dataset=OpenMoji64(),
    )
    batches = {}
    for name in ("emoji", "micro"):
        training = registry.load("suite", name).training
        names = ("latents", "conditions", "text", "timesteps", "noise")
        parts = [draw_batch(data, training=training, seed=1, step=step) for step in range(4)]
        batches[name] = [
            digest_arrays(**{n: t.numpy() for n, t in zip(names, part, strict=True)})[:16] for part in parts
        ]
    return {
        "initial noise": digest_arrays(**{i: initial_noise(2, i, (4, 16, 16)) for i in ids}),
        "shuffled": {n: digest_json(derangement(0, n).tolist()) for n in (12, 363)},
        "batches": batches,
        "rates": digest_json([round(learning_rate_factor(s, 200, 0.05), 12) for s in range(200)]),
    }


def model_shapes(base: Base) -> dict[str, Any]:
    """Return, by method and task, what weight files hold: tensors, scalars, a digest of names and shapes."""
    found = {}
    for name in registry.names("method", ["all"]):
        for task in ("sketch", "drawing"):
            method = registry.load("method", name)
            denoiser = method.build(base, registry.load("task", task), **method.options)
            found[f"{name} {task}"] = _shape(Trainable(denoiser).state_dict())
    return found


def _shape(state: Mapping[str, Any]) -> list[Any]:
    shapes = {name: [*tensor.shape, str(tensor.dtype)] for name, tensor in state.items()}
    return [len(shapes), sum(t.numel() for t in state.values()), digest_json(shapes)]


def exact_parts(run: Run) -> dict[str, Any]:
    """Return what of a finished run no processor moves: counts, names, sides and protocol.

    The base is left out of the protocol: its random weights are drawn on the spot.
    """
    record, items = load_record(run.folder), read_json(run.folder / ITEMS_FILE)
    counted = ("parameters", "parameters_trainable", "parameters_dead", "macs", "macs_guided", "macs_encode")
    return {
        "asked": [record.suite, record.task, record.method, record.budget, record.seed, dict(record.options)],
        "protocol": {k: v for k, v in record.protocol.items() if k != "base"},
        "sides": asdict(record.splits),
        "leaks": [record.leaks.training.status, record.leaks.pretraining.status],
        "metrics": {
            row: {name: [m.n, m.judge, m.better] for name, m in metrics.items()}
            for row, metrics in record.rows.items()
        },
        "cost": {name: getattr(record.cost, name) for name in (*counted, "train_images")},
        "artifacts": sorted(record.artifacts),
        "items": [items["ids"], {row: sorted(values) for row, values in items["rows"].items()}],
        "weights": _shape(_weights(run)),
    }


def trained_parts(run: Run) -> dict[str, Any]:
    """Return what of a finished run depends on the processor by rounding: losses, weights' norms, scores."""
    record, items = load_record(run.folder), read_json(run.folder / ITEMS_FILE)
    return {
        "losses": [loss for _, loss in items["curve"]],
        "norms": {name: float(f"{t.double().norm():.7g}") for name, t in _weights(run).items()},
        "items": {name: items["rows"]["samples"][name] for name in ("cosine", "mae")},
        "metrics": {name: record.metrics[name].value for name in ("fd", "kid", "cosine", "mae")},
    }


def sampled_pixels(run: Run) -> list[int]:
    """Return every fourth row and column of a run's samples, [N,16,16,3] uint8, flat."""
    images = np.stack([np.asarray(Image.open(run.work / "samples" / f"{i}.png")) for i in run.eval_ids])
    return images[:, ::4, ::4].ravel().tolist()


def _weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "work" / "adapter.safetensors")


def published_numbers() -> dict[str, dict[str, dict[str, float]]]:
    """Return every number that the report's CSV files hold: table -> line -> column -> number.

    A line is named by what it is about, not by the words that tables print.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for place in ("emoji", "emoji-equal-time"):
        for name, who, lines in _tables(RESULTS / place):
            table = found.setdefault(f"{place}/{name}", {})
            for line in lines:
                numbers = {
                    k: float(v) for k, v in line.items() if k in who.columns and v == v and v is not None
                }
                if numbers:
                    table[who(line)] = numbers
    return found


class _Named:
    """Names lines by some of their columns, and rows by what they are in place of their titles."""

    def __init__(self, *columns: str, numbers: Any = tuple(_NUMBERS), rows: Any = ()) -> None:
        self.names, self.columns = columns, set(numbers)
        self.rows = {row.title: name for name, row in registry.rows("method").items() if not row.variant_of}
        named = {(row.record.task, title): _row_name(row) for row in rows for title in (row.name, row.label)}
        self.rows |= {title: name for (_, title), name in named.items()}
        self.of_task = named

    def __call__(self, line: Mapping[str, Any]) -> str:
        titles, task = [str(line[c]) for c in self.names], line.get("task")
        return " | ".join(self.of_task.get((task, t), self.rows.get(t, t)) for t in titles)


def _row_name(row: Row) -> str:
    if not row.seeds:
        return row.kind
    record = row.runs[0].record
    options = json.dumps(dict(record.options), sort_keys=True)
    return f"{row.kind} {record.method} {options} seeds {row.seeds}"


def _tables(results: Path) -> Iterator[tuple[str, _Named, list[dict[str, Any]]]]:
    """Give each of a report's tables: its name, what names its lines, and these."""
    runs = load_runs(results)
    ablations = build_ablations([*runs, *kept_runs(results, ABLATIONS_FOLDER)])
    tables = []
    for task in dict.fromkeys(run.record.task for run in runs):
        of_task = [run for run in runs if run.record.task == task]
        table = build_table(of_task, variants=in_ablations(ablations))
        tables.append(table)
        scored = _Named("row", "metric", "judge", rows=table.rows)
        yield f"table {task}", scored, tidy(table).to_dict("records")
        pairs = _Named("first", "second", "metric", "judge", rows=table.rows)
        yield f"differences {task}", pairs, tidy_differences(paired_differences(table)).to_dict("records")
        costs = tidy_costs(table)
        spent = _Named("run", numbers=[c for c in costs if c not in {"run", "row", "seed"}])
        yield f"cost {task}", spent, costs.to_dict("records")
    compared = _Named("task", "row", "metric", "judge", rows=[row for table in tables for row in table.rows])
    yield "comparison", compared, tidy(build_comparison(tables)).to_dict("records")
    for ablation in ablations:
        varied = _Named("variant", "method", "train_items", "guidance", "steps", "metric", "judge")
        name = f"ablation {ablation.ablation.name} {ablation.task}"
        yield name, varied, tidy(ablation).to_dict("records")
