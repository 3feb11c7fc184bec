"""Latents and text of data sets that fit no memory: shards on disk, written once, read by row.

A shard holds `SHARD` items as safetensors: mean and deviation of the latents of every view, float32,
and the encoded captions, float16. Rounding the text moves eps by 4e-6 to 1e-5 of its size (shipped
base, and SD 1.5 and 2.1 with random weights), a hundredth of what bf16 arithmetic moves it (2e-3 and
more); it halves the larger part of the disk. Shards are found by a hash of what went in: autoencoder,
text encoder, data, ids, views and number format, and lie beside a digest of their own bytes.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.base.load import Base, images_at_once
from bench.content import (
    Cache,
    atomic_write,
    digest_json,
    read_json,
    sha256_bytes,
    sha256_file,
    write_json,
)
from bench.data.prepared import Prepared, Rows, Views, mirrored, read_images, view_of
from bench.locks import Lock, patient
from bench.tensors import open_tensors
from bench.types import BenchError, Dataset, Stopped, Task

if TYPE_CHECKING:
    import torch

SHARD = 512
VERSION = 1
TEXT_DTYPE = "float16"
_SAFE_SHARE = 0.98  # of the free disk
_FEW = 128  # items that are not worth starting processes for
_THREADS = 8
_AHEAD = 128  # conditions read before they are asked for


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Where the encoded items of a data set lie: item row -> file row // SHARD, place row % SHARD."""

    ids: tuple[str, ...]
    views: int
    latent_shape: tuple[int, ...]
    paths: tuple[Path, ...]


def disk_needed(items: int, *, views: int, latent_shape: Sequence[int], text_shape: Sequence[int]) -> int:
    """Return the bytes that so many encoded items take: latents (4,h,w) of every view and text (L,D)."""
    latents = 2 * 4 * math.prod(latent_shape) * views
    return items * (latents + 2 * math.prod(text_shape))


def encode(
    base: Base,
    *,
    dataset: Dataset,
    ids: Sequence[str],
    views: int,
    cache: Cache,
    workers: int | None = None,
    stage: Callable[[str, int], None] = lambda name, total: None,
    tick: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], int | None] = lambda: None,
) -> Shards:
    """Encode items into the cache's shards, those alone that are not there whole, and say where.

    workers: processes that read images while the base encodes, None: as many as pay. stage gets what
    is about to be written, its disk use and the number of items; tick (items done, items). Raises
    Stopped with the code that `stop` returns, after the shard at hand is given up: the same call goes
    on with it. Where another process encodes the same items, waits for it. BenchError where the disk is
    too small.
    """
    shards = plan_shards(base, dataset=dataset, ids=ids, views=views, cache=cache)
    keys = [_key(base, dataset, chunk, views) for chunk in _chunks(shards.ids)]
    missing = _missing(shards, range(len(shards.paths)))
    if not missing:
        return shards
    _announce(base, shards, missing, cache)  # a disk too small is said before anything is written
    name = digest_json([path.stem for path in shards.paths])
    turn = patient(lambda text: stage(text, 1), stop)
    with Lock(cache.folder / "shards" / f".{name}.lock", about="encoding of these items", wait=turn):
        cache.tidy()
        missing = _missing(shards, missing)  # another process may have written them meanwhile
        items, words = _announce(base, shards, missing, cache)
        if missing:
            stage(f"encode {words}", items)
        done = 0
        with _Reader(dataset, shards, missing, workers) as reader:
            for number in missing:
                for count in _write(base, shards, number, keys[number], reader):
                    done += count
                    tick(done, items)
                    code = stop()
                    if code is not None:
                        raise Stopped(code)
    return shards


def _missing(shards: Shards, numbers: Sequence[int]) -> list[int]:
    """Return which of the shards are not there whole."""
    with ThreadPoolExecutor(_THREADS) as pool:
        whole = list(pool.map(_whole, [shards.paths[number] for number in numbers]))
    return [number for number, there in zip(numbers, whole, strict=True) if not there]


def plan_shards(base: Base, *, dataset: Dataset, ids: Sequence[str], views: int, cache: Cache) -> Shards:
    """Return where the shards of items lie or will lie; reads one item, writes nothing.

    BenchError without items, and for images of a size that the base does not take.
    """
    if not ids:
        raise BenchError(f"{dataset.name} has no items on this side: nothing to encode. Prepare it anew.")
    height, width = dataset[ids[0]].image.shape[:2]
    if height % base.downscale or width % base.downscale:
        raise BenchError(
            f"images of {dataset.name} are {width} x {height} pixels; allowed: multiples of "
            f"{base.downscale}, the base's downscale factor."
        )
    latent_shape = (int(base.vae.config.latent_channels), height // base.downscale, width // base.downscale)
    names = [digest_json(_key(base, dataset, chunk, views)) for chunk in _chunks(ids)]
    folder = cache.folder / "shards"
    paths = tuple(folder / name[:2] / f"{name}.safetensors" for name in names)
    return Shards(ids=tuple(ids), views=views, latent_shape=latent_shape, paths=paths)


def text_shape(base: Base) -> tuple[int, int]:
    """Return the shape of an encoded caption, (L,D)."""
    return int(base.tokenizer.model_max_length), int(base.text_encoder.config.hidden_size)


def size_words(count: int) -> str:
    """Return a number of bytes in words: 31.2 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


class Sharded(Prepared):
    """Items read from shards by row; conditions and images come from the data set one by one."""

    def __init__(self, shards: Shards, *, base: Base, dataset: Dataset, task: Task) -> None:
        self.ids, self.views, self.latent_shape = shards.ids, shards.views, shards.latent_shape
        self.empty = _rounded(base.encode_text([""])).float().cpu()
        self._paths, self._dataset, self._task = shards.paths, dataset, task
        self._open: dict[int, Any] = {}
        self._pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
        self._ahead: dict[tuple[int, int], Future[np.ndarray]] = {}

    def latents_at(self, rows: Rows, views: Views = 0, *, noise: torch.Tensor | None = None) -> torch.Tensor:
        """See Prepared."""
        import torch

        places = list(zip(rows, view_of(views, rows), strict=True))
        mean = torch.stack([self._slice("mean", row)[view, row % SHARD] for row, view in places])
        if noise is None:
            return mean
        deviation = [self._slice("deviation", row)[view, row % SHARD] for row, view in places]
        return mean + torch.stack(deviation) * noise

    def text_at(self, rows: Rows) -> torch.Tensor:
        """See Prepared."""
        import torch

        return torch.stack([self._slice("text", row)[row % SHARD] for row in rows]).float()

    def conditions_at(self, rows: Rows, views: Views = 0) -> torch.Tensor:
        """See Prepared; read by several threads, those expected already under way."""
        import torch

        places = list(zip(map(int, rows), view_of(views, rows), strict=True))
        self.expect(rows, views)
        asked = {place: self._ahead.pop(place) for place in dict.fromkeys(places)}
        return torch.from_numpy(np.stack([asked[place].result() for place in places]))

    def images(self, rows: Rows) -> np.ndarray:
        """See Prepared."""
        return read_images(self._dataset, [self.ids[r] for r in rows])

    def expect(self, rows: Rows, views: Views) -> None:
        """See Prepared."""
        if len(self._ahead) >= _AHEAD:  # nobody came for them
            self._ahead.clear()
        for place in zip(map(int, rows), view_of(views, rows), strict=True):
            if place not in self._ahead:
                self._ahead[place] = self._pool.submit(self._condition, *place)

    def _condition(self, row: int, view: int) -> np.ndarray:
        example = self._dataset[self.ids[row]]
        return self._task.condition(mirrored(example) if view else example)

    def _slice(self, name: str, row: int) -> Any:
        """Return a tensor of the row's shard, mapped from its file and not read."""
        number = int(row) // SHARD
        if number not in self._open:
            self._open[number] = self._opened(number)
        return self._open[number][name]

    def _opened(self, number: int) -> dict[str, Any]:
        """Map a shard's tensors; BenchError where it was damaged since it was found to be whole."""
        path, items = self._paths[number], len(_chunk(self.ids, number))
        latents = [self.views, items, *self.latent_shape]
        shapes = {"mean": latents, "deviation": latents, "text": [items, *self.empty.shape[1:]]}
        slices = open_tensors(path)
        found = {key: slice.get_shape() for key, slice in slices.items()}
        if found != shapes:
            raise BenchError(f"{path} is no shard of these items ({found}). Remove it: it is made anew.")
        return slices


class _Pictures:
    """Batches of items as a torch data set: rows -> images [V,B,H,W,3] uint8 and captions."""

    def __init__(self, dataset: Dataset, ids: Sequence[str], views: int) -> None:
        self.dataset, self.ids, self.views = dataset, ids, views

    def __getitem__(self, rows: range) -> tuple[np.ndarray, list[str]]:
        examples = [self.dataset[self.ids[row]] for row in rows]
        seen = [examples, [mirrored(e) for e in examples]][: self.views]
        images = np.stack([np.stack([e.image for e in view]) for view in seen])
        return images, [e.caption for e in examples]


class _Reader:
    """Reads the images of several shards ahead, in order, by processes where that pays."""

    def __init__(self, dataset: Dataset, shards: Shards, numbers: Sequence[int], workers: int | None) -> None:
        from torch.utils.data import DataLoader

        first = dataset[shards.ids[0]].image
        at_once = images_at_once(*first.shape[:2])
        batches = [
            range(start, min(start + at_once, chunk.stop))
            for chunk in (_chunk(range(len(shards.ids)), n) for n in numbers)
            for start in range(chunk.start, chunk.stop, at_once)
        ]
        if workers is None:
            few = sum(map(len, batches)) < _FEW
            workers = 0 if few else min(_THREADS, os.cpu_count() or 1)
        pictures: Any = _Pictures(dataset, shards.ids, shards.views)
        self._loader = DataLoader(
            pictures,
            batch_size=None,
            sampler=batches,
            num_workers=workers,
            collate_fn=_as_is,
            prefetch_factor=4 if workers else None,
        )

    def __enter__(self) -> _Reader:
        self._batches = iter(self._loader)
        return self

    def next(self) -> tuple[np.ndarray, list[str]]:
        """Return the images [V,B,H,W,3] uint8 and captions of the next batch."""
        images, captions = next(self._batches)
        return images, captions

    def __exit__(self, *problem: object) -> None:
        del self._batches  # ends the processes


def _as_is(batch: Any) -> Any:
    return batch


def _write(base: Base, shards: Shards, number: int, key: dict[str, Any], reader: _Reader) -> Iterator[int]:
    """Encode one shard batch by batch, yielding the items of each, and write it at the end."""
    import torch
    from safetensors.torch import save

    parts: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
    captions: list[str] = []
    count = len(_chunk(shards.ids, number))
    while len(captions) < count:
        images, words = reader.next()
        parts.append([base.encode_posterior(view) for view in images])
        captions += words
        if len(captions) < count:
            yield len(words)
    mean, deviation = (
        torch.stack([torch.cat([p[view][kind].cpu() for p in parts]) for view in range(shards.views)])
        for kind in (0, 1)
    )
    text = _rounded(base.encode_text(captions)).cpu()
    tensors = {"mean": mean, "deviation": deviation, "text": text}
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    atomic_write(shards.paths[number], data)
    note = {"key": key, "sha256": sha256_bytes(data)}
    write_json(shards.paths[number].with_suffix(".json"), note)
    yield len(words)


def _rounded(text: torch.Tensor) -> torch.Tensor:
    import torch

    return text.to(getattr(torch, TEXT_DTYPE))


def _key(base: Base, dataset: Dataset, ids: Sequence[str], views: int) -> dict[str, Any]:
    parts = {part: base.parts[part] for part in ("vae", "text_encoder", "tokenizer")}
    return {
        "kind": "shard",
        "version": VERSION,
        **parts,
        "data": dataset.digest,
        "ids": list(ids),
        "views": views,
        "text_dtype": TEXT_DTYPE,
    }


def _chunks(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[start : start + SHARD] for start in range(0, len(ids), SHARD)]


def _chunk(rows: Any, number: int) -> Any:
    return rows[number * SHARD : (number + 1) * SHARD]


def _whole(path: Path) -> bool:
    """Whether a shard is there with the bytes that were written."""
    if not path.exists():
        return False
    try:
        return bool(read_json(path.with_suffix(".json"), loose=True)["sha256"] == sha256_file(path))
    except (BenchError, KeyError, TypeError):
        return False


def _announce(base: Base, shards: Shards, numbers: Sequence[int], cache: Cache) -> tuple[int, str]:
    """Return how many items shards hold and what they take; BenchError where the disk has no room."""
    items = sum(len(_chunk(shards.ids, number)) for number in numbers)
    needed = disk_needed(
        items, views=shards.views, latent_shape=shards.latent_shape, text_shape=text_shape(base)
    )
    folder = cache.folder
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if needed > _SAFE_SHARE * free:
        raise BenchError(
            f"{items} encoded items need {size_words(needed)}; {folder} has {size_words(free)} free. "
            "Free some, or name another folder in the environment variable BPS_BENCH_CACHE."
        )
    return items, f"{items} items, {size_words(needed)} in {folder} ({size_words(free)} free)"
