"""Draws a COCO piece by piece, in several processes; every finished piece is kept, so a run resumes."""

from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.content import atomic_write
from bench.data.coco import VAL, item_name
from bench.data.coco.dataset import palette_of
from bench.data.coco.draw import Broken, draw
from bench.data.coco.official import Category, OfficialSet, Picture, Skip
from bench.data.coco.recipe import Recipe
from bench.data.coco.sketches import load_sketcher
from bench.data.coco.tables import table_of, write_table
from bench.types import BenchError, Example, Stopped

PARTS = "parts"
PIECE = 16  # pictures a piece
_AHEAD = 2  # pieces a process has waiting


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A few pictures of one set and all that is needed to draw them; sent to other processes."""

    set: str
    number: int
    pictures: tuple[Picture, ...]
    categories: tuple[Category, ...]
    recipe: Recipe
    out: Path
    weights: Path | None
    device: str

    @property
    def path(self) -> Path:
        """Where the finished piece's table lies."""
        return self.out / PARTS / f"{self.set}-{self.number:05d}.npz"


def pieces_of(
    found: OfficialSet, *, recipe: Recipe, out: Path, weights: Path | None, device: str, size: int
) -> list[Piece]:
    """Cut a set into pieces of `size` pictures, in order of ids."""
    return [
        Piece(
            set=found.name,
            number=number,
            pictures=found.pictures[start : start + size],
            categories=found.categories,
            recipe=recipe,
            out=out,
            weights=weights,
            device=device,
        )
        for number, start in enumerate(range(0, len(found.pictures), size))
    ]


def draw_pieces(
    pieces: Sequence[Piece],
    *,
    jobs: int,
    tick: Callable[[int, int], None],
    stop: Callable[[], int | None],
) -> None:
    """Draw the pieces that are not there yet, `jobs` at once; raises Stopped between pieces."""
    total = sum(len(p.pictures) for p in pieces)
    waiting = [p for p in pieces if not p.path.exists()]
    done = total - sum(len(p.pictures) for p in waiting)
    tick(done, total)
    work = _alone(waiting) if jobs == 1 else _together(waiting, jobs)
    for piece in work:
        done += len(piece.pictures)
        tick(done, total)
        code = stop()
        if code is not None and done < total:
            work.close()
            raise Stopped(code)


def draw_piece(piece: Piece) -> None:
    """Draw one piece: pictures first, its table last, each file atomically."""
    recipe = piece.recipe
    sketcher = None
    if "sketch" in recipe.maps:
        sketcher = load_sketcher(
            recipe.sketch, weights=piece.weights, soft=recipe.soft, size=recipe.size, device=piece.device
        )
    classes = {c.id: place for place, c in enumerate(piece.categories, start=1)}
    kept: list[Example] = []
    skipped: list[Skip] = []
    with _one_thread(sketcher is not None and recipe.sketch != "canny"):
        for picture in piece.pictures:
            try:
                example = draw(
                    picture,
                    recipe=recipe,
                    classes=classes,
                    sketcher=sketcher,
                    palette=palette_of(piece.categories),
                )
            except Broken as reason:
                skipped.append(
                    Skip(set=piece.set, id=item_name(picture.id), file=picture.file.name, reason=str(reason))
                )
                continue
            _store(piece, example)
            kept.append(example)
        write_table(piece.path, table_of(kept, small=piece.set == VAL), skipped=skipped)


def _store(piece: Piece, example: Example) -> None:
    pictures = {"images": example.image, **{m: example.layers[m] for m in piece.recipe.maps}}
    for layer, picture in pictures.items():
        atomic_write(piece.out / layer / piece.set / f"{example.id}.png", _png(picture))


def _png(picture: np.ndarray) -> bytes:
    """Encode a picture losslessly; equal pixels give equal bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


@contextmanager
def _one_thread(networks: bool) -> Iterator[None]:
    """Let networks use one thread, so that the same bits come out however many pieces run at once."""
    if not networks:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _alone(pieces: Sequence[Piece]) -> Generator[Piece, None, None]:
    for piece in pieces:
        draw_piece(piece)
        yield piece


def _together(pieces: Sequence[Piece], jobs: int) -> Generator[Piece, None, None]:
    """Yield pieces as processes finish them; few are handed out ahead, so that stopping is quick."""
    from multiprocessing import get_context

    left = list(reversed(pieces))
    running: dict[Future[None], Piece] = {}
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_begin)
    try:
        while left or running:
            while left and len(running) < _AHEAD * jobs:
                piece = left.pop()
                running[pool.submit(draw_piece, piece)] = piece
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                future.result()
                yield running.pop(future)
    except BrokenProcessPool as error:
        raise BenchError(
            "a drawing process died (out of memory?). Finished pieces are kept: run the same command "
            "again, with fewer --jobs."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """In a process: leave Ctrl-C to the parent, and end with it even if it is killed."""
    from multiprocessing import parent_process

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
