"""The paper's suite on a COCO of a few pictures: prepare, train, sample and score, at the paper's size."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import cli
from bench.ablations import ABLATIONS, ABLATIONS_FOLDER
from bench.base.load import load_base
from bench.cli.options import read_config
from bench.config import Budget, RunConfig, Sampler, Suite, Training, make_config
from bench.data.coco import Recipe
from bench.data.coco.dataset import Coco17
from bench.data.coco.draw import canny_lines
from bench.data.coco.prepare import prepare_coco17
from bench.grid import plan_ablation
from bench.judges import judge_card
from bench.packed import load_run
from bench.record import load_record
from bench.reporting.compare import build_ablations
from bench.reporting.tables import ablation_text
from bench.reporting.words import command_line
from bench.running import Run, identify
from bench.running import _asked as asked_again
from bench.suites import COCO17, find_data, resolve
from bench.tune import tune_rates
from bench.types import BenchError, Hooks
from tests.asking import made
from tests.bases import write_narrow_base
from tests.coco_fixture import build_coco, picture_of

RUNNER = CliRunner()
SMALL = {
    "feature_judge": "efficientnet-lite0",
    "clip_judge": None,
    "training": Training(batch=4, mirror=False, loss="eps"),
    "sampler": Sampler(name="ddim", steps=2, guidance=7.5),
    "budgets": {"standard": Budget(name="standard", train_images=8, eval_items=None)},
}


def bench(*words: object) -> Any:
    return RUNNER.invoke(cli.app, [str(w) for w in words])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_coco(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="module")
def leaky(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("leaky")
    recipe = Recipe(size=64, sketch="canny", splits="release-leaky", tasks=("segmentation", "layout"))
    prepare_coco17(root, out, recipe=recipe)
    return out


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Suite:
    """The suite with judges that are at hand, and budgets of seconds."""
    suite = dataclasses.replace(COCO17, **SMALL)  # type: ignore[arg-type]
    monkeypatch.setattr("bench.suites.COCO17", suite)
    return suite


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random base of Stable Diffusion 1.5's shape, narrow: eps, factor 8, latents of 64x64 at 512 px."""
    return write_narrow_base(tmp_path_factory.mktemp("narrow") / "base")


def test_the_suite_is_the_papers() -> None:
    suite = COCO17
    assert (suite.training.batch, suite.training.loss, suite.training.mirror) == (16, "eps", False)
    assert (suite.sampler.name, suite.sampler.steps, suite.sampler.guidance) == ("ddim", 50, 7.5)
    assert suite.learning_rate == 1e-5 and suite.eval_side == "val" and suite.base is None
    paper = suite.budget("paper")
    assert paper.train_images == 16 * 118_287 and paper.eval_items is None


def test_without_data_or_judges_it_says_what_to_do(
    leaky: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("BENCH_COCO17", raising=False)
    answer = bench("data", "verify", "--suite", "coco17")
    assert answer.exit_code == 2 and "bench data prepare coco17" in answer.stderr
    monkeypatch.setenv("BENCH_COCO17", str(leaky))
    assert find_data(RunConfig(suite="coco17")).dataset().name == "coco17 release-leaky"
    with pytest.raises(BenchError, match="brings its own data"):
        find_data(RunConfig(suite="emoji", data=leaky))
    with pytest.raises(BenchError, match="brings no base model"):
        resolve(RunConfig(suite="coco17", data=leaky))
    monkeypatch.delenv("BENCH_JUDGES", raising=False)
    name, stem = "open-clip/ViT-B-16-quickgelu/openai", "open-clip-ViT-B-16-quickgelu-openai"
    with pytest.raises(BenchError, match=rf"{stem}\.\* .*BENCH_JUDGES"):
        judge_card(name)
    monkeypatch.setenv("BENCH_JUDGES", str(tmp_path))
    (tmp_path / f"{stem}.safetensors").write_bytes(b"weights")
    assert judge_card(name).name.startswith("ViT-B-16-quickgelu/openai ")
    (tmp_path / f"{stem}.pt").write_bytes(b"other weights")
    with pytest.raises(BenchError, match="2 files for 'open-clip"):
        judge_card(name)


def test_commands_read_prepared_data(leaky: Path, tmp_path: Path) -> None:
    answer = bench("data", "verify", "--suite", "coco17", "--data", leaky)
    assert answer.exit_code == 1 and "FAIL shared id: 10 items shared" in answer.stderr
    answer = bench("data", "export", tmp_path, "--suite", "coco17", "--data", leaky, "--side", "val")
    assert answer.exit_code == 0 and len(list(tmp_path.glob("*.png"))) == 10, answer.output
    found = json.loads(bench("audit", "--suite", "coco17", "--data", leaky, "--json").stdout)
    assert found["failed"] and found["items"] == {"train": 21, "val": 10, "test": 0}
    assert found["looks"][0]["checked"]["limits"] == {"image": 0.97}


@pytest.mark.slow
def test_release_leaky_needs_leave_and_is_marked(
    small: Suite, leaky: Path, micro_folder: Path, tmp_path: Path
) -> None:
    words = [
        "run",
        "--suite",
        "coco17",
        "--data",
        leaky,
        "--base",
        micro_folder,
        "--device",
        "cpu",
        "--task",
        "segmentation",
        "--method",
        "text-only",
        "--no-shuffled",
        "--results",
        tmp_path / "runs",
    ]
    answer = bench(*words)
    assert answer.exit_code == 2 and "LEAK: 10 evaluation items" in answer.stderr
    assert bench(*words, "--side", "test").stderr.count("has no items on its side 'test'") == 1
    answer = bench(*words, "--allow-leak")
    assert answer.exit_code == 0 and "LEAK: 10 evaluation items" in answer.stdout, answer.output
    record = load_record(next((tmp_path / "runs").glob("coco17-*")))
    assert record.leaked == 10 and record.protocol["data"]["splits"] == "release-leaky"
    assert record.metrics["miou"].value is None  # no rule reads classes from photographs
    assert record.metrics["fd"].value is not None


@pytest.mark.parametrize(
    "size,precision", [(128, "bf16"), (128, "fp32"), pytest.param(512, "fp32", marks=pytest.mark.slow)]
)
def test_the_whole_way(
    small: Suite, root: Path, narrow: Path, tmp_path: Path, size: int, precision: str
) -> None:
    """Official folders with all their faults -> prepared data -> train, sample, score; also at 512 px."""
    out = tmp_path / "prepared"
    prepare_coco17(root, out, recipe=Recipe(size=size, sketch="canny", tasks=("sketch",)))
    config = RunConfig(suite="coco17", base=narrow, data=out, results=tmp_path / "runs", device="cpu")
    run = made(config, sample_batch=4, shuffled=False, precision=precision, ema=0.5)
    assert len(run.eval_data) == 10 and run.eval_data.latent_shape == (4, size // 8, size // 8)
    record = run.all()
    assert record.splits.train.n == 11 and record.splits.eval.name == "val" and record.leaked == 0
    assert record.cost.train_images == 8 and record.cost.parameters_dead == 0
    assert record.attribution.startswith("Captions and annotations: COCO 2017")
    found = record.metrics["sketch_f1"].value
    assert found is not None and 0 <= found <= 1
    real = record.rows["autoencoder"]["fd"].value
    assert real is not None and np.isfinite(real) and record.protocol["data"]["size"] == f"{size}x{size}"
    for item in run.eval_ids:
        with Image.open(run.work / "samples" / f"{item}.png") as image:
            assert image.size == (size, size)
    with Image.open(run.folder / "contact.png") as sheet:
        assert max(sheet.size) <= 10 * 260 and min(sheet.size) <= 3 * 260, "tiles of 256 px at most"
    assert set(json.loads((run.work / "samples.json").read_text())) == set(run.eval_ids)
    assert load_base(narrow).prediction == "epsilon"
    asked = {"--base": "base", "--data": "prepared", "--precision": precision, "--ema": "0.5"}
    for flag, value in asked.items():
        assert f" {flag} {value}" in command_line(record), "the command does this run again"
    again = dataclasses.replace(
        make_config(read_config(str(run.folder / "record.json"))), base=narrow, data=out
    )
    assert identify(resolve(again)).run_id == run.id, "and so does the record"
    older = command_line(
        dataclasses.replace(record, config={}, protocol={**record.protocol, "eval_side": "test"})
    )
    assert "--ema 0.5 " in older and "--side test " in older
    assert ("--precision bf16 " in older) == (precision == "bf16")


def test_the_recipe_as_released_is_one_flag_and_one_hash(
    small: Suite, root: Path, narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"size": 128, "sketch": "canny", "tasks": ("sketch",), "resize": "squash"}
    for lines in ("square", "photo"):
        prepare_coco17(root, tmp_path / lines, recipe=Recipe(**how, lines=lines))  # type: ignore[arg-type]
    square, photo = (Coco17(tmp_path / lines) for lines in ("square", "photo"))
    item = square.ids[0]
    assert np.array_equal(square[item].image, photo[item].image)
    lines, edges = photo[item].layers["sketch"], canny_lines(np.asarray(picture_of(int(item)).convert("RGB")))
    assert not np.array_equal(lines, square[item].layers["sketch"]) and "own size" in photo.protocol["sketch"]
    assert abs(float(lines.mean()) - float(edges.mean())) < 8, "an area keeps the mean"
    config = RunConfig(suite="coco17", base=narrow, data=tmp_path / "photo", device="cpu", results=tmp_path)
    released = resolve(dataclasses.replace(config, as_released=True))
    training = released.suite.training
    assert (training.schedule, training.clip_norm, training.latents) == ("constant", 0.0, "sample")
    assert training.batch == 16 and released.learning_rate == 1e-5
    assert identify(released).protocol.hash != identify(resolve(config)).protocol.hash
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("BENCH_COCO17", str(tmp_path / "photo"))
    by_four = resolve(dataclasses.replace(config, as_released=True, data=None))
    assert by_four.suite.training.batch == 64
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("BENCH_COCO17")
    again: Any = SimpleNamespace(spec=by_four, dataset=photo)
    again = resolve(asked_again(again))  # what the record says, read without launcher and environment
    assert (again.config.data, again.suite.training.batch) == (photo.folder, 64)
    refused = dataclasses.replace(config, as_released=True, data=tmp_path / "square")
    with pytest.raises(BenchError, match="--resize squash --lines photo"):
        identify(resolve(refused))
    run = made(config, as_released=True, train_batch=4, sample_batch=4, shuffled=False, captions="random")
    assert run.all().protocol["training"]["captions"] == "random"
    with pytest.raises(BenchError, match="--resize squash"):
        Recipe(lines="photo")


def test_rates_are_chosen_on_pictures_of_train2017_that_are_then_left_out(
    small: Suite, root: Path, narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.data.coco.dataset._HELD_OUT", 4)
    prepare_coco17(root, tmp_path / "data", recipe=Recipe(size=64, sketch="canny", tasks=("sketch",)))
    config = RunConfig(suite="coco17", base=narrow, data=tmp_path / "data", results=tmp_path, device="cpu")
    plain, tune = (resolve(dataclasses.replace(config, side=side)) for side in (None, "tune"))
    whole, splits = plain.suite.splits(), tune.suite.splits()
    assert len(splits.tune) == 2 and {*splits.tune, *splits.train} == {*whole.train}
    assert not {*splits.tune} & {*splits.train} and splits.val == whole.val
    assert splits.digest != whole.digest and identify(tune).protocol.eval_side == "tune"
    same = dataclasses.replace(config, side="val")
    with pytest.raises(BenchError, match="--side tune"):
        tune_rates([same], rates=("1e-5",), out=tmp_path, hooks=Hooks(), say=print)
    monkeypatch.setattr("bench.data.coco.dataset.compare", lambda a, b, cache: Twins(a, b))
    assert len(tune.suite.splits().train) == len(splits.train) - 1, "what looks like one is left out"


def test_the_leak_experiment_trains_on_the_evaluation_items_too(
    small: Suite, root: Path, narrow: Path, tmp_path: Path
) -> None:
    """Of the same data one run is clean, the other leaks; a table says by how much their numbers differ."""
    prepare_coco17(root, tmp_path / "data", recipe=Recipe(size=128, sketch="canny", tasks=("sketch",)))
    config = RunConfig(suite="coco17", base=narrow, data=tmp_path / "data", device="cpu", sample_batch=10)
    config = dataclasses.replace(config, results=tmp_path / "runs")
    planned = plan_ablation(ABLATIONS["leak"], config, tasks=(), seeds=(0,))
    clean, leaky = (Run(entry.spec).all() for entry in planned)
    assert (clean.leaked, leaky.leaked) == (0, 10)
    assert leaky.splits.train.n == clean.splits.train.n + 10 and leaky.splits.eval == clean.splits.eval
    told = {**clean.protocol, "training": {**clean.protocol["training"], "leaky": True}}
    assert leaky.protocol == told and leaky.protocol_hash != clean.protocol_hash
    assert planned[1].folder.parent.name == ABLATIONS_FOLDER
    (table,) = build_ablations([load_run(entry.folder) for entry in planned])
    text = ablation_text(table)
    assert table.ablation.name == "leak" and "LEAK: 10 items" in text and "FD" in text


class Twins:
    """An answer that the first of both sides are one picture."""

    def __init__(self, first: Any, second: Any) -> None:
        pairs = ((first.ids[0], second.ids[0]),)
        self.findings = (SimpleNamespace(pairs=pairs),)


def test_a_planted_twin_stops_a_run_before_it_begins(
    small: Suite, micro_folder: Path, tmp_path: Path
) -> None:
    recipe = Recipe(size=64, sketch="canny", tasks=("sketch",), duplicates="keep")
    prepare_coco17(build_coco(tmp_path / "coco", planted=True), tmp_path / "out", recipe=recipe)
    answer = bench(
        "run",
        "--suite",
        "coco17",
        "--data",
        tmp_path / "out",
        "--base",
        micro_folder,
        "--method",
        "text-only",
        "--results",
        tmp_path / "runs",
    )
    assert answer.exit_code == 2 and "000000000012 = 000000000108" in answer.stderr
    assert not (tmp_path / "runs").exists()


def test_configurations_pass_the_data_on() -> None:
    config = RunConfig(suite="coco17", data=Path("prepared"))
    assert config.as_dict()["data"] == "prepared" and " --data prepared" in config.command()
