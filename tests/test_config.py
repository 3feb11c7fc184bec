"""The description of a run: the same from flags, a file and JSON; what is given is part of the protocol."""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import cli
from bench.cli.options import Asked, Shell, configured
from bench.config import RunConfig, make_config
from bench.packed import kept_record
from bench.running import identify
from bench.suites import resolve
from bench.types import BenchError
from tests.asking import micro

RUNNER = CliRunner()
ROOT = Path(__file__).resolve().parent.parent
FULL = RunConfig(
    method="controlnet",
    task="drawing",
    suite="micro",
    seed=3,
    options={
        "word": "free",
        "number": "1",
        "small": "1e-3",
        "on": True,
        "odd": "a 'b' = c",
        "many": ["x", 1e-05],
        "no": "\U0001f600",
    },
    metrics=("own.module:Sharpness", "own.module:Other"),
    results=Path("my runs"),
    budget="standard",
    train_images=40,
    epochs=2.5,
    train_batch=4,
    train_items=5,
    train_subset=2,
    limit=12,
    side="val",
    learning_rate=1.0000000000000002e-05,
    guidance=3.0,
    sampling_steps=2,
    judge="inception-v3/clean",
    clip="none",
    draws=3,
    precision="bf16",
    ema=0.999,
    shuffled=False,
    blank=True,
    allow_leak=True,
    as_released=True,
    forgetting=True,
    captions="random",
    leaky=True,
    base=Path("org/name@main"),
    base_variant="non_ema",
    data=Path("data's"),
    image_column="photo",
    caption_column="what it is",
    conditioning_column="edges",
    lines="hed",
    resolution=64,
    shares=(0.7, 0.1, 0.2),
    strict=True,
    weights=Path("weights.safetensors"),
    train=False,
    condition_channels="repeat",
    invert_condition=True,
    device="cpu",
    sample_batch=4,
    checkpoint_every=7,
    checkpoint_minutes=20.0,
    micro_batch=2,
    gradient_checkpointing=True,
    compile=True,
    fused=False,
    track=("tensorboard", "mlflow"),
)
CONFIGS = pytest.mark.parametrize("config", [RunConfig(), FULL], ids=["defaults", "everything"])


def bench_command(*words: object) -> Any:
    return RUNNER.invoke(cli.app, [str(w) for w in words])


def parsed(*words: object) -> Asked:
    """What a command with every option is handed."""
    found: list[Asked] = []
    app = Shell()

    @app.command()
    @configured()
    def command(*, asked: Asked) -> None:
        found.append(asked)

    done = RUNNER.invoke(app, [str(w) for w in words])
    assert done.exit_code == 0, done.output
    return found[0]


def test_everything_is_something_else_than_the_default() -> None:
    """So that a new field is part of the tests below."""
    for known in dataclasses.fields(RunConfig):
        assert getattr(FULL, known.name) != getattr(RunConfig(), known.name), known.name


@CONFIGS
def test_a_configuration_comes_back_from_json_yaml_and_its_command(config: RunConfig, tmp_path: Path) -> None:
    text = json.dumps(config.as_dict())
    assert make_config(json.loads(text)) == config == parsed("--config", text).one
    words = shlex.split(config.command())
    assert words[:2] == ["bench", "run"] and parsed(*words[2:]).one == config
    printed = bench_command(*words[1:], "--print-config")
    assert printed.exit_code == 0, printed.output
    file = tmp_path / "run.yaml"
    file.write_text(printed.stdout)
    assert parsed("--config", file).one == config
    assert bench_command("run", "--config", file, "--print-config").stdout == printed.stdout


def test_a_grid_comes_back_from_its_file(tmp_path: Path) -> None:
    words = ["--method", "paper", "--task", "sketch,drawing", "--seeds", "2,1", "--limit", "13"]
    file = tmp_path / "grid.yaml"
    file.write_text(bench_command("run", *words, "--print-config").stdout)
    assert parsed("--config", file).cells() == parsed(*words).cells()
    assert len(parsed(*words).cells()) == 5 * 2 * 2


def test_small_numbers_in_a_file_need_no_point(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("learning_rate: 1e-5\n")
    assert parsed("--config", tmp_path / "run.yaml").one == RunConfig(learning_rate=1e-5)
    (tmp_path / "run.yaml").write_text("options: {scale: 1e-5, text: '1e-5', many: [-2.E+3, .5e1]}\n")
    options = {"scale": 1e-5, "text": "1e-5", "many": [-2e3, 5.0]}
    assert parsed("--config", tmp_path / "run.yaml").one == RunConfig(options=options)


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "method: [controlnet, bps]\nseed: 4\nlimit: 15\nsample_batch: 7\nshuffled: false\n"
        "options: {first: 1, second: 2}\ntrack: [wandb]\n"
    )
    flags = ["--method", "text-only", "--limit", 19, "--option", "second=3", "--shuffled"]
    found = parsed("--config", file, *flags, "--track", "mlflow").one
    assert found == RunConfig(
        method="text-only",
        seed=4,
        limit=19,
        sample_batch=7,
        options={"first": 1, "second": 3},
        track=("mlflow",),
    )


def test_repeats_and_commas_add_up_to_the_same_runs() -> None:
    commas = parsed("--method", "bps,controlnet,text-only", "--task", "sketch,drawing", "--seed", "0,1,2")
    method = ("--method", "bps", "--method", "controlnet, text-only", "--method", "bps")
    repeats = parsed(*method, "--task", "sketch", "--task", "drawing", "--seed", 0, "--seeds", "1,2")
    assert commas.cells() == repeats.cells()
    assert [(c.seed, c.task, c.method) for c in commas.cells()][:4] == [
        (0, "sketch", "bps"),
        (0, "sketch", "controlnet"),
        (0, "sketch", "text-only"),
        (0, "drawing", "bps"),
    ]
    with pytest.raises(BenchError, match="18 runs"):
        _ = commas.one


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{limitt: 3}", "limitt"),
        ("{sample-batch: 3}", "sample-batch"),
        ("{limit: three}", "limit"),
        ("{limit: '3'}", "limit"),
        ("{limit: 1.5}", "limit"),
        ("{limit: true}", "limit"),
        ("{limit: 0}", "limit"),
        ("{limit: [3]}", "limit"),
        ("{guidance: .nan}", "float"),
        ("{ema: 1.0}", "ema"),
        ("{seed: -1}", "seed"),
        ("{seed: true}", "seed"),
        ("{seed: 1.5}", "seed"),
        ("{seed: [0, [1]]}", "seed"),
        ("{seed: 99999999999999999999}", "seed"),
        ("{train: 3}", "train"),
        ("{train: 1}", "train"),
        ("{guidance: true}", "guidance"),
        ("{guidance: much}", "guidance"),
        ("{shuffled: 'no'}", "shuffled"),
        ("{options: 3}", "options"),
        ("{options: {sites: [.inf]}}", "configuration"),
        ("{options: {since: 2026-01-01}}", "configuration"),
        ("{track: 3}", "track"),
        ("{method: 3}", "method"),
        ("{method: {bps: 1}}", "method"),
        ("{method: []}", "--method"),
        ("{task: [sketch, null]}", "task"),
        ("{task: skech}", "skech"),
        ("{side: train}", "side"),
        ("{base: 7}", "base"),
        ("{train: false}", "--weights"),
        ("{3: 4}", "3"),
        ("{", "--config"),
        ("{[1]: 2}", "--config"),
        ("", "sets no options"),
        ("- 1", "sets no options"),
        ("no/such/file.yaml", "file.yaml"),
    ],
)
def test_what_a_configuration_cannot_say_is_refused(text: str, named: str, tmp_path: Path) -> None:
    if not text.startswith("{") and "/" not in text:
        (tmp_path / "run.yaml").write_text(text)
        text = str(tmp_path / "run.yaml")
    done = bench_command("run", "--config", text, "--results", tmp_path / "runs")
    assert done.exit_code == 2 and named in done.stderr, done.output
    assert isinstance(done.exception, (SystemExit, typer.Exit))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("changes", [{"train_images": 40}, {"train_batch": 4}, {"limit": 11}], ids=str)
def test_what_is_asked_of_the_protocol_is_part_of_it(
    micro_folder: Path, tmp_path: Path, changes: dict[str, int]
) -> None:
    plain = micro(micro_folder, tmp_path, budget="quick")
    asked = replace(plain, **changes)
    whole, other = identify(resolve(plain)), identify(resolve(asked))
    assert other.protocol.hash != whole.protocol.hash and other.run_id != whole.run_id
    ((name, value),) = changes.items()
    before, now = whole.protocol.as_dict(), other.protocol.as_dict()
    part, key = {
        "train_images": ("budget", "train_images"),
        "train_batch": ("training", "batch"),
        "limit": ("budget", "eval_items"),
    }[name]
    assert now[part][key] == value != before[part][key]
    differ = {(p, k) for p in ("budget", "training") for k in now[p] if now[p][k] != before[p][k]}
    assert differ - {("budget", "name")} == {(part, key)}
    assert {k: v for k, v in now.items() if k not in ("budget", "training")} == {
        k: v for k, v in before.items() if k not in ("budget", "training")
    }
    assert other.items == (11 if name == "limit" else whole.items)


def test_without_them_protocols_and_names_are_those_of_published_records(
    micro_folder: Path, tmp_path: Path
) -> None:
    plain = identify(resolve(micro(micro_folder, tmp_path)))
    assert plain.protocol.as_dict()["budget"] == {"name": "quick", "train_images": 48, "eval_items": 12}
    for config in (
        RunConfig(),
        RunConfig(method="t2i-adapter", task="layout", seed=2, options={"timesteps": "uniform"}),
    ):
        identity = identify(resolve(replace(config, device="cpu")))
        record = kept_record(ROOT / "results" / "emoji" / identity.run_id)
        assert record.protocol_hash == identity.protocol.hash and record.run_id == identity.run_id
        assert (record.method, record.task, record.seed) == (config.method, config.task, config.seed)


@pytest.mark.parametrize(
    "changes",
    [
        {"sample_batch": 7},
        {"checkpoint_every": 3},
        {"checkpoint_minutes": 3.0},
        {"micro_batch": 2},
        {"gradient_checkpointing": True},
        {"shuffled": False},
        {"blank": False},
        {"results": Path("elsewhere")},
    ],
    ids=str,
)
def test_how_a_run_is_carried_out_is_no_part_of_what_it_is(
    micro_folder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    plain = micro(micro_folder, tmp_path)
    assert identify(resolve(replace(plain, **changes))) == identify(resolve(plain))
