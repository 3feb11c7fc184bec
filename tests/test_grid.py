"""Grids of runs and the choice of learning rates: skip, go on, say so, never on the test side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import bench.grid
import cli
from bench.arguments import parse_names, parse_numbers, parse_options
from bench.checkpoint import Stopped
from bench.commands import Request, cells_of, described, grid_of, make_run, run_cells
from bench.grid import Cell, Outcome, run_grid
from bench.hooks import Hooks
from bench.record import load_record
from bench.spec import RunSpec, learning_rate
from bench.suites import EMOJI
from bench.tune import Trial, evidence, write_evidence
from bench.types import BenchError, Task
from tests.test_child import foreign

RUNNER = CliRunner()
ROOT = Path(__file__).resolve().parent.parent


def bench_command(*words: object) -> Any:
    return RUNNER.invoke(cli.app, [str(w) for w in words])


@pytest.fixture(scope="module")
def request_(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Request:
    results = tmp_path_factory.mktemp("grid")
    return Request(suite="micro", results=results, base=micro_folder, device="cpu", batch=4)


class Ended:
    """A run of a grid that has ended, or is yet to: `codes` are what `poll` says, the last for good."""

    def __init__(self, *codes: int | None) -> None:
        self.codes, self.signals = list(codes), []

    def poll(self) -> int | None:
        return self.codes.pop(0) if len(self.codes) > 1 else self.codes[0]

    def send_signal(self, number: int) -> None:
        self.signals.append(number)

    def last_words(self) -> str:
        return "see above"


def in_process(words: Sequence[str]) -> Ended:
    """Start a run of a grid here: the same command line, without a second interpreter's start."""
    return Ended(int(bench_command(*words).exit_code))


def grid(request: Request, names: Sequence[str], *, start: Any = in_process, jobs: int = 1) -> list[Outcome]:
    table = {Cell(name=n, arguments=request.words(method=n, task="sketch", seed=0)): n for n in names}

    def prepare(cell: Cell) -> Any:
        return make_run(cli.catalogue(), request, method=table[cell], task="sketch", seed=0)

    return run_grid(list(table), prepare=prepare, start=start, jobs=jobs)


def test_a_failing_cell_does_not_stop_the_others_and_is_done_later(request_: Request) -> None:
    broken = make_run(cli.catalogue(), request_, method="bps", task="sketch", seed=0)
    broken.work.mkdir(parents=True)
    (broken.work / "run.json").write_text("{}")
    first, second = grid(request_, ["bps", "text-only"])
    assert first.record is None and first.error is not None and "exit code 2" in first.error
    assert second.record is not None and second.record.method == "text-only"
    broken.forget()
    started: list[Sequence[str]] = []

    def counted(words: Sequence[str]) -> Ended:
        started.append(words)
        return in_process(words)

    outcomes = grid(request_, ["bps", "text-only"], start=counted)
    assert [o.record is not None for o in outcomes] == [True, True]
    assert len(started) == 1 and "bps" in started[0], "a valid record is not made again"


def test_a_variant_is_its_method_with_options_set(request_: Request) -> None:
    by_name = make_run(cli.catalogue(), request_, method="bps-uniform", task="sketch", seed=0)
    other = Request(**{**vars(request_), "option": ["schedule=uniform"]})
    by_option = make_run(cli.catalogue(), other, method="bps", task="sketch", seed=0)
    plain = make_run(cli.catalogue(), request_, method="bps", task="sketch", seed=0)
    assert by_name.id == by_option.id != plain.id
    for name in cli.catalogue().variants:
        run = make_run(cli.catalogue(), request_, method=name, task="sketch", seed=0)
        assert run.options != run.spec.method.options


def test_the_command_runs_a_grid_in_processes_of_their_own_wherever_the_user_stands(
    micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = foreign(tmp_path / "elsewhere")
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("PYTHONPATH", str(elsewhere))  # would come before what this program was found by
    words = (
        "--suite",
        "micro",
        "--base",
        micro_folder,
        "--results",
        tmp_path,
        "--batch",
        4,
        "--device",
        "cpu",
    )
    done = bench_command("run", "--method", "text-only", "--seeds", "0,1", "--json", *words)
    assert done.exit_code == 0, done.output
    assert not (elsewhere / "ran").exists()
    folders = json.loads(done.stdout)
    assert len(folders) == 2 and len({load_record(Path(f)).seed for f in folders.values()}) == 2
    refused = bench_command("run", "--seeds", "0,1", "--again", *words)
    assert refused.exit_code == 2 and "--again" in refused.output
    monkeypatch.setattr(bench.grid, "starter", lambda jobs: in_process)
    failed = bench_command(
        "run",
        "--method",
        "text-only",
        "--seeds",
        "0,2",
        "--base",
        tmp_path,
        "--suite",
        "micro",
        "--results",
        tmp_path / "other",
    )
    assert failed.exit_code == 1
    assert "0 of 2 runs have a record" in failed.output and "again: bench run" in failed.output


def test_being_asked_to_stop_ends_the_grid(request_: Request) -> None:
    class Asked(Hooks):
        def stop(self) -> int | None:
            return 143

    cells = cells_of(cli.catalogue(), method="text-only", task="sketch", seeds="0,1")
    with pytest.raises(Stopped):
        run_cells(cli.catalogue(), [(request_, *c) for c in cells], hooks=Asked(), say=len)
    with pytest.raises(Stopped):
        fresh = Request(**{**vars(request_), "results": request_.results / "fresh"})
        grid(fresh, ["text-only"], start=lambda words: Ended(130))


def test_several_jobs_run_at_once_and_all_save_when_one_is_stopped(request_: Request) -> None:
    fresh = Request(**{**vars(request_), "results": request_.results / "jobs"})
    at_once, most = [], []

    def start(words: Sequence[str]) -> Ended:
        at_once.append(Ended(None, None, 2))
        most.append(sum(len(child.codes) > 1 for child in at_once))
        return at_once[-1]

    names = ["bps", "bps-uniform", "text-only"]
    outcomes = grid(fresh, names, start=start, jobs=2)
    assert [o.cell.name for o in outcomes] == names and max(most) == 2
    assert all(o.error == "failed with exit code 2, see above" for o in outcomes)
    children = [Ended(143), Ended(None, None, 143)]
    waiting = iter(children)
    with pytest.raises(Stopped):
        grid(fresh, names, start=lambda words: next(waiting), jobs=2)
    assert children[1].signals and children[1].codes == [143], "the other run was awaited"


def test_only_the_first_seed_of_a_grid_is_sampled_under_shuffled_conditions(
    request_: Request,
) -> None:
    cells = grid_of(cli.catalogue(), request_, method="bps", task="sketch", seeds="3,1")
    assert [(s, r.shuffled) for r, _, _, s in cells] == [(3, True), (1, False)]
    words = cells[1][0].words(method="bps", task="sketch", seed=1)
    assert "--no-shuffled" in words
    run = make_run(cli.catalogue(), cells[1][0], method="bps", task="sketch", seed=1)
    assert (
        list(run._sets()) == ["samples"]
        and "shuffled" in make_run(cli.catalogue(), cells[0][0], method="bps", task="sketch", seed=3)._sets()
    )


class LinesOnly:
    """A method that says it cannot do a task."""

    name = "lines-only"
    title = "lines only"
    source = "https://example.org"
    conditioned = True
    options: dict[str, Any] = {}

    def refuses(self, task: Task) -> str | None:
        return None if task.name == "drawing" else "it needs colours"

    def build(self, base: Any, task: Task) -> Any:
        raise AssertionError("never built")


def test_a_method_that_cannot_do_a_task_says_so(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    assert described(LinesOnly())["cannot do"]["sketch"] == "it needs colours"
    monkeypatch.setattr(cli.catalogue().__class__, "find", lambda self, name: (LinesOnly(), {}))
    with pytest.raises(BenchError, match="lines-only cannot do sketch: it needs colours"):
        make_run(cli.catalogue(), request_, method="lines-only", task="sketch", seed=0)
    (outcome,) = grid(request_, ["lines-only"])
    assert outcome.error is None and outcome.refused is not None


def test_names_and_numbers_of_the_command_line() -> None:
    groups = {"all": ("a", "b")}
    assert parse_names("method", "b,all", allowed=["a", "b"], groups=groups) == ["b", "a"]
    with pytest.raises(BenchError, match="Did you mean 'alpha'"):
        parse_names("method", "alpa", allowed=["alpha"], groups={})
    assert parse_numbers("--seeds", "2,0,2", kind=int) == [2, 0]
    for wrong in ("", "a", "-1", "1.5"):
        with pytest.raises(BenchError, match="no list of such numbers"):
            parse_numbers("--seeds", wrong, kind=int)
    with pytest.raises(BenchError, match="no list"):
        parse_numbers("--rates", "0,1e-3")
    names = [c[0] for c in cells_of(cli.catalogue(), method="paper", task="sketch", seeds="0")]
    assert names == ["bps", "controlnet", "t2i-adapter", "sd-finetune", "text-only"]


def test_the_best_rate_on_val_is_chosen_and_a_failed_one_never(
    micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.grid, "starter", lambda jobs: in_process)
    done = bench_command(
        "tune",
        "--method",
        "bps",
        "--suite",
        "micro",
        "--base",
        micro_folder,
        "--rates",
        "1e-6,1e-3,9e5",
        "--budget",
        "quick",
        "--results",
        tmp_path / "runs",
        "--device",
        "cpu",
        "--out",
        tmp_path / "tuning",
        "--batch",
        4,
    )
    found = json.loads((tmp_path / "tuning" / "micro-sketch.json").read_text())
    trials = found["methods"]["bps"]["trials"]
    assert found["side"] == "val" and found["items"] == 12
    assert done.exit_code == (1 if any("error" in t for t in trials.values()) else 0)
    values = {rate: t["cosine"]["value"] for rate, t in trials.items() if "cosine" in t}
    best = max(values, key=lambda rate: values[rate])
    assert found["methods"]["bps"]["chosen"] == float(best)
    table = (tmp_path / "tuning" / "micro-sketch.md").read_text()
    assert "**" in table and f"\nTrained on cpu, torch {version('torch')}.\n" in table
    records = [load_record(p) for p in (tmp_path / "runs").iterdir() if (p / "record.json").exists()]
    cell = Cell(name="x", arguments=())
    good = Trial(method="bps", rate=1.0, outcome=Outcome(cell=cell, record=records[0]))
    bad = Trial(method="bps", rate=2.0, outcome=Outcome(cell=cell, error="diverged"))
    assert evidence([good, bad])["methods"]["bps"]["chosen"] == 1.0
    with pytest.raises(BenchError, match="every run failed"):
        evidence([bad])
    merged = write_evidence(
        tmp_path / "tuning", {**evidence([good]), "methods": {"z": found["methods"]["bps"]}}
    )
    assert set(json.loads(merged[0].read_text())["methods"]) == {"bps", "z"}
    with pytest.raises(BenchError, match="another protocol"):
        write_evidence(tmp_path / "tuning", {**evidence([good]), "protocol_hash": "0"})


@pytest.mark.parametrize("value", ["plain", "[" * 100_000, "9" * 5000])
def test_an_option_that_is_no_json_is_text(value: str) -> None:
    assert parse_options([f"prior={value}", "size=7"]) == {"prior": value, "size": 7}


@pytest.mark.parametrize("damage", [7, [], {"bps": {"trials": {}}}, {"bps": {"chosen": "x"}}])
def test_damaged_evidence_is_refused(tmp_path: Path, damage: Any) -> None:
    whole = json.loads((ROOT / "results" / "tuning" / "emoji-sketch.json").read_text())
    path = tmp_path / "emoji-sketch.json"
    path.write_text(json.dumps(whole))
    none = {**whole, "methods": {}}
    assert write_evidence(tmp_path, none)[0] == path and json.loads(path.read_text()) == whole
    path.write_text(json.dumps({**whole, "methods": damage}))
    with pytest.raises(BenchError, match="emoji-sketch.json"):
        write_evidence(tmp_path, none)


def test_rates_are_never_chosen_on_the_test_side(
    micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.grid, "starter", lambda jobs: in_process)
    done = bench_command(
        "tune",
        "--method",
        "bps",
        "--suite",
        "micro",
        "--base",
        micro_folder,
        "--side",
        "test",
        "--rates",
        "1e-3",
        "--budget",
        "quick",
        "--results",
        tmp_path,
        "--out",
        tmp_path / "out",
        "--device",
        "cpu",
        "--batch",
        4,
    )
    assert done.exit_code == 2 and "never chosen on the test side" in done.output
    assert not (tmp_path / "out").exists()


def test_a_methods_rate_is_its_own_then_the_suites() -> None:
    method = cli.catalogue().find("bps")[0]
    spec = RunSpec(
        suite=EMOJI,
        task="sketch",
        method=method,
        budget=EMOJI.budget("quick"),
        seed=0,
        results=Path(),
    )
    expected = EMOJI.learning_rates.get("bps", EMOJI.learning_rate)
    assert learning_rate(spec) == expected
    assert learning_rate(replace(spec, learning_rate=5e-4)) == 5e-4
    suite = replace(EMOJI, learning_rates={"bps": 2e-4})
    assert learning_rate(replace(spec, suite=suite)) == 2e-4
