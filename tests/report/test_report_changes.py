"""Differences of records in words, tables of several protocols, and marks of leaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench.packed import Run
from bench.record import LeakCheck, Leaks
from bench.reporting import build_table, load_runs, make_report
from bench.reporting.changes import record_changes
from bench.reporting.compare import build_comparison
from bench.reporting.compare_tables import comparison_caption
from bench.reporting.leaks import marked
from bench.reporting.tables import caption, cost_grid, record_text
from bench.types import BenchError
from cli import app

Writer = Callable[..., Run]
OTHER = "f" * 64
PROTOCOL = {"task": "sketch", "sampler": {"steps": 50, "guidance": 3.0}}


def leaks(items: int) -> Leaks:
    check = LeakCheck(
        status="leak",
        about="3000 training items",
        items=items,
        findings=["a = b"],
        limits={"image": 0.97},
        nearest={"image": 0.91},
    )
    unknown = LeakCheck(
        status="unknown", about="no fingerprints", items=None, findings=[], limits={}, nearest={}
    )
    return Leaks(items=items, training=check, pretraining=unknown)


def test_equal_protocols_are_said_aloud(build: Any) -> None:
    one = build.record("bps")
    said = record_changes(one, one)
    assert said[0].startswith("same protocol (0123456789ab)") and len(said) == 2
    changed = record_changes(one, build.record("controlnet", seed=1, options={"scale": 0.5}))
    assert changed[0] == said[0]
    assert changed[1:] == [
        'method is "bps" here, "controlnet" there',
        "seed is 0 here, 1 there",
        "option scale is – here, 0.5 there",
    ]


def test_what_differs_is_named_in_order(build: Any) -> None:
    one = build.record("bps")
    other = replace(
        one,
        protocol_hash=OTHER,
        protocol=PROTOCOL,
        seed=2,
        environment={**one.environment, "threads": 1},
        leaks=leaks(3),
    )
    assert record_changes(one, other) == [
        "OTHER PROTOCOL (0123456789ab here, ffffffffffff there): their numbers do not compare",
        "  protocol: sampler.steps is 20 here, 50 there",
        "seed is 0 here, 2 there",
        "leaks: 0 evaluation items here, 3 there",
        "environment: threads is 2 here, 1 there",
    ]


def test_show_diff_prints_them(add_run: Writer, results: Path) -> None:
    one = add_run("bps", {"fd": 38.0}).folder
    other = add_run("bps", {"fd": 38.0}, seed=1, run_id="other").folder
    answer = CliRunner().invoke(app, ["show", str(one), "--diff", str(other)])
    assert answer.exit_code == 0, answer.output
    lines = answer.stdout.splitlines()
    assert lines[0].startswith("same protocol") and lines[1] == "seed is 0 here, 1 there"


def test_two_protocols_are_refused_with_what_differs_and_marked_when_mixed(
    add_run: Writer, results: Path
) -> None:
    add_run("bps", {"fd": 38.0})
    add_run("bps", {"fd": 30.0}, protocol_hash=OTHER, protocol=PROTOCOL, run_id="bps_other")
    with pytest.raises(BenchError) as caught:
        build_table(load_runs(results))
    for words in (
        "2 protocols",
        "0123456789ab: sampler.steps=20",
        "ffffffffffff: sampler.steps=50",
    ):
        assert words in str(caught.value)
    table = build_table(load_runs(results), mixed=True)
    own = [row.label for row in table.rows if row.kind == "method"]
    assert own == ["BPS (protocol A)", "BPS (protocol B)"]
    assert all("protocol" in row.label for row in table.rows)
    words = caption(table)
    assert words.startswith("MIXED PROTOCOLS")
    assert "protocol A is 0123456789ab (sampler.steps=20)" in words
    assert "protocol B is ffffffffffff (sampler.steps=50)" in words


def test_a_leak_stands_in_labels_titles_and_captions(add_run: Writer, results: Path, tmp_path: Path) -> None:
    add_run("bps", {"fd": 38.0, "sketch_f1": 0.5}, shuffled={"fd": 50.0}, leaks=leaks(3))
    add_run("controlnet", {"fd": 39.0, "sketch_f1": 0.4})
    table = build_table(load_runs(results))
    labels = [row.label for row in table.rows if row.kind in {"method", "shuffled"}]
    assert labels == [
        "BPS (LEAK: 3 items)",
        "BPS (shuffled conditions, LEAK: 3 items)",
        "ControlNet",
    ]
    assert table.title == "emoji / sketch (LEAK: 3 items)"
    assert table.title in caption(table) and table.title in cost_grid(table).caption
    assert any(n.startswith("LEAK: 3 evaluation items") for n in table.notes)
    assert "PRETRAINING UNKNOWN: no fingerprints" in " ".join(table.notes)
    comparison = build_comparison([table])
    assert "BPS (LEAK: sketch 3 items)" in [entry.label for entry in comparison.entries]
    assert comparison_caption(comparison).startswith("Comparison on emoji (LEAK: 3 items)")
    written = make_report(results, tmp_path / "out")
    texts = [path for path in written if path.suffix in {".md", ".tex"}]
    assert texts and all("LEAK" in path.read_text() for path in texts)
    shown = record_text(load_runs(results)[0].record)
    assert "LEAK: 3 evaluation items seen among 3000 training items" in shown
    assert "UNKNOWN whether evaluation items were seen" in shown


def test_marks_join_what_is_in_brackets() -> None:
    assert marked("bps", "LEAK: 1 item") == "bps (LEAK: 1 item)"
    assert marked("bps (prior=none)", "LEAK: 1 item") == "bps (prior=none, LEAK: 1 item)"
    assert marked("bps", "") == "bps"
