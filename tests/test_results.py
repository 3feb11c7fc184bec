"""The published results: their page is what the records make today, and its claims hold."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from bench import registry
from bench.ablations import ABLATIONS_FOLDER
from bench.config import RunConfig
from bench.content import read_json
from bench.cost import TIMINGS_FILE
from bench.packed import kept_records
from bench.registry import FLOOR
from bench.reporting import FIGURES_FOLDER, ReportOptions, load_runs, make_report
from bench.reporting.words import RATE, changed_options
from bench.suites import EMOJI, resolve
from tests.golden.program import kept
from tests.latex import complaints, needs_latex
from tests.report.conftest import dots_for_figures

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "results" / "README.md"
MAIN = ROOT / "results" / "emoji"
EQUAL_TIME = ROOT / "results" / "emoji-equal-time"
PUBLISHED = [MAIN, EQUAL_TIME]
ON_A_GPU = ROOT / "results" / "emoji-h200"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page and the report of the main records, without its figures; read only."""
    folder = tmp_path_factory.mktemp("published") / "results"
    asked = ReportOptions(readme=folder / README.name)
    with dots_for_figures():
        make_report(MAIN, folder / MAIN.name / "report", asked)
    return folder


@pytest.mark.slow
def test_the_page_is_remade_byte_for_byte(published: Path) -> None:
    assert (published / README.name).read_bytes() == README.read_bytes()


def test_pages_show_and_link_to_files_that_are_published() -> None:
    for page in (README, ROOT / "README.md"):
        links = re.findall(r"\]\((?!http)([^)#]+)", page.read_text())
        assert links and all((page.parent / link).exists() for link in links), page
    figures = list((README.parent / FIGURES_FOLDER).iterdir())
    shown = set(re.findall(rf"{FIGURES_FOLDER}/([^)]+)\)", README.read_text()))
    assert {path.name for path in figures} == shown
    assert all(path.stat().st_size < 400_000 for path in figures)


@needs_latex
@pytest.mark.timeout(900)  # three reports and sixteen documents
def test_published_tables_keep_to_the_column_and_page_of_papers(published: Path, tmp_path: Path) -> None:
    assert complaints(published / MAIN.name / "report", tmp_path / "main") == []
    with dots_for_figures():
        make_report(MAIN, tmp_path / "column", ReportOptions(columns="one"))
        make_report(EQUAL_TIME, tmp_path / "time")
        make_report(EQUAL_TIME, tmp_path / "column-time", ReportOptions(columns="one"))
    for made in ("column", "time", "column-time"):
        assert complaints(tmp_path / made, tmp_path / f"compiled-{made}") == []


@pytest.mark.parametrize("folder", [*PUBLISHED, ON_A_GPU], ids=lambda p: p.name)
def test_published_records_were_made_by_committed_code_without_a_leak(folder: Path) -> None:
    records = [record for within in ("", ABLATIONS_FOLDER) for record in kept_records(folder, within)]
    assert records
    for record in records:
        commit = record.environment["commit"]
        assert len(commit) == 40, f"{record.run_id} was made by {commit}"
        assert record.splits.overlap == 0 and record.protocol["eval_side"] == "test"


def test_a_gpu_repeats_what_is_not_trained_and_the_docs_say_how_training_drifts() -> None:
    text = (ROOT / "docs" / "trust.md").read_text()
    found = {record.method: record for record in kept_records(ON_A_GPU)}
    on_cpu = {record.run_id: record for record in kept_records(MAIN)}
    assert set(found) == {"bps", "sd-finetune", "text-only"}
    for method, there in found.items():
        here = on_cpu[there.run_id]
        assert there.environment["gpu"] == "NVIDIA H200" and here.environment["device"] == "cpu"
        assert there.protocol_hash == here.protocol_hash
        if method == "text-only":
            for metric, value in here.metrics.items():
                assert there.metrics[metric].value == pytest.approx(value.value, rel=1e-4), metric
        else:
            for record in (there, here):
                assert f"{record.metrics['fd'].value:.1f}" in text


def test_learning_rates_are_those_that_the_committed_evidence_chose() -> None:
    """Of every task, method and variant that has been tuned at the suite's budget."""
    rates = EMOJI.learning_rates
    untried = set(rates)
    assert untried >= {*registry.names("method", ["all"])} - {FLOOR}
    evidence = [ROOT / "results" / "tuning" / f"emoji-{task}.json" for task in EMOJI.tasks]
    for found in (read_json(path) for path in evidence if path.exists()):
        assert found["side"] == "val" and found["budget"]["name"] == EMOJI.default_budget
        for name, entry in found["methods"].items():
            trials, grid = entry["trials"], found["rates"]
            tried = sorted(map(float, trials))
            assert tried == [rate for rate in grid if tried[0] <= rate <= tried[-1]], f"{name}: a gap"
            values = {rate: t["cosine"]["value"] for rate, t in trials.items() if "error" not in t}
            assert float(max(values, key=lambda rate: values[rate])) == entry["chosen"]
            if name in registry.rows("method"):
                config = RunConfig(method=name, task=found["task"], device="cpu")
                assert resolve(config).learning_rate == entry["chosen"], (found["task"], name)
                untried -= {name, (found["task"], name)}
    assert untried <= {"style-only"} and rates["style-only"] == rates["sd-finetune"], "till it is tried"


def table(markdown: str) -> list[list[str]]:
    rows = [line[1:-1] for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.split("|")] for row in rows]


TOLD: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "BPS": ("bps", {}),
    "BPS, head-heavy": ("bps", {"schedule": "head_heavy"}),
    "ControlNet": ("controlnet", {}),
    "T2I-Adapter": ("t2i-adapter", {}),
    "T2I-Adapter, uniform timesteps": ("t2i-adapter", {"timesteps": "uniform"}),
    "fine-tuned SD": ("sd-finetune", {}),
    "LoRA + concat": ("lora-concat", {}),
    "ControlNet-XS": ("controlnet-xs", {"size_ratio": 0.25}),
    "style-only SD": ("style-only", {}),
    "text-only SD (floor)": ("text-only", {}),
}
"""Rows of the tables of methods: method, and options that are not its own on the task."""
CEILING = "autoencoder (ceiling)"
FIDELITY = {
    "sketch": "sketch_f1",
    "segmentation": "miou",
    "layout": "box_recall",
    "drawing": "colour_error",
}
COLUMNS = {
    "method": [(task, metric) for task, fidelity in FIDELITY.items() for metric in (fidelity, "kid")],
    "FD ↓": [(task, "fd") for task in FIDELITY],
}
"""What the tables of methods tell, by the first word of their heads."""


def test_readme_and_docs_tell_the_numbers_of_the_records() -> None:
    """Means over seeds of each method, to the digits that are told."""
    made: dict[tuple[str, str, str], list[float]] = {}
    told = [column for columns in COLUMNS.values() for column in columns]
    for record in kept_records(MAIN):
        changed = {key: value for key, value in changed_options(record).items() if key != RATE}
        rows = {name: record.metrics for name, row in TOLD.items() if row == (record.method, changed)}
        rows[CEILING] = record.rows["autoencoder"]
        for (row, metrics), (task, metric) in itertools.product(rows.items(), told):
            if task == record.task:
                value = metrics[metric].value
                made.setdefault((row, task, metric), []).append(value if value is not None else math.nan)
    for page, heads in (("README.md", ["method"]), ("docs/results.md", ["method", "FD ↓"])):
        columns, found = [], []
        for name, *cells in table((ROOT / page).read_text()):
            if name in COLUMNS:
                columns = COLUMNS[name]
                found.append(name)
            elif len(cells) == len(columns) and not name.startswith(":"):
                for cell, column in zip(cells, columns, strict=True):
                    values = made[name, *column] if cell else [math.nan]
                    near = pytest.approx(fmean(values), abs=0.5 * 10 ** -len(cell.partition(".")[2]))
                    assert not cell or float(cell) == near, (page, name)
        assert found == heads


def test_intervals_that_are_told_are_those_of_the_records() -> None:
    """Each "number [low, high]" is a value or a difference that reports make, whichever side comes first."""
    lines = [line for lines in kept("numbers.json.xz").values() for line in lines.values()]
    names = [("value", "low", "high"), ("difference", "low", "high")]
    names.append(("difference", "difference_low", "difference_high"))
    known = [[line[n] for n in part] for line in lines for part in names if {*part} <= {*line}]
    made = np.array([*known, *([-value, -high, -low] for value, low, high in known)])
    number = r"-?\d*\.?\d+"
    for page in ("README.md", "docs/results.md"):
        text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
        told = re.findall(rf"({number})(?: [A-Za-z][\w ]*)?\s{{1,3}}\[({number}), ({number})\]", text)
        assert len(told) == len(re.findall(rf"\[{number}, {number}\]", text)) >= 3
        for numerals in told:
            off = np.abs(made - [float(numeral) for numeral in numerals])
            digits = [len(numeral.partition(".")[2]) for numeral in numerals]
            assert (off < [0.501 * 10**-n for n in digits]).all(axis=1).any(), (page, numerals)


def test_equal_time_is_told_by_the_timings_that_made_it_equal() -> None:
    kept = [folder / TIMINGS_FILE for folder in (MAIN, EQUAL_TIME)]
    assert kept[0].read_bytes() == kept[1].read_bytes()
    runs = load_runs(EQUAL_TIME)
    seconds = {run.record.method: run.record.cost.train_seconds for run in runs}
    trained = [taken for taken in seconds.values() if taken]
    assert len(trained) >= 4 and max(trained) / min(trained) < 1.01
