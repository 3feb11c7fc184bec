"""Encoded items: latents, captions and conditions by row and view, in memory or in shards on disk.

The loop and the sampler cannot tell the two apart. In memory, for sets of a few thousand small images,
they are kept by the cache. A shard holds `SHARD` items of a set of any size as safetensors: mean and
deviation of the latents of every view, float32, and the encoded captions, float16. Rounding the text
moves eps by 4e-6 to 1e-5 of its size (shipped base, and SD 1.5 and 2.1 with random weights), a hundredth
of what bf16 arithmetic moves it (2e-3 and more); it halves the larger part of the disk. Shards are found
by a hash of what went in (autoencoder, text encoder, data, ids, views, number format) and lie beside a
digest of their own bytes.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import content
from bench.base.load import Base, images_at_once
from bench.base.weights import open_tensors
from bench.config import Suite
from bench.content import Cache, InUse, Lock, digest_json, patient, sha256_file
from bench.randomness import pick_items
from bench.types import BenchError, Dataset, Example, Hooks, Task, unknown

if TYPE_CHECKING:
    import torch

SHARD = 512
VERSION = 1
TEXT_DTYPE = "float16"
STORAGES = ("memory", "shards")
_SAFE_SHARE = 0.98  # of the free disk
_THREADS = 8
_AHEAD = 128  # conditions read before they are asked for

Rows = Sequence[int] | np.ndarray
Views = Sequence[int] | np.ndarray | int


class Prepared(ABC):
    """Items ready for training and sampling, read by row and view (0: as they are, 1: mirrored).

    ids: N item ids. views: 1 or 2. latent_shape (4,h,w). empty: the empty prompt [1,L,D] float32.
    dataset: where images are read. views may be given one a row or one for all.
    """

    ids: tuple[str, ...]
    views: int
    latent_shape: tuple[int, ...]
    empty: torch.Tensor
    dataset: Dataset

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def latents_at(self, rows: Rows, views: Views = 0, *, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Return latents [B,4,h,w] float32: the mode, or a draw with standard normal noise alike."""

    @abstractmethod
    def conditions_at(self, rows: Rows, views: Views = 0) -> torch.Tensor:
        """Return conditions [B,C,H,W] float32 in [0, 1]."""

    @abstractmethod
    def text_at(self, rows: Rows) -> torch.Tensor:
        """Return encoded captions [B,L,D] float32."""

    def images(self, rows: Rows) -> np.ndarray:
        """Read images [B,H,W,3] uint8, unmirrored."""
        return np.stack([self.dataset[self.ids[row]].image for row in rows])

    def expect(self, rows: Rows, views: Views) -> None:  # noqa: B027
        """Tell which conditions will be asked for next, so that they may be read meanwhile."""


@dataclass(kw_only=True, eq=False)
class InMemory(Prepared):
    """All items in memory: the mode of the latents, or mean and deviation where draws are wanted.

    latents [V,N,4,h,w] float32 (view 1: mirrored; absent for V = 1), deviation alike or None. text
    [N,L,D] float32. conditions [V,N,C,H,W] float32 in [0, 1].
    """

    ids: tuple[str, ...]
    latents: torch.Tensor
    text: torch.Tensor
    empty: torch.Tensor
    conditions: torch.Tensor
    dataset: Dataset
    deviation: torch.Tensor | None = None

    def __post_init__(self) -> None:
        self.views, self.latent_shape = len(self.latents), tuple(self.latents.shape[2:])

    def latents_at(self, rows: Rows, views: Views = 0, *, noise: torch.Tensor | None = None) -> torch.Tensor:
        at = (_view_of(views, rows), list(rows))
        if noise is None:
            return self.latents[at]
        assert self.deviation is not None, "prepared without the deviation of the latents"
        return self.latents[at] + self.deviation[at] * noise

    def conditions_at(self, rows: Rows, views: Views = 0) -> torch.Tensor:
        return self.conditions[_view_of(views, rows), list(rows)]

    def text_at(self, rows: Rows) -> torch.Tensor:
        return self.text[list(rows)]


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Where items lie: row -> file row // SHARD, row % SHARD. latent_shape (4,h,w), text_shape (L,D)."""

    ids: tuple[str, ...]
    views: int
    latent_shape: tuple[int, ...]
    text_shape: tuple[int, int]
    paths: tuple[Path, ...]

    def rows(self, number: int) -> range:
        """Return the rows of a shard."""
        return range(len(self.ids))[number * SHARD : (number + 1) * SHARD]

    def bytes(self, items: int) -> int:
        """Return what so many items take on disk."""
        shapes = {"latent_shape": self.latent_shape, "text_shape": self.text_shape}
        return disk_needed(items, views=self.views, **shapes)

    def missing(self, numbers: Sequence[int]) -> list[int]:
        """Return which of the shards are not there with the bytes that were written."""
        with ThreadPoolExecutor(_THREADS) as pool:
            whole = list(pool.map(_whole, [self.paths[number] for number in numbers]))
        return [number for number, there in zip(numbers, whole, strict=True) if not there]


class Sharded(Prepared):
    """Items read from shards by row; conditions and images come from the data set one by one."""

    def __init__(self, shards: Shards, *, base: Base, dataset: Dataset, task: Task) -> None:
        self.ids, self.views, self.latent_shape = shards.ids, shards.views, shards.latent_shape
        self.empty = _rounded(base.encode_text([""])).float().cpu()
        self.dataset = dataset
        self._shards, self._task = shards, task
        self._open: dict[int, Any] = {}
        self._pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
        self._ahead: dict[tuple[int, int], Future[np.ndarray]] = {}

    def latents_at(self, rows: Rows, views: Views = 0, *, noise: torch.Tensor | None = None) -> torch.Tensor:
        import torch

        places = list(zip(rows, _view_of(views, rows), strict=True))
        mean = torch.stack([self._slice("mean", row)[view, row % SHARD] for row, view in places])
        if noise is None:
            return mean
        deviation = [self._slice("deviation", row)[view, row % SHARD] for row, view in places]
        return mean + torch.stack(deviation) * noise

    def text_at(self, rows: Rows) -> torch.Tensor:
        import torch

        return torch.stack([self._slice("text", row)[row % SHARD].float() for row in rows])

    def conditions_at(self, rows: Rows, views: Views = 0) -> torch.Tensor:
        import torch

        places = list(zip(map(int, rows), _view_of(views, rows), strict=True))
        self.expect(rows, views)
        asked = {place: self._ahead.pop(place) for place in dict.fromkeys(places)}
        return torch.from_numpy(np.stack([asked[place].result() for place in places]))

    def expect(self, rows: Rows, views: Views) -> None:
        if len(self._ahead) >= _AHEAD:  # nobody came for them
            self._ahead.clear()
        for place in zip(map(int, rows), _view_of(views, rows), strict=True):
            if place not in self._ahead:
                self._ahead[place] = self._pool.submit(self._condition, *place)

    def _condition(self, row: int, view: int) -> np.ndarray:
        example = self.dataset[self.ids[row]]
        return self._task.condition(mirrored(example) if view else example)

    def _slice(self, name: str, row: int) -> Any:
        """Return a tensor of the row's shard, mapped from its file; BenchError where it was damaged."""
        number = int(row) // SHARD
        if number not in self._open:
            path, items = self._shards.paths[number], len(self._shards.rows(number))
            latents = [self.views, items, *self.latent_shape]
            wanted = {"mean": latents, "deviation": latents, "text": [items, *self.empty.shape[1:]]}
            slices = open_tensors(path)
            shapes = {key: tensor.get_shape() for key, tensor in slices.items()}
            if shapes != wanted:
                raise BenchError(f"{path} is no shard of these items ({shapes}). Remove it: it is made anew.")
            self._open[number] = slices
        return self._open[number][name]


def prepare(
    base: Base,
    *,
    dataset: Dataset,
    ids: Sequence[str],
    task: Task,
    mirror: bool,
    cache: Cache,
    posterior: bool = False,
    storage: str = "memory",
    **encoding: Any,
) -> Prepared:
    """Encode the items' images and captions with the base, and make their conditions available.

    Latents and text are cached under the digests of base and data; conditions are cheap and made
    anew. posterior: whether latents will be drawn, not only their mode. storage: "memory" or
    "shards", see Suite; encoding: hooks of `encode`. Raises BenchError where an item has no
    layer that the task needs, and where the disk is too small.
    """
    if storage not in STORAGES:
        raise unknown("storage", storage, STORAGES)
    if storage == "shards":
        shards = encode(base, dataset=dataset, ids=ids, views=1 + mirror, cache=cache, **encoding)
        return Sharded(shards, base=base, dataset=dataset, task=task)
    import torch

    examples = [dataset[i] for i in ids]
    seen = [examples, [mirrored(e) for e in examples]] if mirror else [examples]
    key = {"base": base.digest, "data": dataset.digest, "ids": list(ids), "views": len(seen)}
    key = {**key, "posterior": True} if posterior else key

    def make() -> dict[str, np.ndarray]:
        parts = [part for _, part in _posteriors(base, examples, views=len(seen))]
        mean, deviation = torch.cat(parts, dim=2).numpy()
        text = base.encode_text(["", *(e.caption for e in examples)]).cpu().numpy()
        return {"latents": mean, "text": text, **({"deviation": deviation} if posterior else {})}

    arrays = cache.load_or_make({"kind": "prepared", "version": 1, **key}, make)
    conditions = np.stack([np.stack([task.condition(e) for e in view]) for view in seen])
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return InMemory(
        ids=tuple(ids),
        latents=tensors["latents"],
        text=tensors["text"][1:],
        empty=tensors["text"][:1],
        conditions=torch.from_numpy(conditions),
        dataset=dataset,
        deviation=tensors.get("deviation"),
    )


def encode(
    base: Base, *, dataset: Dataset, ids: Sequence[str], views: int, cache: Cache, hooks: Hooks | None = None
) -> Shards:
    """Encode items into the cache's shards, those alone that are not there whole, and say where.

    Raises Stopped with the code of hooks.stop after giving up the shard at hand: the same call goes on with
    it. Other processes, here and on hosts that share the cache, encode other shards meanwhile; who finds
    none left waits for theirs. BenchError where the disk is too small.
    """
    hooks = hooks or Hooks()
    shards = plan_shards(base, dataset=dataset, ids=ids, views=views, cache=cache)
    missing = shards.missing(range(len(shards.paths)))
    wait = patient(hooks)
    while missing:
        items, words = _check_disk(shards, missing, cache.folder)
        cache.tidy()
        hooks.stage(f"encode {words}", items)
        done = 0
        for number in missing:
            with contextlib.suppress(InUse), _taken(shards.paths[number]):
                for count in _encode_shard(base, dataset, shards, number):
                    hooks.tick(done + count, items)
                    hooks.check_stop()
            done += len(shards.rows(number))
        missing = shards.missing(missing)
        for number in missing:  # other processes have them
            with _taken(shards.paths[number], wait=wait):
                pass
        missing = shards.missing(missing)
    return shards


def _taken(path: Path, wait: Callable[[str], None] | None = None) -> Lock:
    return Lock(path.with_suffix(".lock"), about="encoding of these items", wait=wait)


def _encode_shard(base: Base, dataset: Dataset, shards: Shards, number: int) -> Iterator[int]:
    """Encode a shard that is not there, and write it with a note; yield how many items are encoded."""
    import torch
    from safetensors.torch import save

    ids, path = [shards.ids[row] for row in shards.rows(number)], shards.paths[number]
    if _whole(path):
        return
    parts: list[torch.Tensor] = []
    captions: list[str] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        examples = pool.map(partial(_read, dataset), ids)
        for batch, part in _posteriors(base, examples, views=shards.views):
            parts.append(part)
            captions += [e.caption for e in batch]
            if len(captions) < len(ids):
                yield len(captions)
    mean, deviation = torch.cat(parts, dim=2)
    tensors = {"mean": mean, "deviation": deviation, "text": _rounded(base.encode_text(captions)).cpu()}
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    content.write_noted(path, data, key=_key(base, dataset, ids, shards.views))
    yield len(ids)


def _posteriors(
    base: Base, examples: Iterable[Example], *, views: int
) -> Iterator[tuple[list[Example], torch.Tensor]]:
    """Yield examples that go through at once, and mean and deviation of their latents, [2,V,B,4,h,w]."""
    import torch

    rest = iter(examples)
    for first in rest:
        batch = [first, *itertools.islice(rest, images_at_once(*first.image.shape[:2]) - 1)]
        seen = [batch, [mirrored(e) for e in batch]][:views]
        parts = [base.encode_posterior(np.stack([e.image for e in view])) for view in seen]
        yield batch, torch.stack([torch.stack([part[kind].cpu() for part in parts]) for kind in (0, 1)])


def _read(dataset: Dataset, item: str) -> Example:
    """Read an item's image, which some data sets leave until somebody asks for it."""
    example = dataset[item]
    return replace(example, image=example.image, layers={})


def plan_shards(base: Base, *, dataset: Dataset, ids: Sequence[str], views: int, cache: Cache) -> Shards:
    """Return where the shards of items lie or will lie; BenchError without items, or for sizes of no base."""
    if not ids:
        raise BenchError(f"{dataset.name} has no items on this side: nothing to encode. Prepare it anew.")
    height, width = dataset[ids[0]].image.shape[:2]
    if height % base.downscale or width % base.downscale:
        allowed = f"multiples of {base.downscale}, the base's downscale factor"
        raise BenchError(f"images of {dataset.name} are {width} x {height} pixels; allowed: {allowed}.")
    chunks = [ids[start : start + SHARD] for start in range(0, len(ids), SHARD)]
    names = [digest_json(_key(base, dataset, chunk, views)) for chunk in chunks]
    channels = int(base.vae.config.latent_channels)
    return Shards(
        ids=tuple(ids),
        views=views,
        latent_shape=(channels, height // base.downscale, width // base.downscale),
        text_shape=base.text_shape,
        paths=tuple(cache.folder / "shards" / name[:2] / f"{name}.safetensors" for name in names),
    )


def encode_suite(
    suite: Suite, *, base: Base, cache: Cache, budget: str | None = None, hooks: Hooks | None = None
) -> dict[str, Shards]:
    """Encode the train and evaluation items of a suite, as its runs of a budget will ask for them.

    Goes on where it was killed, see `encode`. Returns the shards by side. BenchError for a suite whose
    runs hold everything in memory.
    """
    if suite.storage != "shards":
        raise BenchError(f"suite '{suite.name}' is held in memory by each run: there is nothing to do ahead.")
    dataset, splits, side = suite.dataset(), suite.splits(), suite.eval_side
    evaluation = pick_items(splits.side(side), suite.budget(budget).eval_items)
    sides = {"train": (splits.train, 1 + suite.training.mirror), side: (evaluation, 1)}
    how: dict[str, Any] = {"dataset": dataset, "cache": cache, "hooks": hooks}
    return {side: encode(base, ids=ids, views=views, **how) for side, (ids, views) in sides.items()}


def disk_needed(items: int, *, views: int, latent_shape: Sequence[int], text_shape: Sequence[int]) -> int:
    """Return the bytes that so many encoded items take: latents (4,h,w) of every view and text (L,D)."""
    latents = 2 * 4 * math.prod(latent_shape) * views
    return items * (latents + 2 * math.prod(text_shape))


def size_words(count: float) -> str:
    """Return a number of bytes in words: 31.2 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def check_room(folder: Path, needed: float, *, remedy: str) -> str:
    """Return what so many bytes are in a folder, in words; BenchError where its disk has no room for them."""
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    words = f"{size_words(needed)} in {folder} ({size_words(free)} free)"
    if needed > _SAFE_SHARE * free:
        raise BenchError(f"there is no room for {words}. {remedy}")
    return words


def mirrored(example: Example) -> Example:
    """Return the example mirrored left to right: image, layers and boxes."""
    layers = {name: layer[:, ::-1] for name, layer in example.layers.items() if name != "boxes"}
    if "boxes" in example.layers:
        boxes, width = example.layers["boxes"].copy(), example.image.shape[1]
        boxes[:, [1, 3]] = width - boxes[:, [3, 1]]
        layers["boxes"] = boxes
    return replace(example, image=example.image[:, ::-1], layers=layers)


def _view_of(views: Views, rows: Rows) -> list[int]:
    """Return one view a row."""
    return [int(views)] * len(rows) if isinstance(views, int) else [int(v) for v in views]


def _rounded(text: torch.Tensor) -> torch.Tensor:
    import torch

    return text.to(getattr(torch, TEXT_DTYPE))


def _key(base: Base, dataset: Dataset, ids: Sequence[str], views: int) -> Mapping[str, Any]:
    family = base.family
    parts = {part: base.parts[part] for part in ("vae", *family.encoders, *family.tokenizers)}
    stored = {"kind": "shard", "version": VERSION, "text_dtype": TEXT_DTYPE}
    stored |= {"zero_empty": True} if base.zero_empty else {}
    seen: dict[str, Any] = {"data": dataset.digest, "ids": list(ids)}
    if hasattr(dataset, "contents"):  # equal pictures and captions share shards, whatever else is known
        seen = {"contents": dataset.contents(ids)}
    return {**stored, **parts, **seen, "views": views}


def _whole(path: Path) -> bool:
    """Whether a shard is there with the bytes that were written."""
    with contextlib.suppress(BenchError):
        return content.promised(path) == sha256_file(path)
    return False


def _check_disk(shards: Shards, numbers: Sequence[int], folder: Path) -> tuple[int, str]:
    """Return how many items shards hold and what they take, in words; BenchError without room for them."""
    items = sum(len(shards.rows(number)) for number in numbers)
    remedy = "Free some, or name another folder in the environment variable BPS_BENCH_CACHE."
    return items, f"{items} items, {check_room(folder, shards.bytes(items), remedy=remedy)}"
