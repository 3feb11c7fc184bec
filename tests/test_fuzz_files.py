"""Every loader of a file from outside, with damaged files: read, or refused as a BenchError, in time.

Nothing may be written outside the folder at hand. `make test` takes a few inputs a loader, always the
same; BENCH_FUZZ=N takes N in all, others each time (`make test-all`: 20,000 and more).
"""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bench import registry
from bench.content import Cache, read_json, read_npz, sha256_file, write_json, write_npz
from bench.data.coco import Recipe
from bench.data.coco.dataset import Coco17, splits_of, table_path
from bench.data.coco.official import read_official
from bench.data.coco.prepare import prepare_coco17, report
from bench.sampling import export_images
from bench.types import BenchError
from tests import mutations as mutate
from tests.coco_fixture import build_coco

LONG = int(os.environ.get("BENCH_FUZZ", "0"))
SHORT = 8  # inputs a loader, otherwise
FAST_LOADERS = 50  # at least
SECONDS = 10  # of the processor, for one file
MEMORY = 2 << 30  # bytes beyond what the process has

Load = Callable[[Path], Any]
JSON = (mutate.other_json, mutate.other_json, mutate.cut_or_flipped)
NPZ = (mutate.other_arrays, mutate.other_arrays, mutate.cut_or_flipped)
PNG = (mutate.other_chunk, mutate.cut_or_flipped)
BYTES = (mutate.cut_or_flipped,)
PICTURE = (mutate.cut_or_flipped,)
SAFETENSORS = (mutate.other_header, mutate.cut_or_flipped)
PICKLE = (mutate.other_entry, mutate.cut_or_flipped)


@dataclass(frozen=True, kw_only=True)
class Loader:
    """What reads a file: a folder with whole files, the one to damage, how, and the call.

    more: other whole contents of the file. whole: whether the files as they are must be read. slow:
    whether one takes a twentieth of a second and more, so that it gets fewer.
    """

    folder: Path
    file: str
    damage: tuple[mutate.Mutation, ...]
    load: Load
    more: tuple[bytes, ...] = ()
    whole: bool = True
    slow: bool = False


class TooSlow(BaseException):
    """A loader took longer than it may; no `except Exception` of theirs hides it."""


@contextmanager
def bounded() -> Iterator[None]:
    """Hold a block to so much processor time and memory."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"a file took more than {SECONDS} s")

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def holds(loader: Loader, data: bytes) -> None:
    """Read a folder in which a file is damaged: as the contract says, or what else was raised."""
    (loader.folder / loader.file).write_bytes(data)
    around = {place: set(os.listdir(place)) for place in loader.folder.parents[:3]}
    try:
        with bounded():
            loader.load(loader.folder)
    except BenchError as error:
        assert str(error)
    for place, before in around.items():
        assert set(os.listdir(place)) == before, "something was written outside the folder"


# What the loaders read, as whole files.


def _record() -> dict[str, Any]:
    value = {"value": 0.5, "low": 0.4, "high": None, "n": 3, "judge": "none", "scale": "fraction"}
    metrics = {"cosine": {**value, "better": "higher"}, "fd": {**value, "better": "lower"}}
    check = {"status": "clean", "about": "a", "items": 0, "findings": [], "limits": {}, "nearest": {}}
    cost = dict.fromkeys(("parameters", "parameters_trainable", "parameters_dead"), 7)
    cost |= dict.fromkeys(("macs", "macs_guided", "macs_encode", "train_images", "peak_memory_bytes"), 7)
    rates = ("train_seconds", "train_images_per_second", "sample_seconds_per_image", "score_seconds")
    side = {"name": "train", "n": 3, "digest": "aa"}
    packages = {"torch": "2.11"}
    return {
        "schema_version": 1,
        "run_id": "micro-sketch-bps-quick-s0-01234567",
        "suite": "micro",
        "task": "sketch",
        "method": "bps",
        "options": {"learning_rate": 0.001, "prior": "frozen"},
        "budget": "quick",
        "seed": 0,
        "protocol_hash": "01" * 32,
        "protocol": {"eval_side": "val", "budget": {"train_images": 8}, "sampler": {"steps": 2}},
        "splits": {"train": side, "eval": side, "overlap": 0},
        "metrics": metrics,
        "rows": {"samples": metrics, "shuffled": metrics},
        "cost": {**cost, **dict.fromkeys(rates, 1.5)},
        "environment": {"device": "cpu", "processor": "one", "threads": 1, "packages": packages},
        "artifacts": {},
        "attribution": "by the test",
        "started": "2025-01-01T00:00:00+00:00",
        "finished": "2025-01-01T00:20:00+00:00",
        "leaks": {"items": 0, "training": check, "pretraining": check},
        "changes": {"guidance": 3.0},
        "trained_in": "another-run",
        "weights": {
            "name": "w",
            "sha256": "aa",
            "files": {"a": "b"},
            "train_images": 1,
            "condition": "",
            "facts": {"unet": "own"},
        },
    }


def _items() -> dict[str, Any]:
    rows = {"samples": {"cosine": [0.5, None, 0.5], "fd": [1.0, 2.0, 3.0]}}
    curve, weights = [[0, 1.0], [1, 0.5]], [[0, 0.1, 0.2]]
    items = {"ids": ["a", "b", "c"], "rows": rows, "replicates": rows | {"samples": {"fd": [1.0, 2.0]}}}
    return {**items, "curve": curve, "layer_weights": weights}


def _png(image: np.ndarray, form: str = "PNG", **more: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=form, **more)
    return buffer.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
PICTURES = (
    *(_png(PIXELS[..., 0]), _png(PIXELS.astype(np.uint16)[..., 0] * 99), _png(PIXELS, dpi=(9, 9))),
    *(_png(PIXELS, "JPEG"), _png(PIXELS, "WEBP", lossless=True), _png(PIXELS, "WEBP"), _png(PIXELS, "BMP")),
    *(_png(PIXELS, "TIFF"), _png(PIXELS, "TIFF", compression="tiff_lzw"), _png(PIXELS, "GIF")),
    _png(PIXELS[..., :1].repeat(4, -1), comment="a"),
)


class _Table:
    """The loaders by name, each with a folder of its own three levels below `root`."""

    def __init__(self, root: Path) -> None:
        self.root, self.rows = root, dict[str, Loader]()

    def folder(self, name: str) -> Path:
        made = self.root / name.replace(" ", "-") / "between" / "in"
        made.mkdir(parents=True, exist_ok=True)
        return made

    def add(
        self,
        name: str,
        files: Mapping[str, bytes | Any] | Path,
        damage: tuple[mutate.Mutation, ...],
        load: Load,
        **more: Any,
    ) -> None:
        """files: name -> bytes or JSON value, that to damage first; or a folder to copy, with `file`."""
        folder = self.folder(name)
        if isinstance(files, Path):
            shutil.copytree(files, folder, dirs_exist_ok=True)
        else:
            for file, value in files.items():
                path = folder / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
            more.setdefault("file", next(iter(files)))
        self.rows[name] = Loader(folder=folder, damage=damage, load=load, **more)


def _packs(table: _Table, files: Mapping[str, Any]) -> None:
    """Both files of a pack of one run."""
    from bench.packed import kept_runs, pack_runs

    made = table.folder("run to pack")
    for name, value in files.items():
        (made / "run" / name).parent.mkdir(exist_ok=True)
        write_json(made / "run" / name, value)
    for path in pack_runs(made, table.folder("pack") / "p"):
        damage = NPZ if path.suffix == ".npz" else NPZ[-1:]
        loader = f"pack {path.suffix}"
        table.add(loader, path.parent, damage, lambda f: kept_runs(f / "p"), file=path.name)


def _runs(table: _Table) -> None:
    from bench.cost import TIMINGS_FILE, Ledger, load_timings
    from bench.packed import load_run
    from bench.record import RECORD_FILE, load_record
    from bench.reporting.frame import load_runs
    from bench.running import check_same
    from bench.training.checkpoint import ADAPTER, TrainResult, find_trained
    from bench.tune import write_evidence

    table.add("any JSON", {"x.json": {"a": [1, "b", None, 1.5]}}, JSON, lambda f: read_json(f / "x.json"))
    table.add("record", {RECORD_FILE: _record()}, JSON, load_record)
    files = {"items.json": _items(), RECORD_FILE: _record()}
    table.add("items", files, JSON, load_run)
    _packs(table, files)
    timing = {"method": "bps", "options": {}, "task": "sketch", "train_images_per_second": 1.5}
    timing |= {"sample_seconds_per_image": 0.5, "peak_memory_bytes": 7, "steps": 3, "items": 3, "rounds": 1}
    timing |= {"setup": {"base": "sd15"}, "planned_memory_bytes": 7, "train_flops": 7}
    timings = {
        "machine": _record()["environment"],
        "entries": [{**timing, "code": {"sources": "aa"}}],
    }
    table.add("timings", {TIMINGS_FILE: timings, f"run/{RECORD_FILE}": _record()}, JSON, load_runs)
    spent = {"sample_seconds": 1.5, "sample_images": 3, "peak_memory_bytes": 7, "train_seconds": 1.0}
    table.add("costs", {"cost.json": spent}, JSON, lambda f: Ledger(f / "cost.json", device="cpu"))
    begun = {"run_id": "a", "options": {}, "seed": 0, "started": "now", "training": "aa"}
    others = {"run/work/train.json": {}, f"run/{ADAPTER}": b"", f"run/{RECORD_FILE}": _record()}

    def again(folder: Path) -> None:
        check_same(read_json(folder / "run.json", of=dict[str, Any]), begun, folder)

    table.add("begun", {"run/work/run.json": begun, **others}, JSON, lambda f: find_trained(f, "bb"))
    trained = {"steps": 1, "images": 8, "seconds": 1.5, "dead": 0, "curve": [[0, 1.0]]}
    trained |= {"starts": [{"step": 0, "processes": 1}], "trained_in": "another-run"}
    table.add(
        "training", {"train.json": trained}, JSON, lambda f: read_json(f / "train.json", of=TrainResult)
    )
    table.add("begun again", {"run.json": begun}, JSON, again)
    trial = {"run_id": "a", "train_seconds": 1.0, "cosine": {"value": 0.5, "low": 0.4, "high": 0.6}}
    method = {"chosen": 0.001, "at_the_edge": False, "devices": ["cpu"], "trials": {"0.001": trial}}
    tuned = {"suite": "micro", "task": "sketch", "side": "val", "items": 3, "seeds": [0]}
    tuned |= {
        "criterion": "cosine",
        "budget": {"train_images": 8},
        "protocol_hash": "aa",
        "judge": "a",
        "rates": [0.001],
    }
    tuned |= {"methods": {"bps": method}}
    table.add(
        "tuning", {"micro-sketch.json": tuned}, JSON, lambda f: write_evidence(f, {**tuned, "methods": {}})
    )
    assert load_timings(table.rows["timings"].folder) is not None


def _studies(table: _Table) -> None:
    from bench.study import read_answers, read_key

    pair = {"item": "a", "sides": {"aaaaaaaa": "bps", "bbbbbbbb": "controlnet"}, "check": False}
    key = {"format": "bps-bench study key", "version": 1, "study": "cccccccc", "title": "t", "suite": "emoji"}
    key |= {"task": "sketch", "protocol": "aa", "seed": 0, "aspects": ["fidelity"]}
    key |= {"methods": [["bps", "r1"], ["controlnet", "r2"]], "questions": {"dddddddd": pair}}
    table.add("study key", {"key.json": key}, JSON, lambda f: read_key(f / "key.json"))
    answer = {"question": "dddddddd", "left": "aaaaaaaa", "right": "bbbbbbbb", "asked": "fidelity"}
    given = {"format": "bps-bench study answers", "version": 1, "study": "cccccccc", "rater": "0" * 16}
    given |= {"started": "x", "finished": None, "answers": [{**answer, "answer": "left", "seconds": 1.5}]}
    whole = read_key(table.rows["study key"].folder / "key.json")
    table.add("answers", {"a.json": given}, JSON, lambda f: read_answers([f / "a.json"], key=whole))


def _data(table: _Table) -> None:
    from bench.data.leaks import ARRAYS, MANIFEST, Fingerprints, compare, load_seen, write_seen
    from bench.data.openmoji import ASSETS, NAME, OpenMoji64
    from bench.data.splits import load_splits, splits_json

    sides = {"train": {"a": "aa"}, "val": {"b": "bb"}, "test": {"c": "cc"}}
    value = splits_json("toy", sides, groups={"a": "g"})
    table.add("splits", {"s.json": value}, JSON, lambda f: load_splits(f / "s.json"))
    pictures = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), np.uint8)
    made = table.folder("seen")
    write_seen(made, base="aa", pictures=pictures, names=["a: b"] * 3, facts={"about": "some"})
    prints = Fingerprints(ids=("x",), captions=("x",), images=("00" * 32,), small=pictures[:1])

    def seen(folder: Path) -> None:
        found = load_seen(folder, base="aa")
        assert isinstance(found, str) or compare(found, prints)

    def seen_arrays(folder: Path) -> None:
        write_json(folder / MANIFEST, {**manifest, "sha256": sha256_file(folder / ARRAYS)})
        seen(folder)

    manifest = read_json(made / MANIFEST)
    table.add("seen manifest", made, JSON, seen, file=MANIFEST)
    table.add("seen codes", made, NPZ, seen_arrays, file=ARRAYS)

    arrays = read_npz(ASSETS / f"{NAME}.npz")
    count = int(arrays["box_offsets"][3])
    few = {n: a[:3] for n, a in arrays.items()} | {"boxes": arrays["boxes"][:count]}
    few["box_offsets"] = arrays["box_offsets"][:4]
    from bench.content import digest_arrays

    own = table.folder("openmoji")
    write_npz(own / f"{NAME}.npz", few)
    about = read_json(ASSETS / f"{NAME}.manifest.json")
    about = {k: about[k] for k in ("classes", "attribution")} | {"content_digest": digest_arrays(**few)}
    write_json(own / f"{NAME}.manifest.json", {**about, "sha256": sha256_file(own / f"{NAME}.npz")})

    def emoji(folder: Path) -> None:
        data = OpenMoji64(folder)
        for item in data.ids:
            data[item]

    table.add("openmoji manifest", own, JSON, emoji, file=f"{NAME}.manifest.json")
    table.add("openmoji arrays", own, NPZ, emoji, file=f"{NAME}.npz")


def _caches(table: _Table) -> None:
    key = {"a": 1}

    def make() -> dict[str, np.ndarray]:
        return {"x": np.arange(3), "t": np.array(["a"])}

    def cached(folder: Path) -> None:
        Cache(folder).load_or_make(key, make)

    made = table.folder("made")
    cached(made)
    entry = Cache(made).path(key).relative_to(made)

    def any_npz(folder: Path) -> None:
        read_npz(folder / entry)

    table.add("cache entry", made, NPZ, cached, file=str(entry))
    table.add("cache note", made, JSON, cached, file=str(entry.with_suffix(".json")))
    table.add("any archive", made, NPZ, any_npz, file=str(entry))


RECIPE = Recipe(size=64, sketch="canny", limit=2)


def _small_coco(root: Path) -> Path:
    """An official COCO of at most three pictures a set."""
    build_coco(root)
    for path in root.glob("annotations/*.json"):
        path.write_text(json.dumps(_few(json.loads(path.read_text()))))
    return root


def _few(value: dict[str, Any]) -> dict[str, Any]:
    images = [row for row in value["images"] if row["id"] % 100 in (1, 2, 3)]
    kept = {row["id"] for row in images}
    annotations = [row for row in value["annotations"] if row["image_id"] in kept]
    return {**value, "images": images, "annotations": annotations}


def _use_coco(folder: Path) -> None:
    """Do with a prepared folder what commands do, and write its items into it."""
    data = Coco17(folder)
    report(folder)
    for item in splits_of(data).val:
        for name in RECIPE.tasks:
            registry.load("task", name).condition(data[item])
    export_images(data, data.ids, folder / "exported")


def _official(table: _Table) -> None:
    root = _small_coco(table.root / "official")

    def prepared(folder: Path) -> None:
        shutil.rmtree(folder / "out", ignore_errors=True)
        prepare_coco17(folder, folder / "out", recipe=RECIPE)

    def read(folder: Path) -> None:
        read_official(folder, kinds=("captions", "instances", "panoptic"), maps=True)

    for kind in ("captions", "instances", "panoptic"):
        file = f"annotations/{kind}_val2017.json"
        table.add(f"coco {kind}", root, JSON, read, file=file)
        table.add(f"preparing of coco {kind}", root, JSON, prepared, file=file, slow=True)
    picture = str(next((root / "annotations" / "panoptic_val2017").iterdir()).relative_to(root))
    table.add("coco panoptic map", root, PNG, prepared, file=picture, slow=True)
    table.add("coco photograph", root, PICTURE, prepared, file=f"val2017/{101:012d}.jpg", slow=True)


def _coco(table: _Table) -> None:
    root, out = _small_coco(table.root / "official"), table.root / "prepared"
    prepare_coco17(root, out, recipe=RECIPE)

    def with_digests(folder: Path) -> None:
        manifest = read_json(out / "manifest.json")
        for name, entry in manifest["tables"].items():
            entry["sha256"] = sha256_file(table_path(folder, name))
        write_json(folder / "manifest.json", manifest)
        _use_coco(folder)

    def again(folder: Path) -> None:
        prepare_coco17(root, folder, recipe=RECIPE)

    table.add("coco manifest", out, JSON, _use_coco, file="manifest.json", slow=True)
    table.add("coco left out", out, JSON, _use_coco, file="skipped.json", slow=True)
    table.add("coco begun", out, JSON, again, file="begun.json")
    for name in ("train2017", "val2017"):
        table.add(f"coco table {name}", out, BYTES, with_digests, file=f"tables/{name}.parquet")
    for layer in ("images", "classes", "sketch"):
        picture = next((out / layer / "val2017").iterdir()).relative_to(out)
        table.add(f"coco {layer}", out, PNG, _use_coco, file=str(picture), slow=True)


def _pictures(table: _Table) -> None:
    from bench.content import sha256_bytes
    from bench.data.folder import manifest_of, read_folders
    from bench.data.picture import SIDES, TILES_FILE, read_tiles, tile_pictures, write_tiles
    from bench.sampling import load_images
    from bench.study.page import read_samples

    sample = {"a.png": _png(PIXELS), "b.png": _png(PIXELS)}
    table.add("samples", sample, PNG, lambda f: load_images(f, ["a", "b"]), more=PICTURES)
    table.add("samples of a size", sample, PNG, lambda f: load_images(f, ["a"], size=(16, 16)))
    one = {"a/x.png": _png(PIXELS), "b/x.png": _png(PIXELS)}

    def folders(folder: Path) -> None:
        first, second = manifest_of(folder / "a"), manifest_of(folder / "b")
        read_folders(first, second, judges={})

    table.add("folder of images", one, PNG, folders, more=PICTURES)
    tiled = table.folder("tile files")
    write_tiles(tiled / TILES_FILE, dict.fromkeys(SIDES, PIXELS[None]), ["a"])
    table.add("tiles", tiled, NPZ, lambda f: tile_pictures(read_tiles(f / TILES_FILE), f), file=TILES_FILE)
    digests = json.dumps({"a": sha256_bytes(_png(PIXELS))}).encode()
    samples = {"work/samples.json": digests, "work/samples/a.png": _png(PIXELS)}
    table.add("digests of samples", samples, JSON, lambda f: read_samples(f, ["a"], size=(16, 16)))


def _weights(table: _Table) -> None:
    import torch
    from safetensors.torch import save

    from bench.base.weights import Source
    from bench.training.checkpoint import Trainable, load_checkpoint, load_weights, save_checkpoint

    layer = torch.nn.Linear(3, 2)
    state = {name: tensor.detach() for name, tensor in layer.state_dict().items()}

    def tensors(folder: Path) -> None:
        (path,) = folder.iterdir()
        source = Source(path)
        source.digest(source.tensors())

    packed = save({**state, "half": torch.zeros(2, dtype=torch.bfloat16), "none": torch.zeros(0)})
    table.add("safetensors", {"w.safetensors": packed}, SAFETENSORS, tensors)
    endless: dict[str, Any] = {"a": torch.zeros(2)}
    endless["state_dict"] = endless
    pickles = (
        *(state, {"state_dict": {"state_dict": state}}, endless, [1, 2], torch.zeros(2), {1: torch.zeros(2)}),
        *({"a": torch.zeros(2).to_sparse()}, {"a": torch.empty(2, device="meta")}, {}, {"state_dict": {}}),
        *({"a": torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)}, {"a": torch.zeros(())}),
        *(
            {"a": torch.zeros(1).expand(1 << 40)},
            {"a": torch.nn.Parameter(torch.zeros(2, requires_grad=True))},
        ),
    )
    more = tuple(_saved(value) for value in pickles)
    old = _saved(state, _use_new_zipfile_serialization=False)
    table.add("checkpoint of others", {"w.ckpt": more[0]}, PICKLE, tensors, more=more, whole=False)
    table.add("old checkpoint of others", {"w.pt": old}, PICTURE, tensors, more=(old,))
    adapter = {"adapter.safetensors": save(state)}
    trainable = Trainable(layer)
    table.add("adapter", adapter, SAFETENSORS, lambda f: load_weights(f / "adapter.safetensors", trainable))
    made = table.folder("checkpoints")
    save_checkpoint(made / "x.ckpt", step=3, adapter=trainable)

    def resumed(folder: Path) -> None:
        load_checkpoint(folder / "x.ckpt", adapter=trainable)

    table.add("own checkpoint", made, PICKLE, resumed, file="x.ckpt", more=more)


def _saved(value: Any, **more: Any) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer, **more)
    return buffer.getvalue()


def _bases(table: _Table) -> None:
    from safetensors.numpy import save

    from bench.base.random import shape_of
    from bench.base.snapshot import describe, find_snapshot
    from bench.data.openmoji import ASSETS

    shipped = ASSETS / "emoji-sd-v1"
    files: dict[str, Any] = {
        str(p.relative_to(shipped)): p.read_bytes() for p in shipped.glob("**/*.json") if p.parent != shipped
    }
    files["model_index.json"] = (shipped / "model_index.json").read_bytes()
    tiny = save({"a": np.zeros((2, 3), np.float16)})
    names = {p.parent.name: p.name for p in shipped.glob("*/*.safetensors")}
    files |= {f"{part}/{name}": tiny for part, name in names.items()}

    def shown(folder: Path) -> None:
        describe(find_snapshot(folder))

    def shape(folder: Path) -> None:
        shape_of(folder)

    for file in ("model_index.json", *(f"{p}/config.json" for p in ("unet", "vae", "text_encoder"))):
        table.add(f"base {file.replace('/', ' ')}", {file: files[file], **files}, JSON, shown)
        table.add(f"shape {file.replace('/', ' ')}", {file: files[file], **files}, JSON, shape)
    schedule = "scheduler/scheduler_config.json"
    table.add("base schedule", {schedule: files[schedule], **files}, JSON, shown)
    weights = f"unet/{names['unet']}"
    table.add("base weights", {weights: tiny, **files}, SAFETENSORS, shown)
    digests = find_snapshot(table.rows["base weights"].folder).files
    manifest = {"licence": "x", "files": dict(digests)}
    table.add("base manifest", {"manifest.json": manifest, **files}, JSON, shown)


def _judges(table: _Table) -> None:
    from bench.judges import judge_card
    from bench.judges.clip import EMOJI_CLIP

    files = {name: (EMOJI_CLIP / name).read_bytes() for name in ("open_clip_config.json", "tokenizer.json")}
    files["open_clip_model.safetensors"] = b"weights"
    from bench.content import sha256_bytes

    manifest = {"image_size": 64, "files": {name: sha256_bytes(data) for name, data in files.items()}}

    def card(folder: Path) -> None:
        judge_card("emoji-clip", weights=folder)

    table.add("judge manifest", {"manifest.json": manifest, **files}, JSON, card)


def _words(table: _Table) -> None:
    from bench.cli.options import parse_options

    def option(folder: Path) -> None:
        parse_options([f"a={(folder / 'words').read_bytes().decode('utf-8', 'surrogateescape')}"])

    table.add("option", {"words": {"a": [1]}}, JSON, option)


PARTS = (
    _runs,
    _studies,
    _data,
    _caches,
    _official,
    _coco,
    _pictures,
    _weights,
    _bases,
    _judges,
    _words,
)


REACHED: Counter[str] = Counter()


def damaged(loader: Loader, whole: bytes, draw: Random) -> bytes:
    """Return a file's contents after a mutation."""
    data = draw.choice((whole, *loader.more))
    try:
        return draw.choice(loader.damage)(data, draw)
    except (ValueError, KeyError, zipfile.BadZipFile):  # a mutation of one format alone
        return mutate.cut_or_flipped(data, draw)


def fuzz(name: str, loader: Loader, *, inputs: int) -> None:
    """Give a loader so many damaged files."""
    whole = (loader.folder / loader.file).read_bytes()
    if loader.whole:
        loader.load(loader.folder)

    @settings(
        max_examples=inputs,
        derandomize=not LONG,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(draw=st.randoms(use_true_random=True))
    def one(draw: Random) -> None:
        REACHED[name] += 1
        holds(loader, damaged(loader, whole, draw))

    one()
    assert REACHED[name] >= inputs, name


@pytest.mark.filterwarnings("ignore")  # of numpy, Pillow and torch, of what is damaged
@pytest.mark.timeout(1800 if LONG else 300)
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__.strip("_"))
def test_damaged_files_are_read_or_refused(part: Callable[[_Table], None], tmp_path: Path) -> None:
    table = _Table(tmp_path)
    part(table)
    inputs = -(-LONG // FAST_LOADERS) if LONG else SHORT
    for name, loader in table.rows.items():
        fuzz(name, loader, inputs=max(1, inputs // 8) if loader.slow else inputs)


@pytest.mark.skipif(not LONG, reason="BENCH_FUZZ asks for it")
def test_as_many_inputs_as_asked_for() -> None:
    assert sum(REACHED.values()) >= LONG and len(REACHED) > FAST_LOADERS
