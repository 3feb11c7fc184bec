"""COCO 2017, brought by the user: official folders in, a prepared folder out, and a data set over it.

Images of COCO are under the licences of their photographers on Flickr, annotations under CC BY 4.0
(https://cocodataset.org). Nothing of it is shipped. How it is prepared, `Recipe`, is part of every protocol.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from bench.config import option
from bench.types import BenchError, unknown

NAME = "coco17"
TRAIN, VAL = "train2017", "val2017"
SETS = (TRAIN, VAL)
MANIFEST = "manifest.json"
SKIPPED = "skipped.json"
TASKS = ("sketch", "segmentation", "layout", "drawing")
CELLS = 8  # along each side, of coarse colours
_SMALLEST_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What decides the content of a prepared folder; the command line's options are made from the fields."""

    tasks: tuple[str, ...] = option(TASKS, "What to draw conditions for.", allowed=TASKS)
    size: int = option(512, "Side of the square images, in pixels.")
    resize: str = option("crop", "Middle square, or squashed as the release.", allowed=("crop", "squash"))
    lines: str = option("square", "Lines of the square, or photo (release).", allowed=("square", "photo"))
    sketch: str = option(
        "pidinet", "Lines by pidinet, hed (need --detectors) or canny.", allowed=("pidinet", "hed", "canny")
    )
    soft: bool = option(True, "Grey edges, or lines alone.", flags=["--soft/--binary"])
    splits: str = option(
        "clean",
        "clean, or release-leaky: trains on val2017 as the release, marked.",
        allowed=("clean", "release-leaky"),
    )
    duplicates: str = option(
        "drop", "Pictures of val2017 among train2017: drop or keep them.", allowed=("drop", "keep")
    )
    limit: int | None = option(None, "Pictures of each set, for trials.", min=1)

    def __post_init__(self) -> None:
        """Raise BenchError for values that are not allowed and sizes that no base takes."""
        for known in fields(self):
            value = getattr(self, known.name)
            for name in value if isinstance(value, tuple) else (value,):
                if name not in known.metadata.get("allowed", (name,)):
                    raise unknown(f"value of --{known.name}", str(name), known.metadata["allowed"])
        if not self.tasks:
            raise BenchError(f"--tasks names no task. Allowed: {', '.join(TASKS)}.")
        if self.size < _SMALLEST_SIZE or self.size % CELLS:
            allowed = f"a multiple of {CELLS} from {_SMALLEST_SIZE} on"
            raise BenchError(f"--size must be {allowed}, got {self.size}.")
        if self.lines == "photo" and self.resize != "squash":
            raise BenchError("--lines photo draws the whole photograph: give it with --resize squash.")

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
    def released(self) -> bool:
        """Whether pictures and lines are squashed as in the release of BPS."""
        return self.resize == "squash" and (self.lines == "photo" or "sketch" not in self.maps)

    @property
    def leaky(self) -> bool:
        """Whether evaluation items are trained on."""
        return self.splits == "release-leaky"
