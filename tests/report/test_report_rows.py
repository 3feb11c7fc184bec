"""Rows from elsewhere: a folder's scores, a record of others, what was published; and what leaves as data."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pandas
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

import cli
from bench.content import digest_json
from bench.packed import Pack, kept_records, load_run
from bench.record import load_record
from bench.reporting import build_comparison, build_table, load_runs, make_report
from bench.reporting.tables import model_card, published_grid
from bench.types import BenchError
from tests.report.small import PROTOCOL, made, spread, value

ROOT = Path(__file__).resolve().parents[2]
MAIN = ROOT / "results" / "emoji"
RUNNER = CliRunner()


def bench(*args: object, code: int = 0) -> Any:
    answer = RUNNER.invoke(cli.app, [str(a) for a in args])
    assert answer.exit_code == code, answer.output
    return answer


def pictures(folder: Path, seed: int, n: int = 24) -> Path:
    folder.mkdir()
    draw = np.random.default_rng(seed)
    for k in range(n):
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{k}.png")
    return folder


@pytest.mark.usefixtures("no_drawing")
def test_a_folders_scores_become_a_row_that_claims_nothing(tmp_path: Path) -> None:
    one, two, real = (pictures(tmp_path / name, k) for k, name in enumerate(("one", "two", "real")))
    results = tmp_path / "results"
    for folder, name in ((one, "theirs"), (two, "others")):
        done = bench("compare", folder, real, "--name", name, "--results", results, "--no-intervals")
        told = bench("compare", folder, real, "--json", "--no-intervals").stdout
        (found,) = [r for r in kept_records(results) if r.method == name]
        assert found.run_id in done.output
        assert found.metrics["fd"].value == json.loads(told)["metrics"]["fd"]["value"]
    bench("report", "--results", results, "--out", tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| theirs (NOT TRAINED HERE) |" in text and "| others (NOT TRAINED HERE) |" in text
    assert f"bench compare {one} {real} --name theirs" in text
    assert "PICTURES FROM OUTSIDE: theirs are those of one, made elsewhere" in text
    assert "Best mean" not in text and "**0" not in text
    for wrong in (("--results", results), ("--name", "a b", "--results", results)):
        assert "Traceback" not in bench("compare", one, real, *wrong, code=2).output


@pytest.fixture
def submitted(tmp_path: Path) -> Path:
    """A published run as its authors would send it."""
    bench("results", "unpack", ROOT / "results" / "emoji-h200", tmp_path / "theirs")
    return next((tmp_path / "theirs").glob("*-bps-*"))


@pytest.mark.usefixtures("no_drawing")
def test_a_record_of_others_is_checked_and_becomes_a_marked_row(submitted: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    bench("results", "unpack", ROOT / "results" / "emoji-h200", results)
    bench("results", "add", submitted, "--by", "a-lab", "--results", results)
    added = load_run(next(results.glob("*-a-lab")))
    assert added.record.metrics == load_record(submitted).metrics and added.items is not None
    table = build_table(load_runs(results))
    rows = {row.label: row for row in table.rows}
    (label,) = [name for name in rows if "SUBMITTED, NOT TRAINED HERE" in name]
    assert "submitted by=a-lab" in label and not rows[label].ranked and rows["BPS"].ranked
    assert not any("SUBMITTED" in d.first + d.second for d in paired(table))
    assert (
        "is there already"
        in bench("results", "add", submitted, "--by", "a-lab", "--results", results, code=2).output
    )
    alone = tmp_path / "alone.json"
    raw = json.loads((submitted / "record.json").read_text())
    for change, said in (
        ({"protocol": {**raw["protocol"], "eval_side": "val"}}, "not the one whose hash"),
        ({"metrics": {}, "rows": {}, "seed": "x"}, "'seed'"),
        ({"schema_version": 9}, "schema version 9"),
    ):
        alone.write_text(json.dumps({**raw, **change}))
        assert said in bench("results", "add", alone, "--by", "b-lab", "--results", results, code=2).output
    assert not list(results.glob("*b-lab"))
    alone.write_text(json.dumps(raw))
    bench("results", "add", alone, "--by", "b-lab", "--results", results)
    assert load_run(next(results.glob("*-b-lab"))).items is None


def paired(table: Any) -> Any:
    from bench.reporting import paired_differences

    return paired_differences(table)


def test_results_are_a_table_of_numbers(tmp_path: Path) -> None:
    bench("results", "pack", ROOT / "results" / "emoji-h200", tmp_path / "data", "--parquet")
    frame = pandas.read_parquet(tmp_path / "data.parquet")
    records = {r.run_id: r for r in kept_records(ROOT / "results" / "emoji-h200")}
    assert set(frame["run"]) == set(records)
    own = frame[(frame["row"] == "samples") & (frame["metric"] == "fd")].set_index("run")
    assert {k: own.loc[k, "value"] for k in records} == {k: r.metrics["fd"].value for k, r in records.items()}


def test_fid_and_clip_of_every_task_lead_where_fid_is_fid() -> None:
    def run(method: str, task: str, judge: str) -> Any:
        numbers = {"fd": 20.0, "kid": 0.1, "clip": 0.3, "cosine": 0.5}
        metrics = {
            k: value(k, x, judge=judge if k in ("fd", "kid") else "open-clip") for k, x in numbers.items()
        }
        protocol = {"protocol_hash": digest_json(task), "protocol": PROTOCOL}
        return made(method, {}, metrics=metrics, rows={}, task=task, run_id=f"{method}-{task}", **protocol)

    def columns(judge: str) -> list[tuple[str, str]]:
        tables = [
            build_table([run(m, t, judge) for m in ("bps", "controlnet")]) for t in ("sketch", "layout")
        ]
        return [(c.task, c.metric) for c in build_comparison(tables).columns]

    first = [(task, metric) for task in ("sketch", "layout") for metric in ("fd", "clip")]
    rest = [(task, metric) for task in ("sketch", "layout") for metric in ("kid", "cosine")]
    for judge in ("inception-v3", "inception-v3/clean"):
        assert columns(judge) == first + rest
    assert [metric for _, metric in columns("EfficientNet-Lite0")] == ["kid", "fd", "cosine"] * 2


@pytest.mark.usefixtures("no_drawing")
def test_what_others_published_stands_apart_with_source_and_protocol(tmp_path: Path) -> None:
    grid = published_grid("coco17")
    assert grid is not None and published_grid("emoji") is None
    assert all(line[5].main != "–" and line[6].main != "–" for line in grid.body)
    lines = {tuple(cell.main for cell in line[:5]) for line in grid.body}
    assert ("sketch", "BPS", "10.49", "–", "–") in lines
    assert ("segmentation", "T2I-Adapter", "17.2", "31.5", "mIoU 33.3") in lines
    write(tmp_path / "coco", "coco17")
    make_report(tmp_path / "coco", tmp_path / "out")
    assert "### Published elsewhere" in (tmp_path / "out" / "report.md").read_text()
    assert "10.49" in (tmp_path / "out" / "index.html").read_text()
    assert not any("10.49" in path.read_text() for path in (tmp_path / "out").glob("*.csv"))
    assert all(" | ".join(cell.main for cell in line) in docs() for line in grid.body)


def docs() -> str:
    return (ROOT / "docs" / "results.md").read_text()


def write(results: Path, suite: str) -> None:
    from bench.record import write_record

    run = made("bps", {"fd": spread(3.0, seed=0)}, suite=suite)
    write_record(results / run.record.run_id, run.record)


def test_a_card_tells_the_hub_what_was_measured() -> None:
    pack = Pack(MAIN)
    record = pack.record(next(line for line in pack.lines.values() if "bps" in line.place))
    about = {"title": "BPS", "source": "s", "base": "org/sd", "whole": False, "licence": ["a"]}
    card = model_card(record, **about, usage="x\n", condition="c")
    head = yaml.safe_load(re.match(r"---\n(.*?)\n---", card, re.DOTALL)[1])
    assert head["pipeline_tag"] == "text-to-image" and head["datasets"] == ["openmoji"]
    (model,) = head["model-index"]
    (result,) = model["results"]
    told = {m["type"]: m["value"] for m in result["metrics"]}
    assert told == {k: v.value for k, v in record.metrics.items() if v.value is not None}
    assert huggingface_hub.ModelCardData(**head).to_dict()["library_name"] == "diffusers"


def test_pushing_uploads_the_folder_or_says_why_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from bench.export import push

    asked: list[Any] = []
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, name, **k: asked.append(name))
    monkeypatch.setattr(
        huggingface_hub.HfApi, "upload_folder", lambda self, **k: asked.append(k) or "address"
    )
    assert push(tmp_path, "org/name") == "address"
    assert asked[0] == "org/name" and asked[1]["folder_path"] == tmp_path

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(BenchError, match="org/name was not pushed .no network."):
        push(tmp_path, "org/name")


def test_a_published_run_says_the_command_that_makes_its_weights_again(tmp_path: Path) -> None:
    place = next(p for p in Pack(MAIN).lines if re.match(r"emoji-sketch-bps-.*s0", p))
    said = bench("export", MAIN / place, tmp_path / "out", code=2).output
    assert "bench run --method bps" in said and "--results results/runs" in said
    assert not (tmp_path / "out").exists()
