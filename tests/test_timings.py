"""Costs measured alone: what they hold, where they are kept and how a report uses them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import cli
from bench.cost import peak_memory, reset_peak_memory
from bench.measure import code_measured, machine, measure
from bench.timings import TIMINGS_FILE, Timing, add_timing, load_timings
from bench.types import BenchError
from tests.asking import made, micro

RUNNER = CliRunner()


def timing(method: str, **changes: Any) -> Timing:
    whole = Timing(
        method=method,
        options={"schedule": "head_heavy"},
        task="sketch",
        steps=4,
        items=8,
        train_images_per_second=20.0,
        sample_seconds_per_image=0.5,
        peak_memory_bytes=2**30,
    )
    return replace(whole, **changes)


MACHINE = {"processor": "a", "device": "cpu", "threads": 2, "platform": "Linux"}


def test_measuring_finds_positive_costs_and_leaves_no_trace(micro_folder: Path, tmp_path: Path) -> None:
    config = micro(micro_folder, tmp_path)
    run = made(config)
    found = measure(run, steps=3, batches=2)
    assert found.train_images_per_second is not None and found.train_images_per_second > 0
    assert found.sample_seconds_per_image > 0 and found.items == 8
    assert found.peak_memory_bytes > 2**26, "a process with torch has more than 64 MiB"
    assert list(tmp_path.iterdir()) == []
    assert found.code == code_measured() and set(found.code) > {"sources", "torch"}
    floor = made(config, method="text-only")
    assert measure(floor, steps=3, batches=1).train_images_per_second is None
    assert set(machine(run)) == set(MACHINE), "no GPU is named on a CPU"


class Here:
    """What a process of its own would do, in this one: the same command line."""

    def __init__(self, words: Sequence[str], *, alone: bool) -> None:
        assert alone
        self.code = RUNNER.invoke(cli.app, list(words)).exit_code

    def wait(self) -> int:
        return self.code


def test_the_command_measures_methods_one_after_another(
    micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_timing(tmp_path, timing("old", rounds=3), machine=MACHINE)
    names = "t2i-adapter,t2i-adapter-cubic,text-only"
    words = [
        "cost",
        "--method",
        names,
        "--suite",
        "micro",
        "--base",
        micro_folder,
        "--results",
        tmp_path,
        "--device",
        "cpu",
        "--sample-batch",
        4,
        "--train-steps",
        2,
        "--sample-batches",
        1,
        "--rounds",
        2,
    ]
    words = [str(w) for w in words]
    refused = RUNNER.invoke(cli.app, words)
    assert refused.exit_code == 2 and "another machine" in refused.output
    assert [t.rounds for t in (load_timings(tmp_path) or pytest.fail("gone")).entries] == [3]
    (tmp_path / TIMINGS_FILE).unlink()
    monkeypatch.setattr("bench.measure.child", Here)  # the refused one was a process
    done = RUNNER.invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    found = load_timings(tmp_path)
    assert found is not None and [t.method for t in found.entries] == ["t2i-adapter", "text-only"]
    assert [t.rounds for t in found.entries] == [2, 2] and "fastest of 2 rounds" in found.words
    failed = RUNNER.invoke(cli.app, words[:5] + ["--method", "nothing"])
    assert failed.exit_code == 2 and "unknown method" in failed.output


def test_rounds_keep_the_fastest_and_the_largest_memory(tmp_path: Path) -> None:
    slow = timing("bps", train_images_per_second=10.0, peak_memory_bytes=5)
    fast = timing("bps", sample_seconds_per_image=0.75, peak_memory_bytes=3)
    add_timing(tmp_path, slow, machine=MACHINE)
    add_timing(tmp_path, fast, machine=MACHINE, further=True)
    found = load_timings(tmp_path)
    best = timing("bps", peak_memory_bytes=5, rounds=2)
    assert found is not None and found.entries == (best,) and "fastest of 2 rounds" in found.words
    floor = timing("text-only", train_images_per_second=None)
    assert floor.with_round(floor) == replace(floor, rounds=2)
    with pytest.raises(BenchError, match=r"rounds of .*'sketch', 4, 8.*'sketch', 9, 8.*--train-steps"):
        add_timing(tmp_path, timing("bps", steps=9), machine=MACHINE, further=True)
    assert load_timings(tmp_path) == found


def test_rounds_of_two_states_of_the_code_are_not_mixed(tmp_path: Path) -> None:
    old, new = ({"sources": name, "torch": "2.15.0"} for name in ("aaaa", "bbbb"))
    add_timing(tmp_path, timing("bps", code=old), machine=MACHINE)
    with pytest.raises(BenchError, match=r"sources aaaa, torch 2\.15\.0; sources bbbb.*--further"):
        add_timing(tmp_path, timing("bps", code=new), machine=MACHINE, further=True)
    unknown = timing("text-only")
    with pytest.raises(BenchError, match="code not recorded"):
        unknown.with_round(timing("text-only", code=new))
    add_timing(tmp_path, timing("bps", code=new), machine=MACHINE)
    add_timing(tmp_path, timing("bps", code=new), machine=MACHINE, further=True)
    found = load_timings(tmp_path)
    assert found is not None and found.entries == (timing("bps", code=new, rounds=2),)
    assert "DIFFERENT CODE" not in found.words
    add_timing(tmp_path, timing("controlnet", code=old), machine=MACHINE)
    assert "DIFFERENT CODE" in (load_timings(tmp_path) or pytest.fail("gone")).words


def test_an_edit_of_the_sources_is_other_code(tmp_path: Path) -> None:
    (tmp_path / "bps").mkdir()
    (tmp_path / "cli.py").write_text("")
    (tmp_path / "bps" / "a.py").write_text("x = 1\n")
    before = code_measured(tmp_path)
    assert code_measured(tmp_path) == before
    (tmp_path / "bps" / "notes.md").write_text("words are no code")
    assert code_measured(tmp_path) == before
    (tmp_path / "bps" / "a.py").write_text("x = 2\n")
    assert code_measured(tmp_path)["sources"] != before["sources"]
    assert {k: v for k, v in code_measured(tmp_path).items() if k != "sources"} == {
        k: v for k, v in before.items() if k != "sources"
    }


def test_what_costs_nothing_shares_a_timing(tmp_path: Path) -> None:
    add_timing(tmp_path, timing("t2i-adapter", options={"timesteps": "uniform"}), machine=MACHINE)
    found = load_timings(tmp_path)
    assert found is not None
    same = {"timesteps": "cubic", "learning_rate": 0.01, "condition_channels": 4}
    assert found.find("t2i-adapter", same) is not None
    assert found.find("t2i-adapter", {**same, "width": 2}) is None
    assert found.find("bps", same) is None


def test_a_method_is_measured_once_and_two_machines_are_kept_apart(tmp_path: Path) -> None:
    add_timing(tmp_path, timing("bps", sample_seconds_per_image=9.0), machine=MACHINE)
    add_timing(tmp_path, timing("controlnet"), machine=MACHINE)
    add_timing(tmp_path, timing("bps"), machine=MACHINE)
    found = load_timings(tmp_path)
    assert found is not None and found.entries == (timing("bps"), timing("controlnet"))
    with pytest.raises(BenchError, match="another machine .a, cpu, 2 threads; this one: b,"):
        add_timing(tmp_path, timing("bps"), machine={**MACHINE, "processor": "b"})
    (tmp_path / TIMINGS_FILE).write_text('{"entries": [{}]}')
    with pytest.raises(BenchError, match="'machine' is missing"):
        load_timings(tmp_path)


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
