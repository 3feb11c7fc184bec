"""A new method takes one file and one row: the contract tests and the command line take it as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import baselines
import cli
from bench.record import find_records, load_record

ROOT = Path(__file__).resolve().parent.parent
FILE = '''
"""The condition, shrunk to the latents' size, shifts the noise by a learned amount a channel."""

import torch

from baselines.inputs import check_condition, check_match


class ToyDenoiser(torch.nn.Module):
    def __init__(self, base, task):
        super().__init__()
        self.unet, self._eps, self._task = base.unet, base.eps, task
        self.downscale = base.downscale
        self.shift = torch.nn.Conv2d(task.channels, 4, 1)
        torch.nn.init.zeros_(self.shift.weight)
        torch.nn.init.zeros_(self.shift.bias)

    def encode(self, condition):
        check_condition(
            condition, channels=self._task.channels, downscale=self.downscale, task=self._task.name
        )
        return torch.nn.functional.avg_pool2d(condition, self.downscale)

    def forward(self, latents, timesteps, text, features):
        check_match(features, latents)
        return self._eps(latents, timesteps, text) + self.shift(features)


class Toy:
    name = "toy"
    title = "a learned shift"
    conditioned = True
    source = "https://example.org/toy"
    options = {}

    def build(self, base, task):
        return ToyDenoiser(base, task)
'''
ROW = 'import baselines\n\nbaselines.METHODS["toy"] = "toy_method:Toy"\n'


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "toy_method.py").write_text(FILE)
    (tmp_path / "toy_row.py").write_text(ROW)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(baselines.METHODS, "toy", "toy_method:Toy")
    return tmp_path


def test_the_contract_tests_take_a_new_row_with_no_new_test_code(added: Path) -> None:
    words = ["-p", "toy_row", "-p", "no:cacheprovider", "-k", "toy and drawing", "tests/test_contracts.py"]
    path = os.pathsep.join([str(added), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=240,
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout


def test_the_command_line_lists_checks_and_runs_it(added: Path, micro_folder: Path) -> None:
    def bench(*words: object) -> str:
        done = CliRunner().invoke(cli.app, [str(w) for w in words])
        assert done.exit_code == 0, done.output
        return done.output

    micro = ("--suite", "micro", "--base", micro_folder)
    assert "a learned shift" in bench("list")
    assert "FAIL" not in bench("check", "--method", "toy", *micro)
    bench(
        "run",
        "--method",
        "toy",
        "--no-floor",
        *micro,
        "--results",
        added / "runs",
        "--device",
        "cpu",
        "--batch",
        4,
    )
    (folder,) = find_records(added / "runs")
    record = load_record(folder)
    assert record.method == "toy" and record.cost.parameters_trainable == 8
    assert {"samples", "shuffled"} <= set(record.rows)
