"""Suite `folder` through the command line: what is refused, told, planned and compared."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.config import RunConfig
from bench.running import identify
from bench.suites import resolve
from bench.types import BenchError
from tests.command_line import bench
from tests.latex import complaints
from tests.own_pictures import COUNT, metadata, write

QUICK = ("--train-images", 16, "--train-batch", 8, "--limit", 10, "--sampling-steps", 1, "--no-shuffled")


@pytest.fixture(autouse=True)
def _own_library_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "library")


def given(pictures: Path, base: Path, *more: object) -> list[object]:
    task = () if "--task" in more else ("--task", "image-grey")
    size = () if "--resolution" in more else ("--resolution", 64)
    shares = () if "--shares" in more else ("--shares", "0.4,0.2,0.4")
    return ["--suite", "folder", "--data", pictures, "--base", base, *size, *shares, *task, *more]


def run(pictures: Path, base: Path, results: Path, *more: object) -> Any:
    where = ("--results", results, "--device", "cpu", "--sample-batch", 16)
    return bench("run", *given(pictures, base, *where, *more))


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def change_row(folder: Path, rows: list[dict[str, str]], change: dict[str, str]) -> None:
    metadata(folder, [row | (change if number == 3 else {}) for number, row in enumerate(rows)])


def wide(folder: Path, rows: list[dict[str, str]]) -> None:
    Image.fromarray(np.zeros((48, 90), np.uint8)).save(folder / "conditions" / "wide.png")
    change_row(folder, rows, {"conditioning_image": "conditions/wide.png"})


def without_picture(folder: Path, rows: list[dict[str, str]]) -> None:
    (folder / "3.png").unlink()


def without_conditions(folder: Path, rows: list[dict[str, str]]) -> None:
    metadata(folder, [{name: row[name] for name in ("file_name", "text")} for row in rows])


def broken(folder: Path, rows: list[dict[str, str]]) -> None:
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:200])


def all_missing(folder: Path, rows: list[dict[str, str]]) -> None:
    for picture in folder.rglob("*.png"):
        picture.unlink()


Change = Callable[[Path, list[dict[str, str]]], None]
BAD: dict[str, tuple[Change | None, tuple[object, ...], str]] = {
    "a column": (None, ("--caption-column", "caption"), "'caption'; it has image, text, conditioning_image"),
    "an empty caption": (lambda f, r: change_row(f, r, {"text": " "}), (), "3.png"),
    "another size": (wide, (), "90x48"),
    "few pictures": (lambda f, r: metadata(f, r[:12]), (), "12 usable pictures"),
    "few to test on": (lambda f, r: metadata(f, r[:24]), ("--shares", "0.8,0.1,0.1"), "test needs 10"),
    "a broken picture": (broken, ("--strict",), "1 pictures"),
    "a caption without its picture": (without_picture, (), "3.png"),
    "captions without pictures": (all_missing, (), "0.png"),
    "a path outside": (lambda f, r: change_row(f, r, {"conditioning_image": "../x.png"}), (), "outside"),
    "shares": (None, ("--shares", "0.9,0.9,0.1"), "--shares"),
    "a size": (None, ("--resolution", 100), "--resolution 100"),
    "no condition": (lambda f, r: change_row(f, r, {"conditioning_image": ""}), (), "3.png"),
    "a task without its column": (without_conditions, (), "condition"),
    "no detector's weights": (None, ("--lines", "hed", "--task", "sketch"), "bench judges fetch hed"),
    "two budgets": (None, ("--epochs", 2, "--train-images", 8), "--epochs 2"),
}


@pytest.mark.parametrize("methods", ["text-only", "bps,text-only"])
@pytest.mark.parametrize("name", BAD)
def test_bad_folders_end_in_one_line_with_nothing_written(
    micro_folder: Path, tmp_path: Path, name: str, methods: str
) -> None:
    change, options, named = BAD[name]
    pictures = tmp_path / "pictures"
    rows = write(pictures)
    if change is not None:
        change(pictures, rows)
    before = listing(pictures)
    answer = run(pictures, micro_folder, tmp_path / "results", "--method", methods, *options)
    assert answer.exit_code == 2, answer.output
    (line,) = answer.stderr.strip().splitlines()
    assert line.startswith("error: ") and named in line
    assert not (tmp_path / "results").exists() and listing(pictures) == before


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["run", "--suite", "folder", "--base", "BASE"], "--data"),
        (["run", "--suite", "folder", "--base", "BASE", "--data", "/nowhere"], "/nowhere"),
        (["run", "--image-column", "picture"], "--image-column is for suite 'folder'"),
        (["data", "verify", "--suite", "folder", "--data", "/nowhere"], "/nowhere"),
        (["plan", "--suite", "folder"], "--data"),
    ],
)
def test_a_folder_that_is_not_there(micro_folder: Path, words: list[str], named: str) -> None:
    answer = bench(*[str(micro_folder) if word == "BASE" else word for word in words])
    (line,) = answer.stderr.strip().splitlines()
    assert answer.exit_code == 2 and named in line


def test_what_was_left_out_is_told_once_and_listed_beside_the_results(
    micro_folder: Path, tmp_path: Path
) -> None:
    pictures, results = tmp_path / "pictures", tmp_path / "results"
    rows = write(pictures)
    broken(pictures, rows)
    (pictures / "9.png").write_bytes((pictures / "8.png").read_bytes())
    before = listing(pictures)
    first = run(pictures, micro_folder, results, "--method", "text-only", *QUICK)
    assert first.exit_code == 0, first.output
    told = [line for line in first.stderr.splitlines() if "left out" in line]
    assert len(told) == 2 and "3.png" in first.stderr and "9.png" in first.stderr
    (manifest,) = results.glob("data-*.json")
    held = json.loads(manifest.read_text())
    assert held["left out"] == {"broken": ["3.png"], "the same picture again": ["9.png"]}
    assert len(held["items"]) == COUNT - 2 and str(pictures) not in manifest.read_text()
    again = run(pictures, micro_folder, results, "--method", "text-only", "--seed", 1, *QUICK)
    assert again.exit_code == 0 and "left out" not in again.stderr
    assert listing(pictures) == before


def test_commands_that_look_at_data_take_what_says_how_to_read_them(
    micro_folder: Path, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    write(pictures, text="caption")
    columns = given(pictures, micro_folder, "--caption-column", "caption")
    read = columns[:4] + columns[6:10] + columns[12:]  # without base and task
    verified = bench("data", "verify", *read)
    assert verified.exit_code == 0 and f"{COUNT} items" in verified.stdout, verified.output
    exported = bench("data", "export", tmp_path / "out", *read)
    assert exported.exit_code == 0 and Image.open(next((tmp_path / "out").glob("*.png"))).size == (64, 64)
    audited = bench("audit", "--base", micro_folder, *read)
    assert audited.exit_code == 0 and "UNKNOWN" in audited.stdout, audited.output
    planned = bench("plan", *columns, "--epochs", 3, "--method", "bps")
    assert planned.exit_code == 0, planned.output
    assert re.search(r"\d+ training images, 3 times \d+ items", planned.stdout)
    assert "64 px" in planned.stdout
    printed = bench("run", "--print-config", *columns, "--epochs", 2.5)
    (tmp_path / "run.yaml").write_text(printed.stdout)
    assert bench("run", "--print-config", "--config", tmp_path / "run.yaml").stdout == printed.stdout
    assert "caption_column: caption" in printed.stdout and "epochs: 2.5" in printed.stdout


def test_epochs_are_training_images_of_the_protocol(micro_folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "pictures")
    asked: dict[str, Any] = {
        "suite": "folder",
        "data": tmp_path / "pictures",
        "base": micro_folder,
        "resolution": 64,
        "shares": (0.4, 0.2, 0.4),
        "task": "image-grey",
    }
    spec = resolve(RunConfig(**asked, epochs=2))
    images = 2 * len(spec.suite.splits().side("train"))
    counted = identify(resolve(RunConfig(**asked, train_images=images)))
    assert spec.budget.train_images == images and identify(spec) == counted
    with pytest.raises(BenchError, match="--epochs 2 and --train-images 8"):
        resolve(RunConfig(**asked, epochs=2, train_images=8))


@pytest.mark.slow
@pytest.mark.timeout(900)  # four processes, each of which starts and loads all
@pytest.mark.parametrize("model", ["base", "model.safetensors"])
def test_four_methods_are_compared_in_a_table_that_fits_a_paper(tmp_path: Path, model: str) -> None:
    """The README's two commands, on 80 pictures and a random base as a folder and as one file."""
    from tests.original_layout import write_both

    pictures, results = tmp_path / "pictures", tmp_path / "results"
    write(pictures, count=80)
    write_both(tmp_path / "base", tmp_path / "model.safetensors")
    methods = ("--method", "bps,controlnet,t2i-adapter,sd-finetune", "--task", "image")
    done = run(pictures, tmp_path / model, results, *methods, *QUICK)
    assert done.exit_code == 0, done.output
    assert len(list(results.glob("folder-image-*/record.json"))) == 4
    printed = bench("report", "--results", results, "--latex")
    assert printed.exit_code == 0 and printed.stdout.startswith(("%", "\\begin")), printed.output
    for title in ("BPS", "ControlNet", "T2I-Adapter", "SD"):
        assert title in printed.stdout
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper/table.tex").write_text(printed.stdout)
    if shutil.which("pdflatex"):  # CI refuses to run without it
        assert complaints(tmp_path / "paper", tmp_path / "compiled") == []
    record = next(results.glob("folder-image-bps-*"))
    assert bench("show", record).exit_code == 0
    exported = bench("export", record, tmp_path / "weights", "--base", tmp_path / model)
    assert exported.exit_code == 0, exported.output
    assert "datasets" not in (tmp_path / "weights/README.md").read_text().partition("\n---\n")[0]
