"""The command line as tests call it, and where its runs lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from cli import app

RUNNER = CliRunner()


def bench(*args: object) -> Any:
    return RUNNER.invoke(app, [str(a) for a in args])


def micro(base: Path, results: Path, *more: object) -> list[object]:
    batch = () if "--sample-batch" in more else ("--sample-batch", 4)
    where = ("--suite", "micro", "--base", base, "--results", results, "--device", "cpu")
    return ["run", *where, *batch, *more]


def folder_of(results: Path, method: str) -> Path:
    (folder,) = results.glob(f"micro-sketch-{method}-*")
    return folder
