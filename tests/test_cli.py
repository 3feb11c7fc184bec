"""The command line: results, bad input, and what is left after somebody pulls the plug."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import registry
from bench.ablations import ABLATIONS
from bench.content import sha256_file
from bench.record import RunRecord, load_record
from cli import app
from tests.command_line import bench, folder_of, micro

ROOT = Path(__file__).resolve().parent.parent
LITTLE = ("--limit", 10, "--train-images", 64)


@pytest.fixture(scope="module")
def finished(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with a finished run of BPS and its floor, never interrupted."""
    results = tmp_path_factory.mktemp("finished")
    answer = bench(*micro(micro_folder, results, *LITTLE))
    assert answer.exit_code == 0, answer.output
    return results


def record_of(results: Path, method: str) -> RunRecord:
    return load_record(folder_of(results, method))


def _processor_seconds(*command: str | Path) -> tuple[float, str]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def test_help_is_instant() -> None:
    """No more than twice the processor time of Typer's own, so that no machine is too slow for it."""
    ours, bare = zip(
        *(
            (
                _processor_seconds(ROOT / "cli.py", "--help"),
                _processor_seconds("-c", "import typer.rich_utils"),
            )
            for _ in range(2)
        ),
        strict=True,
    )
    assert all("run" in words for _, words in ours)
    assert min(ours)[0] < 2 * min(bare)[0]


def test_the_command_line_imports_nothing_heavy() -> None:
    heavy = ("torch", "pandas", "matplotlib", "diffusers", "transformers", "PIL", "scipy")
    code = f"""import sys, cli
try:
    cli.app(sys.argv[1:])
except SystemExit as end:
    assert not end.code
finally:
    print([name for name in {(*heavy, "numpy")} if name in sys.modules])"""
    for words, loaded in ((["--help"], "[]"), (["list"], "['numpy']")):  # numpy: to describe suites
        said = subprocess.check_output([sys.executable, "-c", code, *words], cwd=ROOT, text=True)
        assert said.splitlines()[-1] == loaded, words


def test_looking_and_planning_import_no_torch(tmp_path: Path) -> None:
    """A plan that was made before among them."""
    code = """import sys, cli
try:
    cli.app(sys.argv[1:])
except SystemExit as end:
    assert not end.code
finally:
    print('torch' in sys.modules, 'diffusers' in sys.modules)"""

    def loaded(*words: str) -> str:
        environment = {**os.environ, "BPS_BENCH_CACHE": str(tmp_path)}
        environment.pop("BENCH_COCO17", None)
        argv = [sys.executable, "-c", code, *words]
        return subprocess.check_output(argv, cwd=ROOT, text=True, env=environment).splitlines()[-1]

    plan = ("plan", "--method", "text-only")
    assert loaded(*plan) == "True True"
    report = ("report", "--results", "results/emoji-h200", "--out", str(tmp_path / "report"))
    for words in (("show", "results/emoji"), report, plan):
        assert loaded(*words) == "False False", words


def test_a_run_shows_the_table_with_floor_ceiling_and_shuffled_rows(finished: Path) -> None:
    shown = bench("show", folder_of(finished, "bps")).output
    record = record_of(finished, "bps")
    for row in ("samples", "shuffled", "blank", "autoencoder", "real training images"):
        assert row in shown and row in record.rows
    assert set(record_of(finished, "text-only").rows) == set(record.rows) - {"shuffled", "blank"}
    assert record.protocol_hash == record_of(finished, "text-only").protocol_hash
    assert record.metrics["fd"].judge == "EfficientNet-Lite0"
    assert record.cost.parameters_trainable > 0 and record.cost.parameters_dead == 0
    assert record.splits.overlap == 0


def test_a_finished_run_is_not_redone_and_json_is_its_record_and_nothing_else(
    micro_folder: Path, finished: Path
) -> None:
    before = record_of(finished, "bps")
    answer = bench(*micro(micro_folder, finished, *LITTLE, "--json"))
    assert json.loads(answer.stdout)["run_id"] == before.run_id
    assert record_of(finished, "bps").finished == before.finished


def digests(results: Path) -> dict[str, str]:
    kept = {}
    for method in ("bps", "text-only"):
        for name, digest in record_of(results, method).artifacts.items():
            kept[f"{method}/{name}"] = digest
    return kept


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_another_does_not(
    micro_folder: Path, finished: Path, tmp_path: Path
) -> None:
    assert bench(*micro(micro_folder, tmp_path / "a", *LITTLE)).exit_code == 0
    assert digests(tmp_path / "a") == digests(finished)
    words = (*LITTLE, "--seed", 1, "--no-floor")
    assert bench(*micro(micro_folder, tmp_path / "b", *words)).exit_code == 0
    other = record_of(tmp_path / "b", "bps").artifacts
    assert other["work/samples.json"] != digests(finished)["bps/work/samples.json"]


def in_training(run: Path) -> bool:
    return (run / "work/train.ckpt").exists()


def in_sampling(run: Path) -> bool:
    return len(list((run / "work/samples").glob("*.png"))) >= 5


def in_scoring(run: Path) -> bool:
    return (run / "work/sample.json").exists()


STAGES = {"training": in_training, "sampling": in_sampling, "scoring": in_scoring}


def interrupt(
    command: list[object], results: Path, *, when: Callable[[Path], bool], number: int
) -> tuple[int, str]:
    """Fork a process for the command, send a signal once `when` holds of its BPS run folder.

    Forked, as a second interpreter would first import everything again; exit code and errors come back.
    """
    with tempfile.TemporaryFile() as errors:
        child = os.fork()
        if child == 0:
            _act(command, errors.fileno())
        deadline = time.monotonic() + 120
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                pytest.fail("the run neither came to the stage nor ended")
            if number and any(when(run) for run in results.glob("micro-sketch-bps-*")):
                os.kill(child, number)
                number = 0
            time.sleep(0.002)
        errors.seek(0)
        return os.waitstatus_to_exitcode(ended[1]), errors.read().decode()


def _act(command: list[object], errors: int) -> None:
    """Be the command line in a forked process; never returns."""
    code: object = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(errors, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)  # threads of the parent are not here
        app([str(word) for word in command])
    except SystemExit as end:
        code = end.code
    finally:
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


@pytest.mark.slow
def test_a_run_killed_at_every_stage_in_turn_resumes_to_the_same_bits(
    micro_folder: Path, finished: Path, tmp_path: Path
) -> None:
    command = micro(micro_folder, tmp_path, *LITTLE, "--checkpoint-every", 2, "--no-floor")
    for stage, reached in STAGES.items():
        code, _ = interrupt(command, tmp_path, when=reached, number=signal.SIGKILL)
        assert code == -signal.SIGKILL, stage
        run = folder_of(tmp_path, "bps")
        assert not (run / "record.json").exists()
        assert (run / "work/train.json").exists() == (stage != "training")
    assert bench(*command).exit_code == 0
    record = record_of(tmp_path, "bps")
    assert record.artifacts == record_of(finished, "bps").artifacts
    assert record.cost.sample_seconds_per_image and record.cost.train_seconds
    assert record.cost.peak_memory_bytes > 2e8


@pytest.mark.slow
def test_a_polite_stop_saves_and_says_so(micro_folder: Path, finished: Path, tmp_path: Path) -> None:
    command = micro(micro_folder, tmp_path, *LITTLE, "--checkpoint-every", 2, "--no-floor")
    for number, code, reached in (
        (signal.SIGINT, 130, in_training),
        (signal.SIGTERM, 143, in_sampling),
    ):
        got, errors = interrupt(command, tmp_path, when=reached, number=number)
        assert got == code and "Traceback" not in errors and "work is saved" in errors
    assert bench(*command).exit_code == 0
    assert record_of(tmp_path, "bps").artifacts == record_of(finished, "bps").artifacts


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let the system refuse files above 200 kB, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_said_and_nothing_half_is_left(
    micro_folder: Path, tmp_path: Path, finished: Path, small_files: None
) -> None:
    answer = bench(*micro(micro_folder, tmp_path, "--no-floor"))
    assert answer.exit_code == 2 and "cannot write" in answer.stderr
    assert "Traceback" not in answer.output
    work = folder_of(tmp_path, "bps") / "work"
    assert (work / "run.json").exists()
    assert not (work / "train.ckpt").exists() and not list(work.glob(".*"))


def test_a_changed_artifact_is_noticed(finished: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder_of(finished, "bps"), tmp_path / "run"))
    (copy / "items.json").write_text("{}")
    answer = bench("show", copy)
    assert answer.exit_code == 2 and "SHA-256 differs" in answer.stderr


@pytest.mark.slow
def test_the_stages_one_by_one_equal_the_run(micro_folder: Path, finished: Path, tmp_path: Path) -> None:
    options = [
        "--suite",
        "micro",
        "--base",
        micro_folder,
        "--results",
        tmp_path,
        "--sample-batch",
        4,
        *LITTLE,
    ]
    for stage in ("train", "sample", "score"):
        answer = bench(stage, *options)
        assert answer.exit_code == 0, answer.output
    assert record_of(tmp_path, "bps").artifacts == record_of(finished, "bps").artifacts


def test_report_is_made_from_records_alone_and_twice_the_same(finished: Path, tmp_path: Path) -> None:
    outputs = []
    for name in ("one", "two"):
        answer = bench("report", "--results", finished, "--out", tmp_path / name)
        assert answer.exit_code == 0, answer.output
        files = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())
        outputs.append({p.name: sha256_file(p) for p in files})
    assert outputs[0] == outputs[1]
    kinds = {Path(name).suffix for name in outputs[0]}
    assert {".md", ".tex", ".png"} <= kinds


def test_check_passes_for_bps_and_text_only(micro_folder: Path) -> None:
    for method in ("bps", "text-only"):
        answer = bench("check", "--method", method, "--suite", "micro", "--base", micro_folder)
        assert answer.exit_code == 0, answer.output
        assert "FAIL" not in answer.output and "ok" in answer.output


@pytest.mark.slow
def test_data_verify_passes_on_the_shipped_set() -> None:
    answer = bench("data", "verify")
    assert answer.exit_code == 0 and "no leaks" in answer.output


def test_plain_progress_says_a_pace_only_once_there_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bench.cli import terminal

    clock = iter([0.0, 20.0, 30.0])  # for the stage and each tick
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    hooks = terminal.ConsoleHooks()
    hooks.stage("sample", 96)
    hooks.tick(32, 96)
    hooks.tick(96, 96)
    assert capsys.readouterr().err.splitlines() == [
        "sample",
        "sample: 32/96",
        "sample: 96/96, 6.4/s, 0 s left",
    ]


def test_a_terminal_sees_a_bar_with_rate_and_time() -> None:
    from rich.console import Console

    from bench.cli.terminal import make_bar

    screen = io.StringIO()
    bar = make_bar(Console(file=screen, force_terminal=True, width=100))
    with bar:
        task = bar.add_task("train", total=3, note="")
        for done in (1, 2, 3):
            bar.update(task, completed=done, note="loss 0.5")
            bar.refresh()
    assert "train" in screen.getvalue() and "3/3" in screen.getvalue()
    assert "loss 0.5" in screen.getvalue()


@pytest.mark.slow
def test_a_prior_without_pretrained_weights_says_so_and_passes(micro_folder: Path) -> None:
    answer = bench("check", "--suite", "micro", "--base", micro_folder, "--option", "prior=none")
    assert answer.exit_code == 0, answer.output
    assert "differs from the base as it says" in answer.output


def test_content_that_is_not_the_committed_one_stops_the_run(
    micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    from bench.data.openmoji import OpenMoji64

    genuine = OpenMoji64.__getitem__

    def altered(self: OpenMoji64, item_id: str) -> Any:
        example = genuine(self, item_id)
        return dataclasses.replace(example, image=np.zeros_like(example.image))

    monkeypatch.setattr(OpenMoji64, "__getitem__", altered)
    answer = bench(*micro(micro_folder, tmp_path))
    assert answer.exit_code == 2 and "not those of the committed splits" in answer.stderr
    assert not list(tmp_path.iterdir())


def test_list_names_every_row() -> None:
    table = json.loads(bench("list", "--json").stdout)
    assert set(table["methods"]) | set(table["variants"]) == set(registry.rows("method"))
    assert set(table["tasks"]) == set(registry.rows("task"))
    assert set(table["suites"]) == set(registry.rows("suite"))
    assert set(table["ablations"]) == set(ABLATIONS)
    shown = bench("list").output
    assert all(name in shown for kind in table.values() for name in kind)


def test_list_says_what_a_method_takes() -> None:
    options = json.loads(bench("list", "bps", "--json").stdout)["options"]
    assert set(options) == set(registry.load("method", "bps").options)
    for name, values in {"schedule": ("head_heavy", "foot_heavy"), "prior": ("free", "none")}.items():
        assert all(value in options[name]["allowed"] for value in values), name
    assert "encoder" in bench("list", "bps").output
    variant = json.loads(bench("list", "bps-free", "--json").stdout)
    assert json.loads(variant["options"]["prior"]["default"]) == "free"


def test_the_version_and_the_short_help() -> None:
    assert bench("--version").output.split() == ["bps-bench", metadata.version("bps-bench")]
    for words in ((), ("run",), ("data", "verify")):
        short = bench(*words, "-h")
        assert short.exit_code == 0 and short.output == bench(*words, "--help").output


def test_a_side_is_exported_as_it_is(tmp_path: Path) -> None:
    from bench.data.openmoji import OpenMoji64, openmoji64_splits
    from bench.sampling import load_images

    done = bench("data", "export", tmp_path, "--side", "val", "--items", "3")
    assert done.exit_code == 0, done.output
    ids = sorted(path.stem for path in tmp_path.iterdir())
    data = OpenMoji64()
    assert len(ids) == 3 and set(ids) <= set(openmoji64_splits().val)
    assert (load_images(tmp_path, ids) == [data[i].image for i in ids]).all()
    wrong = bench("data", "export", str(tmp_path), "--side", "all")
    assert wrong.exit_code == 2 and "train, val, test" in wrong.output
