"""Several processes of one run, over gloo: the same weights and images as one, and one voice.

Children are forked from this process, which has everything imported; one slow test goes through
accelerate's own launcher.
"""

from __future__ import annotations

import copy
import io
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from safetensors.numpy import load_file
from typer.testing import CliRunner

import cli
from bench import registry
from bench.base.load import Base
from bench.child import PROGRAM
from bench.cli.options import guarded
from bench.content import Cache
from bench.data.latents import Prepared, prepare
from bench.data.openmoji import OpenMoji64, openmoji64_splits
from bench.record import load_record
from bench.training.checkpoint import Trainable
from bench.training.loop import CHECKPOINT, train
from bench.types import BenchError, Stopped
from tests.asking import Asked, specified
from tests.test_child import foreign

RATE = 1e-3
TOLERANCE = 1e-5
SHORT = ("--train-images", 16, "--limit", 10, "--sampling-steps", 1)


@pytest.fixture(scope="module")
def data(micro_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    ids = openmoji64_splits().val[:6]
    return prepare(
        micro_base,
        dataset=OpenMoji64(),
        ids=ids,
        task=registry.load("task", "sketch"),
        mirror=True,
        cache=Cache(tmp_path_factory.mktemp("processes")),
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def together(act: Callable[[int], Any], *, count: int = 2) -> list[Any]:
    """Return what `act(index)` returns in each of `count` processes that have joined."""
    context, port = multiprocessing.get_context("fork"), free_port()
    answers = context.Queue()

    def child(index: int) -> None:
        os.environ.update(
            RANK=str(index),
            LOCAL_RANK=str(index),
            WORLD_SIZE=str(count),
            OMP_NUM_THREADS="1",
            LOCAL_WORLD_SIZE=str(count),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)  # the parent may have had one
        torch.set_num_threads(1)
        try:
            answers.put((index, act(index)))
        except Exception as error:
            answers.put((index, error))

    children = [context.Process(target=child, args=(index,)) for index in range(count)]
    for one in children:
        one.start()
    found = dict(answers.get(timeout=240) for _ in children)
    for one in children:
        one.join(timeout=60)
        assert one.exitcode == 0
    return [found[index] for index in range(count)]


class Double(torch.nn.Module):
    """A denoiser in double precision.

    Adam makes a full step of what is rounding alone (of a bias before a group norm), so in single
    precision some weights differ by up to the rate as soon as sums have another order. Here only
    what is computed counts.
    """

    def __init__(self, denoiser: Any, *, dead: bool) -> None:
        super().__init__()
        self.inner = denoiser.double()
        self.idle = torch.nn.Parameter(torch.ones(7), requires_grad=dead)

    def encode(self, condition: torch.Tensor) -> Any:
        return self.inner.encode(condition.double())

    def forward(self, z: torch.Tensor, t: torch.Tensor, text: torch.Tensor, features: Any) -> Any:
        return self.inner(z.double(), t, text.double(), features)


def built(base: Base, *, dead: bool = False) -> Any:
    """Return BPS with a copy of the base; dead: also with parameters that have no effect."""
    torch.manual_seed(3)
    method, own = registry.load("method", "bps"), replace(base, unet=copy.deepcopy(base.unet))
    denoiser = method.build(own, registry.load("task", "sketch"), **method.options)
    return Double(denoiser, dead=dead)


def trained(
    base: Base,
    data: Prepared,
    folder: Path,
    stops: Iterable[int | None] = (),
    dead: bool = False,
    **asked: Any,
) -> Any:
    """Train BPS in this process's share of the launch; return result and weights."""
    denoiser = built(base, dead=dead)
    given = {"train_batch": 4, "train_images": 16, "learning_rate": RATE, "seed": 5, "checkpoint_every": 2}
    spec = specified(**{**given, **asked})
    result = train(denoiser, spec, base=base, data=data, folder=folder, hooks=Asked(stops))
    return result, {n: p.numpy().copy() for n, p in Trainable(denoiser).state_dict().items()}


def gap(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    assert set(one) == set(other)
    return max(float(np.abs(one[n] - other[n]).max()) for n in one)


@pytest.fixture(scope="module")
def two(micro_base: Base, data: Prepared, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What two processes make of a whole training, each; with parameters that no example gives a gradient."""
    folder = tmp_path_factory.mktemp("trained") / "two"
    found = together(lambda index: trained(micro_base, data, folder, dead=True))
    assert len(list(folder.iterdir())) == 2
    return found


def test_two_processes_train_as_one(micro_base: Base, data: Prepared, two: list[Any], tmp_path: Path) -> None:
    """Also with micro batches, and with parameters that no example gives a gradient."""
    alone, weights = trained(micro_base, data, tmp_path / "one", dead=True)
    start = {n: p.numpy() for n, p in Trainable(built(micro_base, dead=True)).state_dict().items()}
    assert gap(weights, start) > 100 * TOLERANCE
    micro = together(lambda index: trained(micro_base, data, tmp_path / "two", dead=True, micro_batch=1))
    for (first, ours), (second, theirs) in (two, micro):
        assert gap(ours, theirs) == 0.0 and first.curve == second.curve
        assert gap(ours, weights) < TOLERANCE
        assert first.dead == alone.dead == 7 and np.all(ours["idle"] == 1.0)
        np.testing.assert_allclose(first.curve, alone.curve, atol=2e-6)
        assert first.starts[0]["processes"] == 2


def test_two_processes_stop_together_and_one_goes_on(
    micro_base: Base, data: Prepared, two: list[Any], tmp_path: Path
) -> None:
    """Asked in the second alone, in the third step; same number of processes: the same bits."""

    def cut(index: int) -> Any:
        stops = [None, None, 143 if index == 1 else None]
        return trained(micro_base, data, tmp_path / "cut", stops, dead=True)

    whole = two[0][1]
    for answer in together(cut):
        assert isinstance(answer, Stopped) and answer.code == 143
    shutil.copytree(tmp_path / "cut", tmp_path / "again")
    state = torch.load(tmp_path / "cut" / CHECKPOINT, weights_only=True)
    assert state["step"] == 3
    result, alone = trained(micro_base, data, tmp_path / "cut", dead=True)
    assert [(s["step"], s["processes"]) for s in result.starts] == [(0, 2), (3, 1)]
    assert gap(alone, whole) < TOLERANCE
    again = together(lambda index: trained(micro_base, data, tmp_path / "again", dead=True))
    assert gap(again[0][1], whole) == 0.0


def test_an_error_of_one_process_ends_the_other_with_a_message(
    micro_base: Base, data: Prepared, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")

    @guarded
    def act(index: int) -> Any:
        folder = tmp_path / "file" if index == 0 else tmp_path / "good"
        try:
            return trained(micro_base, data, folder, checkpoint_every=1)
        except BenchError:  # of the first; what the end of the process does
            torch.distributed.destroy_process_group()
            raise

    answers = together(lambda index: said_by(lambda: act(index)))
    assert "cannot write" in answers[0]
    assert "another process of this run ended" in answers[1]


def said_by(act: Callable[[], Any]) -> str:
    """What a command that ends with exit code 2 says on standard error."""
    with redirect_stderr(io.StringIO()) as heard, pytest.raises(typer.Exit) as ended:
        act()
    assert ended.value.exit_code == 2
    return heard.getvalue()


def test_different_checkpoints_are_refused(micro_base: Base, data: Prepared, tmp_path: Path) -> None:
    """As on two nodes without shared storage."""
    trained(micro_base, data, tmp_path / "0", train_images=8)
    answers = together(lambda index: trained(micro_base, data, tmp_path / str(index), train_images=8))
    assert all("shared storage" in str(a) and isinstance(a, BenchError) for a in answers)


def command(stage: str, base: Path, results: Path, *more: object) -> list[str]:
    words = [
        stage,
        "--suite",
        "micro",
        "--base",
        base,
        "--results",
        results,
        "--device",
        "cpu",
        "--sample-batch",
        4,
        "--method",
        "bps",
        *more,
    ]
    return [str(w) for w in words]


def launched(words: list[str], *, count: int = 2) -> list[tuple[int, str, str]]:
    """Return exit code, standard output and standard error of the command in each process."""

    def act(index: int) -> tuple[int, str, str]:
        answer = CliRunner().invoke(cli.app, words)
        return answer.exit_code, answer.stdout, answer.stderr

    return together(act, count=count)


@pytest.fixture(scope="module")
def finished(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of one run, done by one process and by two."""
    folders = {}
    for name, count in (("one", 1), ("two", 2)):
        results = tmp_path_factory.mktemp(name)
        words = command("run", micro_folder, results, *SHORT, "--no-floor", "--no-shuffled")
        answers = launched(words, count=count)
        assert [code for code, *_ in answers] == [0] * count, answers
        assert "record" in answers[0][1] and all(out == "" for _, out, _ in answers[1:])
        (folders[name],) = results.iterdir()
    return folders


def pictures(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (folder / "work" / "samples").iterdir()}


def test_the_command_in_two_processes_makes_the_same_run(finished: dict[str, Path]) -> None:
    one, two = (finished[name] for name in ("one", "two"))
    assert one.name == two.name, "processes are no part of what a run is"
    ours, theirs = (load_file(f / "work" / "adapter.safetensors") for f in (one, two))
    far = np.concatenate([np.abs(ours[n] - theirs[n]).ravel() for n in ours])
    assert set(ours) == set(theirs) and far.max() < RATE
    assert np.mean(far < TOLERANCE) > 0.999, "but for rounding, see Double"
    size = np.linalg.norm(np.concatenate([tensor.ravel() for tensor in ours.values()]))
    assert np.linalg.norm(far) < TOLERANCE * size, "as one vector"
    records = [load_record(f) for f in (one, two)]
    assert records[0].protocol_hash == records[1].protocol_hash
    assert "execution" not in records[0].environment
    assert records[1].environment["execution"] == [{"step": 0, "processes": 2}]
    assert set(pictures(one)) == set(pictures(two)) and len(pictures(one)) == 10


def test_two_processes_sample_the_bytes_of_one(
    finished: dict[str, Path], micro_folder: Path, tmp_path: Path
) -> None:
    """The same weights; also where a first start by two was cut off and one goes on."""
    wanted = pictures(finished["one"])
    for name, count in (("two", 2), ("rest", 1)):
        run = Path(shutil.copytree(finished["one"], tmp_path / name / finished["one"].name))
        (run / "record.json").unlink()
        kept = sorted(wanted)[4:8] if name == "rest" else []
        for path in (run / "work" / "samples").iterdir():
            if path.name not in kept:
                path.unlink()
        answers = launched(command("sample", micro_folder, tmp_path / name, *SHORT), count=count)
        assert [code for code, *_ in answers] == [0] * count, answers
        assert pictures(run) == wanted


def test_two_processes_score_the_rows_of_one(
    finished: dict[str, Path], micro_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes some of them, with nothing in the cache: the same numbers to the last bit."""
    found = []
    for count in (1, 2):
        monkeypatch.setenv("BPS_BENCH_CACHE", str(tmp_path / f"cache of {count}"))
        run = Path(shutil.copytree(finished["one"], tmp_path / str(count) / finished["one"].name))
        for name in ("record.json", "items.json"):
            (run / name).unlink()
        words = command("score", micro_folder, tmp_path / str(count), *SHORT, "--no-shuffled")
        answers = launched(words, count=count)
        assert [code for code, *_ in answers] == [0] * count, answers
        found.append((load_record(run).rows, (run / "items.json").read_bytes()))
    assert found[0] == found[1] and len(found[1][0]) == 3


def test_a_grid_is_refused_in_a_launch(micro_folder: Path, tmp_path: Path) -> None:
    answers = launched([*command("run", micro_folder, tmp_path), "--seeds", "0,1"])
    for code, _, said in answers:
        assert code == 2 and "Launch one method, task and seed at a time" in said


LAUNCHERS = {
    "accelerate": ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2),
    "itself": (),  # where it may use two threads
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers_start_the_command(launcher: str, micro_folder: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    port = ("--main_process_port", free_port()) if launcher == "accelerate" else ()
    words = [
        sys.executable,
        *LAUNCHERS[launcher],
        *port,
        PROGRAM,
        *command("train", micro_folder, results),
    ]
    done = subprocess.run(
        [str(w) for w in words],
        cwd=foreign(tmp_path / "elsewhere"),
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1" if port else "2")},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained 48 images") == 1
    (run,) = results.iterdir()
    starts = json.loads((run / "work" / "train.json").read_text())["starts"]
    assert starts == [{"step": 0, "processes": 2}]
