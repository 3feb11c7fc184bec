"""What is said to who looks at the wrong thing: it names what is there and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from bench.base.snapshot import find_snapshot
from bench.grid import records_of_paces, seconds_of
from bench.packed import kept_records
from bench.study.page import read_samples
from bench.suites import resolve
from bench.types import BenchError
from tests.asking import micro

RESULTS = Path(__file__).resolve().parents[1] / "results" / "emoji"


def test_a_folder_of_runs_is_listed(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, ["show", str(RESULTS)])
    assert done.exit_code == 0
    ids = [line.split(":")[0] for line in done.stdout.splitlines()]
    assert ids == [record.run_id for record in kept_records(RESULTS)]
    nothing = CliRunner().invoke(cli.app, ["show", str(tmp_path / "none")])
    assert nothing.exit_code == 2 and "none" in nothing.output


def test_published_runs_have_no_samples_to_study(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="bench run"):
        read_samples(tmp_path, ["a"], size=(64, 64))


def test_an_empty_single_file_is_no_base(tmp_path: Path) -> None:
    (tmp_path / "v1-5.safetensors").write_bytes(b"")
    with pytest.raises(BenchError, match="v1-5.safetensors"):
        find_snapshot(tmp_path / "v1-5.safetensors")


def test_an_ablation_knows_the_pace_that_a_plan_knows(
    micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(RESULTS.parents[1])
    spec = resolve(micro(micro_folder, tmp_path, suite="emoji", base_variant=None))
    assert (seconds_of(spec, records_of_paces(tmp_path), items=10) or 0) > 0
