"""What decides the content of a prepared folder: its options, which are part of every protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.content import digest_json
from bench.data.coco.geometry import RESIZES
from bench.data.coco.official import Category
from bench.data.coco.sketches import describe_sketch
from bench.metrics.regions import COARSE_CELLS
from bench.types import BenchError, unknown

VERSION = 1  # raise it when the same options give other items
TASKS = ("sketch", "segmentation", "layout", "drawing")
SPLITS = ("clean", "release-leaky")
DUPLICATES = ("drop", "keep")
_SMALLEST_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a COCO is prepared.

    tasks: what conditions are drawn for. size: side of the square in pixels. resize: "crop" or
    "squash". sketch: where lines come from; soft: grey edges, else binary ones. splits: "clean", or
    "release-leaky", which trains on val2017 as the release does. duplicates: "drop" leaves pictures of
    val2017 out of the train side of clean splits. limit: so many pictures of each set, for trials.
    """

    tasks: tuple[str, ...] = TASKS
    size: int = 512
    resize: str = "crop"
    sketch: str = "pidinet"
    soft: bool = True
    splits: str = "clean"
    duplicates: str = "drop"
    limit: int | None = None

    def __post_init__(self) -> None:
        """Raise BenchError for names that are not in their tables and sizes that no base takes."""
        for kind, names, allowed in (
            ("task of suite coco17", self.tasks, TASKS),
            ("resize rule", (self.resize,), tuple(RESIZES)),
            ("splits", (self.splits,), SPLITS),
            ("rule for duplicates", (self.duplicates,), DUPLICATES),
        ):
            for name in names:
                if name not in allowed:
                    raise unknown(kind, name, allowed)
        if not self.tasks:
            raise BenchError(f"--tasks names no task. Allowed: {', '.join(TASKS)}.")
        if self.size < _SMALLEST_SIZE or self.size % COARSE_CELLS:
            raise BenchError(
                f"--size must be a multiple of {COARSE_CELLS} from {_SMALLEST_SIZE} on, got {self.size}."
            )

    @property
    def maps(self) -> tuple[str, ...]:
        """The layers that are stored as pictures beside the images."""
        names = (("sketch", {"sketch", "drawing"}), ("classes", {"segmentation"}))
        return tuple(name for name, tasks in names if tasks & set(self.tasks))

    @property
    def boxes(self) -> bool:
        """Whether boxes are kept."""
        return "layout" in self.tasks

    @property
    def leaky(self) -> bool:
        """Whether evaluation items are trained on."""
        return self.splits == "release-leaky"

    def protocol(self, categories: Sequence[Category], *, weights: Path | None) -> dict[str, str]:
        """Return the options in words, for manifest and protocol; errors as `describe_sketch`."""
        said = {
            "version": str(VERSION),
            "size": f"{self.size}x{self.size}",
            "resize": RESIZES[self.resize],
            "orientation": "stored pixels, EXIF rotation not applied",
            "captions": "one of the image's, by SHA-256 of its id",
            "splits": self.splits,
            "tasks": ", ".join(t for t in TASKS if t in self.tasks),
        }
        if "sketch" in self.maps:
            said["sketch"] = describe_sketch(self.sketch, weights=weights, soft=self.soft, size=self.size)
        if "classes" in self.maps:
            said["classes"] = "panoptic maps, nearest pixel; void is class 0, black"
        if self.boxes:
            said["boxes"] = "instances without crowds, rounded outwards, larger ones below"
        if "drawing" in self.tasks:
            said["colours"] = f"means of {COARSE_CELLS}x{COARSE_CELLS} cells"
        if categories:
            said["palette"] = f"COCO panoptic, {len(categories)} classes, {palette_digest(categories)}"
        if not self.leaky:
            said["duplicates"] = self.duplicates
        if self.limit is not None:
            said["limit"] = f"{self.limit} pictures of each set"
        return said


def palette_digest(categories: Sequence[Category]) -> str:
    """Return a SHA-256 of the classes' ids, names and colours in their order."""
    return digest_json([[c.id, c.name, list(c.colour)] for c in categories])
