"""The files of a run: one process at a time, lost costs unknown, damaged weights noticed, kills harmless."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import tracking
from accelerate.utils import LoggerType

from bench import content
from bench.config import RunConfig
from bench.content import Lock, read_json, sha256_file, write_json
from bench.cost import Ledger
from bench.data.picture import decode
from bench.grid import run_grid
from bench.record import load_record
from bench.reporting.tables import record_text
from bench.running import Run
from bench.types import BenchError, Hooks
from tests import asking
from tests.command_line import bench, micro

FLOOR = ("--method", "text-only", "--no-shuffled", "--no-floor", "--sample-batch", 12)


def config_of(base: Path, results: Path, method: str = "text-only") -> RunConfig:
    return asking.micro(base, results, method=method, sample_batch=12, shuffled=False)


def run_of(base: Path, results: Path, method: str = "text-only", told: Hooks | None = None) -> Run:
    return asking.made(config_of(base, results, method), told)


@pytest.fixture(scope="module")
def finished(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the floor: one batch, one set of samples."""
    run = run_of(micro_folder, tmp_path_factory.mktemp("finished"))
    run.all()
    return run.folder


@pytest.fixture(scope="module")
def trained(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of BPS, trained and not sampled."""
    run = run_of(micro_folder, tmp_path_factory.mktemp("trained"), "bps")
    run.train()
    return run.folder


def copied(folder: Path, results: Path, *, without: tuple[str, ...] = ()) -> Path:
    copy = Path(shutil.copytree(folder, results / folder.name))
    for name in without:
        (copy / name).unlink()
    return copy


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256_file(p) for p in folder.rglob("*") if p.is_file()}


UNSCORED = ("record.json", "work/sample.json")


@pytest.mark.parametrize("costs", ["", "[]", "{}", '{"sample_seconds": "much"}', "[" * 5000])
def test_damaged_costs_are_unknown(tmp_path: Path, costs: str) -> None:
    (tmp_path / "cost.json").write_text(costs)
    ledger = Ledger(tmp_path / "cost.json", device="cpu")
    assert ledger.seconds_per_image is None and ledger.peak_memory_bytes is None


@pytest.mark.parametrize("costs", [None, pytest.param("[]", marks=pytest.mark.slow)])
def test_lost_costs_are_unknown_and_the_run_ends_as_it_would_have(
    micro_folder: Path, finished: Path, tmp_path: Path, costs: str | None
) -> None:
    run = copied(finished, tmp_path, without=(*UNSCORED, "work/cost.json"))
    if costs is not None:
        (run / "work/cost.json").write_text(costs)
    before = {p: p.stat().st_mtime_ns for p in (run / "work/samples").iterdir()}
    answer = bench(*micro(micro_folder, tmp_path, *FLOOR))
    assert answer.exit_code == 0, answer.output
    record = load_record(run)
    assert record.artifacts == load_record(finished).artifacts
    assert record.cost.sample_seconds_per_image is None and record.cost.peak_memory_bytes is None
    assert record_text(record, floor=None)
    assert {p: p.stat().st_mtime_ns for p in (run / "work/samples").iterdir()} == before


@pytest.mark.parametrize("broken", [False, True])
def test_a_tracker_hears_the_end_of_a_run_and_harms_none(
    micro_folder: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    heard: list[Any] = []

    class Remembering(tracking.GeneralTracker):
        name, requires_logging_directory, tracker = "wandb", False, None

        def __init__(self, project: str, **settings: Any) -> None:
            super().__init__()
            heard.append((project, settings))

        def log(self, values: dict[str, Any], step: int | None = None, **more: Any) -> None:
            if broken:
                raise OSError("no network")
            heard.append(values)

        def log_images(self, values: dict[str, Any], step: int | None = None, **more: Any) -> None:
            heard.append(values["samples"])

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Remembering)
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.WANDB])
    run, hooks = copied(finished, tmp_path, without=("record.json",)), asking.Asked()
    asking.made(config_of(micro_folder, tmp_path), hooks, track=("wandb",)).all()
    record = load_record(run)
    assert record.metrics == load_record(finished).metrics
    assert heard[0] == ("bps-bench", {"name": run.name, "group": run.name})
    if broken:
        assert [line for line in hooks.said if "no network" in line and "record is whole" in line]
        return
    final, pictures = heard[1:]
    assert final == {f"final/{n}": m.value for n, m in record.metrics.items() if m.value is not None}
    sheet = decode((run / "contact.png").read_bytes()).pixels
    assert hooks.said == [] and np.array_equal(pictures[0], sheet)


@pytest.mark.slow
def test_costs_are_measured_anew_over_the_pictures_still_to_make(
    micro_folder: Path, finished: Path, tmp_path: Path
) -> None:
    run = copied(finished, tmp_path, without=(*UNSCORED, "work/cost.json"))
    sorted((run / "work/samples").iterdir())[3].unlink()
    record = run_of(micro_folder, tmp_path).all()
    assert record.artifacts == load_record(finished).artifacts
    assert record.cost.sample_seconds_per_image and record.cost.peak_memory_bytes


@pytest.mark.slow
def test_memory_of_a_training_survives_a_kill_before_its_end(
    micro_folder: Path, trained: Path, tmp_path: Path
) -> None:
    """The checkpoint holds it: a start that takes no step has none to measure."""
    run = copied(trained, tmp_path, without=("work/train.json",))
    again = run_of(micro_folder, tmp_path, "bps").train()
    assert again.peak_memory_bytes == read_json(trained / "work/train.json")["peak_memory_bytes"] > 2**26
    assert read_json(run / "work/train.json") == read_json(trained / "work/train.json")


def killed_at(write: int, act: Callable[[], object]) -> int:
    """Be killed in another process before the write of that number takes its name; return the exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    genuine, count = os.replace, 0

    def replace(*names: Any) -> None:
        nonlocal count
        count += 1
        if count == write:
            os._exit(9)
        genuine(*names)

    try:
        torch.set_num_threads(1)
        content.os.replace = replace  # type: ignore[assignment]
        act()
    except BaseException:
        os._exit(1)
    os._exit(0)


@pytest.mark.slow
def test_killed_between_the_last_picture_and_its_costs_a_run_resumes(
    micro_folder: Path, finished: Path, tmp_path: Path
) -> None:
    """After run.json, train.json and twelve pictures; the half of cost.json goes with the next start."""
    run = run_of(micro_folder, tmp_path)
    assert killed_at(15, run.all) == 9
    assert len(list((run.work / "samples").iterdir())) == 12 and not (run.work / "cost.json").exists()
    assert len(list(run.work.glob(".cost.json.*"))) == 1
    record = run_of(micro_folder, tmp_path).all()
    assert record.artifacts == load_record(finished).artifacts
    assert record.cost.sample_seconds_per_image is None
    assert set(contents(run.folder)) == set(contents(finished)) - {"work/cost.json"}


@pytest.mark.slow
@pytest.mark.parametrize(("method", "writes"), [("text-only", range(1, 21)), ("bps", range(2, 6))])
def test_killed_at_each_write_a_run_resumes_to_the_same_bits(
    micro_folder: Path, finished: Path, trained: Path, tmp_path: Path, method: str, writes: range
) -> None:
    """The floor at all of its twenty writes, BPS at those of its training."""
    for write in writes:
        run = run_of(micro_folder, tmp_path / str(write), method)
        assert killed_at(write, run.all) == 9
        resumed = run_of(micro_folder, tmp_path / str(write), method)
        if method == "bps":
            resumed.train()
            weights = "work/adapter.safetensors"
            assert sha256_file(run.folder / weights) == sha256_file(trained / weights), write
        else:
            assert resumed.all().artifacts == load_record(finished).artifacts, write
        assert not list(run.folder.rglob(".*")), write


@pytest.mark.parametrize("words", [("train",), ("sample",), ("score",), ("run", "--no-floor"), ("again",)])
def test_a_run_that_a_process_is_at_is_left_alone(
    micro_folder: Path, finished: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    again = words == ("again",)
    run = copied(finished, tmp_path, without=() if again else ("record.json",))
    stage = ["run", "--no-floor", "--again"] if again else [*words]
    half = run / "work/.train.ckpt.0123456789ab.tmp.ckpt"
    half.touch()
    options = micro(micro_folder, tmp_path, "--method", "text-only")[1:]
    with Lock(run / "work/lock", about=run):
        before = contents(run)
        answer = bench(*stage, *options)
        assert answer.exit_code == 2 and len(answer.stderr.strip().splitlines()) == 1
        assert str(run) in answer.stderr and f"process {os.getpid()} on " in answer.stderr
        assert contents(run) == before


def test_a_run_that_is_at_work_is_not_exported(finished: Path, tmp_path: Path) -> None:
    run = copied(finished, tmp_path)
    with Lock(run / "work/lock", about=run):
        answer = bench("export", run, tmp_path / "out")
    assert answer.exit_code == 2 and f"process {os.getpid()} on " in answer.stderr


def test_again_begins_anew_whatever_lies_in_the_folder(
    micro_folder: Path, finished: Path, tmp_path: Path
) -> None:
    run = copied(finished, tmp_path)
    (run / "work/run.json").write_text("[")
    (run / "more").symlink_to(tmp_path)
    answer = bench(*micro(micro_folder, tmp_path, *FLOOR, "--again"))
    assert answer.exit_code == 0, answer.output
    assert load_record(run).artifacts == load_record(finished).artifacts
    assert set(contents(run)) == set(contents(finished)) and not (run / "more").exists()


def test_a_grid_tells_of_a_run_that_another_process_is_at_and_goes_on(
    micro_folder: Path, finished: Path, tmp_path: Path
) -> None:
    class Here:
        def __init__(self, words: Any) -> None:
            self.answer = bench(*words)

        def poll(self) -> int:
            return int(self.answer.exit_code)

        def send_signal(self, number: int) -> None:
            raise AssertionError(number)

        def last_line(self) -> str:
            return str(self.answer.stderr.strip().splitlines()[-1])

    configs = [config_of(micro_folder, tmp_path / name) for name in ("held", "done")]
    held, _ = (copied(finished, config.results, without=("record.json",)) for config in configs)
    with Lock(held / "work/lock", about=held):
        first, second = run_grid(configs, start=Here)
    assert first.record is None and f"process {os.getpid()} on " in str(first.error)
    assert second.record is not None


def test_a_floor_that_another_process_makes_is_waited_for(
    micro_folder: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(finished, tmp_path, without=("record.json",))
    lock = Lock(run / "work/lock", about=run)
    said: list[str] = []

    class Told(Hooks):
        def say(self, text: str) -> None:
            said.append(text)
            shutil.copy(finished / "record.json", run)
            lock.__exit__()

    monkeypatch.setattr(content, "_TRY_SECONDS", 0.0)
    waiting = run_of(micro_folder, tmp_path, told=Told())
    lock.__enter__()
    assert waiting.all(wait=True) == load_record(finished)
    assert len(said) == 1 and f"process {os.getpid()} on " in said[0]


@pytest.mark.slow
def test_weights_damaged_after_training_are_noticed_and_written_again(
    micro_folder: Path, trained: Path, tmp_path: Path
) -> None:
    path = copied(trained, tmp_path) / "work/adapter.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-3] + bytes([good[-3] ^ 1]) + good[-2:])
    options = micro(micro_folder, tmp_path, "--method", "bps")[1:]
    answer = bench("sample", *options)
    assert answer.exit_code == 2 and str(path) in answer.stderr
    assert not (path.parent / "samples").exists()
    run = run_of(micro_folder, tmp_path, "bps")
    run.train()
    assert path.read_bytes() == good
    run.load_trained()


def test_weights_without_a_digest_are_loaded(micro_folder: Path, trained: Path, tmp_path: Path) -> None:
    """As in folders of earlier versions."""
    path = copied(trained, tmp_path) / "work/train.json"
    known = read_json(path)
    assert known.pop("sha256") == sha256_file(path.with_name("adapter.safetensors"))
    write_json(path, known)
    run_of(micro_folder, tmp_path, "bps").load_trained()


def test_a_full_disk_in_sampling_is_said_as_it_is(
    micro_folder: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not hidden behind another error of who keeps the costs."""
    run = copied(finished, tmp_path, without=(*UNSCORED, "work/cost.json"))
    picture = sorted((run / "work/samples").iterdir())[0]
    picture.unlink()
    genuine = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).suffix == ".png" or Path(target).name == "cost.json":
            raise OSError(28, os.strerror(28))
        genuine(source, target)

    monkeypatch.setattr(content.os, "replace", full)
    with pytest.raises(BenchError, match=rf"cannot write {picture}: No space left"):
        run_of(micro_folder, tmp_path).sample()
