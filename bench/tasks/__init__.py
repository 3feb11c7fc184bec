"""Tasks by name: one file and one row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bench.tasks.drawing import Drawing
from bench.tasks.layout import Layout
from bench.tasks.segmentation import Segmentation
from bench.tasks.sketch import Sketch
from bench.types import Task, unknown

TASKS: Mapping[str, Callable[[], Task]] = {
    "sketch": Sketch,
    "segmentation": Segmentation,
    "layout": Layout,
    "drawing": Drawing,
}


def find_task(name: str) -> Task:
    """Return the task called `name`; BenchError with a "did you mean" otherwise."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]()
