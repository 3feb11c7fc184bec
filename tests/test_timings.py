"""Costs measured alone: what they hold, where they are kept and how a report uses them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.cost import TIMINGS_FILE, Timing, add_timing, load_timings
from bench.measure import code_measured
from bench.types import BenchError


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


def test_rounds_keep_the_fastest_and_the_largest_memory(tmp_path: Path) -> None:
    slow = timing("bps", train_images_per_second=10.0, peak_memory_bytes=5)
    fast = timing("bps", sample_seconds_per_image=0.75, peak_memory_bytes=3)
    both = slow.with_round(fast)
    assert both == timing("bps", peak_memory_bytes=5, rounds=2)
    add_timing(tmp_path, both, machine=MACHINE)
    timings = load_timings(tmp_path)
    assert timings is not None and timings.entries == (both,) and "fastest of 2 rounds" in timings.words
    floor = timing("text-only", train_images_per_second=None)
    assert floor.with_round(floor) == replace(floor, rounds=2)


def test_rounds_of_two_states_of_the_code_are_not_mixed(tmp_path: Path) -> None:
    old, new = ({"sources": name, "torch": "2.15.0"} for name in ("aaaa", "bbbb"))
    with pytest.raises(BenchError, match=r"sources aaaa torch 2\.15\.0; sources bbbb"):
        timing("bps", code=old).with_round(timing("bps", code=new))
    add_timing(tmp_path, timing("bps", code=new), machine=MACHINE)
    timings = load_timings(tmp_path)
    assert timings is not None and "DIFFERENT CODE" not in timings.words
    add_timing(tmp_path, timing("controlnet", code=old), machine=MACHINE)
    assert "DIFFERENT CODE" in (load_timings(tmp_path) or pytest.fail("gone")).words


def test_times_on_random_weights_stand_beside_those_of_a_suite(tmp_path: Path) -> None:
    random = timing("bps", setup={"base": "sd15", "size": 64}, sample_seconds_per_image=9.0, rounds=4)
    for entry in (timing("bps"), random, replace(random, setup={"base": "sd15", "size": 128})):
        add_timing(tmp_path, entry, machine=MACHINE)
    timings = load_timings(tmp_path)
    assert timings is not None and len(timings.entries) == 3
    assert timings.find("bps", {"schedule": "head_heavy"}) == timing("bps")
    assert "4 rounds" not in timings.words


def test_published_timings_are_read() -> None:
    timings = load_timings(Path(__file__).parents[1] / "results" / "emoji")
    assert timings is not None and timings.find("text-only", {}) is not None


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
