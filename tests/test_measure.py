"""Measuring costs: what is measured in a suite and on random weights, one process a method, yardsticks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import cli
from bench import registry
from bench.base.random import build_base, shape_of
from bench.config import Training
from bench.cost import (
    TIMINGS_FILE,
    add_timing,
    count_parameters,
    load_timings,
    operations,
    peak_memory,
    reset_peak_memory,
)
from bench.measure import YARDSTICKS, Amount, code_measured, machine, measure
from bench.plan import stand_in
from bench.training.loop import training_loss
from tests.asking import made, micro
from tests.test_timings import MACHINE, timing

RUNNER = CliRunner()
ROOT = Path(__file__).resolve().parent.parent
FEW = ("--train-steps", 1, "--sample-batches", 1)


def cost(*argv: Any) -> Any:
    return RUNNER.invoke(cli.app, ["cost", "--device", "cpu", *map(str, argv)])


def test_measuring_finds_positive_costs_and_leaves_no_trace(micro_folder: Path, tmp_path: Path) -> None:
    run = made(micro(micro_folder, tmp_path, method="t2i-adapter", train_items=16, limit=10))
    measured = measure(run, Amount(steps=2, batches=2))
    assert measured.train_images_per_second is not None and measured.train_images_per_second > 0
    assert measured.sample_seconds_per_image > 0 and measured.items == 8
    assert measured.peak_memory_bytes > 2**26, "a process with torch has more than 64 MiB"
    assert list(tmp_path.iterdir()) == []
    assert measured.code == code_measured() and set(measured.code) > {"sources", "torch"}
    run.denoiser = registry.load("method", "text-only").build(run.base, run.task)
    still = measure(run, Amount(steps=1, batches=1))
    assert still.train_images_per_second is None and still.sample_seconds_per_image > 0
    assert set(machine("cpu")) == set(MACHINE), "no GPU is named on a CPU"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Put in the place of a process what one would write; return the arguments of each."""
    arguments: list[list[str]] = []

    class Written:
        def __init__(self, argv: Sequence[str], *, alone: bool) -> None:
            assert alone
            arguments.append(list(argv))
            config = json.loads(argv[-1])
            setup = {"base": "sd15"} if "--random" in argv else {}
            made = timing(config.get("method", "bps").split(":")[-1], setup=setup)
            add_timing(Path(config["results"]), made, machine=machine("cpu"))

        def wait(self) -> int:
            return 0

    monkeypatch.setattr("bench.measure.child", Written)
    return arguments


def test_the_command_measures_methods_one_after_another(tmp_path: Path, asked: list[list[str]]) -> None:
    add_timing(tmp_path, timing("old", rounds=3), machine=MACHINE)
    argv = (
        "--method",
        "text-only,t2i-adapter,t2i-adapter-uniform",
        "--results",
        tmp_path,
        *FEW,
        "--rounds",
        2,
    )
    refused = cost(*argv)
    assert refused.exit_code == 2 and "another machine" in refused.output and not asked
    (tmp_path / TIMINGS_FILE).unlink()
    done = cost(*argv)
    assert done.exit_code == 0, done.output
    timings = load_timings(tmp_path)
    assert timings is not None and [t.method for t in timings.entries] == ["t2i-adapter", "text-only"]
    assert [t.rounds for t in timings.entries] == [2, 2] and "fastest of 2 rounds" in timings.words
    assert "t2i-adapter" in done.stdout and timings.machine["processor"] in done.stdout
    assert [json.loads(given[-1])["method"] for given in asked] == ["text-only", "t2i-adapter"] * 2
    assert asked[0][:7] == ["cost", "--rounds", "1", "--train-steps", "1", "--sample-batches", "1"]


@pytest.mark.slow
def test_random_weights_are_measured_and_planned(tmp_path: Path) -> None:
    argv = ("--random", "sd15", "--method", "text-only", "--width", 32, "--size", 64, "--rounds", 1, *FEW)
    done = cost(*argv, "--sample-batch", 2, "--results", tmp_path)
    assert done.exit_code == 0, done.output
    (measured,) = (load_timings(tmp_path) or pytest.fail("nothing was written")).entries
    assert measured.setup["base"] == "sd15 of width 32" and measured.setup["sampled"] == measured.items == 2
    assert measured.train_images_per_second is None and measured.train_flops is None
    assert (measured.planned_memory_bytes or 0) > 2**26 and "sd15 of width 32" in done.stdout


@pytest.mark.slow
def test_a_process_on_random_weights_takes_the_memory_that_was_planned(tmp_path: Path) -> None:
    argv = ["cost", "--random", "sd15", "--method", "bps", "--width", 64, "--size", 256, "--train-batch", 2]
    argv += ["--sample-batch", 2, *FEW, "--rounds", 1, "--device", "cpu", "--results", tmp_path]
    command = [sys.executable, "-m", "cli", *map(str, argv)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    timings = load_timings(tmp_path)
    assert timings is not None and "GiB" in done.stdout and "sd15 of width 64" in done.stdout
    (measured,) = timings.entries
    assert measured.planned_memory_bytes == pytest.approx(measured.peak_memory_bytes, rel=0.15)
    assert measured.setup["size"] == 256 and measured.train_flops is not None
    assert timings.find("bps", measured.options) is None, "no time of a suite's run"


@pytest.mark.parametrize("name", YARDSTICKS)
def test_yardsticks_train_what_they_say(name: str, micro_folder: Path) -> None:
    shape, task = shape_of(micro_folder), registry.load("task", "sketch")
    method, base = registry.load("method", f"baselines.yardsticks:{name}"), build_base(shape, device="cpu")
    denoiser, data = method.build(base, task), stand_in(shape, task=task, count=2)
    rows = data.latents_at([0, 1]), torch.tensor([3, 7]), data.text_at([0, 1])[None]
    with torch.no_grad():
        eps = denoiser(*rows, denoiser.encode(data.conditions_at([0, 1])))
        assert torch.allclose(eps, base.eps(*rows), atol=1e-5)
    loss = training_loss(denoiser, base=base, data=data, training=Training(batch=2), seed=0, step=0)
    loss.backward()
    assert all(p.grad is not None for p in denoiser.parameters() if p.requires_grad)
    size, (total, trained) = base.unet.num_parameters(), count_parameters(denoiser)
    assert total >= size and (trained == 1 if name == "UNetBackward" else trained > 0.2 * size)
    assert not any(p.requires_grad for p in base.unet.parameters())


def test_the_script_of_diffusers_holds_the_frozen_part_in_the_precision(micro_folder: Path) -> None:
    shape, task = shape_of(micro_folder), registry.load("task", "sketch")
    method = registry.load("method", "baselines.yardsticks:DiffusersControlNet")
    denoiser = method.build(build_base(shape, device="cpu"), task)
    data = stand_in(shape, task=task, count=1)
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        denoiser(data.latents_at([0]), torch.tensor([3]), data.text_at([0])[None], data.conditions_at([0]))
    assert denoiser.unet.dtype == torch.bfloat16 and denoiser.controlnet.dtype == torch.float32


def test_several_on_random_weights_have_yardsticks_beside_them(
    tmp_path: Path, asked: list[list[str]]
) -> None:
    done = cost("--random", "sd15", "--method", "bps,text-only", "--rounds", 1, "--results", tmp_path)
    assert done.exit_code == 0, done.output
    assert len(asked) == 2 + len(YARDSTICKS) and YARDSTICKS[0] in asked[2][-1]
    assert all("--random" in given for given in asked)


@pytest.mark.parametrize(
    "argv,message",
    [
        (("--method", "bps,nothing"), "unknown method 'nothing'"),
        (("--method", "bps", "--precision", "fp16", "--random", "sd15", "--rounds", 1), "fp16"),
        (("--method", "bps", "--random", "sd3", "--rounds", 1), "sd3"),
    ],
)
def test_what_cannot_be_measured_is_said(tmp_path: Path, argv: tuple[Any, ...], message: str) -> None:
    done = cost(*argv, "--results", tmp_path)
    assert done.exit_code == 2 and message in done.output, done.output


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell")
def test_what_was_freed_is_no_part_of_a_peak() -> None:
    reset_peak_memory("cpu")  # else an earlier test's peak would do for this one's
    held = [np.ones(15_000) for _ in range(4_000)]
    whole = peak_memory("cpu")
    last = held[-1]  # lies above the others, so that they stay with the process
    del held
    reset_peak_memory("cpu")
    assert peak_memory("cpu") < whole - 2**28, "480 MB were given back"
    assert last.all()


def test_attention_is_counted_forward_and_back_whatever_the_version_of_torch() -> None:
    """Two products of 16 x 16 x 8 in each of two heads, two operations each; backward makes five products."""
    q = torch.ones(1, 2, 16, 8, requires_grad=True)
    attention = torch.nn.functional.scaled_dot_product_attention
    product = 2 * 2 * 16 * 16 * 8
    assert operations(lambda: attention(q, q, q)) == 2 * product
    assert operations(lambda: attention(q, q, q).sum().backward()) == 7 * product
