"""Trackers of experiments, through accelerate: where loss, rate and images a second are sent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.types import BenchError, unknown

TRACKERS = ("jsonl", "mlflow", "tensorboard", "wandb")
TRACK_FILE = "track.jsonl"


def check_trackers(names: Sequence[str]) -> None:
    """Raise BenchError for an unknown tracker and for one whose package is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise unknown("tracker", name, TRACKERS)
        if name != "jsonl" and find_spec(name) is None:
            raise BenchError(
                f"--track {name}: the package is not installed. Run `pip install {name}`, or use "
                "--track jsonl, which needs none."
            )


def opened(names: Sequence[str], *, folder: Path | None) -> list[Any] | None:
    """Return what accelerate's `log_with` takes; None without trackers."""
    if not names:
        return None
    assert folder is not None, "trackers write below the run's folder"
    return [_jsonl(folder) if name == "jsonl" else name for name in names]


def _jsonl(folder: Path) -> Any:
    """Return a tracker that appends a JSON line a step to track.jsonl.

    A resumed run repeats the steps since its checkpoint; the later line counts.
    """
    from accelerate.tracking import GeneralTracker, on_main_process

    class JsonLines(GeneralTracker):
        name = "jsonl"
        requires_logging_directory = False
        tracker = None

        @on_main_process
        def store_init_configuration(self, values: dict[str, Any]) -> None:
            self._write({"settings": values})

        @on_main_process
        def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
            self._write({"step": step, **values})

        def _write(self, line: dict[str, Any]) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / TRACK_FILE, "a") as file:
                file.write(json.dumps(line) + "\n")

    return JsonLines()
