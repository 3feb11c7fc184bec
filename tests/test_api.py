"""The Python API: what the command line does, as functions; and the program out of an installed wheel."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bench
from bench.record import load_record
from bench.types import BenchError
from tests.test_child import foreign

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def results(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run of text-only, made through the API."""
    folder = tmp_path_factory.mktemp("runs")
    record = bench.run(
        method="text-only",
        task="sketch",
        suite="micro",
        base=str(micro_folder),
        results=str(folder),
        device="cpu",
        limit=10,
        sampling_steps=2,
    )
    assert load_record(folder / record.run_id) == record
    return folder


def test_results_are_a_frame_of_every_number(results: Path) -> None:
    (folder,) = (path.parent for path in results.glob("*/record.json"))
    record, frame = load_record(folder), bench.load_results(results)
    assert len(frame) == sum(len(metrics) for metrics in record.rows.values())
    (line,) = frame[(frame["row"] == "samples") & (frame["metric"] == "mae")].to_dict("records")
    assert (line["value"], line["low"], line["n"]) == (
        record.metrics["mae"].value,
        record.metrics["mae"].low,
        10,
    )
    assert line["run"] == folder.name and line["method"] == "text-only"


def test_a_report_and_weights_that_do_not_exist(results: Path, tmp_path: Path) -> None:
    assert all(path.is_relative_to(tmp_path) for path in bench.report(results, tmp_path))
    with pytest.raises(BenchError, match="nowhere"):
        bench.evaluate(tmp_path / "nowhere", method="bps", task="sketch", results=tmp_path)


def test_a_folder_is_itself(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for number in range(20):
        Image.fromarray(draw.integers(256, size=(64, 64, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    metrics = bench.compare(tmp_path, tmp_path)["metrics"]
    assert metrics["fd"]["value"] == pytest.approx(0, abs=1e-3)
    assert metrics["mae"]["value"] == 0


def test_names_and_version() -> None:
    assert {"bps": "BPS", "controlnet": "ControlNet"}.items() <= bench.list_methods().items()
    assert bench.__version__ == version("bps-bench")
    with pytest.raises(AttributeError):
        _ = bench.nothing


@pytest.mark.slow
def test_the_wheel_runs_where_another_cli_lies(micro_folder: Path, tmp_path: Path) -> None:
    """In an environment of its own, which sees the libraries of this one but not this checkout."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *offline, "--wheel-dir", tmp_path, ROOT], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python, place = tmp_path / "venv" / "bin" / "python", Path(np.__file__).parents[1]
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    (site / "libraries.pth").write_text(f"{place}\n")
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    folder = foreign(tmp_path / "elsewhere")
    program = tmp_path / "venv" / "bin" / "bench"

    def ran(*words: object) -> str:
        done = subprocess.run([program, *map(str, words)], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "controlnet" in ran("list")
    micro = ["--suite", "micro", "--base", micro_folder, "--device", "cpu", "--limit", 10]
    ran("run", "--method", "bps,text-only", *micro, "--sampling-steps", 2, "--no-shuffled")
    records = [load_record(path.parent) for path in folder.rglob("record.json")]
    assert {record.method for record in records} == {"bps", "text-only"}
