"""The published results: every file of a committed report is remade from its records, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.record import find_records, load_record
from bench.report import make_report

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = sorted(p.parent for p in (ROOT / "results").glob("*/report"))


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda p: p.name)
def test_the_report_is_remade_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    made = {p.name: p.read_bytes() for p in make_report(folder, tmp_path)}
    kept = {p.name: p.read_bytes() for p in (folder / "report").iterdir()}
    assert sorted(made) == sorted(kept)
    assert [name for name in made if made[name] != kept[name]] == []


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda p: p.name)
def test_published_records_were_made_by_committed_code_without_a_leak(folder: Path) -> None:
    records = [load_record(p) for p in find_records(folder)]
    assert records
    for record in records:
        commit = record.environment["commit"]
        assert len(commit) == 40, f"{record.run_id} was made by {commit}"
        assert record.splits.overlap == 0 and record.protocol["eval_side"] == "test"


def test_there_are_published_results() -> None:
    assert (ROOT / "results" / "emoji") in [p for p in PUBLISHED]
