"""`bench cost --random`: what it measures and writes."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

import cli
from bench import registry
from bench.base.random import build_base, shape_like
from bench.config import RunConfig
from bench.footprint import stand_in
from bench.gpus import GPUS
from bench.speed import FILE, TABLE, Stand, speed_table
from bench.types import BenchError
from bench.yardsticks import YARDSTICKS

RUNNER = CliRunner()
ROOT = Path(__file__).resolve().parent.parent
SMALL = ("--random", "sd15", "--width", 32, "--size", 64, "--rounds", 2, "--device", "cpu")


def cost(*words: Any, batch: int = 2) -> Any:
    given = ("cost", *words, *SMALL, "--train-batch", batch, "--sample-batch", 3)
    return RUNNER.invoke(cli.app, [str(w) for w in given])


def test_methods_and_yardsticks_share_a_table(tmp_path: Path) -> None:
    for words in (("--method", "t2i-adapter"), ("--yardstick", "unet-backward")):
        done = cost(*words, "--out", tmp_path)
        assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / FILE).read_text())
    method, alone = found["entries"]
    assert method["name"] == "t2i-adapter" and alone["title"].startswith("UNet alone, frozen")
    for spread in (method["train"], method["sample"], method["encode"], alone["train"]):
        assert 0 < spread["least"] <= spread["median"] <= spread["most"]
    assert alone["sample"] is None and alone["trainable"] == 0
    assert method["train_flops"] > alone["train_flops"], "the adapter's operations come on top"
    assert min(method["sample_bytes"], method["train_bytes"]) > 2**27, "the libraries alone take that"
    on_a_gpu = {**found["machine"], "device": "cuda", "gpu": "NVIDIA H100 80GB HBM3"}
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / FILE).write_text(json.dumps({**found, "machine": on_a_gpu}))
    shares = [line.split(" | ")[6] for line in speed_table(tmp_path / "gpu").splitlines()[4:6]]
    peak = GPUS["h100"].single * 1e12
    rates = [e["train_flops"] * 2 / e["train"]["median"] / peak for e in found["entries"]]
    percent = [float(share.removesuffix("%")) for share in shares]
    assert percent == pytest.approx([100 * rate for rate in rates], rel=1e-2)
    assert "NVIDIA H100 80GB HBM3" in speed_table(tmp_path / "gpu")
    table = (tmp_path / TABLE).read_text()
    assert "T2I-Adapter" in table and "median of 2 rounds" in table and "bench cost" in table


def test_a_process_takes_the_memory_that_was_planned(tmp_path: Path) -> None:
    words = [
        "cost",
        "--random",
        "sd15",
        "--method",
        "bps",
        "--width",
        "64",
        "--size",
        "256",
        "--train-batch",
        "2",
        "--sample-batch",
        "2",
        "--rounds",
        "1",
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run([sys.executable, "-m", "cli", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((tmp_path / FILE).read_text())["entries"]
    for what in ("train", "sample"):
        assert found[f"{what}_bytes"] == pytest.approx(found[f"planned_{what}_bytes"], rel=0.15), what


def test_another_size_starts_a_new_table(tmp_path: Path) -> None:
    assert cost("--yardstick", "unet-trained", "--out", tmp_path).exit_code == 0
    assert cost("--yardstick", "unet-backward", "--out", tmp_path, batch=1).exit_code == 0
    found = json.loads((tmp_path / FILE).read_text())
    assert [e["name"] for e in found["entries"]] == ["unet-backward"]
    assert found["spec"]["batch"] == 1


def test_words_ask_for_the_same_again(tmp_path: Path) -> None:
    stand = Stand(like="sd21", width=64, size=128, rounds=3, out=tmp_path)
    asked = get_command(cli.app).commands["cost"].make_context("cost", stand.words()).params  # type: ignore[attr-defined]
    assert Stand(like=asked["random"], **{k: asked[k] for k in ("width", "size", "rounds", "out")}) == stand
    config = RunConfig(precision="bf16", gradient_checkpointing=True, train_batch=2, device="cpu")
    spec = replace(stand, like="sd15").spec(config)
    assert spec.shape.unet["block_out_channels"] == (64, 128, 256, 256)
    assert (spec.precision, spec.batch, spec.execution.gradient_checkpointing) == ("bf16", 2, True)
    done = cost("--yardstick", "unet-backward", "--micro-batch", 1, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    words = shlex.split(json.loads((tmp_path / FILE).read_text())["command"])
    again = get_command(cli.app).commands["cost"].make_context("cost", words[2:]).params  # type: ignore[attr-defined]
    assert words[:2] == ["bench", "cost"] and again["method"] == ["all"]
    assert (again["train_batch"], again["sample_batch"], again["micro_batch"]) == (2, 3, 1)
    assert (again["width"], again["rounds"], again["out"]) == (32, 2, tmp_path)


@pytest.mark.parametrize("name", YARDSTICKS)
def test_yardsticks_train_what_they_say(name: str) -> None:
    shape, task = shape_like("sd15", width=32, size=64), registry.load("task", "sketch")
    kind = YARDSTICKS[name]
    base = build_base(shape, device="cpu", encoders=kind.encoders)
    made = kind.make(base, task, stand_in(shape, task=task, count=2), "fp32")
    before = [p.clone() for p in base.unet.parameters()]
    made.step()
    made.step()
    moved = any(not torch.equal(a, b) for a, b in zip(before, base.unet.parameters(), strict=True))
    assert moved == (name == "unet-trained")
    assert made.parameters >= base.unet.num_parameters() and (made.trainable > 0) == ("backward" not in name)


@pytest.mark.parametrize(
    "damage",
    [
        {"entries": 1},
        {"entries": [{"name": "bps"}]},
        {"spec": {"base": "sd15"}},
        {"machine": "cpu"},
        {"machine": {"processor": 1, "threads": "two"}},
        {"command": ["bench"]},
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: dict[str, Any]) -> None:
    whole = json.loads((ROOT / "results" / "speed" / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(whole))
    assert "BPS" in speed_table(tmp_path)
    (tmp_path / FILE).write_text(json.dumps({**whole, **damage}))
    with pytest.raises(BenchError, match=FILE):
        speed_table(tmp_path)


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    done = cost("--method", "bps,nothing", "--out", tmp_path)
    assert done.exit_code == 2 and "unknown method 'nothing'" in done.output
    done = cost("--method", "bps", "--precision", "fp16", "--out", tmp_path)
    assert done.exit_code == 2 and "fp16" in done.output
    done = cost("--yardstick", "unet-backwards", "--out", tmp_path)
    assert done.exit_code == 2 and "unet-backward" in done.output
