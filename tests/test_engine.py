"""How training is carried out must not change what is trained: gradients, averages, checkpoints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import tracking
from accelerate.utils import LoggerType

from bench import registry
from bench.base.load import Base
from bench.config import Protocol, RunConfig, Training
from bench.content import Cache, Lock, sha256_file, write_json
from bench.data.latents import Prepared, prepare
from bench.data.openmoji import OpenMoji64, openmoji64_splits
from bench.running import identify
from bench.suites import resolve
from bench.training import checkpoint
from bench.training.checkpoint import (
    ADAPTER,
    BEGUN,
    NOTHING,
    TRAINED,
    Trainable,
    load_checkpoint,
    save_checkpoint,
    take_over,
)
from bench.training.engine import Engine, autocast, check_execution, find_device, join, micro_batches, rebuilt
from bench.training.loop import CHECKPOINT, Average, train, training_loss
from bench.types import BenchError, Hooks, Stopped
from tests.asking import Asked, specified

TRAINING = Training(batch=4)
ROOT = Path(__file__).resolve().parent.parent
ROWS = [
    *((name, {}) for name in sorted(registry.names("method", ["all"])) if name != "text-only"),
    ("bps", {"prior": "free"}),
]
rows = pytest.mark.parametrize(
    ("name", "options"), ROWS, ids=["-".join((n, *map(str, o.values()))) for n, o in ROWS]
)


@pytest.fixture(scope="module")
def data(micro_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    ids = openmoji64_splits().val[:6]
    return prepare(
        micro_base,
        dataset=OpenMoji64(),
        ids=ids,
        task=registry.load("task", "sketch"),
        mirror=True,
        cache=Cache(tmp_path_factory.mktemp("engine")),
    )


@pytest.fixture(scope="module")
def whole(micro_base: Base, data: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A training from beginning to end: denoiser, result and folder, all to be left as they are."""
    folder = tmp_path_factory.mktemp("whole")
    return *trained(micro_base, data, folder), folder


def shaken(base: Base, name: str = "bps", **options: Any) -> Any:
    """Return a method with every trained parameter moved: nothing is zero any more."""
    torch.manual_seed(3)
    method = registry.load("method", name)
    denoiser = method.build(base, registry.load("task", "sketch"), **{**method.options, **options})
    with torch.no_grad():
        for parameter in Trainable(denoiser).parameters.values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.manual_seed(1)))
    return denoiser.eval()


def gradients(denoiser: Any, base: Base, data: Prepared, *, precision: str = "fp32") -> Any:
    with autocast("cpu", precision):
        training_loss(denoiser, base=base, data=data, training=TRAINING, seed=0, step=0).backward()
    return taken(denoiser)


def taken(denoiser: Any) -> dict[str, torch.Tensor]:
    """Take the gradients away; every trained parameter must have one."""
    found = {}
    for name, parameter in Trainable(denoiser).parameters.items():
        assert parameter.grad is not None, name
        found[name], parameter.grad = parameter.grad, None
    return found


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Distance of two gradients as a share of the first's length."""
    gap = sum(float((one[n] - other[n]).square().sum()) for n in one)
    return (gap / sum(float(g.square().sum()) for g in one.values())) ** 0.5


@pytest.mark.parametrize(("batch", "count", "micro"), [(8, 1, None), (8, 2, 2), (12, 3, 4), (6, 6, 1)])
def test_processes_and_micro_batches_take_every_place_once(batch: int, count: int, micro: int | None) -> None:
    parts = [
        part for index in range(count) for part in micro_batches(batch, micro=micro, count=count, index=index)
    ]
    assert [place for part in parts for place in part] == list(range(batch))
    assert {len(part) for part in parts} == {micro or batch // count}


@pytest.mark.parametrize(("count", "micro"), [(3, None), (2, 3), (1, 16), (1, 5)])
def test_unequal_shares_are_refused(count: int, micro: int | None) -> None:
    with pytest.raises(BenchError, match="cannot be divided"):
        micro_batches(8, micro=micro, count=count)


def test_micro_batches_give_the_gradient_of_the_batch(micro_base: Base, data: Prepared) -> None:
    denoiser = shaken(micro_base)
    whole = gradients(denoiser, micro_base, data)
    for micro in (1, 2, 4):
        engine = Engine(
            denoiser,
            torch.optim.AdamW(Trainable(denoiser).parameters.values()),
            loss=lambda step, places: training_loss(
                denoiser,
                base=micro_base,
                data=data,
                training=TRAINING,
                seed=0,
                step=step,
                places=places,
            ),
            training=TRAINING,
            config=RunConfig(micro_batch=micro),
        )
        engine.backward(0)
        split = taken(denoiser)
        assert max(float((whole[n] - g).abs().max()) for n, g in split.items()) < 1e-6
        assert apart(whole, split) < 1e-5


@rows
def test_recomputed_activations_give_the_same_gradient(
    name: str, options: dict[str, Any], micro_base: Base, data: Prepared
) -> None:
    """Also through the hooks that add residuals, which are gone when the backward pass recomputes."""
    denoiser, calls = shaken(micro_base, name, **options), []
    resnets = [m for m in denoiser.modules() if type(m).__name__ == "ResnetBlock2D"]
    watched = [m.register_forward_pre_hook(lambda m, a: calls.append(m)) for m in resnets]
    plain = gradients(denoiser, micro_base, data)
    once = len(calls)
    with rebuilt(denoiser, RunConfig(gradient_checkpointing=True)):
        again = gradients(denoiser, micro_base, data)
    assert len(calls) > 2 * once, "nothing was recomputed"
    for name_, gradient in plain.items():
        assert torch.equal(gradient, again[name_]), name_
    calls.clear()
    gradients(denoiser, micro_base, data)
    assert len(calls) == once, "it is as it was"
    for handle in watched:
        handle.remove()


@rows
def test_bf16_stays_near_fp32_and_reaches_every_parameter(
    name: str, options: dict[str, Any], micro_base: Base, data: Prepared
) -> None:
    """bf16 keeps 8 bits: gradients within 6%, more than half a percent away as rounding must be."""
    denoiser = shaken(micro_base, name, **options)
    exact = gradients(denoiser, micro_base, data)
    assert 5e-3 < apart(exact, gradients(denoiser, micro_base, data, precision="bf16")) < 0.06


def trained(base: Base, data: Prepared, folder: Path, hooks: Hooks | None = None, **asked: Any) -> Any:
    denoiser = shaken(base)
    given = {"train_batch": 4, "train_images": 16, "learning_rate": 1e-4, "seed": 5, "checkpoint_every": 2}
    spec = specified(**{**given, **asked})
    return denoiser, train(denoiser, spec, base=base, data=data, folder=folder, hooks=hooks)


def test_bf16_trains_and_keeps_weights_in_fp32(micro_base: Base, data: Prepared, tmp_path: Path) -> None:
    _, exact = trained(micro_base, data, tmp_path / "fp32", train_images=8)
    denoiser, result = trained(micro_base, data, tmp_path / "bf16", precision="bf16", train_images=8)
    assert all(p.dtype == torch.float32 for p in Trainable(denoiser).parameters.values())
    for (_, loss), (_, wanted) in zip(result.curve, exact.curve, strict=True):
        assert loss != wanted and loss == pytest.approx(wanted, rel=0.02)


def test_fused_adamw_and_recomputing_take_the_same_step(
    micro_base: Base, data: Prepared, tmp_path: Path
) -> None:
    plain, _ = trained(micro_base, data, tmp_path / "plain", train_images=4)
    how = {"fused": False, "gradient_checkpointing": True}
    other, result = trained(micro_base, data, tmp_path / "other", train_images=4, **how)
    for name, tensor in Trainable(plain).state_dict().items():
        torch.testing.assert_close(Trainable(other).state_dict()[name], tensor, rtol=0, atol=1e-7)
    assert result.starts == [{"step": 0, "processes": 1, "gradient_checkpointing": True, "fused": False}]


def test_the_average_has_its_closed_form() -> None:
    """w_t = t from w_0 = 0: e_t = sum of (1 - d) d^(t - s) s = t - d (1 - d^t) / (1 - d)."""
    module, decay = torch.nn.Linear(1, 1, bias=False).double(), 0.9
    torch.nn.init.zeros_(module.weight)
    average = Average(Trainable(module), decay=decay)
    for step in range(1, 21):
        torch.nn.init.constant_(module.weight, float(step))
        average.update()
        wanted = step - decay * (1 - decay**step) / (1 - decay)
        assert float(average.parameters["weight"]) == pytest.approx(wanted, rel=1e-12)
    average.apply()
    assert float(module.weight.detach()) == pytest.approx(wanted, rel=1e-12)


def test_a_stopped_training_keeps_its_average(micro_base: Base, data: Prepared, tmp_path: Path) -> None:
    whole, _ = trained(micro_base, data, tmp_path / "whole", ema=0.5)
    with pytest.raises(Stopped):
        trained(micro_base, data, tmp_path / "cut", Asked([None, None, 143]), ema=0.5)
    resumed, _ = trained(micro_base, data, tmp_path / "cut", ema=0.5)
    last = torch.load(tmp_path / "cut" / CHECKPOINT, weights_only=True)
    for name, tensor in Trainable(whole).state_dict().items():
        assert torch.equal(tensor, Trainable(resumed).state_dict()[name]), name
        assert torch.equal(tensor, last["ema"][name]) and not torch.equal(tensor, last["weights"][name])


@pytest.fixture
def parts() -> Iterator[dict[str, Any]]:
    yield {"module": torch.nn.Linear(64, 64)}


def test_checkpoints_rotate_and_a_damaged_one_falls_back(parts: dict[str, Any], tmp_path: Path) -> None:
    path, said = tmp_path / "train.ckpt", []
    for step in (1, 2, 3, 4):
        torch.nn.init.constant_(parts["module"].weight, float(step))
        save_checkpoint(path, step=step, keep=3, **parts)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train.1.ckpt", "train.2.ckpt", "train.ckpt"]
    load = partial(load_checkpoint, path, say=said.append, **parts)
    assert load() == 4 and said == []
    whole = path.read_bytes()
    path.write_bytes(whole[:3000])  # cut off
    assert load() == 3 and "damaged" in said.pop() and torch.all(parts["module"].weight == 3.0)
    flipped = bytearray(whole)
    flipped[5000] ^= 1  # one bit of a weight
    path.write_bytes(flipped)
    assert load() == 3 and "checksum" in said.pop()
    path.unlink()  # a kill between two renames leaves this
    assert load() == 3 and said == []
    for left in tmp_path.iterdir():
        left.write_bytes(b"not a checkpoint")
    with pytest.raises(BenchError, match="cannot be resumed"):
        load()
    save_checkpoint(path, step=9, keep=1, **parts)
    assert [p.name for p in tmp_path.iterdir()] == ["train.ckpt"]


def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(
    micro_base: Base, data: Prepared, whole: Any, tmp_path: Path
) -> None:
    newest = tmp_path / "cut" / CHECKPOINT
    shutil.copytree(whole[-1], tmp_path / "cut")
    newest.write_bytes(newest.read_bytes()[:-100])
    (newest.parent / f".{newest.name}.0123456789ab.tmp.ckpt").write_bytes(b"left by a kill")
    hooks = Asked()
    with Lock(tmp_path / "lock", about=newest.parent, clean=newest.parent):  # as a run holds its folder
        again, _ = trained(micro_base, data, tmp_path / "cut", hooks)
    assert len(hooks.said) == 1 and "going on from train.1.ckpt" in hooks.said[0]
    assert not list(newest.parent.glob(".*"))
    for name, tensor in Trainable(whole[0]).state_dict().items():
        assert torch.equal(tensor, Trainable(again).state_dict()[name]), name


def test_a_tracker_hears_every_step(
    micro_base: Base, data: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Any] = []

    class Remembering(tracking.GeneralTracker):
        name, requires_logging_directory, tracker = "mlflow", False, None

        def __init__(self, project: str, **settings: Any) -> None:
            super().__init__()
            heard.append(settings)

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            heard.append(values)

        def log(self, values: dict[str, Any], step: int | None = None, **more: Any) -> None:
            heard.append({"step": step, **values})

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "mlflow", Remembering)
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.MLFLOW])
    _, result = trained(micro_base, data, tmp_path / "run" / "work", track=("mlflow",))
    named, settings, *lines = heard
    assert named == {"run_name": "run"}
    assert settings["batch"] == 4 and [x["step"] for x in lines] == [1, 2, 3, 4]
    assert [round(x["loss"], 6) for x in lines] == [loss for _, loss in result.curve]
    assert lines[0]["learning_rate"] == pytest.approx(1e-4) and lines[0]["images_per_second"] > 0


def refused(message: str, *, device: str = "cpu", precision: str = "fp32", **how: Any) -> None:
    with pytest.raises(BenchError, match=message):
        check_execution(RunConfig(**how), Training(batch=8, precision=precision), device=device)


def test_what_cannot_be_is_refused_before_anything_is_spent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused("Did you mean 'tensorboard'", track=("tensorbord",))
    refused("needs a GPU", precision="fp16")
    refused("--micro-batch", micro_batch=3)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    refused("only plain data parallelism")


def test_a_tracker_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_available_trackers", [])
    refused("--track wandb: the package is not installed", track=("wandb",))


def test_a_launch_that_started_one_process_for_several_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What `accelerate launch --cpu --num_processes 2` sets in the one process that it starts."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert join("cpu").num_processes == 1
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(BenchError, match="started one process only"):
        join("cpu")


def test_precision_and_average_are_protocol_and_the_rest_is_not(micro_folder: Path) -> None:
    assert {"precision", "ema"} & set(protocol().as_dict()["training"]) == set()
    plain = protocol().hash
    same = {
        "micro_batch": 2,
        "gradient_checkpointing": True,
        "compile": True,
        "fused": False,
        "track": ("wandb",),
        "precision": "fp32",
        "ema": 0.0,
    }
    assert protocol(**same).hash == plain
    for other in ({"precision": "bf16"}, {"ema": 0.9}):
        assert protocol(**other).hash != plain


def protocol(**asked: Any) -> Protocol:
    return identify(resolve(RunConfig(device="cpu", **asked))).protocol


def compiles() -> bool:
    try:
        check_execution(RunConfig(compile=True), TRAINING, device="cpu")
    except BenchError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compiled_blocks_give_the_same_gradient(micro_base: Base, data: Prepared) -> None:
    if not compiles():
        pytest.skip("torch.compile does not work on this machine")
    denoiser = shaken(micro_base)
    plain = gradients(denoiser, micro_base, data)
    for more in (False, True):
        with rebuilt(denoiser, RunConfig(compile=True, gradient_checkpointing=more)):
            compiled = gradients(denoiser, micro_base, data)
        assert 0.0 < apart(plain, compiled) < 1e-5
    assert apart(plain, gradients(denoiser, micro_base, data)) == 0.0, "it is as it was"


@pytest.mark.slow
def test_compiling_without_a_compiler_is_refused(micro_folder: Path, tmp_path: Path) -> None:
    words = [
        "train",
        "--suite",
        "micro",
        "--base",
        micro_folder,
        "--results",
        tmp_path,
        "--device",
        "cpu",
        "--compile",
    ]
    done = subprocess.run(
        [sys.executable, ROOT / "cli.py", *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "CXX": "/nowhere/g++"},
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "torch.compile does not work here" in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize("gone", [TRAINED, ADAPTER])
def test_nothing_is_taken_over_of_a_run_that_is_deleted_meanwhile(
    gone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    donor, run, key = tmp_path / "donor", tmp_path / "run", "a" * 64
    (donor / "work").mkdir(parents=True)
    (donor / ADAPTER).write_bytes(b"weights")
    write_json(donor / BEGUN, {"training": key})
    write_json(donor / TRAINED, {**vars(NOTHING), "sha256": sha256_file(donor / ADAPTER)})
    find = checkpoint.find_trained

    def found(results: Path, key: str) -> Path | None:
        folder = find(results, key)
        (donor / gone).unlink()  # as another process's --again does
        return folder

    taken = take_over(tmp_path / "other", key=key)
    assert taken is not None and taken.trained_in == "donor", "whole, it is taken over"
    monkeypatch.setattr(checkpoint, "find_trained", found)
    assert take_over(run, key=key) is None, "then the run trains itself"
    assert not run.exists(), "and nothing is left half taken over"


def test_an_unknown_device_is_refused_not_taken_for_another() -> None:
    with pytest.raises(BenchError, match="tpu.*auto, cpu, cuda"):
        find_device("tpu")
