"""`bench export` and `bench run --weights`: what leaves a run comes back as the same samples."""

from __future__ import annotations

import functools
import json
import re
import shlex
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

import cli
from baselines.inputs import embedding_widths
from bench import registry
from bench.base.random import write_random_base
from bench.base.weights import Weights, open_source
from bench.config import RunConfig
from bench.content import sha256_file
from bench.record import load_record, write_record
from bench.reporting.tables import model_card
from bench.reporting.words import command_line
from bench.training.checkpoint import Trainable, save_weights
from bps import BPSAdapter, StableDiffusionBPSPipeline
from tests.loading import moved

METHODS = sorted(name for name in registry.names("method", ["all"]) if name != "text-only")
RUNNER = CliRunner()


def bench(*args: object, code: int = 0) -> Any:
    answer = RUNNER.invoke(cli.app, [str(a) for a in args])
    assert answer.exit_code == code, answer.output
    return answer


def run(base: Path, results: Path, method: str, *more: object, code: int = 0) -> Any:
    return bench(
        *("run", "--suite", "micro", "--base", base, "--results", results, "--device", "cpu"),
        *("--method", method, "--no-floor", "--no-shuffled", *more),
        code=code,
    )


@pytest.fixture(scope="module")
def ran(micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of BPS, from nothing to its record."""
    results = tmp_path_factory.mktemp("ran")
    run(micro_folder, results, "bps")
    (folder,) = results.glob("micro-*")
    return folder


@pytest.fixture(scope="module")
def exported(ran: Path, micro_base: Any, micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return (run folder, exported folder) of a method, made once; runs of others are made up of that of BPS.

    Their weights are random.
    """
    root = tmp_path_factory.mktemp("exported")

    @functools.cache
    def run_of(method: str) -> Path:
        return ran if method == "bps" else made_up(method, ran, micro_base, root)

    @functools.cache
    def get(method: str, *more: str) -> tuple[Path, Path]:
        out = root / f"{method}-{len(more)}"
        bench("export", run_of(method), out, "--base", micro_folder, *more)
        return run_of(method), out

    return get


def made_up(method: str, ran: Path, base: Any, root: Path) -> Path:
    folder, chosen = root / f"run-{method}", registry.load("method", method)
    record = load_record(ran)
    options = {**json.loads(json.dumps(chosen.options)), "learning_rate": 1e-3}
    config = {**record.config, "method": method}
    write_record(folder, replace(record, method=method, options=options, config=config, artifacts={}))
    if method != "text-only":
        save_weights(folder / "work/adapter.safetensors", Trainable(moved(method, base)))
    return folder


@pytest.fixture(scope="module")
def given(exported: Any, micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that evaluates the exported BPS without training it."""
    results = tmp_path_factory.mktemp("given")
    run(micro_folder, results, "bps", "--weights", exported("bps")[1], "--no-train")
    (folder,) = results.glob("micro-*")
    return folder


@pytest.fixture(scope="module")
def warm(exported: Any, micro_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that trains on from the exported BPS at a learning rate of nearly 0."""
    results = tmp_path_factory.mktemp("warm")
    rate = ("--learning-rate", "1e-12")
    run(micro_folder, results, "bps", "--weights", exported("bps")[1], *rate)
    (folder,) = results.glob("micro-*")
    return folder


def images_of(folder: Path) -> dict[str, str]:
    return {p.name: sha256_file(p) for p in sorted((folder / "work/samples").glob("*.png"))}


@pytest.mark.parametrize("method", METHODS)
def test_what_is_exported_can_be_read_by_whom_the_umask_lets(exported: Any, method: str) -> None:
    _, out = exported(method)
    modes = {p.stat().st_mode for p in out.rglob("*") if p.is_file()}
    assert len(modes) == 1 and not list(out.parent.glob(".*"))


def test_an_export_evaluated_without_training_gives_the_runs_samples(exported: Any, given: Path) -> None:
    trained, weights = exported("bps")
    assert not [p for p in weights.rglob("*") if p.suffix in (".bin", ".pt", ".ckpt", ".pth")]
    samples = images_of(given)
    assert len(samples) == 12 and samples == images_of(trained)


def test_the_record_says_where_the_weights_came_from_and_what_nobody_knows(
    exported: Any, given: Path
) -> None:
    (trained, weights), record = exported("bps"), load_record(given)
    file, ours = "diffusion_pytorch_model.safetensors", load_record(trained)
    assert record.protocol_hash == ours.protocol_hash and record.metrics == ours.metrics
    assert record.run_id != ours.run_id and "work/adapter.safetensors" not in record.artifacts
    assert record.cost.train_images == 0 and record.cost.train_seconds is None
    assert record.weights is not None and record.leaks is not None
    assert record.weights.name == weights.name and record.weights.train_images == 0
    assert record.weights.files[file] == sha256_file(weights / file)
    assert record.leaks.training.status == "unknown" and record.leaks.training.items is None
    assert record.leaks.pretraining.status == "unknown" and record.leaked == 0
    words = command_line(record).split()
    assert "--no-train" in words and words[words.index("--weights") + 1] == weights.name
    assert not any("weights=" in word or "no_train" in word for word in words)


def test_tables_mark_weights_from_outside(exported: Any, given: Path, tmp_path: Path) -> None:
    trained, weights = exported("bps")
    for folder in (trained, given):
        shutil.copytree(folder, tmp_path / "results" / folder.name)
    bench("report", "--results", tmp_path / "results", "--out", tmp_path / "report")
    text = (tmp_path / "report/table-micro-sketch.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| BPS")]
    assert len(lines) == 2
    assert sum("NOT TRAINED HERE" in line and weights.name in line for line in lines) == 1
    notes = (tmp_path / "report/report.md").read_text()
    assert "0 training images here" in notes
    assert "Their training data are unknown" in notes
    assert "Their training data are unknown" in bench("show", given).output
    said = bench("show", given, "--diff", trained).output
    assert "weights from outside: name is" in said and "option no_train is true here" in said


@pytest.mark.slow
def test_training_goes_on_from_given_weights(
    exported: Any, warm: Path, micro_folder: Path, tmp_path: Path
) -> None:
    """At a learning rate of nearly 0 a warm start ends where it began."""
    before, after = (load_file(f / "work/adapter.safetensors") for f in (exported("bps")[0], warm))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-7) for name in before)
    assert any(bool(tensor.any()) for name, tensor in after.items() if ".emit." in name)
    record = load_record(warm)
    assert record.weights is not None and record.weights.train_images == 48
    assert record.leaks is not None and record.leaks.training.status == "unknown"
    assert "clean among" in record.leaks.training.about
    shutil.copytree(warm, tmp_path / "results" / warm.name)
    bench("report", "--results", tmp_path / "results", "--out", tmp_path / "report")
    assert "WEIGHTS FROM OUTSIDE" in (tmp_path / "report/table-micro-sketch.md").read_text()
    assert "trained on from there, 48 images" in (tmp_path / "report/report.md").read_text()
    bench("export", warm, tmp_path / "again", "--base", micro_folder)  # it was trained here too
    assert BPSAdapter.from_pretrained(tmp_path / "again") is not None


@pytest.mark.slow
def test_a_published_network_of_three_channels_sees_the_sketch_repeated(
    micro_folder: Path, micro_base: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = diffusers.ControlNetModel.from_unet(
        micro_base.unet,
        conditioning_channels=3,
        conditioning_embedding_out_channels=embedding_widths(4),
    )
    net.save_pretrained(tmp_path / "scribble")
    results = tmp_path / "results"
    asked = ("--weights", tmp_path / "scribble", "--no-train")
    refused = run(micro_folder, results, "controlnet", *asked, code=2)
    assert "--condition-channels repeat" in refused.stderr and "Traceback" not in refused.output
    run(micro_folder, results, "controlnet", *asked, "--condition-channels", "repeat", "--invert-condition")
    (folder,) = [p.parent for p in results.glob("micro-*/record.json")]
    record = load_record(folder)
    assert record.weights is not None and record.weights.condition == "repeat, invert"
    assert record.options["condition_channels"] == "repeat"
    assert {"--invert-condition", "--condition-channels"} <= set(command_line(record).split())


def test_a_grids_runs_ask_for_the_same_weights_in_words(tmp_path: Path) -> None:
    """A run of a grid is handed its configuration; the floor beside it has no weights from outside."""
    config = RunConfig(
        suite="micro",
        method="controlnet",
        seed=1,
        results=tmp_path,
        weights=tmp_path / "w",
        train=False,
        condition_channels="repeat",
        invert_condition=True,
    )

    def asked(*words: str) -> dict[str, Any]:
        return yaml.safe_load(bench(*words, "--print-config").stdout)

    def handed(one: RunConfig) -> dict[str, Any]:
        return asked("run", "--no-floor", "--config", json.dumps(one.as_dict()))

    found, plain = handed(config), handed(config.without_weights())
    assert found == asked(*shlex.split(config.command())[1:])
    assert found["weights"] == str(tmp_path / "w") and found["train"] is False
    assert found["condition_channels"] == "repeat" and found["invert_condition"] is True
    assert not {"weights", "train", "condition_channels", "invert_condition"} & set(plain)


BAD = [
    (["bps", "--no-train"], "need --weights PATH"),
    (["bps", "--condition-channels", "repeat"], "need --weights PATH"),
    (["bps", "--weights", "/nowhere"], "no such folder or file"),
    (["bps,controlnet", "--weights", "/nowhere"], "belong to one method, got bps, controlnet"),
    (["bps", "--weights", "/", "--condition-channels", "repat"], "repat"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(w) for w, _ in BAD])
def test_bad_input_gets_a_message(micro_folder: Path, tmp_path: Path, words: list[str], message: str) -> None:
    answer = run(micro_folder, tmp_path, *words, code=2)
    assert message in answer.stderr and "Traceback" not in answer.output


def test_what_cannot_be_exported_says_why(
    exported: Any, given: Path, micro_folder: Path, micro_base: Any, tmp_path: Path
) -> None:
    folder, weights = exported("bps")
    base = ("--base", micro_folder)
    answer = bench("export", folder, weights, *base, code=2)
    assert "exists and is not empty" in answer.stderr
    floor = made_up("text-only", folder, micro_base, tmp_path)
    answer = bench("export", floor, tmp_path / "a", *base, code=2)
    assert "trains nothing that could be exported" in answer.stderr
    answer = bench("export", given, tmp_path / "b", *base, code=2)
    assert "trained nothing" in answer.stderr
    emoji = Path(cli.__file__).parent / "bench/emoji/assets/emoji-sd-v1"
    answer = bench("export", folder, tmp_path / "c", "--base", emoji, code=2)
    assert "another base" in answer.stderr
    assert not list(tmp_path.glob(".*")) and not (tmp_path / "c").exists()


def test_the_card_is_filled_from_the_record(exported: Any) -> None:
    folder, weights = exported("bps")
    record, card = load_record(folder), (weights / "README.md").read_text()
    for said in (
        record.protocol_hash,
        record.run_id,
        record.attribution,
        str(record.protocol["splits"]),
        str(record.protocol["base"]),
        "48 images",
        "CC BY-SA 4.0",
        "12 items of the side test",
        "BPSAdapter.from_pretrained",
        "TOO FEW ITEMS",
    ):
        assert said in card, said
    line = next(x for x in card.splitlines() if x.startswith("line F1"))
    assert f"{record.metrics['sketch_f1'].value:.2f}"[:4] in line
    assert json.loads((weights / "record.json").read_text())["run_id"] == record.run_id
    assert "MIT" in (weights / "LICENSE.md").read_text()
    assert str(folder.parent) not in card


def drawn_by_code(page: Path, tmp_path: Path, *, base: Path, folder: Path) -> dict[str, Any]:
    """Execute a page's Python as a reader would who puts in two paths; return the names it defines.

    The base names a safety checker, as the published ones do, and does not hold it.
    """
    named = tmp_path / "named"
    if not named.exists():
        shutil.copytree(base, named)
        index = json.loads((named / "model_index.json").read_text())
        checker = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
        checker |= {"feature_extractor": ["transformers", "CLIPImageProcessor"]}
        needs = {"requires_safety_checker": True}  # as SD 1.5's index does
        (named / "model_index.json").write_text(json.dumps({**index, **checker, **needs}))
    found: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        filled = code.replace('"BASE"', repr(str(named))).replace('"DIR', f'"{folder}')
        found = {}
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*(is|are) deprecated")
            exec(compile(filled, page.name, "exec"), found)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)  # seven processes, each of which starts and loads all
def test_one_command_makes_weights_of_every_method_from_which_a_newcomer_draws(tmp_path: Path) -> None:
    """As docs/commands.md has it, on the embedded suite; little is trained, sampled and scored."""
    asked = "bench run --method all --task sketch --seed 0"
    assert asked in (Path(cli.__file__).parent / "docs/commands.md").read_text()
    little = ("--train-images", 32, "--limit", 10, "--sampling-steps", 1, "--no-shuffled", "--no-blank")
    bench(*asked.split()[1:], *little, "--device", "cpu", "--results", tmp_path / "runs")
    runs = {load_record(folder).method: folder for folder in (tmp_path / "runs").glob("emoji-*")}
    assert set(runs) == {*METHODS, "text-only"}
    for method in METHODS:
        out = tmp_path / method
        bench("export", runs[method], out)
        card = (out / "README.md").read_text()
        assert "BASE: emoji-sd-v1, in bench/emoji/assets" in card and "\ndatasets:\n- openmoji\n" in card
        base = Path(cli.__file__).parent / "bench/emoji/assets/emoji-sd-v1"
        assert drawn_by_code(out / "README.md", tmp_path, base=base, folder=out)["image"].size == (64, 64)


def weights_of(method: str, folder: Path, base: Any) -> dict[str, Any]:
    """Return what a method holds after it was given the weights of a folder."""
    chosen = registry.load("method", method)
    denoiser = chosen.build(base, registry.load("task", "sketch"), **chosen.options)
    source = open_source(Weights(path=folder), chosen)
    assert source is not None
    chosen.load(denoiser, source)
    return Trainable(denoiser).state_dict()


LATE = ("controlnet-xs", "lora-concat", "sd-finetune")  # the others tell as much, sooner


@pytest.mark.parametrize("method", [pytest.param(m, marks=[pytest.mark.slow] * (m in LATE)) for m in METHODS])
def test_a_whole_pipeline_and_weights_alone_draw_by_their_cards_code_and_come_back(
    exported: Any, micro_folder: Path, micro_base: Any, tmp_path: Path, method: str
) -> None:
    weights, out = exported(method)[1], exported(method, "--with-base")[1]
    for place in (weights, out):
        drawn = drawn_by_code(place / "README.md", tmp_path, base=micro_folder, folder=place)
        assert drawn["image"].size == (64, 64) and drawn["condition"].shape == (1, 1, 64, 64)
    kind = json.loads((out / "model_index.json").read_text())["_class_name"]
    assert kind in (out / "README.md").read_text() or method == "lora-concat"
    states = [weights_of(method, place, micro_base) for place in (out, weights)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_the_readmes_code_runs(tmp_path: Path) -> None:
    base = write_random_base(tmp_path / "base", width=32, size=128)
    unet = diffusers.UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    BPSAdapter.from_unet(unet, condition_channels=1, downscale_factor=8).save_pretrained(tmp_path / "bps")
    page = tmp_path / "short.md"  # of fewer steps
    readme = (Path(cli.__file__).parent / "README.md").read_text()
    shorter = readme.replace("image=sketch)", "image=sketch, num_inference_steps=1)").replace("512", "128")
    page.write_text(shorter.replace("64, 64", "16, 16"))
    found = drawn_by_code(page, tmp_path, base=base, folder=tmp_path / "bps")
    assert found["image"].size == (128, 128)


def test_a_card_names_a_base_of_the_hub_alone(exported: Any) -> None:
    folder, weights = exported("bps")
    assert "base_model" not in (weights / "README.md").read_text()
    about = {"title": "BPS", "source": "", "whole": False, "licence": (), "usage": "", "condition": ""}
    card = model_card(load_record(folder), base=f"somebody/sd@{'0' * 40}", **about)
    assert "\nbase_model: somebody/sd\n" in card


def disc(size: int = 64) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - size / 2
    return (np.hypot(x, y) < size / 4).astype(np.float32)


def image(pipe: Any, condition: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe(
        "red heart",
        image=condition,
        num_inference_steps=2,
        output_type="np",
        generator=torch.Generator().manual_seed(0),
    )
    return drawn.images[0]


def test_three_lines_make_an_image_of_an_exported_bps(exported: Any, micro_folder: Path) -> None:
    adapter = BPSAdapter.from_pretrained(exported("bps")[1])
    pipe = StableDiffusionBPSPipeline.from_pretrained(
        micro_folder, adapter=adapter, torch_dtype=torch.float32
    )
    drawn = image(pipe, disc())
    assert drawn.shape == (64, 64, 3) and np.isfinite(drawn).all()
    assert np.abs(drawn - image(pipe, 1 - disc())).max() > 1e-3
    whole = StableDiffusionBPSPipeline.from_pretrained(exported("bps", "--with-base")[1])
    assert np.abs(image(whole, disc()) - drawn).max() < 1e-5
