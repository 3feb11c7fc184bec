"""Methods, metrics and tasks of a package outside: by entry point and by module:Name, nothing edited."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from bench import registry
from bench.packed import Run
from bench.record import load_record
from bench.reporting.compare import build_comparison
from bench.reporting.frame import build_table
from bench.reporting.tables import record_text
from bench.reporting.words import titled
from bench.types import BenchError
from tests.test_child import foreign

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
MORE = '''

class Lighter(Toy):
    name = "lighter"


class Dark:
    """How dark a picture is."""

    name, channels, version = "dark", 1, 1
    metrics = ()

    def condition(self, example):
        return 1 - example.image.mean(-1)[None].astype("float32") / 255

    def fidelity(self, image, example):
        return {}


class Brightness:
    from bench.types import MetricSpec

    spec = MetricSpec(name="brightness", scale="[0, 1]", better="none")

    def items(self, scored):
        return scored.images.mean((1, 2, 3)) / 255
'''
POINTS = """[bps_bench.methods]
toy = toy:Toy
[bps_bench.tasks]
dark = toy:Dark
[bps_bench.metrics]
brightness = toy:Brightness
"""


def toy_of_readme() -> str:
    """The method that README shows, as it stands there."""
    blocks = README.read_text().split("```python\n")[1:]
    return next(block.split("```")[0] for block in blocks if "class Toy" in block)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with an installed package, as pip leaves one."""
    place = tmp_path / "site"
    (place / "toy-1.0.dist-info").mkdir(parents=True)
    (place / "toy.py").write_text(toy_of_readme() + MORE)
    (place / "toy-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (place / "toy-1.0.dist-info" / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(place)
    registry.rows.cache_clear()
    yield place
    registry.rows.cache_clear()


def test_a_grid_runs_what_a_package_brings_wherever_the_user_stands(
    package: Path, micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(foreign(tmp_path / "elsewhere"))
    words = ["--method", "toy,toy:Lighter", "--task", "dark", "--metric", "brightness", "--jobs", "2"]
    micro = ["--suite", "micro", "--base", str(micro_folder), "--device", "cpu", "--limit", "12"]
    micro += ["--train-images", "16", "--sampling-steps", "1"]
    done = CliRunner().invoke(cli.app, ["run", *words, *micro, "--results", str(tmp_path / "runs"), "--json"])
    assert done.exit_code == 0, done.output
    records = [load_record(Path(folder)) for folder in json.loads(done.stdout).values()]
    assert {record.method for record in records} == {"toy", "lighter"}
    for record in records:
        assert record.task == "dark" and record.cost.parameters_trainable == 8
        assert {"samples", "shuffled"} <= set(record.rows)
        assert 0 < (record.metrics["brightness"].value or 0) < 1
        assert registry.recorded("method", record).name == record.method
    assert {record.method: record.title for record in records}["toy"] == "a learned shift"
    assert all(record_text(record).startswith("a learned shift on micro / dark") for record in records)
    tables = {n: build_table([Run(record=record) for record in records[:n]]) for n in (1, 2)}
    for table in (tables[1], build_comparison([tables[1]])):
        assert [row.name for row in table.own("method")] == ["a learned shift"]
    both = {row.name for row in tables[2].own("method")}  # Lighter has Toy's title
    assert both == {"a learned shift (toy)", "a learned shift (lighter)"}
    assert titled(replace(records[0], title="")) == records[0].method


@pytest.mark.slow
def test_the_contract_tests_take_a_method_of_a_package_with_no_new_test_code(package: Path) -> None:
    words = ["-p", "no:cacheprovider", "-k", "toy and drawing", "tests/test_contracts.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(ROOT)])},
        timeout=240,
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout


@pytest.mark.parametrize("name", ["toy", "toy:Toy"])
def test_a_method_is_shown_and_checked_by_either_name(package: Path, micro_folder: Path, name: str) -> None:
    for words in (["list", name], ["check", "--method", name, "--suite", "micro", "--base", micro_folder]):
        done = CliRunner().invoke(cli.app, [str(word) for word in words])
        assert done.exit_code == 0 and "FAIL" not in done.output, done.output
        assert "a learned shift" in done.output or "ok " in done.output


def test_names_of_a_package_are_listed_with_it_and_may_not_hide_ours(package: Path) -> None:
    assert "package toy" in CliRunner().invoke(cli.app, ["list"]).output
    assert registry.load("metric", "toy:Brightness").spec.name == "brightness"
    (package / "toy-1.0.dist-info" / "entry_points.txt").write_text("[bps_bench.methods]\nbps = toy:Toy\n")
    registry.rows.cache_clear()
    with pytest.raises(BenchError, match="bps"):
        registry.rows("method")


@pytest.mark.parametrize("name", ["toy:Nothing", "no_such_module:Toy", "nobody"])
def test_a_name_that_leads_nowhere_is_an_error(package: Path, name: str) -> None:
    with pytest.raises(BenchError, match=name.split(":")[0]):
        registry.load("method", name)
